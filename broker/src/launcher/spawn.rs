//! Starts one worker: fork, descriptors, environment, exec by descriptor.
//!
//! Descriptors follow the socket-activation convention (sd_listen_fds(3)): listeners from 3 on, named by
//! LISTEN_FDNAMES, then the channel, whose number is in PORTREEVE_CHANNEL. A worker whose bind(2) is intercepted gets none.

use std::convert::Infallible;
use std::ffi::CString;
use std::io::Read as _;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{ForkResult, Pid, fork, getpid, pipe2, setsid};
use portreeve_intercept::filter;
use portreeve_protocol::socket_activation::{self, FIRST_DESCRIPTOR as FIRST};

use super::WORKER_NAME;
use super::command::Command;
use crate::confine::{landlock, limits};
use crate::sys;

/// The names, the backlogs, and the standard input of [`Order::Spawn`](super::message::Order::Spawn).
pub type Attributes<'a> = (&'a [String], &'a [Option<u32>], Option<u32>);

/// What a worker gets.
#[derive(Clone, Copy)]
pub enum Access<'a> {
    /// Its listeners, then its channel.
    Descriptors(Attributes<'a>, &'a [BorrowedFd<'a>]),
    /// A filter of bind(2), whose notifications go to this end of a [channel](filter::channel).
    Intercepted(BorrowedFd<'a>),
}

/// Starts the worker and waits until its program runs or exec has failed.
pub fn spawn(command: &Command, access: Access<'_>) -> Result<Pid, Errno> {
    let parent = getpid();
    let (error_reader, error_writer) = pipe2(OFlag::O_CLOEXEC)?;
    let descriptors = match access {
        Access::Descriptors(_, descriptors) => descriptors,
        Access::Intercepted(_) => &[],
    };
    let duplicates = Duplicates::new(command, descriptors, error_writer.as_fd())?;
    drop(error_writer);
    let child = fork_child(|| {
        sys::process::set_name(WORKER_NAME);
        let execute = || {
            // The launcher ends the worker's process group at once, and must not be in it. A server such as Postfix demands to lead
            // a session.
            setsid()?;
            sys::process::end_with_parent(parent)?;
            landlock::scope_signals().map_err(|_| Errno::EACCES)?;
            limits::allow_core_files()?;
            execute(command, access, &duplicates)
        };
        let errno = match execute() {
            Ok(never) => match never {},
            Err(errno) => errno,
        };
        // If writing fails, the parent sees the pipe close and takes the start for a success, until the child exits.
        let _ = nix::unistd::write(&duplicates.error_writer, &(errno as i32).to_ne_bytes());
        127
    })?;
    drop(duplicates);
    let mut errno = [0; 4];
    match std::fs::File::from(error_reader).read_exact(&mut errno) {
        Ok(()) => Err(Errno::from_raw(i32::from_ne_bytes(errno))),
        // The pipe was closed by exec and nothing was written: the program runs.
        Err(_) => Ok(child),
    }
}

/// Forks a child of the launcher, or of a supervisor, that runs `run` and exits with its result.
pub fn fork_child(run: impl FnOnce() -> i32) -> Result<Pid, Errno> {
    // SAFETY: launcher and supervisor are single-threaded, so the child can run any code.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let code = run();
            // SAFETY: _exit runs no destructors or exit handlers of the parent.
            unsafe { libc::_exit(code) }
        }
        ForkResult::Parent { child } => Ok(child),
    }
}

/// Executes the program with what it gets. Does not return on success.
fn execute(command: &Command, access: Access<'_>, duplicates: &Duplicates) -> Result<Infallible, Errno> {
    let environment = match access {
        Access::Descriptors(attributes, _) => {
            pass_descriptors(attributes, duplicates)?;
            environment(command, passed_variables(attributes.0, duplicates.descriptors.len()))?
        }
        Access::Intercepted(_) => environment(command, Vec::new())?,
    };
    umask(Mode::from_bits_truncate(command.umask));
    default_signals()?;
    if let Access::Intercepted(supervisor) = access {
        filter::install(supervisor)
            .map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
    }
    nix::unistd::fexecve(duplicates.program.as_fd(), &command.arguments, &environment)
}

