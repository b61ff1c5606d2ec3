//! Takeover: exports everything that this broker holds to another one, which then serves instead. For user 0 alone.

use std::fmt;
use std::net::Shutdown;
use std::rc::Rc;
use std::time::Instant;

use portreeve_protocol::takeover::{Accepted, Begin, Committed, TAKEOVER_VERSION, Takeover, TakeoverReply};
use portreeve_protocol::{Fault, FaultCode, Operation as _, Text, codec};

use super::Received;
use super::audit::audit_delivery;
use super::handler::{Handler, after_delivery, decide, decode};
use crate::policy::{OperationPermit, Policy, Requester};
use crate::server::reply::{Delivery, Sockets};
use crate::server::session::{Session, Step};
use crate::server::state::{Broker, RELEASE};
use crate::sys::BootTime;
use crate::takeover::Batch;

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

/// Serves one step of a takeover. It is neither immediate nor deferred: its replies carry descriptors that are not
/// listeners, and the session ends with the takeover.
pub fn serve(broker: &Rc<Broker>, session: &Rc<Session>, received: Received<'_>) -> Step {
    let Received { header, body, outbox } = received;
    let started = Instant::now();
    let request: Takeover = match decode(broker, session, &header, body, outbox) {
        Ok(request) => request,
        Err(step) => return step,
    };
    let outcome = decide(broker, session, &request).and_then(|permit| {
        let batch = act(broker, session, &request)?;
        Ok((permit, batch))
    });
    let step = match &outcome {
        Ok((_, (reply, listeners))) => {
            let (sockets, count) = match reply {
                TakeoverReply::Accepted(offer) => {
                    let others = [offer.manager, offer.allowlist, offer.reservation];
                    (Sockets::Offered, 1 + others.into_iter().filter(|is_offered| *is_offered).count())
                }
                _ => (Sockets::Listeners(listeners), listeners.len()),
            };
            let count = u8::try_from(count).unwrap_or(u8::MAX);
            match codec::encode(outbox, Takeover::KIND.reply(), header.request, count, reply) {
                Ok(frame) => session.send(broker, header.request, frame, sockets),
                Err(error) => Step::Close(format!("cannot encode a batch of the takeover: {error}")),
            }
        }
        // Repeating the request while others are in flight is not misbehaviour.
        Err(fault) if fault.code == FaultCode::Busy && session.is_greeted() => {
            session.send_fault(outbox, header.request, fault)
        }
        Err(fault) => session.refuse_or_close(outbox, header.request, fault),
    };
    let is_granted = outcome.is_ok();
    let finish = move |broker: &Broker, session: &Session, delivery: &Delivery| {
        // The successor serves only after it has received this reply.
        if let (Ok((_, (TakeoverReply::Committed(_), _))), Delivery::Sent) = (&outcome, delivery) {
            broker.commit_export(session);
        }
        let outcome = outcome.as_ref().map(|(permit, (reply, _))| (permit, reply));
        audit_delivery(broker, session, &request, outcome, delivery, started);
    };
    after_delivery(broker, session, step, is_granted, finish)
}

fn act(broker: &Broker, session: &Rc<Session>, request: &Takeover) -> Result<Batch, Fault> {
    let export = &broker.export;
    match request {
        Takeover::Begin(begin) => offer(broker, session, begin),
        _ if !export.is_successor(session.number) => Err(out_of_order("this session has not begun one")),
        Takeover::NextBatch(_) => {
            export.pause_others(session.number);
            let is_idle = broker.addresses.as_ref().is_none_or(|addresses| !addresses.is_adding());
            match is_idle && !export.has_requests_in_flight() {
                true => Ok(export.next_batch(&broker.registry.borrow(), broker.addresses.as_deref())),
                false => {
                    Err(Fault::new(FaultCode::Busy, "other requests are in flight").remedy("try again soon"))
                }
            }
        }
        Takeover::Commit(_) if !export.is_complete() => Err(out_of_order("not everything is exported yet")),
        Takeover::Commit(_) => {
            let exit_ms = u64::try_from(export.exit_time.as_millis()).unwrap_or(u64::MAX);
            Ok((TakeoverReply::Committed(Committed { exit_ms }), Vec::new()))
        }
    }
}

fn out_of_order(reason: &str) -> Fault {
    Fault::new(FaultCode::Malformed, &format!("unexpected step of a takeover: {reason}"))
        .remedy("begin a takeover, read every batch, then commit")
}

fn offer(broker: &Broker, session: &Rc<Session>, begin: &Begin) -> Result<Batch, Fault> {
    if !(begin.oldest..=begin.newest).contains(&TAKEOVER_VERSION) {
        let message = format!("this broker supports only version {TAKEOVER_VERSION} of takeover");
        return Err(Fault::new(FaultCode::Unsupported, &message)
            .remedy("stop this broker and start the other one instead"));
    }
    let control = broker.registry.borrow().export_control_file();
    let control = control.filter(|_| broker.export.control.is_some()).ok_or_else(|| {
        Fault::new(FaultCode::Unsupported, "this broker has no control socket to export")
            .remedy("stop this broker and start the other one instead")
    })?;
    let successor = Rc::downgrade(session);
    broker.export.begin(session.number, move || {
        if let Some(successor) = successor.upgrade() {
            let _ = successor.channel.shutdown(Shutdown::Both); // it fails only if the peer has hung up
        }
    })?;
    let addresses = broker.addresses.as_ref();
    let offer = Accepted {
        version: TAKEOVER_VERSION,
        release: Text::truncated(RELEASE),
        boottime_ns: BootTime::now().as_nanos(),
        control,
        manager: broker.export.notifier.socket().is_some(),
        allowlist: broker.registry.borrow().allowlist().is_some(),
        watchdog_us: broker.export.notifier.watchdog_us(),
        fdstore_max: broker.fdstore.as_ref().map_or(0, |fdstore| fdstore.capacity()),
        addresses: addresses.is_some(),
        fenced: addresses.is_some_and(|addresses| addresses.is_fenced()),
        reservation: addresses.is_some_and(|addresses| addresses.reservation().is_some()),
    };
    Ok((TakeoverReply::Accepted(offer), Vec::new()))
}
