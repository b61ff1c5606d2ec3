//! Notifications about bind(2): receiving them, looking at the program's socket, and answering them.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use libc::{IPPROTO_IP, IPPROTO_IPV6, SOL_SOCKET};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::net::SocketAddrAny;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use rustix::thread::{CapabilitySet, capabilities};

use crate::decision::{self, Facts, Request, needs_scope};
use crate::options;
use crate::rules::{Rules, is_privileged};
use crate::socket_address::{MAX_LENGTH, SocketAddress};
use crate::sys;

/// The notifications of one program. [`filter::receive`](crate::filter::receive) returns them.
#[derive(Debug)]
pub struct Notifications {
    listener: OwnedFd,
    /// /proc, if there is one. It stays open, so that it can be read in a changed root.
    proc: Option<OwnedFd>,
    /// The last sockets that programs got, by their numbers (SO_COOKIE), if a signal can interrupt a call that is being answered:
    /// the program then has the socket, and its call is repeated.
    answered: Option<Mutex<VecDeque<u64>>>,
}

/// How many sockets are remembered.
const MAX_ANSWERED: usize = 256;

/// What there is to receive.
#[derive(Debug)]
pub enum Next {
    /// A call that waits.
    Call(Call),
    /// Nothing now.
    Nothing,
    /// Nothing any more: no process has the filter.
    Ended,
}

/// A call of bind(2) that waits for its answer.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    id: u64,
    thread: Option<Pid>,
    /// The number of its descriptor.
    descriptor: i32,
    pointer: u64,
    length: usize,
}

impl Call {
    /// The thread that called, as this process sees it.
    pub fn thread(&self) -> Option<i32> {
        self.thread.map(Pid::as_raw_pid)
    }
}

/// What to do with a call.
#[derive(Debug)]
pub enum Verdict {
    /// The kernel carries it out.
    Pass,
    /// The kernel carries it out, because this process could not look at it.
    Unreadable(Unreadable),
    /// The program's socket is bound already, by this call before a signal interrupted it: it returns 0.
    Done,
    /// The broker is asked for a listener.
    Listen(Box<Bind>),
    /// The rules do not permit it, and the kernel will probably refuse it: its port needs a privilege.
    NotPermitted(Box<Bind>),
}

/// A bind that the broker is asked about.
#[derive(Debug)]
pub struct Bind {
    /// What to request.
    pub request: Request,
    call: Call,
    /// The program's own socket.
    socket: OwnedFd,
    /// A new socket of the same kind.
    new: OwnedFd,
    close_on_exec: bool,
}

impl Bind {
    /// The call.
    pub fn call(&self) -> Call {
        self.call
    }
}

/// Why a call could not be looked at.
#[derive(Debug)]
pub struct Unreadable {
    what: &'static str,
    thread: i32,
    error: io::Error,
    yama: Option<u8>,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, thread, error, yama } = self;
        write!(
            out,
            "cannot read {what} of a bind by process {thread}: {error}. The kernel judges this bind. "
        )?;
        match yama {
            Some(level) => write!(out, "kernel.yama.ptrace_scope is {level}: set it to 0 or 1"),
            None => out.write_str(
                "The process may have made itself unreadable (PR_SET_DUMPABLE), or its program file may not be readable",
            ),
        }
    }
}

/// The kernel's level of restriction of ptrace(2), if it keeps a process from looking into its descendants; `None` without Yama or
/// /proc. Level 2 demands CAP_SYS_PTRACE, and level 3 forbids it to everybody. See kernel.yama.ptrace_scope in proc_sys_kernel(5).
pub fn obstructing_yama_level(has_sys_ptrace: bool) -> Option<u8> {
    let level = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").ok()?.trim().parse().ok()?;
    match level {
        ..2 => None,
        2 if has_sys_ptrace => None,
        _ => Some(level),
    }
}

