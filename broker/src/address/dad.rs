//! Waits for the kernel's duplicate address detection of IPv6 addresses: RFC 4862 section 5.4.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use nix::errno::Errno;
use portreeve_protocol::Fault;
use tokio::time::{Instant, sleep};

use super::fault;
use crate::sys::Netlink;
use crate::sys::rtnl::{self, Placement};

/// How long the detection may take.
pub const TIMEOUT: Duration = Duration::from_secs(5);
/// The time between two checks of the addresses.
const INTERVAL: Duration = Duration::from_millis(50);

/// Waits until the IPv6 addresses are no longer tentative. Returns those that another host has, and those whose detection
/// does not end in time.
pub(super) async fn wait(route: &Netlink, placements: &[Placement]) -> HashMap<IpAddr, Fault> {
    let mut tentative: Vec<Placement> =
        placements.iter().copied().filter(|placement| placement.address.is_ipv6()).collect();
    let mut failed = HashMap::new();
    let end = Instant::now() + TIMEOUT;
    while !tentative.is_empty() {
        sleep(INTERVAL).await;
        tentative.retain(|placement| {
            let address = placement.address;
            let fault = match rtnl::get_ipv6(route, placement) {
                Ok(current) if current.duplicate => fault::conflict(address, None),
                Ok(current) => return current.tentative,
                // The kernel removes a duplicate that has a lifetime.
                Err(Errno::EADDRNOTAVAIL) => fault::conflict(address, None),
                Err(errno) => fault::address_failed("RTM_GETADDR", address, errno),
            };
            failed.insert(address, fault);
            false
        });
        if Instant::now() >= end {
            let late = |placement: Placement| (placement.address, fault::tentative(placement.address));
            failed.extend(tentative.drain(..).map(late));
        }
    }
    failed
}
