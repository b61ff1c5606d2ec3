//! Lists and destroys the TCP connections of an address, and finds an abstract Unix socket. Each remote end of a destroyed connection receives
//! a reset while the host can still send it.
//!
//! Promises: lists TCP sockets whose local address is one of the given ones, except listeners; destroys no other socket. See sock_diag(7) and include/uapi/linux/inet_diag.h and unix_diag.h.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv6Addr};

use netlink_packet_core::{Emitable, NlasIterator};
use nix::errno::Errno;

use super::Netlink;

const TCPDIAG_GETSOCK: u16 = 18;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const TCP: u8 = 6;
/// A mask of every TCP state except TCP_LISTEN; see include/net/tcp_states.h.
const CONNECTED: u32 = 0xfff & !(1 << 10);
/// The length of struct inet_diag_sockid.
const ID: usize = 48;
/// The offset of that struct in a reply.
const ID_IN_REPLY: usize = 4;
/// The source address and the bound interface in that struct.
const SOURCE: std::ops::Range<usize> = 4..20;
const BOUND_INTERFACE: std::ops::Range<usize> = 36..40;

/// The length of struct unix_diag_req.
const UNIX_REQUEST: usize = 24;
/// The length of struct unix_diag_msg, and the offset of the inode number in it.
const UNIX_REPLY: usize = 16;
const UNIX_INODE: usize = 4;
/// UDIAG_SHOW_NAME and UDIAG_SHOW_UID.
const SHOW: u32 = 0x1 | 0x40;
const UNIX_DIAG_NAME: u16 = 0;
const UNIX_DIAG_UID: u16 = 7;

/// struct unix_diag_req for every Unix socket.
struct UnixRequest;

impl Emitable for UnixRequest {
    fn buffer_len(&self) -> usize {
        UNIX_REQUEST
    }

    fn emit(&self, buffer: &mut [u8]) {
        buffer.fill(0);
        // The family; all states; all inode numbers; what to show.
        let words = [libc::AF_UNIX.cast_unsigned().to_le(), u32::MAX, 0, SHOW];
        let bytes = words.into_iter().flat_map(u32::to_ne_bytes);
        buffer.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    }
}

/// A Unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnixSocket {
    /// Its inode number.
    pub inode: u32,
    /// The user who created it; `None` before Linux 5.3.
    pub user: Option<u32>,
}

/// Finds the Unix socket with this abstract name, without its leading NUL, in this network namespace. See sock_diag(7); Linux
/// 3.3.
///
/// # Capabilities
/// None.
///
/// # Errors
/// The sockets could not be listed; ENOENT if the kernel lacks CONFIG_UNIX_DIAG.
pub fn find_abstract(netlink: &Netlink, name: &[u8]) -> Result<Option<UnixSocket>, Errno> {
    let named = |_, body: &[u8]| {
        let (mut found, mut user) = (false, None);
        for attribute in NlasIterator::new(body.get(UNIX_REPLY..)?).flatten() {
            let value = attribute.value();
            match attribute.kind() {
                UNIX_DIAG_NAME => found = value.strip_prefix(b"\0") == Some(name),
                UNIX_DIAG_UID => user = value.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes)),
                _ => {}
            }
        }
        let inode = u32::from_ne_bytes(*body.get(UNIX_INODE..)?.first_chunk()?);
        found.then_some(UnixSocket { inode, user })
    };
    Ok(netlink.dump(SOCK_DIAG_BY_FAMILY, &UnixRequest, named)?.into_iter().next())
}

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
#[derive(Clone, Debug)]
pub struct Connection {
    family: u8,
    id: [u8; ID],
    /// Its local address; the IPv4 address for a mapped one.
    pub local: IpAddr,
    /// The index of the interface to which its socket is bound; 0 for none.
    pub bound_interface: u32,
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

/// Lists every connection whose local address is one of these, in any VRF. See sock_diag(7); Linux 2.6.14.
///
/// # Capabilities
/// None.
///
/// # Errors
/// The connections could not be listed.
pub fn connections_at(netlink: &Netlink, addresses: &[IpAddr]) -> Result<Vec<Connection>, Errno> {
    let addresses: HashSet<IpAddr> = addresses.iter().copied().collect();
    netlink.dump(TCPDIAG_GETSOCK, &DumpRequest, |_, body| connection_from(body, &addresses))
}

/// Destroys connections. See sock_diag(7); Linux 4.5.
///
/// # Capabilities
/// CAP_NET_ADMIN, for SOCK_DESTROY.
///
/// # Errors
/// A connection could not be destroyed; EOPNOTSUPP if the kernel lacks CONFIG_INET_DIAG_DESTROY.
pub fn destroy(netlink: &Netlink, connections: &[Connection]) -> Result<(), Errno> {
    let outcomes = netlink.change_all(SOCK_DESTROY, 0, connections)?;
    // ENOENT: the connection ended meanwhile.
    let failed = outcomes.into_iter().filter_map(Result::err).find(|errno| *errno != Errno::ENOENT);
    failed.map_or(Ok(()), Err)
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
    let bound_interface = u32::from_ne_bytes(*id.get(BOUND_INTERFACE)?.first_chunk()?);
    addresses.contains(&source).then_some(Connection { family, id, local: source, bound_interface })
}
