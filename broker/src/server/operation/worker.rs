//! The worker's state, a restart, and signals.

use std::fmt;
use std::rc::Rc;

use portreeve_protocol::worker::{RestartWorker, SignalWorker, WorkerRequest, WorkerSignaled, WorkerStatus};
use portreeve_protocol::{Fault, FaultCode};

use super::Done;
use super::handler::{Deferred, Handler, Immediate};
use crate::policy::{OperationPermit, Policy, Requester};
use crate::server::session::Session;
use crate::server::state::Broker;
use crate::server::worker::WorkerControl;

impl Handler for WorkerRequest {
    const CHANGES_STATE: bool = false;
    const FREQUENT: bool = true;
    type Permit = OperationPermit;

    fn decide(&self, _: &Policy, _: &Requester) -> Result<OperationPermit, Fault> {
        Ok(OperationPermit)
    }

    fn arguments(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

impl Immediate for WorkerRequest {
    fn act(&self, _: &OperationPermit, broker: &Broker, _: &Session) -> Result<Done<WorkerStatus>, Fault> {
        Ok(Done::new(control(broker)?.status()))
    }
}

impl Handler for RestartWorker {
    const CHANGES_STATE: bool = true;
    type Permit = OperationPermit;

    fn decide(&self, _: &Policy, _: &Requester) -> Result<OperationPermit, Fault> {
        Ok(OperationPermit)
    }

    fn arguments(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

impl Deferred for RestartWorker {
    async fn act(
        self: Rc<Self>,
        _: Rc<OperationPermit>,
        broker: Rc<Broker>,
        _: Rc<Session>,
    ) -> Result<WorkerStatus, Fault> {
        control(&broker)?.restart().await
    }
}

impl Handler for SignalWorker {
    const CHANGES_STATE: bool = true;
    type Permit = OperationPermit;

    fn decide(&self, _: &Policy, _: &Requester) -> Result<OperationPermit, Fault> {
        Ok(OperationPermit)
    }

    fn arguments(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "signal {}", self.signal)
    }
}

impl Deferred for SignalWorker {
    async fn act(
        self: Rc<Self>,
        _: Rc<OperationPermit>,
        broker: Rc<Broker>,
        _: Rc<Session>,
    ) -> Result<WorkerSignaled, Fault> {
        let control = control(&broker)?;
        if !(1..=MAX_SIGNAL).contains(&self.signal) {
            let message = format!("{} is not the number of a signal", self.signal);
            return Err(Fault::new(FaultCode::Invalid, &message).remedy("use a number from 1 to 64"));
        }
        Ok(WorkerSignaled { pid: control.signal(self.signal.into()).await? })
    }
}

/// The highest number of a signal on Linux. See signal(7).
const MAX_SIGNAL: u8 = 64;

fn control(broker: &Broker) -> Result<&WorkerControl, Fault> {
    broker.worker_control().ok_or_else(|| {
        Fault::new(FaultCode::Unsupported, "the configuration of this broker has no worker")
            .remedy("add a worker scope to the configuration and restart the broker")
    })
}