/// Moves the descriptors to the numbers at which the worker expects them.
fn pass_descriptors((_, backlogs, stdin): Attributes<'_>, duplicates: &Duplicates) -> Result<(), Errno> {
    for (socket, backlog) in duplicates.descriptors.iter().zip(backlogs) {
        // From now on the kernel reports this process to clients: the worker and its user. A socket that an earlier worker
        // has connected cannot listen; this worker learns that when it accepts.
        if let Some(backlog) = backlog {
            let _ = sys::socket::listen(socket, *backlog);
        }
    }
    for (source, place) in duplicates.descriptors.iter().zip(FIRST..) {
        // SAFETY: a descriptor that had this number belongs to the launcher's image, which the exec replaces; nothing
        // uses it before. The new descriptor must stay open across the exec.
        Errno::result(unsafe { libc::dup2(source.as_raw_fd(), place) })?;
    }
    if let Some(source) = stdin.and_then(|place| duplicates.descriptors.get(usize::try_from(place).ok()?)) {
        // SAFETY: nothing reads this process's standard input, which this replaces.
        Errno::result(unsafe { libc::dup2(source.as_raw_fd(), libc::STDIN_FILENO) })?;
    }
    Ok(())
}

/// Duplicates of the descriptors that the child needs, above all numbers that the worker's descriptors will have.
struct Duplicates {
    program: OwnedFd,
    descriptors: Vec<OwnedFd>,
    error_writer: OwnedFd,
}

impl Duplicates {
    fn new(
        command: &Command,
        descriptors: &[BorrowedFd<'_>],
        error_writer: BorrowedFd<'_>,
    ) -> Result<Self, Errno> {
        let lowest = FIRST + RawFd::try_from(descriptors.len()).map_err(|_| Errno::EMFILE)?;
        let duplicate = |descriptor: BorrowedFd<'_>| -> Result<OwnedFd, Errno> {
            let number = fcntl(descriptor, FcntlArg::F_DUPFD_CLOEXEC(lowest))?;
            // SAFETY: fcntl has just created this descriptor, and nothing else owns it.
            Ok(unsafe { OwnedFd::from_raw_fd(number) })
        };
        Ok(Self {
            program: duplicate(command.program.as_fd())?,
            descriptors: descriptors.iter().map(|fd| duplicate(*fd)).collect::<Result<_, _>>()?,
            error_writer: duplicate(error_writer)?,
        })
    }
}

const CHANNEL: &str = "PORTREEVE_CHANNEL";

/// The variables of this number of passed descriptors.
fn passed_variables(names: &[String], count: usize) -> Vec<(&'static str, String)> {
    // The channel is the last one.
    let listeners = count.saturating_sub(1);
    let mut set = vec![(CHANNEL, (listeners + 3).to_string())];
    if listeners > 0 {
        set.extend(socket_activation::variables(names));
    }
    set
}

/// The configured environment, and further variables. A configured variable does not replace those of passed descriptors.
fn environment(command: &Command, set: Vec<(&'static str, String)>) -> Result<Vec<CString>, Errno> {
    let reserved = |variable: &CString| {
        let name = variable.to_bytes().split(|byte| *byte == b'=').next();
        let mut names = socket_activation::VARIABLES.into_iter().chain([CHANNEL]);
        names.any(|reserved| name == Some(reserved.as_bytes()))
    };
    let configured = command.environment.iter().filter(|variable| !reserved(variable)).cloned().map(Ok);
    let set = set.into_iter().map(|(name, value)| CString::new(format!("{name}={value}")));
    configured.chain(set).collect::<Result<_, _>>().map_err(|_| Errno::EINVAL)
}

/// Unblocks SIGCHLD, which the launcher blocks, and resets SIGPIPE, which every Rust program ignores.
fn default_signals() -> Result<(), Errno> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: the default action runs no code of this process.
    unsafe { sigaction(Signal::SIGPIPE, &default) }?;
    SigSet::empty().thread_set_mask()
}
