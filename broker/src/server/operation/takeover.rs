//! Takeover: another broker is told everything that this one holds, and then has it. Root's alone.

use std::fmt;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::rc::Rc;
use std::time::Instant;

use portreeve_protocol::frame::MAX_DESCRIPTORS;
use portreeve_protocol::message::ListenerId;
use portreeve_protocol::takeover::{
    Begin, Complete, Confirmed, EPOCHS, Handed, HandedEpochs, HandedLeases, HandedListeners, LEASES, Offer,
    TAKEOVER_VERSION, Takeover,
};
use portreeve_protocol::{Fault, FaultCode, Kind, List, Operation as _, Text, codec};

use super::audit::{Arguments, audit};
use super::{Received, decode, permitted};
use crate::server::session::{Session, Turn};
use crate::server::state::{Broker, RELEASE};
use crate::sys::BootTime;

impl Arguments for Takeover {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Takeover::Begin(Begin { oldest, newest }) => write!(out, "begin, versions {oldest} to {newest}"),
            Takeover::More(_) => out.write_str("more"),
            Takeover::Confirm(_) => out.write_str("confirm"),
        }
    }
}

/// Takes one step of a takeover. Beside what policy says of every operation, each step has its place.
pub fn takeover(broker: &Rc<Broker>, session: &Rc<Session>, received: Received<'_>) -> Turn {
    let Received { header, body, outbox } = received;
    let started = Instant::now();
    let request: Takeover = match decode(broker, session, &header, body, outbox) {
        Ok(request) => request,
        Err(over) => return over,
    };
    let outcome = permitted::<Takeover>(broker, session).and_then(|()| step(broker, session, &request));
    let turn = match &outcome {
        Ok((handed, listeners)) => {
            let registry = broker.registry.borrow();
            let sockets = listeners.iter().filter_map(|id| registry.socket(*id));
            let mut descriptors: Vec<BorrowedFd<'_>> = sockets.collect();
            if let Handed::Offer(_) = handed {
                let manager = broker.handover.notifier.socket();
                descriptors
                    .extend(broker.handover.control.iter().map(|socket| socket.as_fd()).chain(manager));
            }
            let count = u8::try_from(descriptors.len()).unwrap_or(u8::MAX);
            match codec::encode(outbox, Takeover::KIND.reply(), header.request, count, handed) {
                Ok(frame) => session.send_now(frame, &descriptors),
                Err(error) => Turn::Over(format!("a part could not be encoded: {error}")),
            }
        }
        // Asking again while addresses are on their way is no misbehaviour.
        Err(fault) if fault.code == FaultCode::Busy && session.is_greeted() => {
            match codec::encode(outbox, Kind::FAULT, header.request, 0, fault) {
                Ok(frame) => session.send_now(frame, &[]),
                Err(error) => Turn::Over(format!("a fault could not be encoded: {error}")),
            }
        }
        Err(fault) if session.is_greeted() => session.refuse(outbox, header.request, fault),
        Err(fault) => session.last_fault(outbox, header.request, fault),
    };
    // Only who has been told so serves.
    if let (Ok((Handed::Confirmed(_), _)), Turn::Answered) = (&outcome, &turn) {
        broker.leave(session);
    }
    audit(broker, session, &request, outcome.as_ref().map(|part| &part.0), started);
    turn
}

type Part = (Handed, Vec<ListenerId>);

fn step(broker: &Rc<Broker>, session: &Rc<Session>, request: &Takeover) -> Result<Part, Fault> {
    let handover = &broker.handover;
    match request {
        Takeover::Begin(begin) => offer(broker, session, begin),
        _ if !handover.is_of(session.number) => Err(out_of_order("it was not begun")),
        Takeover::More(_) => {
            handover.hold(session.number);
            match handover.is_busy() || broker.addresses.as_ref().is_some_and(|all| all.is_adding()) {
                true => Err(Fault::new(FaultCode::Busy, "requests are under way").remedy("ask again soon")),
                false => Ok(part(broker)),
            }
        }
        Takeover::Confirm(_) if !handover.cursor.borrow().complete => {
            Err(out_of_order("not everything was handed over yet"))
        }
        Takeover::Confirm(_) => {
            let leaving_ms = u64::try_from(handover.leaving.as_millis()).unwrap_or(u64::MAX);
            Ok((Handed::Confirmed(Confirmed { leaving_ms }), Vec::new()))
        }
    }
}

fn out_of_order(why: &str) -> Fault {
    Fault::new(FaultCode::Malformed, &format!("this step of a takeover is not due: {why}"))
}

fn offer(broker: &Rc<Broker>, session: &Rc<Session>, begin: &Begin) -> Result<Part, Fault> {
    if !(begin.oldest..=begin.newest).contains(&TAKEOVER_VERSION) {
        let message = format!("this broker hands over by version {TAKEOVER_VERSION} alone");
        return Err(
            Fault::new(FaultCode::Unsupported, &message).remedy("stop it and start the other instead")
        );
    }
    let control = broker.registry.borrow().control_file();
    let control = control.filter(|_| broker.handover.control.is_some()).ok_or_else(|| {
        Fault::new(FaultCode::Unsupported, "this broker has no control socket to hand over")
    })?;
    broker.handover.begin(session)?;
    let addresses = broker.addresses.as_ref();
    let offer = Offer {
        version: TAKEOVER_VERSION,
        release: Text::clipped(RELEASE),
        clock: BootTime::now().as_nanos(),
        control,
        manager: broker.handover.notifier.socket().is_some(),
        watchdog: broker.handover.notifier.watchdog_us(),
        store: broker.store.as_ref().map_or(0, |store| store.most()),
        addresses: addresses.is_some(),
        fenced: addresses.is_some_and(|addresses| addresses.is_fenced()),
    };
    Ok((Handed::Offer(offer), Vec::new()))
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
        return (Handed::Listeners(HandedListeners { listeners: List::first_of(listeners) }), ids);
    }
    if let Some(addresses) = &broker.addresses {
        let leases = addresses.export_leases(cursor.lease, LEASES);
        if let Some(last) = leases.last() {
            cursor.lease = Some(last.address);
            return (Handed::Leases(HandedLeases { leases: List::first_of(leases) }), Vec::new());
        }
        let epochs = cursor.epochs.get_or_insert_with(|| addresses.export_epochs());
        if !epochs.is_empty() {
            let some = epochs.split_off(epochs.len().saturating_sub(EPOCHS));
            return (Handed::Epochs(HandedEpochs { epochs: List::first_of(some) }), Vec::new());
        }
    }
    cursor.complete = true;
    (Handed::Complete(Complete {}), Vec::new())
}