/// Opens /proc, if there is one.
pub fn open_proc() -> Option<OwnedFd> {
    rustix::fs::open("/proc", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()
}

impl Notifications {
    /// The notifications of a descriptor. `interruptible` is whether a signal can interrupt a call that has been received.
    pub(crate) fn new(listener: OwnedFd, interruptible: bool) -> Self {
        Self { listener, proc: open_proc(), answered: interruptible.then(Mutex::default) }
    }

    /// The same for a process that has changed its root since it opened /proc.
    #[must_use]
    pub fn with_proc(self, proc: Option<OwnedFd>) -> Self {
        Self { proc, ..self }
    }

    /// The next call, if one waits.
    ///
    /// # Errors
    /// Those of poll(2) and SECCOMP_IOCTL_NOTIF_RECV.
    pub fn next(&self) -> io::Result<Next> {
        let mut ready = [PollFd::new(&self.listener, PollFlags::IN)];
        poll(&mut ready, Some(&Timespec::default()))?;
        let [ready] = ready;
        if !ready.revents().contains(PollFlags::IN) {
            let ended = ready.revents().intersects(PollFlags::HUP | PollFlags::ERR);
            return Ok(if ended { Next::Ended } else { Next::Nothing });
        }
        match sys::receive(self.listener.as_fd()) {
            Ok(received) => {
                let [descriptor, pointer, length, ..] = received.arguments;
                Ok(Next::Call(Call {
                    id: received.id,
                    thread: i32::try_from(received.thread).ok().and_then(Pid::from_raw),
                    descriptor: truncated(descriptor),
                    pointer,
                    length: usize::try_from(truncated(length)).unwrap_or(0),
                }))
            }
            // The process ended.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Next::Nothing),
            Err(error) => Err(error),
        }
    }

    /// Looks at a call.
    pub fn examine(&self, call: Call, rules: &Rules) -> Verdict {
        match self.look(call, rules) {
            Ok(verdict) => verdict,
            // The call does not wait any more.
            Err(_) if !sys::is_valid(self.listener.as_fd(), call.id) => Verdict::Pass,
            Err(unreadable) => Verdict::Unreadable(unreadable),
        }
    }

    /// The address of a call, if it is an IPv4 or IPv6 address.
    fn address(&self, call: &Call) -> Result<Option<SocketAddress>, Unreadable> {
        let Some(thread) = call.thread else { return Ok(None) };
        let mut buffer = [0; MAX_LENGTH];
        let Some(wanted) = buffer.get_mut(..call.length.min(MAX_LENGTH)) else { return Ok(None) };
        match sys::read_memory(thread.as_raw_pid(), call.pointer, wanted) {
            Ok(read) if read == wanted.len() => {}
            Ok(_) => return Ok(None),
            // The kernel will say so.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EFAULT | libc::ESRCH)) => {
                return Ok(None);
            }
            Err(error) => return Err(unreadable("the address", thread, error)),
        }
        let address = SocketAddress::parse(wanted);
        // The memory was that of the thread that waits: its number has not been given to another one.
        Ok(address.filter(|_| sys::is_valid(self.listener.as_fd(), call.id)))
    }

    fn look(&self, call: Call, rules: &Rules) -> Result<Verdict, Unreadable> {
        let address = self.address(&call)?;
        let (Some(address), Some(thread)) =
            (address.filter(|address| decision::concerns(address, rules)), call.thread)
        else {
            return Ok(Verdict::Pass);
        };
        let Some(socket) = self.socket(&call, thread)? else { return Ok(Verdict::Pass) };
        let Some((facts, new)) = facts(socket.as_fd(), &address) else { return Ok(Verdict::Pass) };
        if facts.is_bound && self.was_answered(socket.as_fd(), &address) {
            return Ok(Verdict::Done);
        }
        let Some(request) = decision::request(&address, &facts) else { return Ok(Verdict::Pass) };
        let permitted = rules.may_permit(&request.endpoint, request.dual_stack);
        if !permitted && !is_privileged(address.port) {
            return Ok(Verdict::Pass);
        }
        let close_on_exec = self.close_on_exec(&call, thread);
        let bind = Box::new(Bind { request, call, socket, new, close_on_exec });
        Ok(if permitted { Verdict::Listen(bind) } else { Verdict::NotPermitted(bind) })
    }

    /// A copy of the program's descriptor; `None` if there is no such descriptor.
    fn socket(&self, call: &Call, thread: Pid) -> Result<Option<OwnedFd>, Unreadable> {
        let open = |pid, flags| pidfd_open(pid, flags);
        // PIDFD_THREAD (Linux 6.9): the number of any thread will do. Before, and without /proc, the first thread has the number of
        // its process.
        let process = open(thread, PidfdFlags::from_bits_retain(libc::PIDFD_THREAD))
            .or_else(|_| open(self.leader(thread).unwrap_or(thread), PidfdFlags::empty()));
        let process = match process {
            Ok(process) => process,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(unreadable("the socket", thread, error.into())),
        };
        match pidfd_getfd(&process, call.descriptor, PidfdGetfdFlags::empty()) {
            // The descriptor is that of the process that waits.
            Ok(socket) => Ok(Some(socket).filter(|_| sys::is_valid(self.listener.as_fd(), call.id))),
            Err(rustix::io::Errno::BADF | rustix::io::Errno::SRCH) => Ok(None),
            Err(error) => Err(unreadable("the socket", thread, error.into())),
        }
    }

    /// A file of a thread in /proc.
    fn read_proc(&self, thread: Pid, name: &str) -> Option<String> {
        let path = format!("{thread}/{name}");
        let file =
            rustix::fs::openat(self.proc.as_ref()?, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .ok()?;
        let mut text = String::new();
        std::fs::File::from(file).take(1 << 16).read_to_string(&mut text).ok()?;
        Some(text)
    }

    /// The process of a thread.
    fn leader(&self, thread: Pid) -> Option<Pid> {
        let status = self.read_proc(thread, "status")?;
        let number = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?;
        Pid::from_raw(number.trim().parse().ok()?)
    }

    /// Whether the program's descriptor is close-on-exec. Without /proc that is unknown: it is then taken for one that the program
    /// passes on, because a server that executes itself or its workers needs that.
    fn close_on_exec(&self, call: &Call, thread: Pid) -> bool {
        let information = self.read_proc(thread, &format!("fdinfo/{}", call.descriptor)).unwrap_or_default();
        let flags = information.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = flags.and_then(|flags| i64::from_str_radix(flags.trim(), 8).ok());
        flags.is_some_and(|flags| flags & i64::from(libc::O_CLOEXEC) != 0)
    }

    /// Puts the broker's socket in the place of the program's own, with its options, and lets the call return 0. Returns whether
    /// the program has the socket.
    ///
    /// # Errors
    /// The socket could not be put there, and the call still waits.
    pub fn answer(&self, bind: &Bind, socket: BorrowedFd<'_>) -> io::Result<bool> {
        let (listener, call) = (self.listener.as_fd(), &bind.call);
        options::copy(bind.socket.as_fd(), bind.new.as_fd(), socket);
        match sys::replace(listener, call.id, call.descriptor.cast_unsigned(), socket, bind.close_on_exec) {
            Ok(()) => {}
            // The process ended, or a signal interrupted the call.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => {
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
        self.remember(socket);
        let _ = sys::reply(listener, call.id, 0); // a call that a signal has interrupted is repeated
        Ok(true)
    }

    fn remember(&self, socket: BorrowedFd<'_>) {
        if let (Some(answered), Some(cookie)) = (&self.answered, cookie(socket)) {
            let mut answered = answered.lock().unwrap_or_else(PoisonError::into_inner);
            answered.truncate(MAX_ANSWERED - 1);
            answered.push_front(cookie);
        }
    }

    /// Whether the program got this socket as an answer, and it is bound to this address.
    fn was_answered(&self, socket: BorrowedFd<'_>, address: &SocketAddress) -> bool {
        let Some((answered, cookie)) = self.answered.as_ref().zip(cookie(socket)) else { return false };
        answered.lock().unwrap_or_else(PoisonError::into_inner).contains(&cookie)
            && bound_to(socket) == Some((address.address, address.port))
    }

    /// Lets the kernel carry out a call. A call that does not wait any more needs no answer, here and below.
    pub fn pass(&self, call: Call) {
        let _ = sys::pass(self.listener.as_fd(), call.id);
    }

    /// Lets a call return 0 without a change.
    pub fn succeed(&self, call: Call) {
        let _ = sys::reply(self.listener.as_fd(), call.id, 0);
    }

    /// Lets a call fail. An errno that is not positive is EACCES.
    pub fn refuse(&self, call: Call, errno: i32) {
        let errno = if errno > 0 { errno } else { libc::EACCES };
        let _ = sys::reply(self.listener.as_fd(), call.id, errno);
    }
}

impl AsFd for Notifications {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl AsRawFd for Notifications {
    fn as_raw_fd(&self) -> RawFd {
        self.listener.as_raw_fd()
    }
}

/// Whether this process has CAP_SYS_PTRACE.
pub fn has_sys_ptrace() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_PTRACE))
}

