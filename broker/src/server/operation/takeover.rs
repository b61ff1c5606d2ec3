//! Takeover: exports everything that this broker holds to another one, which then serves instead. For user 0 alone.

use std::fmt;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::rc::Rc;
use std::time::Instant;

use portreeve_protocol::frame::MAX_DESCRIPTORS;
use portreeve_protocol::message::ListenerId;
use portreeve_protocol::takeover::{
    Accepted, Begin, Committed, EpochBatch, ExportComplete, LeaseBatch, ListenerBatch, MAX_EPOCH_BATCH,
    MAX_LEASE_BATCH, TAKEOVER_VERSION, Takeover, TakeoverReply,
};
use portreeve_protocol::{Fault, FaultCode, List, Operation as _, Text, codec};

use super::Received;
use super::audit::audit;
use super::handler::{Handler, decide, decode};
use crate::address::BootTime;
use crate::policy::{OperationPermit, Policy, Requester};
use crate::server::session::{Session, Step};
use crate::server::state::{Broker, RELEASE};

impl Handler for Takeover {
    const CHANGES_STATE: bool = true;
    type Permit = OperationPermit;

    fn decide(&self, _: &Policy, _: &Requester) -> Result<OperationPermit, Fault> {
        Ok(OperationPermit)
    }

    fn arguments(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Takeover::Begin(Begin { oldest, newest }) => write!(out, "begin, versions {oldest} to {newest}"),
            Takeover::NextBatch(_) => out.write_str("next batch"),
            Takeover::Commit(_) => out.write_str("commit"),
        }
    }
}

/// Serves one step of a takeover. It is neither immediate nor deferred: its replies carry descriptors that are no
/// listeners, and the session ends with it.
pub fn serve(broker: &Rc<Broker>, session: &Rc<Session>, received: Received<'_>) -> Step {
    let Received { header, body, outbox } = received;
    let started = Instant::now();
    let request: Takeover = match decode(broker, session, &header, body, outbox) {
        Ok(request) => request,
        Err(step) => return step,
    };
    let outcome = decide(broker, session, &request).and_then(|permit| {
        let part = act(broker, session, &request)?;
        Ok((permit, part))
    });
    let step = match &outcome {
        Ok((_, (reply, listeners))) => {
            let registry = broker.registry.borrow();
            let sockets = listeners.iter().filter_map(|id| registry.socket(*id));
            let mut descriptors: Vec<BorrowedFd<'_>> = sockets.collect();
            if let TakeoverReply::Accepted(_) = reply {
                let manager = broker.handover.notifier.socket();
                descriptors
                    .extend(broker.handover.control.iter().map(|socket| socket.as_fd()).chain(manager));
            }
            let count = u8::try_from(descriptors.len()).unwrap_or(u8::MAX);
            match codec::encode(outbox, Takeover::KIND.reply(), header.request, count, reply) {
                Ok(frame) => session.send_now(frame, &descriptors),
                Err(error) => Step::Close(format!("cannot encode a part of the takeover: {error}")),
            }
        }
        // Asking again while requests are in flight is no misbehaviour.
        Err(fault) if fault.code == FaultCode::Busy && session.is_greeted() => {
            session.send_fault(outbox, header.request, fault)
        }
        Err(fault) => session.refuse_or_close(outbox, header.request, fault),
    };
    // From a reply that was sent on, the other broker serves.
    if let (Ok((_, (TakeoverReply::Committed(_), _))), Step::Continue) = (&outcome, &step) {
        broker.leave(session);
    }
    audit(broker, session, &request, outcome.as_ref().map(|(permit, (reply, _))| (permit, reply)), started);
    step
}

type Part = (TakeoverReply, Vec<ListenerId>);

fn act(broker: &Rc<Broker>, session: &Rc<Session>, request: &Takeover) -> Result<Part, Fault> {
    let handover = &broker.handover;
    match request {
        Takeover::Begin(begin) => offer(broker, session, begin),
        _ if !handover.is_of(session.number) => Err(out_of_order("this session has not begun one")),
        Takeover::NextBatch(_) => {
            handover.hold(session.number);
            match handover.is_busy() || broker.addresses.as_ref().is_some_and(|all| !all.is_settled()) {
                true => {
                    Err(Fault::new(FaultCode::Busy, "other requests are in flight").remedy("try again soon"))
                }
                false => Ok(part(broker)),
            }
        }
        Takeover::Commit(_) if !handover.cursor.borrow().complete => {
            Err(out_of_order("not everything is exported yet"))
        }
        Takeover::Commit(_) => {
            let exit_ms = u64::try_from(handover.leaving.as_millis()).unwrap_or(u64::MAX);
            Ok((TakeoverReply::Committed(Committed { exit_ms }), Vec::new()))
        }
    }
}

fn out_of_order(reason: &str) -> Fault {
    Fault::new(FaultCode::Malformed, &format!("unexpected step of a takeover: {reason}"))
}

fn offer(broker: &Rc<Broker>, session: &Rc<Session>, begin: &Begin) -> Result<Part, Fault> {
    if !(begin.oldest..=begin.newest).contains(&TAKEOVER_VERSION) {
        let message = format!("this broker supports only version {TAKEOVER_VERSION} of takeover");
        return Err(Fault::new(FaultCode::Unsupported, &message)
            .remedy("stop this broker and start the other one instead"));
    }
    let control = broker.registry.borrow().control_file();
    let control = control
        .filter(|_| broker.handover.control.is_some())
        .ok_or_else(|| Fault::new(FaultCode::Unsupported, "this broker has no control socket to export"))?;
    broker.handover.begin(session)?;
    let addresses = broker.addresses.as_ref();
    let offer = Accepted {
        version: TAKEOVER_VERSION,
        release: Text::truncated(RELEASE),
        boottime_ns: BootTime::now().told(),
        control,
        manager: broker.handover.notifier.socket().is_some(),
        watchdog_us: broker.handover.notifier.watchdog_us(),
        fdstore_max: broker.store.as_ref().map_or(0, |store| store.most()),
        addresses: addresses.is_some(),
        fenced: addresses.is_some_and(|addresses| addresses.is_fenced()),
    };
    Ok((TakeoverReply::Accepted(offer), Vec::new()))
}

/// The next part, in their order: listeners, leases, epochs.
fn part(broker: &Broker) -> Part {
    let mut cursor = broker.handover.cursor.borrow_mut();
    let registry = broker.registry.borrow();
    let listeners =
        registry.hand(ListenerId(cursor.listener), MAX_DESCRIPTORS, |session| broker.user(session));
    if let Some(last) = listeners.last() {
        cursor.listener = last.id.0;
        let ids = listeners.iter().map(|listener| listener.id).collect();
        return (TakeoverReply::Listeners(ListenerBatch { listeners: List::truncated(listeners) }), ids);
    }
    if let Some(addresses) = &broker.addresses {
        let leases = addresses.hand(cursor.lease, MAX_LEASE_BATCH);
        if let Some(last) = leases.last() {
            cursor.lease = Some(last.address);
            return (TakeoverReply::Leases(LeaseBatch { leases: List::truncated(leases) }), Vec::new());
        }
        let epochs = cursor.epochs.get_or_insert_with(|| addresses.hand_epochs());
        if !epochs.is_empty() {
            let some = epochs.split_off(epochs.len().saturating_sub(MAX_EPOCH_BATCH));
            return (TakeoverReply::Epochs(EpochBatch { epochs: List::truncated(some) }), Vec::new());
        }
    }
    cursor.complete = true;
    (TakeoverReply::ExportComplete(ExportComplete {}), Vec::new())
}
