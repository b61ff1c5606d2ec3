//! The worker's life: started through the launcher, started again when it ends, stopped when the broker does.

use std::net::Shutdown;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use portreeve_protocol::channel::{self, ReceiveError};
use portreeve_protocol::{Event, EventCode, Text};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::GRACE;
use super::notify::Notifier;
use super::session;
use super::shutdown::Signals;
use super::state::Broker;
use crate::events::Audience;
use crate::failure::{Exit, Failure};
use crate::inject;
use crate::launcher::{Ending, Handle, ProgramName, Report};
use crate::policy::Requester;

const STEP: &str = "worker";
/// The pause before a worker is started again that ended soon after its start; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// What the log says of a worker that lives without a session.
const MUTE: &str = "the worker's session is over and the worker lives on: it keeps its listeners, and can ask for nothing \
    until it is started again";
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How many short lives in a row end the broker: about five minutes of pauses.
const SHORT_LIVES: u32 = 18;

/// How the worker is kept.
#[derive(Clone, Debug)]
pub struct Supervision {
    /// worker.command's program.
    pub program: ProgramName,
    /// worker.restart
    pub restart: bool,
    /// worker.stable_after
    pub stable_after: Duration,
    /// worker.stop_timeout
    pub stop_timeout: Duration,
}

/// Why a worker's life is over.
enum End {
    /// It ended by itself.
    Worker(Ending),
    /// The broker is to stop.
    Stop,
}

/// A worker that runs.
struct Life {
    pid: i32,
    session: JoinHandle<()>,
    channel: UnixDatagram,
}

/// Keeps a worker running until the broker is to stop or cannot.
pub async fn supervise(
    broker: &Rc<Broker>,
    launcher: &Handle,
    supervision: &Supervision,
    notifier: &Notifier,
    stop: &mut Signals,
) -> Result<(), Failure> {
    let mut short_lives = 0;
    let mut restarts = 0;
    loop {
        let born = Instant::now();
        let Life { pid, mut session, channel } = start(broker, launcher, supervision, restarts).await?;
        if restarts == 0 {
            notifier.ready();
        }
        let mut mute = false;
        let end = loop {
            tokio::select! {
                ending = ending(launcher, pid) => break End::Worker(ending?),
                () = stop.wait() => break End::Stop,
                () = outlived(&mut session), if !mute => {
                    mute = true;
                    tracing::warn!(pid, "{MUTE}");
                }
            }
        };
        let ending = match end {
            End::Stop => {
                notifier.stopping();
                return stop_worker(launcher, supervision, pid).await;
            }
            End::Worker(ending) => ending,
        };
        broker.set_worker(None);
        tracing::warn!(pid, %ending, "the worker is gone");
        tell(broker, EventCode::WorkerEnded, pid, restarts, &ending.to_string());
        // Its session ends with it, though a child of its may have kept the channel: from here on its successor asks.
        let _hung_up_already = channel.shutdown(Shutdown::Both);
        if !session.is_finished() {
            let _it_ends_by_itself = session.await;
        }
        retain(broker);
        if !supervision.restart {
            return match ending {
                Ending::Exit(0) => Ok(()),
                ending => {
                    Err(gone(supervision, ending, "it is not to be restarted (worker.restart = false)"))
                }
            };
        }
        let life = born.elapsed();
        short_lives = if life >= supervision.stable_after { 0 } else { short_lives + 1 };
        if short_lives > SHORT_LIVES {
            return Err(gone(
                supervision,
                ending,
                "it keeps ending soon after its start; see its own messages, and have it stay in the foreground",
            ));
        }
        restarts += 1;
        tokio::select! {
            () = sleep(pause(short_lives, life)) => {}
            () = stop.wait() => {
                notifier.stopping();
                return Ok(());
            }
            lost = orphaned(launcher) => return Err(lost),
        }
    }
}

/// How long to wait with the next start. A worker that has served for a while is replaced at once, because clients wait.
fn pause(short_lives: u32, life: Duration) -> Duration {
    match short_lives {
        0 if life >= FIRST_PAUSE => Duration::ZERO,
        _ => LONGEST_PAUSE.min(FIRST_PAUSE * 2_u32.saturating_pow(short_lives.saturating_sub(1))),
    }
}

async fn start(
    broker: &Rc<Broker>,
    launcher: &Handle,
    supervision: &Supervision,
    restarts: u32,
) -> Result<Life, Failure> {
    inject::point("worker.channel")?;
    let (ours, theirs) = channel::pair().map_err(|error| Failure::os(STEP, "socketpair", error))?;
    // The program expects a blocking channel unless it asks otherwise.
    theirs.set_nonblocking(false).map_err(|error| Failure::os(STEP, "fcntl", error))?;
    let (names, listeners) = statics(broker)?;
    let borrowed: Vec<BorrowedFd<'_>> = listeners.iter().map(|fd| fd.as_fd()).collect();
    inject::point("worker.start")?;
    let asked = launcher.spawn(names, &borrowed, theirs.as_fd()).await;
    asked.map_err(|error| lost(format_args!("it cannot be told to start a worker: {error}")))?;
    drop(theirs);
    let pid = match report(launcher).await? {
        Report::Spawned { pid } => pid,
        Report::NotSpawned { errno } => return Err(supervision.program.not_executable(errno)),
        other => {
            return Err(lost(format_args!("it reported {other:?} when asked for a worker")));
        }
    };
    let number = u32::try_from(pid).unwrap_or(0);
    broker.set_worker(Some((number, restarts)));
    let open = || -> Result<Life, Failure> {
        let failed = |error: &dyn std::fmt::Display| Failure::os(STEP, "opening its session", error);
        inject::point("worker.session.open")?;
        let seat = broker.accounts.seat(&Requester::Worker).map_err(|(_, fault)| failed(&fault))?;
        let channel = ours.try_clone().map_err(|error| failed(&error))?;
        let session = session::open(broker, ours.into(), Requester::Worker, number, seat);
        Ok(Life { pid, session: session.map_err(|error| failed(&error))?, channel })
    };
    let life = match open() {
        Ok(life) => life,
        Err(failure) => {
            // A broker that ends here must not leave a worker that nobody serves.
            let _first_failure_is_told = stop_worker(launcher, supervision, pid).await;
            return Err(failure);
        }
    };
    tracing::info!(pid, restarts, program = ?supervision.program.path, "the worker runs");
    tell(broker, EventCode::WorkerStarted, pid, restarts, "");
    Ok(life)
}

