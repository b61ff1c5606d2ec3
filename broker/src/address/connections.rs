//! Ending the connections of an address: each peer sees a reset while the address is still there to send it from.
//!
//! Promises: TCP sockets whose own address is this one are destroyed, listeners excepted; no other socket is touched.
//! Touches the host's sockets, for which it needs CAP_NET_ADMIN. Source: sock_diag(7), SOCK_DESTROY of Linux 4.5.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv6Addr};

use netlink_packet_core::Emitable;
use nix::errno::Errno;

use crate::link::Netlink;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const TCP: u8 = 6;
/// Every state but TCP_LISTEN, a bit each: see include/net/tcp_states.h.
const CONNECTED: u32 = 0xfff & !(1 << 10);
/// The length of struct inet_diag_sockid, and where it begins in a request and in an answer.
const ID: usize = 48;
const ID_IN_ANSWER: usize = 4;
const SOURCE: std::ops::Range<usize> = 4..20;

/// struct inet_diag_req_v2.
struct Request {
    family: u8,
    id: [u8; ID],
}

impl Emitable for Request {
    fn buffer_len(&self) -> usize {
        8 + ID
    }

    fn emit(&self, buffer: &mut [u8]) {
        let head = [self.family, TCP, 0, 0];
        let whole = head.into_iter().chain(CONNECTED.to_ne_bytes()).chain(self.id);
        buffer.iter_mut().zip(whole).for_each(|(to, from)| *to = from);
    }
}

/// Ends every connection of these addresses and tells how many there were.
///
/// # Errors
/// The kernel could not be asked; EOPNOTSUPP where it was built without CONFIG_INET_DIAG_DESTROY.
pub fn end(netlink: &Netlink, addresses: &[IpAddr]) -> Result<usize, Errno> {
    let mut found = Vec::new();
    let theirs: HashSet<IpAddr> = addresses.iter().copied().collect();
    let any = |ipv4: bool| addresses.iter().any(|address| address.is_ipv4() == ipv4);
    // An IPv6 socket may talk IPv4, under its mapped form.
    for (family, wanted) in [(libc::AF_INET, any(true)), (libc::AF_INET6, !addresses.is_empty())] {
        let family = u8::try_from(family).unwrap_or_default();
        if wanted {
            let everything = Request { family, id: [0; ID] };
            let take = |_, body: &[u8]| owned(body, &theirs).map(|id| Request { family, id });
            found.extend(netlink.dump(SOCK_DIAG_BY_FAMILY, &everything, take)?);
        }
    }
    let outcomes = netlink.act_all(SOCK_DESTROY, 0, &found);
    let outcomes = outcomes.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EPROTO)))?;
    // One that ended by itself meanwhile is as good.
    if let Some(errno) = outcomes.into_iter().filter_map(Result::err).find(|errno| *errno != Errno::ENOENT) {
        return Err(errno);
    }
    Ok(found.len())
}

/// The identity of a socket, where its own address is one of these.
fn owned(body: &[u8], addresses: &HashSet<IpAddr>) -> Option<[u8; ID]> {
    let family = i32::from(*body.first()?);
    let id: [u8; ID] = *body.get(ID_IN_ANSWER..)?.first_chunk()?;
    let source: [u8; 16] = *id.get(SOURCE)?.first_chunk()?;
    let source = match family {
        libc::AF_INET => IpAddr::from(*source.first_chunk::<4>()?),
        _ => Ipv6Addr::from(source).to_canonical(),
    };
    addresses.contains(&source).then_some(id)
}
