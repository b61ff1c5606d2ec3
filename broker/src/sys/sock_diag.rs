//! Ending the connections of an address: each peer sees a reset while the address is still there to send it from.
//!
//! Promises: TCP sockets whose own address is this one are destroyed, listeners excepted; no other socket is touched.
//! Touches the host's sockets, for which it needs CAP_NET_ADMIN. Sources: sock_diag(7), SOCK_DESTROY of Linux 4.5, and
//! include/uapi/linux/inet_diag.h of the kernel.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv6Addr};

use netlink_packet_core::Emitable;
use nix::errno::Errno;

use super::Netlink;

const TCPDIAG_GETSOCK: u16 = 18;
const SOCK_DESTROY: u16 = 21;
const TCP: u8 = 6;
/// Every state but TCP_LISTEN, a bit each: see include/net/tcp_states.h.
const CONNECTED: u32 = 0xfff & !(1 << 10);
/// The length of struct inet_diag_sockid, and where it begins in a request and in an answer.
const ID: usize = 48;
const ID_IN_ANSWER: usize = 4;
const SOURCE: std::ops::Range<usize> = 4..20;

/// struct inet_diag_req, of every connection. The older question, because it is of both families: each answer takes the
/// kernel a walk through a table that is sized by the host's memory, for milliseconds.
struct Everything;

impl Emitable for Everything {
    fn buffer_len(&self) -> usize {
        4 + ID + 8
    }

    fn emit(&self, buffer: &mut [u8]) {
        buffer.fill(0);
        let states = buffer.get_mut(4 + ID..).and_then(<[u8]>::first_chunk_mut);
        states.into_iter().for_each(|states| *states = CONNECTED.to_ne_bytes());
    }
}

/// struct inet_diag_req_v2, of one connection.
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
    let theirs: HashSet<IpAddr> = addresses.iter().copied().collect();
    let found = netlink.dump(TCPDIAG_GETSOCK, &Everything, |_, body| owned(body, &theirs))?;
    let outcomes = netlink.act_all(SOCK_DESTROY, 0, &found);
    let outcomes = outcomes.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EPROTO)))?;
    // One that ended by itself meanwhile is as good.
    if let Some(errno) = outcomes.into_iter().filter_map(Result::err).find(|errno| *errno != Errno::ENOENT) {
        return Err(errno);
    }
    Ok(found.len())
}

/// A socket, where its own address is one of these.
fn owned(body: &[u8], addresses: &HashSet<IpAddr>) -> Option<Request> {
    let family = *body.first()?;
    let id: [u8; ID] = *body.get(ID_IN_ANSWER..)?.first_chunk()?;
    let source: [u8; 16] = *id.get(SOURCE)?.first_chunk()?;
    let source = match i32::from(family) {
        libc::AF_INET => IpAddr::from(*source.first_chunk::<4>()?),
        // An IPv6 socket may talk IPv4, under its mapped form.
        _ => Ipv6Addr::from(source).to_canonical(),
    };
    addresses.contains(&source).then_some(Request { family, id })
}
