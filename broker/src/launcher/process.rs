//! The launcher's process: it confines itself, then starts, signals and reaps the worker.
//!
//! It is single-threaded and uses blocking calls; it holds only its channel, the worker's executable and the list of
//! its children.
//!
//! Promises: no process of a worker outlives the launcher, and the launcher does not outlive the broker longer than the
//! configured times. It is the parent of every descendant of a worker whose own parent has ended, so none can leave it. The
//! worker cannot signal it: see [`crate::confine::worker`]. If something else kills it, the kernel kills the worker, and the
//! broker becomes the parent of what else is left.

use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{AccessFlags, Pid, faccessat};
use portreeve_intercept::notifications::open_proc;
use portreeve_protocol::List;
use portreeve_protocol::channel::{ReceiveError, send_bytes};

use super::command::Command;
use super::message::{MAX_NAMED, Order, Report, packet, receive_order};
use super::spawn::Access;
use super::{Orphans, spawn, supervisor};
use crate::config::Bind;
use crate::confine::worker::Confinement;
use crate::failure::Failure;
use crate::sys::children::Children;
use crate::sys::poll::timeout_at;
use crate::sys::{file_pages, process, wait};

/// After how many descendants of a worker the launcher no longer remembers that it has told them to exit: further ones get
/// only SIGKILL.
const MAX_TERMINATED: usize = 4096;
/// The pause before processes that SIGKILL has not ended yet are searched for again; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// How many children are reaped before orders and times are looked at: descendants of a worker may end faster than they can be
/// reaped.
const MAX_REAPED: usize = 4096;
/// The longest such pause, and the time between the worker's end and the search for processes that it has left.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// The time between two searches for processes that workers have left.
const SEARCH_INTERVAL: Duration = Duration::from_secs(10);

struct Launcher {
    channel: UnixDatagram,
    command: Command,
    orphans: Orphans,
    children: Children,
    stored: Vec<OwnedFd>,
    worker: Option<Pid>,
    broker: BrokerState,
    shutdown: Option<Shutdown>,
    /// When to search for processes that workers have left.
    next_search: Option<Instant>,
    /// Whether the last search found any.
    found: bool,
    /// The parent of the worker, if its bind(2) is intercepted; otherwise the launcher is.
    supervisor: Option<Pid>,
    /// /proc for supervisors.
    proc: Option<OwnedFd>,
}

/// Whether the broker runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BrokerState {
    /// It runs.
    Running,
    /// It has ended; the worker may run until this time.
    Ended(Instant),
}

/// The end of the worker and of all its descendants.
struct Shutdown {
    /// When SIGKILL is sent.
    kill_at: Instant,
    /// The processes that have been told to exit.
    terminated: BTreeSet<i32>,
    /// When to send SIGKILL again, and the pause after that.
    kill_again: Option<(Instant, Duration)>,
}