fn unreadable(what: &'static str, thread: Pid, error: io::Error) -> Unreadable {
    Unreadable { what, thread: thread.as_raw_pid(), error, yama: obstructing_yama_level(has_sys_ptrace()) }
}

/// An int argument, of which the kernel ignores the upper half.
#[allow(clippy::cast_possible_truncation)]
fn truncated(argument: u64) -> i32 {
    argument as i32
}

fn integer(socket: BorrowedFd<'_>, level: i32, name: i32) -> Option<i32> {
    let mut value = [0; 4];
    sys::option(socket, level, name, &mut value).filter(|length| *length == value.len())?;
    Some(i32::from_ne_bytes(value))
}

/// A number of the kernel's for a socket or a network namespace.
fn number(socket: BorrowedFd<'_>, name: i32) -> Option<u64> {
    let mut value = [0; 8];
    sys::option(socket, SOL_SOCKET, name, &mut value).filter(|length| *length == value.len())?;
    Some(u64::from_ne_bytes(value))
}

fn cookie(socket: BorrowedFd<'_>) -> Option<u64> {
    number(socket, libc::SO_COOKIE)
}

/// The address and port that a socket is bound to.
fn bound_to(socket: BorrowedFd<'_>) -> Option<(std::net::IpAddr, u16)> {
    let address: SocketAddrAny = rustix::net::getsockname(socket).ok()?;
    let address = std::net::SocketAddr::try_from(address).ok()?;
    Some((address.ip(), address.port()))
}

