//! One listening socket, from an endpoint and its settings. Decides nothing: policy has said yes before.

use std::net::{IpAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SetSockOpt, SockFlag, SockType, SockaddrIn, SockaddrIn6, SockaddrLike,
    setsockopt, socket, sockopt,
};
use portreeve_protocol::message::ListenOptions;
use portreeve_protocol::{Endpoint, Fault, FaultCode, InetEndpoint};

use crate::config::SocketOptions;
use crate::sys::directories::Directories;
use crate::sys::unix_file::UnixFile;

/// A socket that listens, and its file where it has one.
#[derive(Debug)]
pub struct Bound {
    /// The socket: close-on-exec, blocking until its user says otherwise.
    pub socket: OwnedFd,
    /// The file of a Unix socket, removed when the listener stops.
    pub file: Option<Box<UnixFile>>,
}

impl Bound {
    /// Gives a socket that listens the settings that one takes which listens already; the error names the others.
    pub fn adjust(&self, endpoint: &Endpoint, settings: &SocketOptions) -> Result<(), String> {
        let socket = &self.socket;
        let stream = !matches!(endpoint, Endpoint::Udp(_));
        let told = |error: BindError| format!("{endpoint}: {error}");
        if stream {
            listen(socket, &ListenOptions::default(), settings).map_err(told)?;
        }
        if matches!(endpoint, Endpoint::Tcp(_)) {
            set(socket, "setsockopt TCP_NODELAY", sockopt::TcpNoDelay, &settings.no_delay).map_err(told)?;
        }
        if endpoint.inet().is_some() && settings.receive_buffer > 0 {
            let size = settings.receive_buffer as usize;
            set(socket, "setsockopt SO_RCVBUF", sockopt::RcvBuf, &size).map_err(told)?;
        }
        if endpoint.inet().is_some() && settings.send_buffer > 0 {
            let size = settings.send_buffer as usize;
            set(socket, "setsockopt SO_SNDBUF", sockopt::SndBuf, &size).map_err(told)?;
        }
        Ok(())
    }
}

/// The call that failed, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call}: {}", errno.desc())]
pub struct BindError {
    /// The system call.
    pub call: &'static str,
    /// Its errno.
    pub errno: Errno,
}

