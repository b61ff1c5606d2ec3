//! Waiting until the kernel is sure that IPv6 addresses are this host's alone: RFC 4862 section 5.4.
//!
//! Promises: an address that another host has, or of which nobody can be sure in time, is taken off its interface again,
//! and said to be.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use nix::errno::Errno;
use portreeve_protocol::{Fault, FaultCode};
use tokio::time::{Instant, sleep};

use super::add::{conflict, those};
use super::{Addresses, fault};
use crate::sys::rtnl::{self, Place};

/// How long the kernel may take.
const SETTLING: Duration = Duration::from_secs(5);
/// How often it is asked.
const LOOK: Duration = Duration::from_millis(50);

impl Addresses {
    /// Waits until the kernel is sure that IPv6 addresses are this host's alone; gives those that are not.
    pub(super) async fn settle(&self, places: &[Place]) -> HashMap<IpAddr, Fault> {
        let mut waiting: Vec<Place> =
            places.iter().copied().filter(|place| place.address.is_ipv6()).collect();
        let mut failed = HashMap::new();
        let end = Instant::now() + SETTLING;
        while !waiting.is_empty() {
            sleep(LOOK).await;
            waiting.retain(|place| match rtnl::look(&self.route, place) {
                Ok(present) if present.duplicate => {
                    failed.insert(place.address, conflict(place.address, None));
                    false
                }
                Ok(present) => present.tentative,
                // With a lifetime the kernel deletes what has failed.
                Err(Errno::EADDRNOTAVAIL) => {
                    failed.insert(place.address, conflict(place.address, None));
                    false
                }
                Err(errno) => {
                    failed.insert(place.address, fault::of_address("RTM_GETADDR", place.address, errno));
                    false
                }
            });
            if Instant::now() >= end {
                let late = |place: &Place| {
                    let message = format!("{} is tentative still", place.address);
                    let fault = Fault::new(FaultCode::Tentative, &message);
                    (place.address, fault.remedy("see whether its interface has a carrier, and add it again"))
                };
                failed.extend(waiting.drain(..).map(|place| late(&place)));
            }
        }
        self.take_back(&those(places, &failed));
        failed
    }
}
