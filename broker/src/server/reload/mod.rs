//! Reading the configuration again while the broker serves: on SIGHUP, or when a peer asks that may.
//!
//! Promises: all or nothing. What is wrong with the new configuration leaves the old one in force; what cannot change
//! without a restart keeps its value and is named. One reload goes on at a time, and who asks while one does gets the
//! answer of the next. Nobody waits for the files: other sessions are served meanwhile.

mod address;
mod commit;
mod fixed;
mod judge;
mod listener;
mod report;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use portreeve_protocol::reload::Reloaded;
use portreeve_protocol::{Fault, FaultCode};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::handover::taken_over;
use super::notify::Notifier;
use super::state::Broker;
use crate::events::Concern;
use crate::failure::Failure;
use crate::reader::{Handle, ReaderError};
use crate::sys::malloc;

pub use fixed::{Fixed, Started};
pub use report::Outcome;

/// How long reading the files may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Reloads that may be asked for and wait; all of them get the answer of one.
const WAITING: usize = 1024;
/// How a log names the signal.
const SIGNAL: &str = "SIGHUP";

/// Who asks, and where the answer goes.
pub struct Ask {
    by: String,
    answer: oneshot::Sender<Result<Reloaded, Fault>>,
}

/// What reloading needs of the broker's state.
pub struct Reloading {
    /// What is as it was at the start.
    pub(super) fixed: Fixed,
    asks: mpsc::Sender<Ask>,
    last: RefCell<Last>,
}

#[derive(Default)]
struct Last {
    number: u64,
    over: Option<(Instant, Reloaded)>,
}

impl Reloading {
    /// Gives also what the task that reloads listens to.
    pub fn new(fixed: Fixed) -> (Self, mpsc::Receiver<Ask>) {
        let (asks, asked) = mpsc::channel(WAITING);
        (Self { fixed, asks, last: RefCell::default() }, asked)
    }

    /// Asks for a reload and waits for what comes of it.
    pub async fn ask(&self, by: String) -> Result<Reloaded, Fault> {
        let busy =
            |_| Fault::new(FaultCode::Busy, "too many reloads are asked for").remedy("ask again later");
        let (answer, answered) = oneshot::channel();
        self.asks.try_send(Ask { by, answer }).map_err(|_| busy(()))?;
        answered.await.unwrap_or_else(|_| Err(Fault::new(FaultCode::Busy, "the broker ends")))
    }

    /// What came of the last one.
    pub fn last(&self) -> Result<Reloaded, Fault> {
        match &self.last.borrow().over {
            Some((over, told)) => {
                let age_ms = u64::try_from(over.elapsed().as_millis()).unwrap_or(u64::MAX);
                Ok(Reloaded { age_ms, ..told.clone() })
            }
            None => Err(Fault::new(FaultCode::NotFound, "nobody has reloaded since the broker was started")),
        }
    }

    fn keep(&self, by: &str, outcome: &Outcome) -> Reloaded {
        let mut last = self.last.borrow_mut();
        last.number += 1;
        let told = outcome.told(last.number, by);
        last.over = Some((Instant::now(), told.clone()));
        told
    }
}

/// SIGHUP, caught from now on.
pub fn hangups() -> Result<Signal, Failure> {
    signal(SignalKind::hangup()).map_err(|error| Failure::os("signals", "sigaction", error))
}

/// Reloads whenever somebody asks for it, for as long as the broker serves.
pub async fn keep(
    broker: Rc<Broker>,
    mut reader: Option<Handle>,
    mut hangups: Signal,
    mut asked: mpsc::Receiver<Ask>,
    notifier: Rc<Notifier>,
) {
    loop {
        let mut waiting = Vec::new();
        tokio::select! {
            why = lost(reader.as_ref()) => {
                reader = None;
                tracing::error!(%why, "the configuration cannot be read again until portreeved is restarted");
                broker.reader_is_gone(&format!("{why}: no reload until portreeved is restarted"));
                continue;
            }
            _ = hangups.recv() => {}
            ask = asked.recv() => waiting.extend(ask),
        }
        // They were asked for before this one begins.
        while let Ok(ask) = asked.try_recv() {
            waiting.push(ask);
        }
        let by = waiting.first().map_or_else(|| SIGNAL.to_owned(), |ask| ask.by.clone());
        notifier.reloading();
        let outcome = once(&broker, reader.as_mut()).await;
        notifier.reloaded();
        let told = broker.reloading.keep(&by, &outcome);
        outcome.log(&by);
        broker.events.tell(Concern::Operator, outcome.event());
        malloc::give_back();
        for ask in waiting {
            let answer = match &outcome {
                Outcome::Done(_) => Ok(told.clone()),
                Outcome::Refused(..) | Outcome::Failed(_) => Err(outcome.fault()),
            };
            let _who_asked_may_be_gone = ask.answer.send(answer);
        }
    }
}

async fn lost(reader: Option<&Handle>) -> ReaderError {
    match reader {
        Some(reader) => reader.lost().await,
        None => std::future::pending().await,
    }
}

async fn once(broker: &Rc<Broker>, reader: Option<&mut Handle>) -> Outcome {
    let Some(reader) = reader else {
        return Outcome::Failed(broker.reloading.fixed.no_reader(broker.reader_was_started()));
    };
    let bundle = match timeout(PATIENCE, reader.read()).await {
        Ok(Ok(bundle)) => bundle,
        Ok(Err(why)) => {
            let fault = Fault::new(FaultCode::Os, &why.to_string());
            return Outcome::Failed(fault.remedy("restart portreeved; what is in force stays so"));
        }
        Err(_) => {
            let message = format!("the configuration was not read in {} s", PATIENCE.as_secs());
            let remedy = "look whether its file system answers; what is in force stays so";
            return Outcome::Failed(Fault::new(FaultCode::Busy, &message).remedy(remedy));
        }
    };
    // Nothing changes while another broker is told of it.
    broker.handover.released(0).await;
    if broker.handover.is_over() {
        return Outcome::Failed(taken_over());
    }
    match judge::judge(&broker.reloading.fixed, bundle) {
        Ok(judged) => commit::commit(broker, judged),
        Err(report) => Outcome::Refused(report),
    }
}