/// Copies of the static listeners: no borrow of the registry is held while they are sent.
fn statics(broker: &Broker) -> Result<(Vec<String>, Vec<OwnedFd>), Failure> {
    let registry = broker.registry.borrow();
    let copies = registry.statics().map(|(name, fd)| Ok((name.to_owned(), fd.try_clone_to_owned()?)));
    let pairs: Result<Vec<_>, std::io::Error> = copies.collect();
    Ok(pairs.map_err(|error| Failure::os(STEP, "dup", error))?.into_iter().unzip())
}

async fn report(launcher: &Handle) -> Result<Report, Failure> {
    loop {
        match launcher.report().await {
            Ok(report) => return Ok(report),
            Err(ReceiveError::Os(error)) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(lost(error)),
        }
    }
}

async fn ending(launcher: &Handle, worker: i32) -> Result<Ending, Failure> {
    loop {
        match report(launcher).await? {
            Report::Exited { pid, how } if pid == worker => return Ok(how),
            other => tracing::warn!(report = ?other, "the launcher reported what nobody asked for"),
        }
    }
}

/// Waits until a worker has lived a while longer than its session. One that ends hangs up a moment before that is
/// reported.
async fn outlived(session: &mut JoinHandle<()>) {
    if !session.is_finished() {
        let _it_is_over = session.await;
    }
    sleep(FIRST_PAUSE).await;
}

/// Waits for the end of the launcher while there is no worker.
async fn orphaned(launcher: &Handle) -> Failure {
    loop {
        match report(launcher).await {
            Ok(report) => tracing::warn!(?report, "the launcher reported what nobody asked for"),
            Err(lost) => return lost,
        }
    }
}

/// SIGTERM, patience, SIGKILL.
async fn stop_worker(launcher: &Handle, supervision: &Supervision, pid: i32) -> Result<(), Failure> {
    tracing::info!(pid, "stopping the worker");
    let tell = async |signal| launcher.signal(signal).await.map_err(lost);
    tell(Signal::SIGTERM).await?;
    if let Ok(ended) = timeout(supervision.stop_timeout, ending(launcher, pid)).await {
        return ended.map(|ending| tracing::info!(pid, %ending, "the worker is gone"));
    }
    tracing::warn!(pid, timeout = ?supervision.stop_timeout, "the worker does not end: killing it");
    tell(Signal::SIGKILL).await?;
    let ended = timeout(GRACE, ending(launcher, pid)).await;
    ended.map_err(|_| lost("it did not report the worker's end"))?.map(|_| ())
}

/// Keeps the worker's listeners for its successor, and stops those that it has not asked for once the time to retain
/// them is over.
pub fn retain(broker: &Rc<Broker>) {
    broker.registry.borrow_mut().retain_until(Instant::now() + broker.retain.get());
    let broker = broker.clone();
    tokio::task::spawn_local(async move {
        sleep(broker.retain.get()).await;
        // Nothing changes while another broker is told of it.
        broker.handover.released(0).await;
        for fault in broker.registry.borrow_mut().stop_expired(Instant::now()) {
            tracing::error!(%fault, "a retained listener could not be stopped");
        }
    });
}

fn tell(broker: &Broker, code: EventCode, pid: i32, restarts: u32, detail: &str) {
    let pid = u32::try_from(pid).unwrap_or(0);
    let event =
        Event { code, pid, count: restarts.into(), detail: Text::truncated(detail), ..Event::default() };
    broker.events.publish(Audience::Operator, event);
}

fn gone(supervision: &Supervision, ending: Ending, why: &str) -> Failure {
    Failure::new(Exit::Unavailable, STEP, format_args!("{:?} {ending}", supervision.program.path), why)
}

/// Without the launcher there is nobody to look after the worker: a supervisor must start all of it afresh.
fn lost(why: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Unavailable, "launcher", format_args!("it is lost: {why}"), "start portreeved again")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_worker_that_ended_soon_after_its_start_is_waited_with() {
        let pauses = |short_lives: &[u32]| -> Vec<u128> {
            let of = |short: &u32| pause(*short, Duration::from_secs(5)).as_millis();
            short_lives.iter().map(of).collect()
        };
        assert_eq!(pauses(&[0, 1, 2, 3, 9, 10, 18]), [0, 100, 200, 400, 25_600, 30_000, 30_000]);
        // However stable that is said to be.
        assert_eq!(pause(0, Duration::from_millis(1)), FIRST_PAUSE);
    }
}
