//! The worker: started through the launcher, restarted when it exits, stopped when the broker stops.

use std::net;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::rc::Rc;
use std::time::{Duration, Instant};

use portreeve_protocol::channel::{self, ReceiveError};
use portreeve_protocol::{Endpoint, Event, EventCode, Text};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::session;
use super::shutdown::Shutdown;
use super::state::Broker;
use crate::config::SocketOptions;
use crate::events::Audience;
use crate::failure::{Exit, Failure};
use crate::inject;
use crate::launcher::{Ending, Handle, ProgramName, Report};
use crate::log::Origin;
use crate::policy::Requester;
use crate::sd_notify::Notifier;

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
    /// worker.restart
    pub restart: bool,
    /// worker.stable_after
    pub stable_after: Duration,
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

/// A worker process that runs.
struct Running {
    pid: i32,
    session: JoinHandle<()>,
    channel: UnixDatagram,
}

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
    loop {
        let started = Instant::now();
        let running = start(broker, launcher, supervision, restarts, shutdown).await?;
        let Some(Running { pid, mut session, channel }) = running else {
            notifier.stopping();
            return Ok(());
        };
        if restarts == 0 {
            notifier.ready();
        }
        let mut warned = false;
        let end = loop {
            tokio::select! {
                ending = wait_for_exit(broker, launcher, pid) => break End::Exited(ending?),
                () = shutdown.requested() => break End::Shutdown,
                () = outlives_session(&mut session), if !warned => {
                    warned = true;
                    tracing::warn!(pid, "{SESSION_ENDED}");
                }
            }
        };
        let ending = match end {
            End::Shutdown => {
                notifier.stopping();
                tracing::info!(pid, "stopping the worker");
                return Ok(());
            }
            End::Exited(ending) => ending,
        };
        broker.set_worker(None);
        tracing::warn!(pid, %ending, "the worker has exited");
        publish(broker, EventCode::WorkerEnded, pid, restarts, &ending.to_string());
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
        if !supervision.restart {
            return match ending {
                Ending::Exit(0) => Ok(()),
                ending => Err(exited(
                    supervision,
                    ending,
                    "restart = false in the worker scope, so the broker does not restart it; see its own messages",
                )),
            };
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
        restarts += 1;
        tokio::select! {
            () = sleep(restart_pause(short_runs, run_time)) => {}
            () = shutdown.requested() => {
                notifier.stopping();
                return Ok(());
            }
            lost = launcher_lost(broker, launcher) => return Err(lost),
        }
    }
}

/// The pause before the next start. A worker that ran long enough is restarted at once, because clients wait.
fn restart_pause(short_runs: u32, run_time: Duration) -> Duration {
    match short_runs {
        0 if run_time >= FIRST_PAUSE => Duration::ZERO,
        _ => MAX_PAUSE.min(FIRST_PAUSE * 2_u32.saturating_pow(short_runs.saturating_sub(1))),
    }
}