/// Runs the launcher until the broker and every process of a worker have ended.
pub fn run(
    channel: UnixDatagram,
    confinement: Confinement,
    command: Command,
    orphans: Orphans,
) -> Result<(), Failure> {
    let failure = |call: &'static str| move |error: Errno| Failure::os("launcher", call, error);
    let children = Children::open();
    let proc = match command.bind {
        Bind::Direct => None,
        Bind::Brokered => open_proc(),
    };
    let adopts = process::adopt_orphans().map_err(failure("prctl PR_SET_CHILD_SUBREAPER"));
    let confined = adopts.and_then(|()| confinement.apply());
    let report = match &confined {
        Ok(()) => match check_executable(&command.program) {
            Ok(()) => Report::Confined,
            Err(errno) => Report::NotSpawned { errno: errno as i32 },
        },
        Err(failure) => Report::NotConfined(failure.to_string()),
    };
    let mut launcher = Launcher {
        channel,
        command,
        orphans,
        children,
        stored: Vec::new(),
        worker: None,
        broker: BrokerState::Running,
        shutdown: None,
        next_search: None,
        found: false,
        supervisor: None,
        proc,
    };
    launcher.report(&report);
    confined?;

    let mut child = SigSet::empty();
    child.add(Signal::SIGCHLD);
    child.thread_block().map_err(failure("sigprocmask"))?;
    let signals = SignalFd::with_flags(&child, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(failure("signalfd"))?;
    let mut reaped_all = true;
    while launcher.broker == BrokerState::Running || wait::has_children() {
        let mut watched = [
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(launcher.channel.as_fd(), PollFlags::POLLIN),
        ];
        let running = launcher.broker == BrokerState::Running;
        let watched = if running { &mut watched[..] } else { &mut watched[..1] };
        let timeout = if reaped_all { launcher.timeout() } else { PollTimeout::ZERO };
        if timeout.is_none() {
            file_pages::release();
        }
        match poll(watched, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(failure("poll")(error)),
        }
        while let Ok(Some(_)) = signals.read_signal() {}
        reaped_all = launcher.reap();
        if running && !launcher.handle_orders() {
            launcher.broker = BrokerState::Ended(Instant::now() + launcher.orphans.orphan_timeout);
        }
        launcher.end_processes();
        launcher.search();
    }
    Ok(())
}

/// Checks that this process, with the worker's identity, can execute the program. See access(2).
fn check_executable(program: &OwnedFd) -> nix::Result<()> {
    faccessat(program, "", AccessFlags::X_OK, AtFlags::AT_EMPTY_PATH | AtFlags::AT_EACCESS)
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
            Order::Spawn { names, backlogs, stdin } => {
                let stored = std::mem::take(&mut self.stored);
                let report = match self.command.bind {
                    Bind::Direct => self.spawn((&names, &backlogs, stdin), &stored),
                    Bind::Brokered => self.spawn_supervised(stored),
                };
                if let Report::Spawned { pid } = report {
                    self.worker = Some(Pid::from_raw(pid));
                }
                self.report(&report);
            }
            Order::Signal { signal } => {
                // A child that is not reaped yet keeps its process id, so no other process can have it.
                let sent = match self.worker {
                    Some(worker) => process::signal(worker, signal),
                    None => Err(Errno::ESRCH),
                };
                let pid = self.worker.map_or(0, Pid::as_raw);
                self.report(&Report::Signaled { pid, errno: sent.map_or_else(|error| error as i32, |()| 0) });
            }
            Order::EndAll { timeout_ms } => {
                self.begin_shutdown(Duration::from_millis(timeout_ms.into()));
            }
        }
    }

    fn spawn(&self, attributes: spawn::Attributes<'_>, descriptors: &[OwnedFd]) -> Report {
        let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(OwnedFd::as_fd).collect();
        match spawn::spawn(&self.command, Access::Descriptors(attributes, &descriptors)) {
            Ok(pid) => Report::Spawned { pid: pid.as_raw() },
            Err(errno) => Report::NotSpawned { errno: errno as i32 },
        }
    }

    /// Starts a supervisor with the worker's channel, and by that the worker.
    fn spawn_supervised(&mut self, mut descriptors: Vec<OwnedFd>) -> Report {
        let channel = descriptors.pop().ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotFound));
        let started =
            channel.and_then(|channel| supervisor::start(&self.command, channel, self.proc.as_ref()));
        match started {
            Ok((supervisor, Some(report))) => {
                self.supervisor = Some(supervisor);
                report
            }
            // It was killed at its start, and with it the worker: it is reported as a worker that has ended.
            Ok((killed, None)) => Report::Spawned { pid: killed.as_raw() },
            Err(error) => Report::NotIntercepted(error.to_string()),
        }
    }

    /// When the next step is due even if nothing happens.
    fn timeout(&self) -> PollTimeout {
        let shutdown = self.shutdown.as_ref();
        let times = [
            shutdown.map(|shutdown| shutdown.kill_again.map_or(shutdown.kill_at, |(time, _)| time)),
            self.next_search,
            match self.broker {
                BrokerState::Ended(grace_end) if shutdown.is_none() => Some(grace_end),
                _ => None,
            },
        ];
        times.into_iter().flatten().min().map_or(PollTimeout::NONE, timeout_at)
    }

    fn begin_shutdown(&mut self, timeout: Duration) {
        let kill_at = Instant::now() + timeout;
        match &mut self.shutdown {
            Some(shutdown) => shutdown.kill_at = shutdown.kill_at.min(kill_at),
            None => {
                self.shutdown = Some(Shutdown { kill_at, terminated: BTreeSet::new(), kill_again: None });
            }
        }
        self.next_search = None;
    }

    /// Ends the processes that have to end: all of them some time after the broker has ended, or when it orders so.
    fn end_processes(&mut self) {
        if let BrokerState::Ended(grace_end) = self.broker
            && self.shutdown.is_none()
            && (self.worker.is_none() || Instant::now() >= grace_end)
        {
            self.begin_shutdown(self.orphans.stop_timeout);
        }
        let Some(shutdown) = &mut self.shutdown else { return };
        if !wait::has_children() {
            self.shutdown = None;
            self.found = false;
            self.report(&Report::AllEnded);
            return;
        }
        let now = Instant::now();
        if now >= shutdown.kill_at {
            shutdown.kill(now, &self.children);
        } else {
            shutdown.terminate(self.worker, self.orphans.stop_signal, &self.children);
        }
    }

    /// How many processes that workers have left are running, and the process ids of the first ones.
    fn left(&self) -> (u32, Vec<i32>) {
        let (mut count, mut pids) = (0, Vec::new());
        self.children.for_each(|pid| {
            if ![self.worker, self.supervisor].contains(&Some(pid)) && wait::is_running_child(pid) {
                count += 1;
                if pids.len() < MAX_NAMED {
                    pids.push(pid.as_raw());
                }
            }
        });
        (count, pids)
    }

    /// Reports the processes that workers have left, when a search is due.
    fn search(&mut self) {
        if self.next_search.is_none_or(|time| Instant::now() < time) {
            return;
        }
        let (count, pids) = self.left();
        let any = count > 0;
        if any || self.found {
            self.report(&Report::Left { count, pids: List::truncated(pids) });
        }
        self.found = any;
        self.next_search = any.then(|| Instant::now() + SEARCH_INTERVAL);
    }

    /// Reaps children that have ended; returns false if there may be more.
    fn reap(&mut self) -> bool {
        let kills = self.shutdown.as_ref().is_some_and(|shutdown| Instant::now() >= shutdown.kill_at);
        for _ in 0..MAX_REAPED {
            if kills && let Some(ended) = wait::ended_child() {
                // Until it is reaped, its group can be found: a child that has taken its place cannot escape.
                let _ = process::kill_group_of(ended); // no other member may be left
            }
            let Ok(Some((pid, ending))) = wait::reap() else { return true };
            if self.supervisor == Some(pid) {
                self.supervisor = None;
                if let Some(worker) = self.worker {
                    // A worker that has changed its user ids does not end with its parent by itself: see PR_SET_PDEATHSIG(2const).
                    let _ = process::signal(worker, libc::SIGKILL); // it may have ended, and is not reaped yet
                }
            }
            if self.worker == Some(pid) {
                self.worker = None;
                let leaves = self.left().0 > 0;
                self.report(&Report::Exited { pid: pid.as_raw(), ending, leaves });
                if self.shutdown.is_none() && (self.found || wait::has_children()) {
                    self.next_search = Some(Instant::now() + LONGEST_PAUSE);
                }
            }
        }
        false
    }
}

