//! Sockets: open, bind, listen, connect, shut down, send, and read their local address.
//!
//! Promises: every socket that is opened here is close-on-exec. Nothing here consults policy.

use std::io::IoSlice;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
pub use nix::sys::socket::{AddressFamily, SockType};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, Shutdown, SockFlag, SockaddrIn, SockaddrIn6, UnixAddr,
};
use rustix::net::SocketAddrUnix;

/// Opens a socket that blocks.
///
/// # Capabilities
/// None for AF_UNIX, AF_INET and AF_INET6 sockets of the types stream, datagram and seqpacket. See socket(2).
///
/// # Errors
/// EMFILE or ENFILE if no descriptor is free; EAFNOSUPPORT if the kernel lacks the family.
pub fn open(family: AddressFamily, kind: SockType) -> nix::Result<OwnedFd> {
    nix::sys::socket::socket(family, kind, SockFlag::SOCK_CLOEXEC, None)
}

/// Opens a socket that does not block.
///
/// # Capabilities
/// None. See [`open`].
///
/// # Errors
/// See [`open`].
pub fn open_nonblocking(family: AddressFamily, kind: SockType) -> nix::Result<OwnedFd> {
    nix::sys::socket::socket(family, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)
}

/// Binds an IPv4 or IPv6 socket. See bind(2), ip(7), ipv6(7).
///
/// # Capabilities
/// CAP_NET_BIND_SERVICE for a port below net.ipv4.ip_unprivileged_port_start; none for other ports.
///
/// # Errors
/// EACCES without that capability, or if Landlock (Linux 6.7, TCP) forbids the port; EPERM if a cgroup's BPF
/// program does; EADDRINUSE, EADDRNOTAVAIL.
pub fn bind_inet(socket: impl AsFd, address: SocketAddr) -> nix::Result<()> {
    let socket = socket.as_fd().as_raw_fd();
    match address {
        SocketAddr::V4(address) => nix::sys::socket::bind(socket, &SockaddrIn::from(address)),
        SocketAddr::V6(address) => nix::sys::socket::bind(socket, &SockaddrIn6::from(address)),
    }
}

/// Begins to listen, or changes the backlog of a socket that listens already. net.core.somaxconn limits the backlog. See
/// listen(2).
///
/// # Capabilities
/// None.
///
/// # Errors
/// EADDRINUSE if the socket is not bound and no port is free; EOPNOTSUPP for a datagram socket.
pub fn listen(socket: impl AsFd, backlog: u32) -> nix::Result<()> {
    // Not nix, which refuses more than libc's SOMAXCONN: 4096 with glibc and 128 with musl.
    rustix::net::listen(socket, i32::try_from(backlog).unwrap_or(i32::MAX))
        .map_err(|errno| Errno::from_raw(errno.raw_os_error()))
}

/// The backlog argument of [`listen`] for the largest possible backlog.
pub const MAX_BACKLOG: u32 = u32::MAX;

/// The backlog of the control socket: whoever connects waits behind at most this many others, because the broker accepts
/// each at once.
pub const CONTROL_BACKLOG: u32 = 512;

/// Binds a new Unix stream socket to an abstract name, without its leading NUL. It does not listen, so nobody can connect or send
/// to it. See bind(2), unix(7).
///
/// # Capabilities
/// None.
///
/// # Errors
/// EADDRINUSE if a socket of this network namespace has the name.
pub fn bind_abstract(name: &[u8]) -> nix::Result<OwnedFd> {
    let socket = open(AddressFamily::Unix, SockType::Stream)?;
    nix::sys::socket::bind(socket.as_raw_fd(), &UnixAddr::new_abstract(name)?)?;
    Ok(socket)
}

/// Connects a Unix socket to a path. See connect(2), unix(7).
///
/// # Capabilities
/// None; the caller needs write permission on the socket's file.
///
/// # Errors
/// ENOENT, ECONNREFUSED, EACCES; ENAMETOOLONG if the path does not fit into sun_path.
pub fn connect_unix(socket: impl AsFd, path: &Path) -> nix::Result<()> {
    nix::sys::socket::connect(socket.as_fd().as_raw_fd(), &UnixAddr::new(path)?)
}

/// Disconnects a UDP socket: connect(2) with AF_UNSPEC. Linux then unbinds it from its interface too. See udp(7).
///
/// # Capabilities
/// None.
///
/// # Errors
/// EBADF, ENOTSOCK.
pub fn disconnect(socket: impl AsFd) -> nix::Result<()> {
    let address = libc::AF_UNSPEC as libc::sa_family_t;
    let length = size_of::<libc::sa_family_t>() as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes at `address`, which has that many and lives until the call returns.
    let result = unsafe { libc::connect(socket.as_fd().as_raw_fd(), (&raw const address).cast(), length) };
    Errno::result(result).map(drop)
}

/// Shuts a socket down for reading and writing: a TCP listener stops listening and resets the connections in its queue.
/// See shutdown(2).
///
/// # Capabilities
/// None.
///
/// # Errors
/// ENOTCONN for a UDP socket without a peer.
pub fn shut_down(socket: impl AsFd) -> nix::Result<()> {
    nix::sys::socket::shutdown(socket.as_fd().as_raw_fd(), Shutdown::Both)
}

