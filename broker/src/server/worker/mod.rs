//! The worker: started through the launcher, restarted when it exits, stopped when the broker stops.

mod control;
mod hint;
mod start;

use std::net;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use portreeve_protocol::channel::ReceiveError;
use portreeve_protocol::{Endpoint, Event, EventCode, Text};
use tokio::task::JoinHandle;
use tokio::time::{sleep, sleep_until, timeout};

pub use self::control::WorkerControl;
use self::control::{Command, ReplyTo, SignalReply, State, not_running};
use self::hint::hint;
use self::start::{Running, start};
use super::shutdown::Shutdown;
use super::state::Broker;
use crate::config::Bind;
use crate::events::Audience;
use crate::failure::{Exit, Failure};
use crate::launcher::{Handle, ProgramName, Report};
use crate::sd_notify::Notifier;
use crate::sys::wait::Ending;

const STEP: &str = "worker";
/// How long processes may take to end after SIGKILL.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause before a worker is restarted that exited soon after its start; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// After more short runs in a row than this the broker exits: about five minutes of pauses.
const MAX_SHORT_RUNS: u32 = 18;
/// The log line for a worker that runs without a session.
const SESSION_ENDED: &str = "the worker's session has ended and the worker still runs: it keeps its listeners, and can \
    request nothing until it is restarted";

/// How the worker is supervised.
#[derive(Clone, Debug)]
pub struct Supervision {
    /// The program of worker.command
    pub program: ProgramName,
    /// worker.bind
    pub bind: Bind,
    /// worker.stdin
    pub stdin: Option<Endpoint>,
    /// worker.restart
    pub restart: bool,
    /// worker.stable_after
    pub stable_after: Duration,
    /// worker.stop_signal
    pub stop_signal: Signal,
    /// worker.stop_timeout
    pub stop_timeout: Duration,
    /// worker.end_descendants
    pub end_descendants: bool,
}

/// What ends the supervision of one worker process.
enum End {
    /// It exited.
    Exited(Ending),
    /// The broker has to stop.
    Shutdown,
}

/// Who waits until the worker has been started again; empty if nobody has requested that.
type Restarting = Vec<ReplyTo<()>>;

/// Keeps a worker running until the broker has to stop. Then no process of a worker is left.
///
/// # Errors
/// The worker cannot be started, must not be restarted, or the launcher is lost.
pub async fn supervise(
    broker: &Rc<Broker>,
    launcher: &Handle,
    supervision: &Supervision,
    notifier: &Notifier,
    shutdown: &mut Shutdown,
) -> Result<(), Failure> {
    let result = keep_running(broker, launcher, supervision, notifier, shutdown).await;
    let ended = end_all(broker, launcher, supervision.stop_timeout).await;
    result.and(ended) // the first failure is reported
}

async fn keep_running(
    broker: &Rc<Broker>,
    launcher: &Handle,
    supervision: &Supervision,
    notifier: &Notifier,
    shutdown: &mut Shutdown,
) -> Result<(), Failure> {
    let mut short_runs = 0;
    let mut restarts = 0;
    let mut restarting = Restarting::new();
    loop {
        broker.worker.set_state(State::Starting);
        let started = Instant::now();
        let running = start(broker, launcher, supervision, restarts, shutdown).await?;
        let Some(mut running) = running else {
            notifier.stopping();
            return Ok(());
        };
        match restarts {
            0 => notifier.ready(broker.summary()),
            _ => notifier.show(broker.summary()),
        }
        for reply in restarting.drain(..) {
            let _ = reply.send(()); // the peer may have hung up
        }
        let end = watch(broker, launcher, supervision, &mut running, &mut restarting, shutdown).await?;
        let Running { pid, session, channel } = running;
        let ending = match end {
            End::Shutdown => {
                broker.worker.set_state(State::Stopping);
                notifier.stopping();
                tracing::info!(pid, "stopping the worker");
                return Ok(());
            }
            End::Exited(ending) => ending,
        };
        let ended = match hint(ending, started.elapsed()).filter(|_| restarting.is_empty()) {
            Some(hint) => format!("{ending}: {hint}"),
            None => ending.to_string(),
        };
        broker.worker.exited(ending.to_string());
        match restarting.is_empty() {
            true => tracing::warn!(pid, ending = ended, "the worker has exited"),
            false => tracing::info!(pid, %ending, "the worker has exited, as requested"),
        }
        publish(broker, EventCode::WorkerEnded, pid, restarts, &ended);
        // The session ends here even if a child of the worker still holds the channel: the next worker has its own.
        let _ = channel.shutdown(net::Shutdown::Both); // it fails only if the channel is closed
        if !session.is_finished() {
            let _ = session.await; // a session task that panicked has ended too
        }
        if supervision.end_descendants {
            // Before the listeners are retained, which has a time limit of its own.
            tokio::select! {
                ended = end_all(broker, launcher, supervision.stop_timeout) => ended?,
                () = shutdown.requested() => {
                    notifier.stopping();
                    return Ok(());
                }
            }
        }
        retain(broker);
        if !supervision.restart && restarting.is_empty() {
            return match ending {
                Ending::Exit(0) => Ok(()),
                ending => Err(exited(
                    supervision,
                    ending,
                    "restart = false in the worker scope, so the broker does not restart it; see its own messages",
                )),
            };
        }
        restarts += 1;
        if !restarting.is_empty() {
            short_runs = 0;
            continue;
        }
        let run_time = started.elapsed();
        short_runs = if run_time >= supervision.stable_after { 0 } else { short_runs + 1 };
        if short_runs > MAX_SHORT_RUNS {
            return Err(exited(
                supervision,
                ending,
                "it exits again and again soon after its start; see its own messages, and make it stay in the foreground",
            ));
        }
        tokio::select! {
            () = pause(broker, restart_pause(short_runs, run_time), &mut restarting) => {}
            () = shutdown.requested() => {
                notifier.stopping();
                return Ok(());
            }
            lost = launcher_lost(broker, launcher) => return Err(lost),
        }
    }
}

