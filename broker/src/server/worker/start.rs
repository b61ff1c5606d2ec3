//! The start of a worker: its channel, the static listeners that it gets, and its session.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::rc::Rc;

use portreeve_protocol::{Endpoint, EventCode, channel};
use tokio::task::JoinHandle;

use super::{STEP, Supervision, launcher_lost, lost, publish, report};
use crate::config::{Bind, SocketOptions};
use crate::failure::{Exit, Failure};
use crate::inject;
use crate::launcher::{Handle, Report};
use crate::log::Origin;
use crate::policy::Requester;
use crate::server::session;
use crate::server::shutdown::Shutdown;
use crate::server::state::Broker;

/// A worker process that runs.
pub(super) struct Running {
    pub pid: i32,
    pub session: JoinHandle<()>,
    pub channel: UnixDatagram,
}

/// Starts a worker; `None` if the broker has to stop while it cannot send the listeners to the launcher.
pub(super) async fn start(
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
    let StaticListeners { names, backlogs, stdin, sockets } = match supervision.bind {
        Bind::Direct => static_listeners(broker, supervision.stdin.as_ref())?,
        // It gets them when it binds them.
        Bind::Brokered => StaticListeners::default(),
    };
    let borrowed: Vec<BorrowedFd<'_>> = sockets.iter().map(|fd| fd.as_fd()).collect();
    inject::point("worker.start")?;
    let sent = tokio::select! {
        // The other branches end only a wait: once the request is sent, a worker is on its way.
        biased;
        sent = launcher.spawn(names, backlogs, stdin, &borrowed, theirs.as_fd()) => sent,
        () = shutdown.requested() => return Ok(None),
        lost = launcher_lost(broker, launcher) => return Err(lost),
    };
    sent.map_err(|error| lost(format_args!("cannot send it the request to start a worker: {error}")))?;
    drop(theirs);
    let pid = match report(broker, launcher).await? {
        Report::Spawned { pid } => pid,
        Report::NotIntercepted(cause) => return Err(not_intercepted(&cause)),
        Report::NotSpawned { errno } => return Err(supervision.program.not_executable(errno)),
        other => {
            return Err(lost(format_args!("its reply to the request to start a worker is {other:?}")));
        }
    };
    let number = u32::try_from(pid).unwrap_or(0);
    broker.worker.running(number, restarts);
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
    tracing::info!(pid, restarts, program = supervision.program.path, "the worker runs");
    publish(broker, EventCode::WorkerStarted, pid, restarts, "");
    Ok(Some(running))
}

fn not_intercepted(cause: &str) -> Failure {
    Failure::new(Exit::Unavailable, "worker.bind", cause, "or write bind = direct")
}

/// The static listeners as the launcher passes them to the worker.
#[derive(Default)]
struct StaticListeners {
    names: Vec<String>,
    /// The backlog of each Unix socket, on which the worker's process listens before its program runs.
    backlogs: Vec<Option<u32>>,
    /// The place of the one that is the worker's standard input.
    stdin: Option<u32>,
    /// Copies: no borrow of the registry is held while they are sent.
    sockets: Vec<OwnedFd>,
}

fn static_listeners(broker: &Broker, stdin: Option<&Endpoint>) -> Result<StaticListeners, Failure> {
    let registry = broker.registry.borrow();
    let mut listeners = StaticListeners::default();
    for (name, endpoint, socket) in registry.static_listeners() {
        let copy = socket.try_clone_to_owned().map_err(|error| Failure::os(STEP, "dup", error))?;
        if stdin == Some(endpoint) {
            listeners.stdin = u32::try_from(listeners.names.len()).ok();
        }
        listeners.names.push(name.to_owned());
        listeners.backlogs.push(endpoint.inet().is_none().then(|| backlog(broker, endpoint)));
        listeners.sockets.push(copy);
    }
    if let Some(endpoint) = stdin.filter(|_| listeners.stdin.is_none()) {
        tracing::warn!(%endpoint, "the worker's standard input is not this listener, which is not open");
    }
    Ok(listeners)
}

/// The backlog of a configured listener.
fn backlog(broker: &Broker, endpoint: &Endpoint) -> u32 {
    let permit = broker.policy.borrow().listen(&Requester::Worker, endpoint).ok();
    let configured = permit.as_ref().and_then(|permit| permit.socket()).map(|socket| socket.backlog);
    configured.unwrap_or(SocketOptions::default().backlog)
}
