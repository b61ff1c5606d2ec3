//! Socket options: one wrapper each for setsockopt(2) and getsockopt(2), and a function for each option in use.
//!
//! Promises: no value outlives its call; a value that the kernel returns is truncated to the length that it reports.

use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};

use libc::c_int;
use nix::errno::Errno;

/// Of include/uapi/asm-generic/socket.h; libc has it not for every target.
const SO_BINDTOIFINDEX: c_int = 62;
/// The number of an interface that does not exist.
const NO_INTERFACE: c_int = c_int::MAX;

/// SO_REUSEADDR. TCP: a socket that does not listen, and connections of an earlier listener in TIME_WAIT, do not prevent
/// bind(2). UDP: two sockets that both have the option can be bound to one endpoint, and packets reach the newer one. See
/// socket(7).
///
/// # Capabilities
/// None.
///
/// # Errors
/// EBADF, ENOTSOCK.
pub fn set_reuse_address(socket: impl AsFd, reuse: bool) -> nix::Result<()> {
    set_number(socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, u32::from(reuse))
}

/// Whether SO_REUSEADDR is set. See socket(7).
///
/// # Capabilities
/// None.
///
/// # Errors
/// EBADF, ENOTSOCK.
pub fn reuses_address(socket: impl AsFd) -> nix::Result<bool> {
    get_number(socket, libc::SOL_SOCKET, libc::SO_REUSEADDR).map(|reuse| reuse != 0)
}

/// SO_REUSEPORT: several sockets may be bound to the endpoint, as long as each has the option and all belong to one
/// user. See socket(7), Linux 3.9.
///
/// # Capabilities
/// None.
///
/// # Errors
/// EBADF, ENOTSOCK.
pub fn set_reuse_port(socket: impl AsFd, shared: bool) -> nix::Result<()> {
    set_number(socket, libc::SOL_SOCKET, libc::SO_REUSEPORT, u32::from(shared))
}

/// Whether SO_REUSEPORT is set. See socket(7), Linux 3.9.
///
/// # Capabilities
/// None.
///
/// # Errors
/// EBADF, ENOTSOCK.
pub fn reuses_port(socket: impl AsFd) -> nix::Result<bool> {
    get_number(socket, libc::SOL_SOCKET, libc::SO_REUSEPORT).map(|reuse| reuse != 0)
}

/// Whether IPV6_V6ONLY is set. See ipv6(7).
///
/// # Capabilities
/// None.
///
/// # Errors
/// EBADF, ENOTSOCK, ENOPROTOOPT for a socket that is not IPv6.
pub fn is_ipv6_only(socket: impl AsFd) -> nix::Result<bool> {
    get_number(socket, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY).map(|only| only != 0)
}

/// IP_FREEBIND: the socket can be bound to an address that is on no interface yet. It applies to IPv6 too. See ip(7).
///
/// # Capabilities
/// None.
///
/// # Errors
/// EBADF, ENOTSOCK.
pub fn set_free_bind(socket: impl AsFd) -> nix::Result<()> {
    set_number(socket, libc::IPPROTO_IP, libc::IP_FREEBIND, 1)
}

/// SO_BINDTODEVICE: only packets of this interface reach the socket. See socket(7).
///
/// # Capabilities
/// None since Linux 5.7 for a socket that is bound to no interface yet; CAP_NET_RAW otherwise.
///
/// # Errors
/// ENODEV if there is no such interface; EPERM without the capability.
pub fn bind_to_device(socket: impl AsFd, interface: &str) -> nix::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, interface.as_bytes())
}

/// SO_RCVTIMEO and SO_SNDTIMEO: calls wait for as long as it takes. accept(2) heeds them too. See socket(7).
///
/// # Capabilities
/// None.
///
/// # Errors
/// EBADF, ENOTSOCK.
pub fn clear_timeouts(socket: impl AsFd) -> nix::Result<()> {
    let none = [libc::timeval { tv_sec: 0, tv_usec: 0 }];
    set(&socket, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &none)?;
    set(&socket, libc::SOL_SOCKET, libc::SO_SNDTIMEO, &none)
}