/// Serves the requests about a running worker until it exits or the broker has to stop.
async fn watch(
    broker: &Broker,
    launcher: &Handle,
    supervision: &Supervision,
    running: &mut Running,
    restarting: &mut Restarting,
    shutdown: &mut Shutdown,
) -> Result<End, Failure> {
    let pid = running.pid;
    let mut warned = false;
    // When to kill the worker that has been told to exit.
    let mut kill_at = None;
    loop {
        tokio::select! {
            ending = wait_for_exit(broker, launcher, pid) => return Ok(End::Exited(ending?)),
            () = shutdown.requested() => return Ok(End::Shutdown),
            () = outlives_session(&mut running.session), if !warned => {
                warned = true;
                tracing::warn!(pid, "{SESSION_ENDED}");
            }
            command = broker.worker.next_command() => match command {
                Command::Signal(number, reply) => signal(broker, launcher, number, Some(reply)).await?,
                Command::Restart(reply) => {
                    restarting.push(reply);
                    if restarting.len() == 1 {
                        tracing::info!(pid, signal = %supervision.stop_signal, "stopping the worker, to start it again");
                        broker.worker.set_state(State::Stopping);
                        kill_at = Some(tokio::time::Instant::now() + supervision.stop_timeout);
                        signal(broker, launcher, supervision.stop_signal as i32, None).await?;
                    }
                }
            },
            () = sleep_until(kill_at.unwrap_or_else(tokio::time::Instant::now)), if kill_at.is_some() => {
                kill_at = None;
                tracing::warn!(pid, timeout = ?supervision.stop_timeout, "the worker did not exit in time; sending SIGKILL");
                signal(broker, launcher, Signal::SIGKILL as i32, None).await?;
            }
        }
    }
}

/// Orders the launcher to send a signal to the worker. Its report comes later.
async fn signal(
    broker: &Broker,
    launcher: &Handle,
    number: i32,
    reply: Option<SignalReply>,
) -> Result<(), Failure> {
    broker.worker.signal_ordered(reply);
    launcher.signal(number).await.map_err(lost)
}

/// Waits before the next start, or until somebody requests it.
async fn pause(broker: &Broker, length: Duration, restarting: &mut Restarting) {
    broker.worker.set_state(State::Waiting(Instant::now() + length));
    let requested = async {
        loop {
            match broker.worker.next_command().await {
                Command::Restart(reply) => return restarting.push(reply),
                Command::Signal(_, reply) => drop(reply.send(Err(not_running()))), // the peer may have hung up
            }
        }
    };
    tokio::select! {
        () = sleep(length) => {}
        () = requested => {}
    }
}

/// The pause before the next start. A worker that ran long enough is restarted at once, because clients wait.
fn restart_pause(short_runs: u32, run_time: Duration) -> Duration {
    match short_runs {
        0 if run_time >= FIRST_PAUSE => Duration::ZERO,
        _ => MAX_PAUSE.min(FIRST_PAUSE * 2_u32.saturating_pow(short_runs.saturating_sub(1))),
    }
}

async fn report(broker: &Broker, launcher: &Handle) -> Result<Report, Failure> {
    loop {
        match launcher.report().await {
            Ok(Report::Left { count, pids }) => broker.set_left_processes(count, &pids),
            Ok(Report::Signaled { pid, errno }) => broker.worker.signal_sent(pid, errno),
            Ok(report) => return Ok(report),
            Err(ReceiveError::Os(error)) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(lost(error)),
        }
    }
}

