//! Creates one listening socket from an endpoint and its settings. The caller has consulted the policy. Also finds out whether
//! the socket of a listener that the broker does not keep is still open.
//!
//! [`Registry::open`](super::registry::Registry::open) calls it, and makes the socket revocable.
//!
//! Promises: the broker never calls listen(2) on a Unix socket. The kernel reports to clients the process that called it
//! (SO_PEERCRED, see unix(7)), so that must be the process that serves them, and not root's.

use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use portreeve_protocol::message::ListenOptions;
use portreeve_protocol::{Endpoint, InetEndpoint};

use super::fault::{BindError, Context as _};
use super::revocation::Revocability;
use crate::config::SocketOptions;
use crate::sys::SocketDirectories;
use crate::sys::socket::{self, AddressFamily, SockType};
use crate::sys::sockopt;
use crate::sys::unix_file::UnixFile;

/// How often the broker takes an endpoint back from a former holder that at the same time makes its copy listen again.
const MAX_ATTEMPTS: usize = 500;

/// A socket that is bound, with its file if it is a Unix socket.
#[derive(Debug)]
pub struct Bound {
    /// The socket: close-on-exec and blocking. None once the peer has the only copy.
    pub socket: Option<OwnedFd>,
    /// The file of a Unix socket, which is removed when the listener stops.
    pub file: Option<Box<UnixFile>>,
    /// How it can be revoked.
    pub revocability: Revocability,
}

/// Which sockets may be bound to the endpoint already.
#[derive(Clone, Copy)]
pub enum Share<'s> {
    /// None.
    No,
    /// Those that are closing and share it: see [`Bound::share`].
    WithClosing,
    /// Those of stopped listeners, which do not listen and have SO_REUSEADDR. Their former holders may undo that at any time: the
    /// function, which does it again and returns whether there is such a socket, is called immediately before each bind(2) and
    /// listen(2).
    WithStopped(&'s dyn Fn() -> bool),
}

/// Creates a socket that listens (TCP), can receive (UDP), or is bound to a file and refuses clients until its holder listens
/// (Unix).
pub fn bind(
    directories: &SocketDirectories,
    endpoint: &Endpoint,
    options: &ListenOptions,
    settings: &SocketOptions,
    share: Share<'_>,
) -> Result<Bound, BindError> {
    match endpoint {
        Endpoint::Tcp(inet) => bind_inet(inet, SockType::Stream, options, settings, share),
        Endpoint::Udp(inet) => bind_inet(inet, SockType::Datagram, options, settings, share),
        Endpoint::UnixStream(path) => bind_unix(directories, path, SockType::Stream, options, settings),
        Endpoint::UnixSeqpacket(path) => bind_unix(directories, path, SockType::SeqPacket, options, settings),
    }
}

fn bind_inet(
    inet: &InetEndpoint,
    kind: SockType,
    options: &ListenOptions,
    settings: &SocketOptions,
    share: Share<'_>,
) -> Result<Bound, BindError> {
    const REUSE_ADDRESS: &str = "setsockopt SO_REUSEADDR";
    const REUSE_PORT: &str = "setsockopt SO_REUSEPORT";
    let address = socket_address(inet)?;
    let stream = kind == SockType::Stream;
    let socket = match address {
        SocketAddr::V4(_) => socket::open(AddressFamily::Inet, kind).context("socket")?,
        SocketAddr::V6(_) => {
            let socket = socket::open(AddressFamily::Inet6, kind).context("socket")?;
            sockopt::set_ipv6_only(&socket, !options.dual_stack).context("setsockopt IPV6_V6ONLY")?;
            socket
        }
    };
    // Connections of an earlier TCP listener in TIME_WAIT then do not prevent the bind.
    let reuse_address = stream || !matches!(share, Share::No);
    if reuse_address {
        sockopt::set_reuse_address(&socket, true).context(REUSE_ADDRESS)?;
    }
    let reuse_port = options.reuse_port || (stream && matches!(share, Share::WithClosing));
    if reuse_port {
        sockopt::set_reuse_port(&socket, true).context(REUSE_PORT)?;
    }
    if options.free_bind || settings.free_bind {
        sockopt::set_free_bind(&socket).context("setsockopt IP_FREEBIND")?;
    }
    if !options.device.is_empty() {
        sockopt::bind_to_device(&socket, &options.device).context("setsockopt SO_BINDTODEVICE")?;
    }
    set_buffers(
        &socket,
        options.receive_buffer.unwrap_or(settings.receive_buffer),
        options.send_buffer.unwrap_or(settings.send_buffer),
    )?;
    if stream && options.no_delay.unwrap_or(settings.no_delay) {
        sockopt::set_no_delay(&socket, true).context("setsockopt TCP_NODELAY")?;
    }
    if stream && options.defer_accept > 0 {
        sockopt::set_defer_accept(&socket, options.defer_accept).context("setsockopt TCP_DEFER_ACCEPT")?;
    }
    if stream && options.fast_open > 0 {
        sockopt::set_fast_open(&socket, options.fast_open).context("setsockopt TCP_FASTOPEN")?;
    }
    occupy(share, || socket::bind_inet(&socket, address).context("bind"))?;
    if stream {
        occupy(share, || listen(&socket, options.backlog.unwrap_or(settings.backlog)))?;
    }
    // Later sockets must not share it.
    if reuse_port && !options.reuse_port {
        sockopt::set_reuse_port(&socket, false).context(REUSE_PORT)?;
    }
    if reuse_address && !stream {
        sockopt::set_reuse_address(&socket, false).context(REUSE_ADDRESS)?;
    }
    Ok(Bound { socket: Some(socket), file: None, revocability: Revocability::NotListed })
}