/// SO_RCVLOWAT: the smallest number of bytes that makes a socket readable; 1 is the default. See socket(7).
///
/// # Capabilities
/// None.
///
/// # Errors
/// EBADF, ENOTSOCK.
pub fn set_receive_low_water_mark(socket: impl AsFd, bytes: u32) -> nix::Result<()> {
    set_number(socket, libc::SOL_SOCKET, libc::SO_RCVLOWAT, bytes)
}

/// SO_LINGER: close(2) does not wait. Accepted connections inherit it. See socket(7).
///
/// # Capabilities
/// None.
///
/// # Errors
/// EBADF, ENOTSOCK.
pub fn clear_linger(socket: impl AsFd) -> nix::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_LINGER, &[libc::linger { l_onoff: 0, l_linger: 0 }])
}

/// SO_PASSCRED: recvmsg(2) returns the credentials of the sender of each message. See unix(7).
///
/// # Capabilities
/// None.
///
/// # Errors
/// EBADF, ENOTSOCK.
pub fn set_pass_credentials(socket: impl AsFd, enabled: bool) -> nix::Result<()> {
    set_number(socket, libc::SOL_SOCKET, libc::SO_PASSCRED, u32::from(enabled))
}

/// SO_PASSPIDFD: recvmsg(2) returns a pidfd of the sender of each message. See unix(7), Linux 6.5.
///
/// # Capabilities
/// None.
///
/// # Errors
/// EBADF, ENOTSOCK; ENOPROTOOPT on an older kernel.
pub fn set_pass_pidfd(socket: impl AsFd, enabled: bool) -> nix::Result<()> {
    set_number(socket, libc::SOL_SOCKET, libc::SO_PASSPIDFD, u32::from(enabled))
}

/// SO_BINDTOIFINDEX: the number of the only interface whose packets reach the socket; 0 for every interface. See
/// Documentation/networking of the kernel, Linux 5.1.
///
/// # Capabilities
/// None.
///
/// # Errors
/// EBADF, ENOTSOCK, ENOPROTOOPT on an older kernel.
pub fn bound_interface(socket: impl AsFd) -> nix::Result<u32> {
    get_number(socket, libc::SOL_SOCKET, SO_BINDTOIFINDEX).map(c_int::cast_unsigned)
}

/// SO_BINDTOIFINDEX with the number of an interface that does not exist: no packet reaches the socket, and a TCP client
/// finds no listener. A process without CAP_NET_RAW cannot undo it for a TCP socket. See socket(7), Linux 5.1.
///
/// # Capabilities
/// None for a socket that is bound to no interface yet; CAP_NET_RAW otherwise.
///
/// # Errors
/// EPERM without the capability; ENOPROTOOPT on an older kernel.
pub fn bind_to_no_interface(socket: impl AsFd) -> nix::Result<()> {
    set_number(socket, libc::SOL_SOCKET, SO_BINDTOIFINDEX, NO_INTERFACE.cast_unsigned())
}

/// Whether a socket is bound as [`bind_to_no_interface`] does it.
///
/// # Capabilities
/// None.
pub fn is_bound_to_no_interface(socket: impl AsFd) -> bool {
    get_number(socket, libc::SOL_SOCKET, SO_BINDTOIFINDEX) == Ok(NO_INTERFACE)
}

/// SO_RCVBUF: the size of the receive buffer in bytes; the kernel doubles it and limits it to net.core.rmem_max. See
/// socket(7).
///
/// # Capabilities
/// None.
///
/// # Errors
/// EBADF, ENOTSOCK.
pub fn set_receive_buffer(socket: impl AsFd, bytes: u32) -> nix::Result<()> {
    set_number(socket, libc::SOL_SOCKET, libc::SO_RCVBUF, bytes)
}

