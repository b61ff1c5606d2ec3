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
use super::message::{Ending, Order, Report, packet, receive_order};
use super::spawn;
use crate::confine::worker::Confinement;
use crate::failure::Failure;

struct Launcher {
    channel: UnixDatagram,
    command: Command,
    stored: Vec<OwnedFd>,
    worker: Option<Pid>,
}

/// Runs the launcher until both broker and worker have ended.
pub fn run(channel: UnixDatagram, confinement: Confinement, command: Command) -> Result<(), Failure> {
    let failure = |call: &'static str| move |error: Errno| Failure::os("launcher", call, error);
    let confined = confinement.apply();
    let report = match &confined {
        Ok(()) => match check_executable(&command.program) {
            Ok(()) => Report::Confined,
            Err(errno) => Report::NotSpawned { errno: errno as i32 },
        },
        Err(failure) => Report::NotConfined(failure.to_string()),
    };
    let mut launcher = Launcher { channel, command, stored: Vec::new(), worker: None };
    launcher.report(&report);
    confined?;

    let mut child = SigSet::empty();
    child.add(Signal::SIGCHLD);
    child.thread_block().map_err(failure("sigprocmask"))?;
    let signals = SignalFd::with_flags(&child, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(failure("signalfd"))?;
    let mut broker_is_running = true;
    while broker_is_running || launcher.worker.is_some() {
        let mut watched = [
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(launcher.channel.as_fd(), PollFlags::POLLIN),
        ];
        let watched = if broker_is_running { &mut watched[..] } else { &mut watched[..1] };
        match poll(watched, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(failure("poll")(error)),
        }
        while let Ok(Some(_)) = signals.read_signal() {}
        launcher.reap();
        if broker_is_running {
            broker_is_running = launcher.handle_orders();
        }
    }
    Ok(())
}

/// Checks that this process, with the worker's identity, can execute the program. See access(2).
fn check_executable(program: &OwnedFd) -> nix::Result<()> {
    faccessat(program, "", AccessFlags::X_OK, AtFlags::AT_EMPTY_PATH)
}

impl Launcher {
    /// Sends a report. If the broker has ended, the report is dropped and the worker is still reaped.
    fn report(&self, report: &Report) {
        if let Ok(packet) = packet(report, 0) {
            let _ = send_bytes(&self.channel, &packet); // the broker may have ended
        }
    }

    /// Executes the queued orders; returns false when the broker has ended.
    fn handle_orders(&mut self) -> bool {
        loop {
            match receive_order(&self.channel) {
                Ok((order, descriptors)) => {
                    self.stored.extend(descriptors);
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
            Order::Store => {}
            Order::Spawn { names } => {
                let stored = std::mem::take(&mut self.stored);
                let descriptors: Vec<BorrowedFd<'_>> = stored.iter().map(OwnedFd::as_fd).collect();
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
            let (pid, ending) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, Ending::Exit(code)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, Ending::Signal(signal as i32)),
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => continue,
            };
            if self.worker == Some(pid) {
                self.worker = None;
                self.report(&Report::Exited { pid: pid.as_raw(), ending });
            }
        }
    }
}