/// Calls bind(2) or listen(2), as often as is needed to take the endpoint back from former holders.
fn occupy(share: Share<'_>, call: impl Fn() -> Result<(), BindError>) -> Result<(), BindError> {
    let Share::WithStopped(take_back) = share else { return call() };
    let mut attempts = 0;
    loop {
        let has_taken_back = take_back();
        attempts += 1;
        match call() {
            Err(error) if error.errno == Errno::EADDRINUSE && has_taken_back && attempts < MAX_ATTEMPTS => {}
            done => return done,
        }
    }
}

/// Whether nobody has a socket that occupies a TCP or UDP endpoint: the kernel lets another one be bound there that shares it
/// with none. A TCP socket that does not listen, and that is not bound exclusively, does not count.
pub fn is_free(endpoint: &Endpoint, options: &ListenOptions) -> bool {
    let (inet, kind) = match endpoint {
        Endpoint::Tcp(inet) => (inet, SockType::Stream),
        Endpoint::Udp(inet) => (inet, SockType::Datagram),
        Endpoint::UnixStream(_) | Endpoint::UnixSeqpacket(_) => return false,
    };
    let bind = || -> Result<(), BindError> {
        let address = socket_address(inet)?;
        let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let socket = socket::open(family, kind).context("socket")?;
        if address.is_ipv6() {
            sockopt::set_ipv6_only(&socket, !options.dual_stack).context("setsockopt IPV6_V6ONLY")?;
        }
        if kind == SockType::Stream {
            sockopt::set_reuse_address(&socket, true).context("setsockopt SO_REUSEADDR")?;
        }
        sockopt::set_free_bind(&socket).context("setsockopt IP_FREEBIND")?;
        if !options.device.is_empty() {
            sockopt::bind_to_device(&socket, &options.device).context("setsockopt SO_BINDTODEVICE")?;
        }
        socket::bind_inet(&socket, address).context("bind")
    };
    bind().is_ok()
}

fn socket_address(inet: &InetEndpoint) -> Result<SocketAddr, BindError> {
    Ok(match inet.address {
        IpAddr::V4(address) => SocketAddrV4::new(address, inet.port).into(),
        IpAddr::V6(address) => {
            let scope = match &*inet.scope {
                "" => 0,
                name => socket::interface_index(name).context("if_nametoindex")?,
            };
            SocketAddrV6::new(address, inet.port, 0, scope).into()
        }
    })
}

fn bind_unix(
    directories: &SocketDirectories,
    path: &str,
    kind: SockType,
    options: &ListenOptions,
    settings: &SocketOptions,
) -> Result<Bound, BindError> {
    let socket = socket::open(AddressFamily::Unix, kind).context("socket")?;
    let mode = options.mode.unwrap_or(settings.mode);
    let file = UnixFile::bind(directories, &socket, path, mode).context("bind")?;
    Ok(Bound { socket: Some(socket), file: Some(Box::new(file)), revocability: Revocability::UnixSocket })
}

fn listen(socket: &OwnedFd, backlog: u32) -> Result<(), BindError> {
    socket::listen(socket, backlog).context("listen")
}

/// A size of 0 leaves the kernel's default.
fn set_buffers(socket: &OwnedFd, receive: u32, send: u32) -> Result<(), BindError> {
    if receive > 0 {
        sockopt::set_receive_buffer(socket, receive).context("setsockopt SO_RCVBUF")?;
    }
    if send > 0 {
        sockopt::set_send_buffer(socket, send).context("setsockopt SO_SNDBUF")?;
    }
    Ok(())
}

impl Bound {
    /// Lets another socket be bound to its endpoint with [`Share::WithClosing`]. Two TCP listeners need SO_REUSEPORT. Two
    /// UDP sockets need SO_REUSEADDR, which lets the newer one receive every packet; SO_REUSEPORT would distribute them. A socket
    /// that the broker does not keep is not shared.
    pub fn share(&self, endpoint: &Endpoint) -> Result<(), BindError> {
        let Some(socket) = &self.socket else { return Ok(()) };
        match endpoint {
            Endpoint::Udp(_) => sockopt::set_reuse_address(socket, true).context("setsockopt SO_REUSEADDR"),
            _ => sockopt::set_reuse_port(socket, true).context("setsockopt SO_REUSEPORT"),
        }
    }

    /// Ends [`Bound::share`]. `reuse_port` is whether SO_REUSEPORT was requested.
    pub fn end_share(&self, endpoint: &Endpoint, reuse_port: bool) -> Result<(), BindError> {
        let Some(socket) = &self.socket else { return Ok(()) };
        match endpoint {
            Endpoint::Udp(_) => sockopt::set_reuse_address(socket, false).context("setsockopt SO_REUSEADDR"),
            _ => sockopt::set_reuse_port(socket, reuse_port).context("setsockopt SO_REUSEPORT"),
        }
    }

    /// Applies to a listener the settings that the kernel accepts for a bound socket. The backlog of a Unix socket is applied
    /// when the next worker starts.
    pub fn apply(&self, endpoint: &Endpoint, settings: &SocketOptions) -> Result<(), BindError> {
        let Some(socket) = &self.socket else { return Ok(()) };
        if matches!(endpoint, Endpoint::Tcp(_)) {
            listen(socket, settings.backlog)?;
            sockopt::set_no_delay(socket, settings.no_delay).context("setsockopt TCP_NODELAY")?;
        }
        match endpoint.inet() {
            Some(_) => set_buffers(socket, settings.receive_buffer, settings.send_buffer),
            None => Ok(()),
        }
    }
}