/// Starts a worker; `None` if the broker has to stop while it cannot send the listeners to the launcher.
async fn start(
    broker: &Rc<Broker>,
    launcher: &Handle,
    supervision: &Supervision,
    restarts: u32,
    shutdown: &mut Shutdown,
) -> Result<Option<Running>, Failure> {
    inject::point("worker.channel")?;
    let (ours, theirs) = channel::pair().map_err(|error| Failure::os(STEP, "socketpair", error))?;
    // A program expects a blocking channel unless it changes that.
    theirs.set_nonblocking(false).map_err(|error| Failure::os(STEP, "fcntl", error))?;
    broker.registry.borrow().reset_configured(|endpoint| backlog(broker, endpoint));
    let StaticListeners { names, backlogs, sockets } = static_listeners(broker)?;
    let borrowed: Vec<BorrowedFd<'_>> = sockets.iter().map(|fd| fd.as_fd()).collect();
    inject::point("worker.start")?;
    let sent = tokio::select! {
        // The other branches end only a wait: once the request is sent, a worker is on its way.
        biased;
        sent = launcher.spawn(names, backlogs, &borrowed, theirs.as_fd()) => sent,
        () = shutdown.requested() => return Ok(None),
        lost = launcher_lost(broker, launcher) => return Err(lost),
    };
    sent.map_err(|error| lost(format_args!("cannot send it the request to start a worker: {error}")))?;
    drop(theirs);
    let pid = match report(broker, launcher).await? {
        Report::Spawned { pid } => pid,
        Report::NotSpawned { errno } => return Err(supervision.program.not_executable(errno)),
        other => {
            return Err(lost(format_args!("its reply to the request to start a worker is {other:?}")));
        }
    };
    let number = u32::try_from(pid).unwrap_or(0);
    broker.set_worker(Some((number, restarts)));
    let open = || -> Result<Running, Failure> {
        let failed = |error: &dyn std::fmt::Display| Failure::os(STEP, "open the worker's session", error);
        inject::point("worker.session.open")?;
        let slot =
            broker.accounts.take_session_slot(Origin::Worker).map_err(|(_, none)| failed(&none.fault))?;
        let channel = ours.try_clone().map_err(|error| failed(&error))?;
        let session = session::open(broker, ours.into(), Requester::Worker, number, slot);
        Ok(Running { pid, session: session.map_err(|error| failed(&error))?, channel })
    };
    let running = open()?;
    tracing::info!(pid, restarts, program = ?supervision.program.path, "the worker runs");
    publish(broker, EventCode::WorkerStarted, pid, restarts, "");
    Ok(Some(running))
}

/// The static listeners as the launcher passes them to the worker.
#[derive(Default)]
struct StaticListeners {
    names: Vec<String>,
    /// The backlog of each Unix socket, on which the worker's process listens before its program runs.
    backlogs: Vec<Option<u32>>,
    /// Copies: no borrow of the registry is held while they are sent.
    sockets: Vec<OwnedFd>,
}

fn static_listeners(broker: &Broker) -> Result<StaticListeners, Failure> {
    let registry = broker.registry.borrow();
    let mut listeners = StaticListeners::default();
    for (name, endpoint, socket) in registry.static_listeners() {
        let copy = socket.try_clone_to_owned().map_err(|error| Failure::os(STEP, "dup", error))?;
        listeners.names.push(name.to_owned());
        listeners.backlogs.push(endpoint.inet().is_none().then(|| backlog(broker, endpoint)));
        listeners.sockets.push(copy);
    }
    Ok(listeners)
}

/// The backlog of a configured listener.
fn backlog(broker: &Broker, endpoint: &Endpoint) -> u32 {
    let permit = broker.policy.borrow().listen(&Requester::Worker, endpoint).ok();
    let configured = permit.as_ref().and_then(|permit| permit.socket()).map(|socket| socket.backlog);
    configured.unwrap_or(SocketOptions::default().backlog)
}

async fn report(broker: &Broker, launcher: &Handle) -> Result<Report, Failure> {
    loop {
        match launcher.report().await {
            Ok(Report::Left { count, pids }) => broker.set_left_processes(count, &pids),
            Ok(report) => return Ok(report),
            Err(ReceiveError::Os(error)) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(lost(error)),
        }
    }
}

async fn wait_for_exit(broker: &Broker, launcher: &Handle, worker: i32) -> Result<Ending, Failure> {
    loop {
        match report(broker, launcher).await? {
            Report::Exited { pid, ending } if pid == worker => return Ok(ending),
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

/// Ends the worker, if it runs, and every process that workers have left: SIGTERM, and SIGKILL after the time limit.
async fn end_all(broker: &Broker, launcher: &Handle, limit: Duration) -> Result<(), Failure> {
    launcher.end_all(limit).await.map_err(lost)?;
    let ended = async {
        loop {
            match report(broker, launcher).await? {
                Report::Exited { pid, ending } => tracing::info!(pid, %ending, "the worker has exited"),
                Report::AllEnded => {
                    broker.set_left_processes(0, &[]);
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
    broker.registry.borrow_mut().retain_until(Instant::now() + broker.retain.get());
    let broker = broker.clone();
    tokio::task::spawn_local(async move {
        sleep(broker.retain.get()).await;
        // The state must not change while it is exported.
        broker.export.resumed(0).await;
        for fault in broker.registry.borrow_mut().stop_expired(Instant::now()) {
            tracing::error!(%fault, "cannot revoke a retained listener");
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