/// Reads what the decision needs to know about a socket, and makes a new one of its kind; `None` if it is no IPv4 or IPv6 socket.
fn facts(socket: BorrowedFd<'_>, address: &SocketAddress) -> Option<(Facts, OwnedFd)> {
    let domain = integer(socket, SOL_SOCKET, libc::SO_DOMAIN)?;
    let kind = integer(socket, SOL_SOCKET, libc::SO_TYPE)?;
    let protocol = integer(socket, SOL_SOCKET, libc::SO_PROTOCOL)?;
    if !matches!(domain, libc::AF_INET | libc::AF_INET6)
        || !matches!(kind, libc::SOCK_STREAM | libc::SOCK_DGRAM)
    {
        return None;
    }
    let new = sys::new_socket(domain, kind, protocol).ok()?;
    let is_set = |level, name| integer(socket, level, name).is_some_and(|value| value != 0);
    let mut device = [0; libc::IFNAMSIZ];
    let length = sys::option(socket, SOL_SOCKET, libc::SO_BINDTODEVICE, &mut device).unwrap_or(0);
    let device = device.get(..length).unwrap_or_default();
    let device = String::from_utf8_lossy(device).trim_end_matches('\0').to_owned();
    // Linux before 5.14 has no numbers of network namespaces.
    let network = |socket| number(socket, libc::SO_NETNS_COOKIE);
    let is_own_network = network(socket) == network(new.as_fd());
    let scope = match address.scope {
        0 => None,
        index if needs_scope(address.address) => rustix::net::netdevice::index_to_name(&new, index).ok(),
        _ => None,
    };
    let facts = Facts {
        domain,
        kind,
        protocol,
        is_bound: bound_to(socket).is_some_and(|(_, port)| port != 0),
        is_own_network,
        reuse_port: is_set(SOL_SOCKET, libc::SO_REUSEPORT),
        ipv6_only: is_set(IPPROTO_IPV6, libc::IPV6_V6ONLY),
        free_bind: is_set(IPPROTO_IP, libc::IP_FREEBIND),
        device,
        scope: scope.unwrap_or_default(),
    };
    Some((facts, new))
}