/// SO_RCVBUFFORCE: the size of the receive buffer in bytes, beyond net.core.rmem_max too. See socket(7), Linux 2.6.14.
///
/// # Capabilities
/// CAP_NET_ADMIN in the initial user namespace.
///
/// # Errors
/// EPERM without the capability; EBADF, ENOTSOCK.
pub fn force_receive_buffer(socket: impl AsFd, bytes: u32) -> nix::Result<()> {
    set_number(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes)
}

/// SO_SNDBUF: the size of the send buffer in bytes; the kernel doubles it and limits it to net.core.wmem_max. See
/// socket(7).
///
/// # Capabilities
/// None.
///
/// # Errors
/// EBADF, ENOTSOCK.
pub fn set_send_buffer(socket: impl AsFd, bytes: u32) -> nix::Result<()> {
    set_number(socket, libc::SOL_SOCKET, libc::SO_SNDBUF, bytes)
}

/// IPV6_V6ONLY: an IPv6 wildcard listens for IPv6 alone, or for IPv4 too. See ipv6(7).
///
/// # Capabilities
/// None.
///
/// # Errors
/// EINVAL once the socket is bound.
pub fn set_ipv6_only(socket: impl AsFd, only: bool) -> nix::Result<()> {
    set_number(socket, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, u32::from(only))
}

/// TCP_NODELAY: small segments are sent at once. Accepted connections inherit it. See tcp(7).
///
/// # Capabilities
/// None.
///
/// # Errors
/// EBADF, ENOTSOCK, ENOPROTOOPT for a socket that is not TCP.
pub fn set_no_delay(socket: impl AsFd, enabled: bool) -> nix::Result<()> {
    set_number(socket, libc::IPPROTO_TCP, libc::TCP_NODELAY, u32::from(enabled))
}

/// TCP_DEFER_ACCEPT: the listener wakes when data has arrived, or after this many seconds. See tcp(7).
///
/// # Capabilities
/// None.
///
/// # Errors
/// EBADF, ENOTSOCK, ENOPROTOOPT for a socket that is not TCP.
pub fn set_defer_accept(socket: impl AsFd, seconds: u32) -> nix::Result<()> {
    set_number(socket, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, seconds)
}

/// TCP_FASTOPEN: the largest number of connections whose handshake is not complete. See tcp(7), Linux 3.7.
///
/// # Capabilities
/// None.
///
/// # Errors
/// EBADF, ENOTSOCK, ENOPROTOOPT for a socket that is not TCP.
pub fn set_fast_open(socket: impl AsFd, pending: u32) -> nix::Result<()> {
    set_number(socket, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, pending)
}

/// SO_ATTACH_BPF: a loaded eBPF program filters the packets of a socket. See socket(7), Linux 3.19.
///
/// # Capabilities
/// None.
///
/// # Errors
/// EPERM if the socket's filter is locked; EINVAL for a program of another type.
pub fn attach_bpf(socket: impl AsFd, program: &OwnedFd) -> nix::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_ATTACH_BPF, &program.as_raw_fd().to_ne_bytes())
}

/// SO_ATTACH_FILTER: a classic BPF program filters the packets of a socket, and replaces any earlier filter. See socket(7).
///
/// # Capabilities
/// None on most kernels; some require CAP_NET_ADMIN.
///
/// # Errors
/// EINVAL for an invalid program; EPERM if the socket's filter is locked, or without the capability.
pub fn attach_filter(socket: impl AsFd, program: &mut [libc::sock_filter]) -> nix::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| Errno::EINVAL)?;
    let program = libc::sock_fprog { len, filter: program.as_mut_ptr() };
    set(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, std::slice::from_ref(&program))
}

