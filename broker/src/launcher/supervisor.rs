//! The supervisor of a worker with `bind = brokered`: a process between launcher and worker, which answers the worker's bind(2) with
//! sockets that it requests from the broker over the worker's channel.
//!
//! It is not the launcher, because a worker can make its supervisor wait for ever, for example by an address in memory that a
//! file system of its own provides. It is the worker's parent, because Yama lets only an ancestor look into a process.
//!
//! Promises: the supervisor has no more rights than the worker and the launcher. It ends with the worker, which it leaves to the
//! launcher to reap, and the worker ends with it. The worker can neither look into it nor signal it: see
//! [`crate::confine::worker`].

use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, getpid, setpgid};
use portreeve_intercept::{Progress, Supervisor, filter};
use portreeve_protocol::channel;

use super::SUPERVISOR_NAME;
use super::command::Command;
use super::message::{Report, packet, receive_report};
use super::spawn::{self, Access};
use crate::confine::descriptors;
use crate::sys::poll::timeout_at;
use crate::sys::{process, wait};

/// Starts a supervisor, which starts the worker; returns the supervisor's process id, and what came of the worker; `None` if the
/// supervisor was killed before it could report that. `proc` is /proc, opened before the root was changed.
///
/// # Errors
/// The supervisor cannot be started.
pub fn start(
    command: &Command,
    worker_channel: OwnedFd,
    proc: Option<&OwnedFd>,
) -> io::Result<(Pid, Option<Report>)> {
    let (ours, theirs) = channel::pair()?;
    ours.set_nonblocking(false)?;
    let launcher = getpid();
    let supervisor = spawn::fork_child(|| {
        process::set_name(SUPERVISOR_NAME);
        let keep = [command.program.as_fd(), worker_channel.as_fd(), theirs.as_fd()];
        descriptors::close_all_but(keep.into_iter().chain(proc.map(OwnedFd::as_fd)));
        let _ = run(command, launcher, theirs, worker_channel, proc); // without it the worker ends
        0
    })?;
    Ok((supervisor, receive_report(&ours).ok()))
}

fn not_intercepted(cause: &dyn std::fmt::Display) -> Report {
    Report::NotIntercepted(cause.to_string())
}

/// Starts the worker, reports that, and answers its binds until it has ended.
fn run(
    command: &Command,
    launcher: Pid,
    reports: UnixDatagram,
    channel: OwnedFd,
    proc: Option<&OwnedFd>,
) -> io::Result<()> {
    let mut child = SigSet::empty();
    child.add(Signal::SIGCHLD);
    let prepare = || {
        // The launcher ends the process groups of its children, and is in none of them.
        setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
        process::end_with_parent(launcher)?;
        // What the worker leaves stays among its descendants while it runs, as Yama demands.
        process::adopt_orphans()?;
        child.thread_block()?;
        SignalFd::with_flags(&child, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
    };
    let started = prepare().map_err(|error| not_intercepted(&error));
    let started = started.and_then(|signals| Ok((signals, start_worker(command, channel, proc)?)));
    let (report, started) = match started {
        Ok((signals, (worker, supervisor))) => {
            (Report::Spawned { pid: worker.as_raw() }, Some((signals, worker, supervisor)))
        }
        Err(report) => (report, None),
    };
    channel::send_bytes(&reports, &packet(&report, 0)?)?;
    drop(reports);
    let Some((signals, worker, supervisor)) = started else { return Ok(()) };
    supervise(&signals, worker, supervisor)
}

/// Starts the worker. There is nothing to supervise if it was killed before it had its filter.
fn start_worker(
    command: &Command,
    channel: OwnedFd,
    proc: Option<&OwnedFd>,
) -> Result<(Pid, Option<Supervisor>), Report> {
    let (ours, theirs) = filter::channel().map_err(|error| not_intercepted(&error))?;
    let spawned = spawn::spawn(command, Access::Intercepted(theirs.as_fd()));
    drop(theirs);
    let notifications = filter::receive(&ours).map_err(|error| not_intercepted(&error))?;
    let worker = spawned.map_err(|errno| Report::NotSpawned { errno: errno as i32 })?;
    let Some(notifications) = notifications else { return Ok((worker, None)) };
    let proc = proc.and_then(|proc| proc.try_clone().ok());
    let supervisor = Supervisor::new(notifications.with_proc(proc), channel, &command.name.path);
    Ok((worker, Some(supervisor.map_err(|error| not_intercepted(&error))?)))
}

fn supervise(signals: &SignalFd, worker: Pid, mut supervisor: Option<Supervisor>) -> io::Result<()> {
    loop {
        let watched: Vec<BorrowedFd<'_>> = supervisor.iter().flat_map(Supervisor::descriptors).collect();
        let watched = watched.into_iter().chain([signals.as_fd()]);
        let mut watched: Vec<PollFd<'_>> = watched.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        let timeout = supervisor.as_ref().and_then(Supervisor::timeout).map_or(PollTimeout::NONE, timeout_at);
        match poll(&mut watched, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        while let Ok(Some(_)) = signals.read_signal() {}
        if has_ended(worker) {
            return Ok(());
        }
        let Some(present) = &mut supervisor else { continue };
        let progress = present.proceed()?;
        if let Some(cause) = present.take_unreadable() {
            // In one piece: the worker and the broker write there too.
            let _ = io::stderr().write_all(format!("worker.bind: {cause}\n").as_bytes()); // nobody may read it
        }
        if progress == Progress::Ended {
            supervisor = None;
        }
    }
}

/// Reaps the children that have ended, up to the worker: the launcher reaps that, after this process has ended.
fn has_ended(worker: Pid) -> bool {
    while let Some(ended) = wait::ended_child() {
        if ended == worker {
            return true;
        }
        let _ = wait::wait_for_exit(ended); // nobody needs its status
    }
    false
}
