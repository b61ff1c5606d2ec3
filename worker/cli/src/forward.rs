//! Signals that this process gets for its command, and forwards to it.

use std::io;
use std::os::fd::AsFd as _;

use nix::sys::signal::{SigSet, Signal as Name};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use rustix::process::{Pid, Signal, getpgid, getpgrp, getpid, kill_process};
use rustix_libc_wrappers::process::SignalExt as _;
use tokio::net::unix::pipe::Receiver;

use crate::failure::Failure;

/// Signals that are not forwarded: this process causes them itself, or has to handle them, or the terminal stops it by them.
const OWN: [Name; 13] = [
    Name::SIGABRT,
    Name::SIGBUS,
    Name::SIGCHLD,
    Name::SIGFPE,
    Name::SIGILL,
    Name::SIGPIPE,
    Name::SIGSEGV,
    Name::SIGSYS,
    Name::SIGTRAP,
    Name::SIGTTIN,
    Name::SIGTTOU,
    Name::SIGXCPU,
    Name::SIGXFSZ,
];

/// The kernel sent the signal, for example because a key was pressed. See sigaction(2).
const SI_KERNEL: i32 = 0x80;

/// The signals of this process, blocked until this is dropped.
///
/// They are read from a descriptor and not handled, so that the command inherits which signals are ignored.
pub struct Signals {
    descriptor: SignalFd,
    /// A copy of the descriptor that tokio watches.
    watched: Receiver,
    blocked: SigSet,
}

impl Signals {
    /// Blocks them.
    pub fn block() -> Result<Self, Failure> {
        let mut blocked = SigSet::all();
        OWN.iter().for_each(|signal| blocked.remove(*signal));
        let open = || -> io::Result<_> {
            blocked.thread_block()?;
            let descriptor = SignalFd::with_flags(&blocked, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
            let copy = descriptor.as_fd().try_clone_to_owned()?;
            Ok((descriptor, Receiver::from_owned_fd_unchecked(copy)?))
        };
        let opened = open().map_err(|error| Failure::System("cannot handle signals".to_owned(), error));
        opened.map(|(descriptor, watched)| Self { descriptor, watched, blocked })
    }

    /// The next signal.
    pub async fn next(&self) -> Result<Received, Failure> {
        let read = || match self.descriptor.read_signal()? {
            Some(received) => Ok(Received(received)),
            None => Err(io::ErrorKind::WouldBlock.into()),
        };
        loop {
            let result = match self.watched.readable().await {
                Ok(()) => self.watched.try_io(read),
                Err(error) => Err(error),
            };
            match result {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => {
                    return other.map_err(|error| Failure::System("cannot read signals".to_owned(), error));
                }
            }
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        let _ = self.blocked.thread_unblock(); // cannot fail for a valid set
    }
}

/// A signal.
pub struct Received(siginfo);

impl Received {
    /// Sends the signal to the command as well, unless it has it already. Stops this process if the signal means that.
    pub fn forward(&self, command: Option<Pid>) {
        let number = self.0.ssi_signo.cast_signed();
        let (Some(signal), Some(command)) = (Signal::from_raw(number), command) else { return };
        let sender = self.0.ssi_pid.cast_signed();
        // The terminal sends its signals to every process of the group, but a hang-up also to the session's leader alone.
        let has_it = self.0.ssi_code == SI_KERNEL
            && signal != Signal::HUP
            && getpgid(Some(command)).is_ok_and(|group| group == getpgrp());
        if !has_it && sender != command.as_raw_nonzero().get() {
            let _ = kill_process(command, signal); // it may have ended
        }
        if signal == Signal::TSTP {
            let _ = kill_process(getpid(), Signal::STOP); // until SIGCONT, which is forwarded too
        }
    }
}
