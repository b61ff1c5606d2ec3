//! Waits, while the broker starts, for the kernel's duplicate address detection of IPv6 addresses of static listeners: until it
//! ends, nothing can be bound to them. See RFC 4862 section 5.4.

use std::net::IpAddr;
use std::os::unix::net::UnixDatagram;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::socket::SockProtocol;
use portreeve_protocol::Endpoint;

use crate::address::DETECTION_TIMEOUT;
use crate::sys::rtnl_monitor::RtnlMonitor;
use crate::sys::{Netlink, poll, rtnl};

/// The wait for the addresses of all listeners together.
#[derive(Debug, Default)]
pub struct TentativeAddresses {
    /// The end of the wait, from its beginning on.
    end: Option<Instant>,
}

/// What is known of an address to which nothing can be bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detection {
    /// The detection has ended: the address can be bound.
    Ended,
    /// The detection has not ended in time.
    TooLong,
    /// Another host has the address.
    Duplicate,
    /// The host does not have the address.
    NoAddress,
}

impl TentativeAddresses {
    /// Waits until the detection of this endpoint's address has ended, for a limited time.
    pub fn wait(&mut self, endpoint: &Endpoint) -> Detection {
        match endpoint.inet().map(|inet| inet.address) {
            Some(address @ IpAddr::V6(_)) => {
                let end = *self.end.get_or_insert_with(|| Instant::now() + DETECTION_TIMEOUT);
                wait(address, end).unwrap_or(Detection::NoAddress)
            }
            _ => Detection::NoAddress,
        }
    }
}

impl Detection {
    /// What to add to the failure to bind the address.
    pub fn remark(self) -> &'static str {
        match self {
            Detection::TooLong => {
                ": it is still tentative, because duplicate address detection does not end; its interface may have no carrier"
            }
            Detection::Duplicate => ": duplicate address detection found another host with this address",
            Detection::Ended | Detection::NoAddress => "",
        }
    }
}

fn wait(address: IpAddr, end: Instant) -> nix::Result<Detection> {
    let route = Netlink::open(SockProtocol::NetlinkRoute)?;
    // Opened first: a change after the list is reported.
    let monitor = RtnlMonitor::open()?;
    let watched: UnixDatagram = monitor.try_clone().map_err(|_| Errno::EMFILE)?;
    let mut waited = false;
    loop {
        let all = match rtnl::list(&route) {
            Err(Errno::EINTR) => continue,
            all => all?,
        };
        // The same address can be on several interfaces; one that can be bound suffices.
        let mut of_host = all.iter().filter(|one| one.placement.address == address);
        let Some(first) = of_host.next() else { return Ok(Detection::NoAddress) };
        let usable = |one: &rtnl::HostAddress| !one.tentative && !one.duplicate;
        if usable(first) || of_host.clone().any(usable) {
            return Ok(Detection::Ended);
        }
        if first.duplicate && of_host.all(|one| one.duplicate) {
            return Ok(Detection::Duplicate);
        }
        if !waited {
            tracing::info!(%address, "waiting for duplicate address detection");
            waited = true;
        }
        let remaining = end.saturating_duration_since(Instant::now());
        if remaining.is_zero() || !poll::readable(&watched, remaining)? {
            return Ok(Detection::TooLong);
        }
        // Lost notifications do not matter: the list follows.
        while monitor.receive(|_| {}).is_ok() {}
    }
}