trait Call<T> {
    fn call(self, call: &'static str) -> Result<T, BindError>;
}

impl<T> Call<T> for nix::Result<T> {
    fn call(self, call: &'static str) -> Result<T, BindError> {
        self.map_err(|errno| BindError { call, errno })
    }
}

/// Makes the socket listen (TCP, Unix) or ready to receive (UDP).
pub fn bind(
    directories: &Directories,
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

fn new_socket(family: AddressFamily, kind: SockType) -> Result<OwnedFd, BindError> {
    socket(family, kind, SockFlag::SOCK_CLOEXEC, None).call("socket")
}

fn set<O: SetSockOpt>(
    socket: &OwnedFd,
    call: &'static str,
    option: O,
    value: &O::Val,
) -> Result<(), BindError> {
    setsockopt(socket, option, value).call(call)
}

fn bind_inet(
    inet: &InetEndpoint,
    kind: SockType,
    options: &ListenOptions,
    settings: &SocketOptions,
) -> Result<Bound, BindError> {
    match inet.address {
        IpAddr::V4(address) => {
            let socket = new_socket(AddressFamily::Inet, kind)?;
            let address = SockaddrIn::from(SocketAddrV4::new(address, inet.port));
            finish_inet(socket, &address, kind, options, settings)
        }
        IpAddr::V6(address) => {
            let scope = match &*inet.scope {
                "" => 0,
                name => nix::net::if_::if_nametoindex(name).call("if_nametoindex")?,
            };
            let socket = new_socket(AddressFamily::Inet6, kind)?;
            set(&socket, "setsockopt IPV6_V6ONLY", sockopt::Ipv6V6Only, &!options.dual_stack)?;
            let address = SockaddrIn6::from(SocketAddrV6::new(address, inet.port, 0, scope));
            finish_inet(socket, &address, kind, options, settings)
        }
    }
}

fn finish_inet(
    socket: OwnedFd,
    address: &dyn SockaddrLike,
    kind: SockType,
    options: &ListenOptions,
    settings: &SocketOptions,
) -> Result<Bound, BindError> {
    let stream = kind == SockType::Stream;
    if stream {
        // So that connections of an earlier listener in TIME_WAIT are no obstacle. Never for UDP, where it
        // would let two sockets share the endpoint.
        set(&socket, "setsockopt SO_REUSEADDR", sockopt::ReuseAddr, &true)?;
    }
    if options.reuse_port {
        set(&socket, "setsockopt SO_REUSEPORT", sockopt::ReusePort, &true)?;
    }
    if options.free_bind {
        set(&socket, "setsockopt IP_FREEBIND", sockopt::IpFreebind, &true)?;
    }
    if !options.device.is_empty() {
        let device = std::ffi::OsString::from(options.device.as_str());
        set(&socket, "setsockopt SO_BINDTODEVICE", sockopt::BindToDevice, &device)?;
    }
    let receive_buffer = options.receive_buffer.unwrap_or(settings.receive_buffer);
    if receive_buffer > 0 {
        set(&socket, "setsockopt SO_RCVBUF", sockopt::RcvBuf, &(receive_buffer as usize))?;
    }
    let send_buffer = options.send_buffer.unwrap_or(settings.send_buffer);
    if send_buffer > 0 {
        set(&socket, "setsockopt SO_SNDBUF", sockopt::SndBuf, &(send_buffer as usize))?;
    }
    if stream && options.no_delay.unwrap_or(settings.no_delay) {
        set(&socket, "setsockopt TCP_NODELAY", sockopt::TcpNoDelay, &true)?;
    }
    if stream && options.defer_accept > 0 {
        crate::sys::sockopt::defer_accept(&socket, options.defer_accept)
            .call("setsockopt TCP_DEFER_ACCEPT")?;
    }
    if stream && options.fast_open > 0 {
        crate::sys::sockopt::fast_open(&socket, options.fast_open).call("setsockopt TCP_FASTOPEN")?;
    }
    nix::sys::socket::bind(socket.as_raw_fd(), address).call("bind")?;
    if stream {
        listen(&socket, options, settings)?;
    }
    Ok(Bound { socket, file: None })
}

fn bind_unix(
    directories: &Directories,
    path: &str,
    kind: SockType,
    options: &ListenOptions,
    settings: &SocketOptions,
) -> Result<Bound, BindError> {
    let socket = new_socket(AddressFamily::Unix, kind)?;
    let mode = options.mode.unwrap_or(settings.mode);
    let file = UnixFile::bind(directories, &socket, path, mode).call("bind")?;
    listen(&socket, options, settings)?;
    Ok(Bound { socket, file: Some(Box::new(file)) })
}

fn listen(socket: &OwnedFd, options: &ListenOptions, settings: &SocketOptions) -> Result<(), BindError> {
    // The kernel caps it at net.core.somaxconn; nix refuses what is beyond SOMAXCONN as it was in 2001.
    let backlog = i32::try_from(options.backlog.unwrap_or(settings.backlog)).unwrap_or(i32::MAX);
    let backlog = Backlog::new(backlog).unwrap_or(Backlog::MAXCONN);
    nix::sys::socket::listen(socket, backlog).call("listen")
}

impl BindError {
    /// The fault that a peer gets for it.
    pub fn fault(self, endpoint: &Endpoint) -> Fault {
        let fault = |code, message: String, remedy: &str| {
            Fault::new(code, &message).remedy(remedy).errno(self.errno as i32).subject(self.call)
        };
        match self.errno {
            Errno::EADDRINUSE => fault(
                FaultCode::InUse,
                format!("{endpoint} is in use by another program"),
                "stop that program (ss -lntup names it) or ask for another endpoint",
            )
            .subject("another program"),
            Errno::EADDRNOTAVAIL => fault(
                FaultCode::NotLocal,
                format!("the address of {endpoint} is on no interface of this host"),
                "add the address first, or ask for free_bind",
            ),
            Errno::EACCES | Errno::EPERM if endpoint.inet().is_some() => {
                let capability = if self.call == "bind" { "cap_net_bind_service" } else { "cap_net_raw" };
                fault(
                    FaultCode::NotRetained,
                    format!("{endpoint} needs {capability}, which the broker does not retain"),
                    "add it to security.capabilities and restart portreeved",
                )
                .subject(capability)
            }
            Errno::ENODEV | Errno::ENXIO => fault(
                FaultCode::UnknownInterface,
                format!("the interface that {endpoint} names does not exist"),
                "see ip link",
            ),
            Errno::EMFILE | Errno::ENFILE => fault(
                FaultCode::Quota,
                "the broker has no descriptor left".to_owned(),
                "stop listeners, or start portreeved with a higher limit of open files",
            ),
            errno => fault(FaultCode::Os, format!("{endpoint}: {} failed: {}", self.call, errno.desc()), ""),
        }
    }
}
