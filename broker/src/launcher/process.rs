//! The launcher's process: it confines itself, then starts, signals and reaps the worker.
//!
//! It is single-threaded and uses blocking calls; it holds only its channel and the worker's executable. If the broker
//! ends while a worker runs, the launcher stays to reap it.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{AccessFlags, Pid, faccessat};
use portreeve_protocol::channel::{ReceiveError, send_bytes};

use super::command::Command;
use super::message::{Ending, Order, Report, packet, take};
use super::spawn;
use crate::confine::worker::Confinement;
use crate::failure::Failure;

struct Launcher {
    channel: UnixDatagram,
    command: Command,
    kept: Vec<OwnedFd>,
    worker: Option<Pid>,
}

/// Runs the launcher until both broker and worker have ended.
pub fn run(channel: UnixDatagram, confinement: Confinement, command: Command) -> Result<(), Failure> {
    let failure = |call: &'static str| move |error: Errno| Failure::os("launcher", call, error);
    let confined = confinement.apply();
    let report = match &confined {
        Ok(()) => match may_execute(&command.program) {
            Ok(()) => Report::Confined,
            Err(errno) => Report::NotSpawned { errno: errno as i32 },
        },
        Err(failure) => Report::NotConfined(failure.to_string()),
    };
    let mut launcher = Launcher { channel, command, kept: Vec::new(), worker: None };
    launcher.report(&report);
    confined?;

    let mut child = SigSet::empty();
    child.add(Signal::SIGCHLD);
    child.thread_block().map_err(failure("sigprocmask"))?;
    let signals = SignalFd::with_flags(&child, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(failure("signalfd"))?;
    let mut broker_lives = true;
    while broker_lives || launcher.worker.is_some() {
        let mut watched = [
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(launcher.channel.as_fd(), PollFlags::POLLIN),
        ];
        let watched = if broker_lives { &mut watched[..] } else { &mut watched[..1] };
        match poll(watched, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(failure("poll")(error)),
        }
        while let Ok(Some(_)) = signals.read_signal() {}
        launcher.reap();
        if broker_lives {
            broker_lives = launcher.handle_orders();
        }
    }
    Ok(())
}

/// Whether this process, with the worker's identity, could execute the program. See access(2).
fn may_execute(program: &OwnedFd) -> nix::Result<()> {
    faccessat(program, "", AccessFlags::X_OK, AtFlags::AT_EMPTY_PATH)
}

impl Launcher {
    /// Sends a report. If the broker has ended, the report is dropped and the worker is still reaped.
    fn report(&self, report: &Report) {
        if let Ok(packet) = packet(report, 0) {
            let _ = send_bytes(&self.channel, &packet); // the broker may have ended
        }
    }

    /// Executes the waiting orders; returns false when the broker has ended.
    fn handle_orders(&mut self) -> bool {
        loop {
            match take(&self.channel) {
                Ok((order, descriptors)) => {
                    self.kept.extend(descriptors);
                    self.execute_order(order);
                }
                Err(ReceiveError::Os(error)) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    return true;
                }
                Err(ReceiveError::Os(error)) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
    }

    fn execute_order(&mut self, order: Order) {
        match order {
            Order::Keep => {}
            Order::Spawn { names } => {
                let kept = std::mem::take(&mut self.kept);
                let descriptors: Vec<BorrowedFd<'_>> = kept.iter().map(OwnedFd::as_fd).collect();
                let report = match spawn::spawn(&self.command, &names, &descriptors) {
                    Ok(pid) => {
                        self.worker = Some(pid);
                        Report::Spawned { pid: pid.as_raw() }
                    }
                    Err(errno) => Report::NotSpawned { errno: errno as i32 },
                };
                self.report(&report);
            }
            Order::Signal(number) => {
                if let (Some(worker), Ok(signal)) = (self.worker, Signal::try_from(number)) {
                    let _ = kill(worker, signal); // it may have ended already
                }
            }
        }
    }

    fn reap(&mut self) {
        loop {
            let (pid, how) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, Ending::Exit(code)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, Ending::Signal(signal as i32)),
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => continue,
            };
            if self.worker == Some(pid) {
                self.worker = None;
                self.report(&Report::Exited { pid: pid.as_raw(), how });
            }
        }
    }
}