/// SO_LOCK_FILTER: no process can detach or replace the filter of a socket, through any copy. See socket(7), Linux 3.9.
///
/// # Capabilities
/// None.
///
/// # Errors
/// EBADF, ENOTSOCK.
pub fn lock_filter(socket: impl AsFd) -> nix::Result<()> {
    set_number(socket, libc::SOL_SOCKET, libc::SO_LOCK_FILTER, 1)
}

/// SO_LOCK_FILTER: whether the filter of a socket is locked. See socket(7), Linux 3.9.
///
/// # Capabilities
/// None.
///
/// # Errors
/// EBADF, ENOTSOCK.
pub fn is_filter_locked(socket: impl AsFd) -> nix::Result<bool> {
    get_number(socket, libc::SOL_SOCKET, libc::SO_LOCK_FILTER).map(|locked| locked != 0)
}

/// SO_COOKIE: a number that identifies the socket, and that no other socket gets as long as the kernel runs. Linux 4.6.
///
/// # Capabilities
/// None.
///
/// # Errors
/// EBADF, ENOTSOCK.
pub fn cookie(socket: impl AsFd) -> nix::Result<u64> {
    const SO_COOKIE: c_int = 57;
    let mut halves = [0_u32; 2];
    get(socket, libc::SOL_SOCKET, SO_COOKIE, &mut halves)?;
    let [first, second] = halves.map(u64::from);
    Ok(if cfg!(target_endian = "little") { second << 32 | first } else { first << 32 | second })
}

/// SO_TYPE: stream, datagram or seqpacket, as SOCK_ numbers. See socket(7).
///
/// # Capabilities
/// None.
///
/// # Errors
/// EBADF, ENOTSOCK.
pub fn socket_type(socket: impl AsFd) -> nix::Result<c_int> {
    get_number(socket, libc::SOL_SOCKET, libc::SO_TYPE)
}

/// SO_DOMAIN: the family, as an AF_ number. See socket(7), Linux 2.6.32.
///
/// # Capabilities
/// None.
///
/// # Errors
/// EBADF, ENOTSOCK.
pub fn domain(socket: impl AsFd) -> nix::Result<c_int> {
    get_number(socket, libc::SOL_SOCKET, libc::SO_DOMAIN)
}

/// SO_PROTOCOL: the protocol, as an IPPROTO_ number. See socket(7), Linux 2.6.32.
///
/// # Capabilities
/// None.
///
/// # Errors
/// EBADF, ENOTSOCK.
pub fn protocol(socket: impl AsFd) -> nix::Result<c_int> {
    get_number(socket, libc::SOL_SOCKET, libc::SO_PROTOCOL)
}

/// SO_ACCEPTCONN: whether the socket listens. See socket(7).
///
/// # Capabilities
/// None.
///
/// # Errors
/// EBADF, ENOTSOCK.
pub fn is_listening(socket: impl AsFd) -> nix::Result<bool> {
    get_number(socket, libc::SOL_SOCKET, libc::SO_ACCEPTCONN).map(|listens| listens != 0)
}

/// How many connections wait in a listening TCP socket to be accepted: tcpi_unacked of TCP_INFO. See tcp(7).
///
/// # Capabilities
/// None.
///
/// # Errors
/// EBADF, ENOTSOCK, ENOPROTOOPT for a socket that is not TCP.
pub fn accept_queue_length(socket: impl AsFd) -> nix::Result<u32> {
    // Eight bytes, then tcpi_rto, tcpi_ato, tcpi_snd_mss, tcpi_rcv_mss, tcpi_unacked.
    let mut info = [0_u32; 8];
    get(socket, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info)?;
    Ok(info.get(6).copied().unwrap_or_default())
}