impl Shutdown {
    /// Sends its stop signal to the worker. After the worker has ended, sends SIGTERM once to each process that workers have
    /// left; further ones come whenever one of them ends.
    fn terminate(&mut self, worker: Option<Pid>, stop_signal: Signal, children: &Children) {
        let mut terminate = |pid: Pid, signal: Signal| {
            if self.terminated.len() < MAX_TERMINATED && self.terminated.insert(pid.as_raw()) {
                let _ = process::signal(pid, signal as i32); // it may have ended
            }
        };
        match worker {
            Some(worker) => terminate(worker, stop_signal),
            None => children.for_each(|pid| terminate(pid, Signal::SIGTERM)),
        }
    }

    /// Sends SIGKILL to every child. Their own children become children of this process, so this runs again until there are
    /// none.
    fn kill(&mut self, now: Instant, children: &Children) {
        let pause = match self.kill_again {
            Some((time, _)) if now < time => return,
            Some((_, pause)) => pause,
            None => FIRST_PAUSE,
        };
        children.for_each(|pid| {
            // The groups of the launcher's children have no other members than descendants of a worker: a process can join only
            // a group of its own session, and the launcher has a session of its own.
            let _ = process::kill_group_of(pid); // it may have ended
            let _ = process::signal(pid, libc::SIGKILL); // as above
        });
        self.kill_again = Some((Instant::now() + pause, LONGEST_PAUSE.min(pause * 2)));
    }
}
