//! The kernel's limit on descriptors in flight, which namespaces do not separate: other programs may have exhausted it.
//!
//! For each user of the host, the kernel counts the descriptors that have been sent over Unix sockets but not received.
//! While a user has more of them than the process's RLIMIT_NOFILE, a process without CAP_SYS_RESOURCE and CAP_SYS_ADMIN,
//! such as a confined broker, cannot send descriptors: sendmsg(2) fails with ETOOMANYREFS. See unix(7).

use std::os::fd::AsFd as _;
use std::os::unix::net::UnixDatagram;

use portreeve_protocol::channel;
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

/// A hint that the limit is reached, if a test's output or an attempt of this process shows that it is.
pub fn diagnose(output: &str) -> Option<&'static str> {
    const HINT: &str = "\nthis user has too many descriptors in flight (ETOOMANYREFS). The kernel counts them over all \
        namespaces, so another test or program may have sent them; see unix(7)";
    let named = ["ETOOMANYREFS", "Too many references"].iter().any(|word| output.contains(word));
    (named || is_reached()).then_some(HINT)
}

/// Whether a process without capabilities currently cannot send a descriptor.
pub fn is_reached() -> bool {
    // Capabilities belong to a thread, so the other threads keep theirs.
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
