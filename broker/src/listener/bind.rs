//! Creates one listening socket from an endpoint and its settings. The caller has consulted the policy.

use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::OwnedFd;

use portreeve_protocol::message::ListenOptions;
use portreeve_protocol::{Endpoint, InetEndpoint};

use super::fault::{BindError, Context as _};
use crate::config::SocketOptions;
use crate::sys::SocketDirectories;
use crate::sys::socket::{self, AddressFamily, SockType};
use crate::sys::sockopt;
use crate::sys::unix_file::UnixFile;

/// A socket that listens, with its file if it is a Unix socket.
#[derive(Debug)]
pub struct Bound {
    /// The socket: close-on-exec and blocking.
    pub socket: OwnedFd,
    /// The file of a Unix socket, which is removed when the listener stops.
    pub file: Option<Box<UnixFile>>,
}

/// Creates a socket that listens (TCP, Unix) or can receive (UDP).
pub fn bind(
    directories: &SocketDirectories,
    endpoint: &Endpoint,
    options: &ListenOptions,
    settings: &SocketOptions,
) -> Result<Bound, BindError> {
    match endpoint {
        Endpoint::Tcp(inet) => bind_inet(inet, SockType::Stream, options, settings),
        Endpoint::Udp(inet) => bind_inet(inet, SockType::Datagram, options, settings),
        Endpoint::UnixStream(path) => bind_unix(directories, path, SockType::Stream, options, settings),
        Endpoint::UnixSeqpacket(path) => bind_unix(directories, path, SockType::SeqPacket, options, settings),
    }
}

fn bind_inet(
    inet: &InetEndpoint,
    kind: SockType,
    options: &ListenOptions,
    settings: &SocketOptions,
) -> Result<Bound, BindError> {
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
    if stream {
        // Connections of an earlier listener in TIME_WAIT then do not prevent the bind. Not for UDP, where the option
        // lets two sockets share the endpoint.
        sockopt::set_reuse_address(&socket).context("setsockopt SO_REUSEADDR")?;
    }
    if options.reuse_port {
        sockopt::set_reuse_port(&socket, true).context("setsockopt SO_REUSEPORT")?;
    }
    if options.free_bind {
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
    socket::bind_inet(&socket, address).context("bind")?;
    if stream {
        listen(&socket, options.backlog.unwrap_or(settings.backlog))?;
    }
    Ok(Bound { socket, file: None })
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
    listen(&socket, options.backlog.unwrap_or(settings.backlog))?;
    Ok(Bound { socket, file: Some(Box::new(file)) })
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
    /// Applies to a listener the settings that the kernel accepts for a bound socket.
    pub fn apply(&self, endpoint: &Endpoint, settings: &SocketOptions) -> Result<(), BindError> {
        if !matches!(endpoint, Endpoint::Udp(_)) {
            listen(&self.socket, settings.backlog)?;
        }
        if matches!(endpoint, Endpoint::Tcp(_)) {
            sockopt::set_no_delay(&self.socket, settings.no_delay).context("setsockopt TCP_NODELAY")?;
        }
        match endpoint.inet() {
            Some(_) => set_buffers(&self.socket, settings.receive_buffer, settings.send_buffer),
            None => Ok(()),
        }
    }
}
