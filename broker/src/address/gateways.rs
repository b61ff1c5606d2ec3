//! The gateways of the host's routes, for announcements to known neighbours only: are they all known?
//!
//! Promises: a host with any number of routes serves its peers meanwhile: the routes are read a piece at a time, and reading
//! takes at most a tenth of the time. In doubt the answer is no, and the announcement goes to all hosts.

use std::cell::RefCell;
use std::collections::HashSet;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::SockProtocol;
use tokio::sync::Notify;

use crate::sys::Netlink;
use crate::sys::neighbour::{self, Gateway};

/// The largest number of gateways that are remembered. With more, the answer is no.
const MAX_GATEWAYS: usize = 4096;
/// A list that is so much older than an announcement still serves it.
const MAX_AGE: Duration = Duration::from_secs(1);
/// The pause after a list, as a multiple of the time that it took.
const PAUSES: u32 = 9;

/// The gateways at one time.
#[derive(Debug)]
struct Listing {
    /// When the kernel was asked.
    began: Instant,
    gateways: HashSet<Gateway>,
    /// Whether there may be others.
    is_partial: bool,
}

/// The last list of gateways.
pub(super) struct Gateways {
    netlink: Netlink,
    last: RefCell<Option<Listing>>,
    wanted: Notify,
}

impl Gateways {
    /// Opens its socket.
    ///
    /// # Errors
    /// Those of [`Netlink::open`].
    pub fn open() -> nix::Result<Self> {
        let netlink = Netlink::open(SockProtocol::NetlinkRoute)?;
        Ok(Self { netlink, last: RefCell::default(), wanted: Notify::new() })
    }

    /// Asks for a new list, for an announcement that begins now, unless the last one is recent enough.
    pub fn request(&self) {
        if self.last.borrow().as_ref().is_none_or(|last| last.began.elapsed() > MAX_AGE) {
            self.wanted.notify_one();
        }
    }

    /// Whether every gateway of the interface's routes, for the family of the announced address, is one of these hosts: by a list
    /// that is recent enough for an announcement that began at this time.
    pub fn are_among(&self, hosts: &[IpAddr], index: u32, announced: IpAddr, began: Instant) -> bool {
        let last = self.last.borrow();
        let recent = last.as_ref().filter(|last| last.began + MAX_AGE >= began && !last.is_partial);
        recent.is_some_and(|last| {
            let mut at_interface = last.gateways.iter().filter(|gateway| {
                gateway.index == index
                    && gateway.is_of_ipv4 == announced.is_ipv4()
                    && gateway.address != announced
            });
            at_interface.all(|gateway| hosts.contains(&gateway.address))
        })
    }

    /// Lists the gateways whenever that is asked for.
    pub async fn run(self: Rc<Self>) {
        loop {
            self.wanted.notified().await;
            let began = Instant::now();
            match self.list(began).await {
                Ok(listing) => drop(self.last.replace(Some(listing))),
                Err(errno) => {
                    tracing::warn!(error = %errno, "cannot list the routes; announcing to all hosts");
                }
            }
            tokio::time::sleep(began.elapsed() * PAUSES).await;
        }
    }

    async fn list(&self, began: Instant) -> Result<Listing, Errno> {
        let mut listing = Listing { began, gateways: HashSet::new(), is_partial: false };
        let mut dump = neighbour::begin_routes(&self.netlink)?;
        loop {
            let more = neighbour::continue_routes(&self.netlink, &mut dump, |found| match found {
                Some(gateway) if listing.gateways.len() < MAX_GATEWAYS => {
                    listing.gateways.insert(gateway);
                }
                Some(gateway) => listing.is_partial |= !listing.gateways.contains(&gateway),
                None => listing.is_partial = true,
            })?;
            if !more {
                listing.is_partial |= dump.was_interrupted();
                return Ok(listing);
            }
            tokio::task::yield_now().await;
        }
    }
}
