//! Reloading the configuration while the broker serves: on SIGHUP, or on the request of a peer.
//!
//! Promises: all or nothing. If the new configuration has an error, the old one stays in force. An option that cannot
//! change without a restart keeps its value, and the reply names it. One reload runs at a time; a request that arrives
//! meanwhile gets the result of the next one. Other sessions are served while the files are read.

mod address;
mod apply;
mod consent;
mod listener;
mod report;
mod restart_only;
mod validate;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use portreeve_protocol::message::Operation as _;
use portreeve_protocol::reload::{Reload, Reloaded};
use portreeve_protocol::{Fault, FaultCode};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::state::Broker;
use crate::events::Audience;
use crate::failure::Failure;
use crate::reader::{Handle, ReaderError};
use crate::sd_notify::Notifier;
use crate::sys::malloc;
use crate::takeover::taken_over;

pub use report::Outcome;
pub use restart_only::{RestartOnly, Started};

/// How long reading the files may take.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// How many requests may wait for one reload.
const MAX_WAITING: usize = 1024;
/// The requester in the log if a signal started the reload.
const SIGNAL: &str = "SIGHUP";

/// A request to reload.
pub struct ReloadRequest {
    requester: String,
    /// Whether the peer consents to a reload that closes all listeners of a scope.
    force: bool,
    reply: oneshot::Sender<Result<Reloaded, Fault>>,
}

/// The state of reloading.
pub struct Reloading {
    /// The state that only a restart changes.
    pub(super) fixed: RestartOnly,
    requests: mpsc::Sender<ReloadRequest>,
    last: RefCell<Last>,
}

#[derive(Default)]
struct Last {
    number: u64,
    result: Option<(Instant, Reloaded)>,
}

impl Reloading {
    /// The state, and the receiver of requests for `run`.
    pub fn new(fixed: RestartOnly) -> (Self, mpsc::Receiver<ReloadRequest>) {
        let (requests, receiver) = mpsc::channel(MAX_WAITING);
        (Self { fixed, requests, last: RefCell::default() }, receiver)
    }

    /// Requests a reload and waits for its result.
    pub async fn request(&self, requester: String, force: bool) -> Result<Reloaded, Fault> {
        let (reply, result) = oneshot::channel();
        self.requests.try_send(ReloadRequest { requester, force, reply }).map_err(|_| {
            let message = format!("{MAX_WAITING} requests already wait for a reload");
            Fault::new(FaultCode::Busy, &message).remedy("try again later")
        })?;
        result.await.unwrap_or_else(|_| Err(Fault::new(FaultCode::Busy, "the broker is stopping")))
    }

    /// The result of the last reload.
    pub fn last(&self) -> Result<Reloaded, Fault> {
        match &self.last.borrow().result {
            Some((ended, reloaded)) => {
                let age_ms = u64::try_from(ended.elapsed().as_millis()).unwrap_or(u64::MAX);
                Ok(Reloaded { age_ms, ..reloaded.clone() })
            }
            None => Err(Fault::new(
                FaultCode::NotFound,
                "the configuration has not been reloaded since the broker was started",
            )),
        }
    }

    fn set_last(&self, requester: &str, outcome: &Outcome) -> Reloaded {
        let mut last = self.last.borrow_mut();
        last.number += 1;
        let reloaded = outcome.to_wire(last.number, requester);
        last.result = Some((Instant::now(), reloaded.clone()));
        reloaded
    }
}

/// Catches SIGHUP from now on.
pub fn hangups() -> Result<Signal, Failure> {
    signal(SignalKind::hangup()).map_err(|error| Failure::os("signals", "sigaction", error))
}

/// Reloads on each signal and request, for as long as the broker serves.
pub async fn run(
    broker: Rc<Broker>,
    mut reader: Option<Handle>,
    mut hangups: Signal,
    mut requests: mpsc::Receiver<ReloadRequest>,
    notifier: Rc<Notifier>,
) {
    loop {
        let mut waiting_requests = Vec::new();
        let mut by_signal = false;
        tokio::select! {
            reason = reader_ended(reader.as_ref()) => {
                reader = None;
                tracing::error!(%reason, "the reader process has failed: no reload is possible until portreeved is restarted");
                broker.reader_exited(&format!("{reason}: no reload is possible until portreeved is restarted"));
                continue;
            }
            _ = hangups.recv() => by_signal = true,
            request = requests.recv() => waiting_requests.extend(request),
        }
        // Requests that arrived before this reload begins get its result.
        while let Ok(request) = requests.try_recv() {
            waiting_requests.push(request);
        }
        let first = waiting_requests.first().map(|request| request.requester.clone());
        let requester = first.unwrap_or_else(|| SIGNAL.to_owned());
        let force = waiting_requests.iter().any(|request| request.force);
        notifier.reloading();
        let outcome = reload(&broker, reader.as_mut(), force).await;
        notifier.reloaded(broker.summary());
        let reloaded = broker.reloading.set_last(&requester, &outcome);
        outcome.log(&requester);
        if by_signal {
            // The requests of peers are counted with their replies.
            let code = (!outcome.is_done()).then(|| outcome.fault().code);
            broker.counters.add_outcome(Reload::KIND, code);
        }
        // The cause of a failure is a part of the configuration.
        let audience = if outcome.is_done() { Audience::Everyone } else { Audience::Operator };
        broker.events.publish(audience, outcome.event());
        malloc::trim();
        for request in waiting_requests {
            let result = match &outcome {
                Outcome::Done(_) => Ok(reloaded.clone()),
                Outcome::Refused(..) | Outcome::Failed(_) => Err(outcome.fault()),
            };
            let _ = request.reply.send(result); // its session may have ended
        }
    }
}

async fn reader_ended(reader: Option<&Handle>) -> ReaderError {
    match reader {
        Some(reader) => reader.wait_until_ended().await,
        None => std::future::pending().await,
    }
}

async fn reload(broker: &Rc<Broker>, reader: Option<&mut Handle>, force: bool) -> Outcome {
    let Some(reader) = reader else {
        return Outcome::Failed(broker.reloading.fixed.no_reader(broker.reader_was_started()));
    };
    let bundle = match timeout(READ_TIMEOUT, reader.read()).await {
        Ok(Ok(bundle)) => bundle,
        Ok(Err(error)) => {
            let fault = Fault::new(FaultCode::Os, &error.to_string());
            let remedy = "restart portreeved; until then the old configuration stays in force";
            return Outcome::Failed(fault.remedy(remedy));
        }
        Err(_) => {
            let message = format!("cannot read the configuration within {} s", READ_TIMEOUT.as_secs());
            let remedy = "check its file system; the old configuration stays in force";
            return Outcome::Failed(Fault::new(FaultCode::Busy, &message).remedy(remedy));
        }
    };
    let validated = validate::validate(&broker.reloading.fixed, bundle).await;
    // The state must not change while it is exported to another broker.
    broker.export.resumed(0).await;
    if broker.export.is_committed() {
        return Outcome::Failed(taken_over());
    }
    match validated {
        Ok(validated) => match consent::missing(broker, &validated).filter(|_| !force) {
            Some(refusal) => Outcome::Refused(refusal),
            None => apply::apply(broker, validated),
        },
        Err(report) => Outcome::Refused(report),
    }
}
