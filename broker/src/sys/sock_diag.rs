//! Destroys the TCP connections of an address. Each remote end receives a reset while the host can still send it.
//!
//! Promises: destroys TCP sockets whose local address is one of the given ones, except listeners; touches no other
//! socket. See sock_diag(7) and include/uapi/linux/inet_diag.h.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv6Addr};

use netlink_packet_core::Emitable;
use nix::errno::Errno;

use super::Netlink;

const TCPDIAG_GETSOCK: u16 = 18;
const SOCK_DESTROY: u16 = 21;
const TCP: u8 = 6;
/// A mask of every TCP state except TCP_LISTEN; see include/net/tcp_states.h.
const CONNECTED: u32 = 0xfff & !(1 << 10);
/// The length of struct inet_diag_sockid.
const ID: usize = 48;
/// The offset of that struct in a reply.
const ID_IN_REPLY: usize = 4;
/// The source address in that struct.
const SOURCE: std::ops::Range<usize> = 4..20;

/// struct inet_diag_req for every connection. This older request covers both families in one dump: each dump walks a
/// hash table sized by the host's memory, which takes milliseconds.
struct DumpRequest;

impl Emitable for DumpRequest {
    fn buffer_len(&self) -> usize {
        4 + ID + 8
    }

    fn emit(&self, buffer: &mut [u8]) {
        buffer.fill(0);
        let states = buffer.get_mut(4 + ID..).and_then(<[u8]>::first_chunk_mut);
        states.into_iter().for_each(|states| *states = CONNECTED.to_ne_bytes());
    }
}

/// struct inet_diag_req_v2 for one connection.
struct Connection {
    family: u8,
    id: [u8; ID],
}

impl Emitable for Connection {
    fn buffer_len(&self) -> usize {
        8 + ID
    }

    fn emit(&self, buffer: &mut [u8]) {
        let head = [self.family, TCP, 0, 0];
        let whole = head.into_iter().chain(CONNECTED.to_ne_bytes()).chain(self.id);
        buffer.iter_mut().zip(whole).for_each(|(to, from)| *to = from);
    }
}

/// Destroys every connection whose local address is one of these, and returns their number. See sock_diag(7); Linux
/// 4.5.
///
/// # Capabilities
/// CAP_NET_ADMIN, for SOCK_DESTROY.
///
/// # Errors
/// The connections could not be listed or destroyed; EOPNOTSUPP if the kernel lacks CONFIG_INET_DIAG_DESTROY.
pub fn destroy_connections(netlink: &Netlink, addresses: &[IpAddr]) -> Result<usize, Errno> {
    let addresses: HashSet<IpAddr> = addresses.iter().copied().collect();
    let connections =
        netlink.dump(TCPDIAG_GETSOCK, &DumpRequest, |_, body| connection_from(body, &addresses))?;
    let outcomes = netlink.change_all(SOCK_DESTROY, 0, &connections)?;
    // ENOENT: the connection ended meanwhile.
    if let Some(errno) = outcomes.into_iter().filter_map(Result::err).find(|errno| *errno != Errno::ENOENT) {
        return Err(errno);
    }
    Ok(connections.len())
}

/// The connection that a reply describes, if its local address is one of these.
fn connection_from(body: &[u8], addresses: &HashSet<IpAddr>) -> Option<Connection> {
    let family = *body.first()?;
    let id: [u8; ID] = *body.get(ID_IN_REPLY..)?.first_chunk()?;
    let source: [u8; 16] = *id.get(SOURCE)?.first_chunk()?;
    let source = match i32::from(family) {
        libc::AF_INET => IpAddr::from(*source.first_chunk::<4>()?),
        // An IPv6 socket may carry IPv4, with a mapped address.
        _ => Ipv6Addr::from(source).to_canonical(),
    };
    addresses.contains(&source).then_some(Connection { family, id })
}