/// Whether packets that were sent on a connected Unix socket wait for the peer to receive them: SO_MEMINFO, as SIOCOUTQ of
/// unix(7). False means that no descriptor that was sent on it is in flight: the kernel counts those of a packet as received
/// before it frees the packet. See socket(7), Linux 4.12.
///
/// # Capabilities
/// None.
///
/// # Errors
/// EBADF, ENOTSOCK.
pub fn has_unread_packets(socket: impl AsFd) -> nix::Result<bool> {
    // SK_MEMINFO_WMEM_ALLOC of linux/sock_diag.h, after the allocated and the largest memory for receiving.
    let [.., sent] = {
        let mut memory = [0_u32; 3];
        get(socket, libc::SOL_SOCKET, libc::SO_MEMINFO, &mut memory)?;
        memory
    };
    // A packet counts with its overhead of hundreds of bytes. While the kernel reports that the last one was freed, it still
    // counts one byte of it.
    Ok(sent > 1)
}

/// The credentials that SO_PEERCRED returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ucred {
    /// The process; 0 if it is in no PID namespace that this process sees.
    pub pid: u32,
    /// The effective user.
    pub uid: u32,
    /// The effective group.
    pub gid: u32,
}

/// SO_PEERCRED: the credentials of the peer when it connected. For a socket that this process connected to a listener they
/// are those of the process that called listen(2). See unix(7).
///
/// # Capabilities
/// None.
///
/// # Errors
/// EBADF, ENOTSOCK.
pub fn peer_credentials(socket: impl AsFd) -> nix::Result<Ucred> {
    // struct ucred: pid, uid, gid, 32 bits each.
    let mut ucred = [0_u32; 3];
    get(socket, libc::SOL_SOCKET, libc::SO_PEERCRED, &mut ucred)?;
    let [pid, uid, gid] = ucred;
    Ok(Ucred { pid, uid, gid })
}

/// SO_PEERGROUPS: the supplementary groups of the peer when it connected. See unix(7), Linux 4.13.
///
/// # Capabilities
/// None.
///
/// # Errors
/// ENODATA if the peer's credentials are unknown; ENOPROTOOPT on an older kernel.
pub fn peer_groups(socket: impl AsFd) -> nix::Result<Vec<u32>> {
    /// More supplementary groups than the kernel allows: NGROUPS_MAX, see getgroups(2).
    const MAX_GROUPS: usize = 65536;
    let mut groups = vec![0_u32; 64];
    loop {
        match get_or_needed(&socket, libc::SOL_SOCKET, libc::SO_PEERGROUPS, &mut groups) {
            Ok(count) => {
                groups.truncate(count);
                return Ok(groups);
            }
            Err((Errno::ERANGE, count)) if groups.len() < count && count <= MAX_GROUPS => {
                groups.resize(count, 0);
            }
            Err((errno, _)) => return Err(errno),
        }
    }
}