/// Sends bytes on a connected socket, and does not wait. See send(2), MSG_DONTWAIT and MSG_NOSIGNAL.
///
/// # Capabilities
/// None.
///
/// # Errors
/// EAGAIN if there is no room; others of send(2).
pub fn send_nonblocking(socket: impl AsFd, bytes: &[u8]) -> nix::Result<usize> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    nix::sys::socket::send(socket.as_fd().as_raw_fd(), bytes, flags)
}

/// Sends one message with descriptors on a connected datagram or seqpacket socket, and does not wait. See sendmsg(2),
/// unix(7) for SCM_RIGHTS.
///
/// # Capabilities
/// None.
///
/// # Errors
/// EAGAIN while the receiver's queue is full; ETOOMANYREFS while too many descriptors are in flight.
pub fn send_with_descriptors(
    socket: impl AsFd,
    message: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> nix::Result<()> {
    let raw: Vec<RawFd> = descriptors.iter().map(|descriptor| descriptor.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let socket = socket.as_fd().as_raw_fd();
    nix::sys::socket::sendmsg::<()>(socket, &[IoSlice::new(message)], control, flags, None).map(drop)
}

/// The address at which a socket is bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalAddress {
    /// An address and port.
    Inet(SocketAddr),
    /// The path that was passed to bind(2), which may be relative; `None` for an unnamed or abstract socket.
    Unix(Option<PathBuf>),
}

/// Makes a socket blocking, and ends the signals of O_ASYNC. Every copy of the socket shares these flags. See fcntl(2).
///
/// # Capabilities
/// None.
///
/// # Errors
/// EBADF.
pub fn reset_status_flags(socket: impl AsFd) -> nix::Result<()> {
    nix::fcntl::fcntl(socket, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty())).map(drop)
}

/// The user of the process that sent the next message on a Unix socket with SO_PASSCRED, when it sent it; the message, which
/// carries no descriptors, stays in the queue. `None` if the other end has closed. See unix(7), SCM_CREDENTIALS.
///
/// # Capabilities
/// None.
///
/// # Errors
/// EAGAIN if no message arrives within SO_RCVTIMEO; ENODATA for a message without credentials; ENOBUFS for one with
/// descriptors; others of recvmsg(2).
pub fn sender_of_next_message(socket: impl AsFd) -> nix::Result<Option<u32>> {
    // There is room for the credentials only, so the kernel installs no descriptor.
    let mut space = nix::cmsg_space!(libc::ucred);
    let mut byte = [0];
    let mut buffers = [std::io::IoSliceMut::new(&mut byte)];
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_CMSG_CLOEXEC;
    let socket = socket.as_fd().as_raw_fd();
    let message = nix::sys::socket::recvmsg::<()>(socket, &mut buffers, Some(&mut space), flags)?;
    if message.bytes == 0 {
        return Ok(None);
    }
    let mut users = message.cmsgs()?.filter_map(|control| match control {
        ControlMessageOwned::ScmCredentials(credentials) => Some(credentials.uid()),
        _ => None,
    });
    users.next().map(Some).ok_or(Errno::ENODATA)
}

/// The address at which a socket is bound. See getsockname(2).
///
/// # Capabilities
/// None.
///
/// # Errors
/// ENOTSOCK for another kind of descriptor; EAFNOSUPPORT for another family than AF_INET, AF_INET6 and AF_UNIX.
pub fn local_address(socket: impl AsFd) -> nix::Result<LocalAddress> {
    let name = rustix::net::getsockname(&socket).map_err(|errno| Errno::from_raw(errno.raw_os_error()))?;
    if let Ok(address) = SocketAddr::try_from(name.clone()) {
        return Ok(LocalAddress::Inet(address));
    }
    let address = SocketAddrUnix::try_from(name).map_err(|_| Errno::EAFNOSUPPORT)?;
    let path = address.path().and_then(|path| Some(PathBuf::from(path.to_str().ok()?)));
    Ok(LocalAddress::Unix(path))
}

/// Whether a socket is connected. See getpeername(2).
///
/// # Capabilities
/// None.
///
/// # Errors
/// ENOTSOCK for another kind of descriptor.
pub fn is_connected(socket: impl AsFd) -> nix::Result<bool> {
    match rustix::net::getpeername(&socket) {
        Ok(_) => Ok(true),
        Err(rustix::io::Errno::NOTCONN) => Ok(false),
        Err(errno) => Err(Errno::from_raw(errno.raw_os_error())),
    }
}

/// The number of the interface of this name. See if_nametoindex(3).
///
/// # Capabilities
/// None.
///
/// # Errors
/// ENODEV if there is no such interface.
pub fn interface_index(name: &str) -> nix::Result<u32> {
    nix::net::if_::if_nametoindex(name)
}

/// The name of the interface of this number, if its name is UTF-8. See if_indextoname(3).
///
/// # Capabilities
/// None.
///
/// # Errors
/// ENXIO if there is no such interface.
pub fn interface_name(index: u32) -> nix::Result<String> {
    let name = nix::net::if_::if_indextoname(index)?;
    match name.into_string() {
        // While the interface is being deleted.
        Ok(name) if name.is_empty() => Err(Errno::ENXIO),
        Ok(name) => Ok(name),
        Err(_) => Err(Errno::EILSEQ),
    }
}
