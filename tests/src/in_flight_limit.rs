//! What a host has once for all its namespaces, and a test may find used up: descriptors in flight.
//!
//! The kernel counts for each user, over the whole host, the descriptors that were sent over Unix sockets and not yet
//! received. A process without CAP_SYS_RESOURCE and CAP_SYS_ADMIN, such as a confined broker, cannot send any while its
//! user has more than the process's RLIMIT_NOFILE in flight: ETOOMANYREFS, see unix(7).

use std::os::fd::AsFd as _;
use std::os::unix::net::UnixDatagram;

use portreeve_protocol::channel;
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

/// Says by name that the host is exhausted, if a test's output or a try of our own shows it.
pub fn diagnose(output: &str) -> Option<&'static str> {
    const TOLD: &str = "\nthe host is exhausted: this user has too many descriptors in flight (ETOOMANYREFS). They are \
        counted over all namespaces, so another test or program may have sent them; see unix(7)";
    let named = ["ETOOMANYREFS", "Too many references"].iter().any(|word| output.contains(word));
    (named || is_reached()).then_some(TOLD)
}

/// Whether a process without capabilities cannot send a descriptor now.
pub fn is_reached() -> bool {
    // Capabilities are a thread's own, so this one gives up its own alone.
    std::thread::spawn(|| {
        let sets = capabilities(None).unwrap();
        let effective = sets.effective - (CapabilitySet::SYS_ADMIN | CapabilitySet::SYS_RESOURCE);
        set_capabilities(None, CapabilitySets { effective, ..sets }).unwrap();
        let (from, _to) = UnixDatagram::pair().unwrap();
        channel::send(&from, b"?", &[from.as_fd()])
            .is_err_and(|error| error.raw_os_error() == Some(Errno::TOOMANYREFS.raw_os_error()))
    })
    .join()
    .unwrap()
}
