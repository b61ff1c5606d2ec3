//! Starts one worker: fork, descriptors, environment, exec by descriptor.
//!
//! Descriptors follow the socket-activation convention (sd_listen_fds(3)): listeners from 3 on, named by
//! LISTEN_FDNAMES, then the channel, whose number is in PORTREEVE_CHANNEL.

use std::convert::Infallible;
use std::ffi::CString;
use std::io::Read as _;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::{ForkResult, Pid, fork, getpid, pipe2};

use super::command::Command;

/// The first descriptor after standard error: SD_LISTEN_FDS_START.
const FIRST: RawFd = 3;

/// Starts the worker and waits until its program runs or exec has failed.
pub fn spawn(command: &Command, names: &[String], descriptors: &[BorrowedFd<'_>]) -> Result<Pid, Errno> {
    let (failed, failing) = pipe2(OFlag::O_CLOEXEC)?;
    let away = Away::new(command, descriptors, failing.as_fd())?;
    drop(failing);
    // SAFETY: the launcher is single-threaded, so the child can run any code.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let errno = match execute(command, names, &away) {
                Ok(never) => match never {},
                Err(errno) => errno,
            };
            // If writing fails, the parent sees the pipe close without a word.
            let _ = nix::unistd::write(&away.failing, &(errno as i32).to_ne_bytes());
            // SAFETY: _exit runs no destructors or exit handlers of the launcher.
            unsafe { libc::_exit(127) }
        }
        ForkResult::Parent { child } => {
            drop(away);
            let mut errno = [0; 4];
            match std::fs::File::from(failed).read_exact(&mut errno) {
                Ok(()) => Err(Errno::from_raw(i32::from_ne_bytes(errno))),
                // The pipe was closed by exec and nothing was written: the program runs.
                Err(_) => Ok(child),
            }
        }
    }
}

/// Moves the descriptors to their numbers and executes the program. Does not return on success.
fn execute(command: &Command, names: &[String], away: &Away) -> Result<Infallible, Errno> {
    for (source, place) in away.descriptors.iter().zip(FIRST..) {
        // SAFETY: what stood at this number belongs to the launcher's image, which the exec replaces; nothing
        // uses it before. The new descriptor is meant to stay open across the exec.
        Errno::result(unsafe { libc::dup2(source.as_raw_fd(), place) })?;
    }
    default_signals()?;
    let environment = environment(command, names, away.descriptors.len())?;
    nix::unistd::fexecve(away.program.as_fd(), &command.arguments, &environment)
}

/// Duplicates the descriptors that the child needs above all numbers that the worker's descriptors will have.
struct Away {
    program: OwnedFd,
    descriptors: Vec<OwnedFd>,
    failing: OwnedFd,
}

impl Away {
    fn new(
        command: &Command,
        descriptors: &[BorrowedFd<'_>],
        failing: BorrowedFd<'_>,
    ) -> Result<Self, Errno> {
        let last = FIRST + RawFd::try_from(descriptors.len()).map_err(|_| Errno::EMFILE)?;
        let away = |descriptor: BorrowedFd<'_>| -> Result<OwnedFd, Errno> {
            let number = fcntl(descriptor, FcntlArg::F_DUPFD_CLOEXEC(last))?;
            // SAFETY: fcntl has just made this descriptor, and nobody else knows its number.
            Ok(unsafe { OwnedFd::from_raw_fd(number) })
        };
        Ok(Self {
            program: away(command.program.as_fd())?,
            descriptors: descriptors.iter().map(|fd| away(*fd)).collect::<Result<_, _>>()?,
            failing: away(failing)?,
        })
    }
}

fn environment(command: &Command, names: &[String], count: usize) -> Result<Vec<CString>, Errno> {
    let mut environment = command.environment.clone();
    let mut set = |name: &str, value: String| -> Result<(), Errno> {
        environment.push(CString::new(format!("{name}={value}")).map_err(|_| Errno::EINVAL)?);
        Ok(())
    };
    // The channel is the last one.
    let listeners = count.saturating_sub(1);
    set("PORTREEVE_CHANNEL", (listeners + 3).to_string())?;
    if listeners > 0 {
        set("LISTEN_PID", getpid().to_string())?;
        set("LISTEN_FDS", listeners.to_string())?;
        set("LISTEN_FDNAMES", names.join(":"))?;
    }
    Ok(environment)
}

/// Unblocks SIGCHLD, which the launcher blocks, and resets SIGPIPE, which every Rust program ignores.
fn default_signals() -> Result<(), Errno> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: the default action runs no code of this process.
    unsafe { sigaction(Signal::SIGPIPE, &default) }?;
    SigSet::empty().thread_set_mask()
}