/// SO_PEERPIDFD: a pidfd of the process that connected. See unix(7), Linux 6.5.
///
/// # Capabilities
/// None.
///
/// # Errors
/// ENOPROTOOPT on an older kernel; ESRCH or ENODATA if the process has ended.
pub fn peer_pidfd(socket: impl AsFd) -> nix::Result<OwnedFd> {
    let number: RawFd = get_number(socket, libc::SOL_SOCKET, libc::SO_PEERPIDFD)?;
    // SAFETY: the kernel has just opened this descriptor for this call, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A number that does not fit into the kernel's int becomes the largest int.
fn set_number(socket: impl AsFd, level: c_int, option: c_int, value: u32) -> nix::Result<()> {
    let value = c_int::try_from(value).unwrap_or(c_int::MAX);
    set(socket, level, option, &value.to_ne_bytes())
}

fn get_number(socket: impl AsFd, level: c_int, option: c_int) -> nix::Result<c_int> {
    let mut number = [0_u32];
    get(socket, level, option, &mut number)?;
    let [number] = number;
    Ok(number.cast_signed())
}

/// setsockopt(2).
fn set<T>(socket: impl AsFd, level: c_int, option: c_int, value: &[T]) -> nix::Result<()> {
    let length = libc::socklen_t::try_from(size_of_val(value)).map_err(|_| Errno::EINVAL)?;
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel reads `length` bytes at `value`, which has that many and lives until the call returns.
    let result = unsafe { libc::setsockopt(socket, level, option, value.as_ptr().cast(), length) };
    Errno::result(result).map(drop)
}

/// getsockopt(2): how many values the kernel wrote.
fn get(socket: impl AsFd, level: c_int, option: c_int, values: &mut [u32]) -> nix::Result<usize> {
    get_or_needed(socket, level, option, values).map_err(|(errno, _)| errno)
}

/// getsockopt(2): how many values the kernel wrote, or with the error how many it would have written.
fn get_or_needed(
    socket: impl AsFd,
    level: c_int,
    option: c_int,
    values: &mut [u32],
) -> Result<usize, (Errno, usize)> {
    let mut length = libc::socklen_t::try_from(size_of_val(values)).map_err(|_| (Errno::EINVAL, 0))?;
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel writes at most `length` bytes to `values`, which has that many and for which every bit pattern
    // is valid; it writes the length that it used, or needs, to `length`.
    let result =
        unsafe { libc::getsockopt(socket, level, option, values.as_mut_ptr().cast(), &raw mut length) };
    let count = length as usize / size_of::<u32>();
    Errno::result(result).map(|_| count).map_err(|errno| (errno, count))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn options_have_the_values_that_the_kernel_documents() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(socket_type(&listener), Ok(libc::SOCK_STREAM));
        assert_eq!(domain(&listener), Ok(libc::AF_INET));
        assert_eq!(protocol(&listener), Ok(libc::IPPROTO_TCP));
        assert_eq!(is_listening(&listener), Ok(true));
        let udp = UdpSocket::bind("[::1]:0").unwrap();
        assert_eq!((socket_type(&udp), domain(&udp)), (Ok(libc::SOCK_DGRAM), Ok(libc::AF_INET6)));
        assert_eq!(is_listening(&udp), Ok(false));
        assert_eq!(socket_type(std::fs::File::open("/dev/null").unwrap()), Err(Errno::ENOTSOCK));

        assert_eq!(accept_queue_length(&listener), Ok(0));
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(accept_queue_length(&listener), Ok(1));
    }

    #[test]
    fn a_packet_is_unread_until_the_peer_receives_it_or_closes() {
        use portreeve_protocol::channel;
        let mut buffer = [0; 16];
        let (ours, theirs) = channel::pair().unwrap();
        assert_eq!(has_unread_packets(&ours), Ok(false));
        channel::send(&ours, b"?", &[ours.as_fd(); 253]).unwrap();
        channel::send_bytes(&ours, b"?").unwrap();
        assert_eq!((has_unread_packets(&ours), has_unread_packets(&theirs)), (Ok(true), Ok(false)));
        channel::receive(&theirs, &mut buffer, &mut Vec::new()).unwrap();
        assert_eq!(has_unread_packets(&ours), Ok(true));
        channel::receive(&theirs, &mut buffer, &mut Vec::new()).unwrap();
        assert_eq!(has_unread_packets(&ours), Ok(false));

        channel::send(&ours, b"?", &[ours.as_fd()]).unwrap();
        ours.shutdown(std::net::Shutdown::Both).unwrap();
        assert_eq!(has_unread_packets(&ours), Ok(true));
        drop(theirs);
        assert_eq!(has_unread_packets(&ours), Ok(false));
        assert_eq!(has_unread_packets(std::fs::File::open("/dev/null").unwrap()), Err(Errno::ENOTSOCK));
    }

    #[test]
    fn the_peer_of_a_pair_is_this_process() {
        let (one, _other) = UnixStream::pair().unwrap();
        let peer = peer_credentials(&one).unwrap();
        assert_eq!(peer.pid, std::process::id());
        assert_eq!((peer.uid, peer.gid), (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw()));
        let groups: Vec<u32> = nix::unistd::getgroups().unwrap().iter().map(|gid| gid.as_raw()).collect();
        assert_eq!(peer_groups(&one).unwrap(), groups);
    }
}