async fn wait_for_exit(broker: &Broker, launcher: &Handle, worker: i32) -> Result<Ending, Failure> {
    loop {
        match report(broker, launcher).await? {
            Report::Exited { pid, ending, leaves } if pid == worker => {
                broker.registry.borrow_mut().set_used_by_descendants(leaves);
                return Ok(ending);
            }
            other => tracing::warn!(report = ?other, "unexpected report from the launcher"),
        }
    }
}

/// Waits until a worker has run some time longer than its session. The session of a worker that exits ends a moment before
/// the exit is reported.
async fn outlives_session(session: &mut JoinHandle<()>) {
    if !session.is_finished() {
        let _ = session.await; // a session task that panicked has ended too
    }
    sleep(FIRST_PAUSE).await;
}

/// Waits until the launcher is lost, while there is no worker.
async fn launcher_lost(broker: &Broker, launcher: &Handle) -> Failure {
    loop {
        match report(broker, launcher).await {
            Ok(report) => tracing::warn!(?report, "unexpected report from the launcher"),
            Err(lost) => return lost,
        }
    }
}

/// Ends the worker, if it runs, and every process that workers have left; by SIGKILL after the time limit.
async fn end_all(broker: &Broker, launcher: &Handle, limit: Duration) -> Result<(), Failure> {
    launcher.end_all(limit).await.map_err(lost)?;
    let ended = async {
        loop {
            match report(broker, launcher).await? {
                Report::Exited { pid, ending, .. } => tracing::info!(pid, %ending, "the worker has exited"),
                Report::AllEnded => {
                    broker.set_left_processes(0, &[]);
                    broker.registry.borrow_mut().set_used_by_descendants(false);
                    return Ok(());
                }
                other => tracing::warn!(report = ?other, "unexpected report from the launcher"),
            }
        }
    };
    tokio::pin!(ended);
    if let Ok(outcome) = timeout(limit, &mut ended).await {
        return outcome;
    }
    tracing::warn!(timeout = ?limit, "the worker, or a process that it left, did not exit in time; sending SIGKILL");
    let outcome = timeout(KILL_TIMEOUT, ended).await;
    outcome.map_err(|_| lost("it did not report that every process of the worker has ended"))?
}

/// Retains the worker's listeners for the next worker, and stops those that it does not request in time.
pub fn retain(broker: &Rc<Broker>) {
    for fault in broker.registry.borrow_mut().retain_until(Instant::now() + broker.retain.get()) {
        tracing::error!(error = %fault, "cannot revoke a listener of a worker that has exited");
    }
    if !broker.registry.borrow().has_deadlines() {
        return;
    }
    let broker = broker.clone();
    tokio::task::spawn_local(async move {
        sleep(broker.retain.get()).await;
        // The state must not change while it is exported.
        broker.export.resumed(0).await;
        for fault in broker.registry.borrow_mut().stop_expired(Instant::now()) {
            tracing::error!(error = %fault, "cannot revoke a retained listener");
        }
    });
}

fn publish(broker: &Broker, code: EventCode, pid: i32, restarts: u32, detail: &str) {
    let pid = u32::try_from(pid).unwrap_or(0);
    let event =
        Event { code, pid, count: restarts.into(), detail: Text::truncated(detail), ..Event::default() };
    broker.events.publish(Audience::Operator, event);
}

fn exited(supervision: &Supervision, ending: Ending, remedy: &str) -> Failure {
    Failure::new(Exit::Unavailable, STEP, format_args!("{:?} {ending}", supervision.program.path), remedy)
}

/// Without the launcher nothing can restart the worker, so the broker exits and its own supervisor restarts both.
fn lost(cause: impl std::fmt::Display) -> Failure {
    let what = format_args!("lost the launcher: {cause}");
    Failure::new(Exit::Unavailable, "launcher", what, "start portreeved again")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_worker_that_exited_soon_after_its_start_is_restarted_after_a_pause() {
        let pauses = |short_runs: &[u32]| -> Vec<u128> {
            let of = |short: &u32| restart_pause(*short, Duration::from_secs(5)).as_millis();
            short_runs.iter().map(of).collect()
        };
        assert_eq!(pauses(&[0, 1, 2, 3, 9, 10, 18]), [0, 100, 200, 400, 25_600, 30_000, 30_000]);
        // Also if stable_after is shorter.
        assert_eq!(restart_pause(0, Duration::from_millis(1)), FIRST_PAUSE);
    }
}
