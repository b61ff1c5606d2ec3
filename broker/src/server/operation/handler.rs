//! The traits that every operation implements, and how a request is served, from its bytes to its audit line.
//!
//! Promises: policy decides each request once, before the operation acts; the action and the audit line get the permit of
//! that decision and do not consult policy again.

use std::borrow::Cow;
use std::fmt;
use std::rc::Rc;
use std::time::Instant;

use portreeve_protocol::codec::{self, BodyError};
use portreeve_protocol::message::{Hello, ListenerId, Operation, Outcome};
use portreeve_protocol::{Fault, FaultCode, Header, Kind};

use super::audit::{audit, audit_delivery};
use crate::policy::{Permit, Policy, Requester};
use crate::server::reply::{Delivery, Sockets};
use crate::server::session::{Session, Step};
use crate::server::state::Broker;
use crate::takeover::taken_over;

/// An operation except for its action, which is [`Immediate`] or [`Deferred`].
pub trait Handler: Operation {
    /// Whether it changes the state of the broker or the kernel. Such an operation always has an audit line at the level
    /// info.
    const CHANGES_STATE: bool;
    /// Whether peers request it every few seconds, or with each command: then its audit line has the level debug.
    const FREQUENT: bool = false;
    /// The permit that allows a request.
    type Permit: Permit;

    /// Decides about the resources that the request names. Whether the peer is allowed the operation at all is decided
    /// before.
    fn decide(&self, policy: &Policy, requester: &Requester) -> Result<Self::Permit, Fault>;

    /// Writes the request's arguments for the audit line, which shows the first few thousand bytes: what is requested,
    /// and only unusual options. Text of the peer must be written by Display or
    /// Debug of [`Text`](portreeve_protocol::Text), which escape it.
    fn arguments(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result;

    /// What the request stands for, if it is not the wish of the peer's own code: the field `via` of the audit line.
    fn via(&self) -> Option<&'static str> {
        None
    }

    /// The result of each part, if a request has parts with results of their own: the metrics and the audit line count them.
    fn parts<'r>(&self, _: &'r Self::Reply) -> Option<Vec<Part<'r>>> {
        None
    }
}

/// The result of one part of a request.
pub enum Part<'r> {
    Done,
    Refused(Cow<'r, Fault>),
}

impl<'r, T> From<&'r Outcome<T>> for Part<'r> {
    fn from(outcome: &'r Outcome<T>) -> Self {
        outcome.fault().map_or(Part::Done, |fault| Part::Refused(Cow::Borrowed(fault)))
    }
}

/// An operation that replies at once.
pub trait Immediate: Handler {
    /// Does what the permit allows.
    fn act(
        &self,
        permit: &Self::Permit,
        broker: &Broker,
        session: &Session,
    ) -> Result<Done<Self::Reply>, Fault>;
}

/// An operation that takes a while: the session serves other requests meanwhile.
pub trait Deferred: Handler + 'static {
    /// Does what the permit allows.
    fn act(
        self: Rc<Self>,
        permit: Rc<Self::Permit>,
        broker: Rc<Broker>,
        session: Rc<Session>,
    ) -> impl Future<Output = Result<Self::Reply, Fault>> + 'static;
}

/// The result of an operation that succeeded.
pub struct Done<Reply> {
    pub reply: Reply,
    /// The listeners whose sockets are sent with the reply, in order.
    pub sockets: Vec<ListenerId>,
}

impl<Reply> Done<Reply> {
    pub fn new(reply: Reply) -> Self {
        Self { reply, sockets: Vec::new() }
    }
}

/// A request as it was received, and room for its reply.
pub struct Received<'a> {
    pub header: Header,
    pub body: &'a [u8],
    pub outbox: &'a mut [u8],
}

/// Serves a request of an operation that replies at once.
pub fn immediate<O>(broker: &Rc<Broker>, session: &Rc<Session>, received: Received<'_>) -> Step
where
    O: Immediate<Permit: 'static, Reply: 'static> + 'static,
{
    let Received { header, body, outbox } = received;
    let started = Instant::now();
    let request: O = match decode(broker, session, &header, body, outbox) {
        Ok(request) => request,
        Err(step) => return step,
    };
    let outcome = decide(broker, session, &request).and_then(|permit| {
        let done = request.act(&permit, broker, session)?;
        Ok((permit, done))
    });
    let step = match &outcome {
        Err(_) if wants_no_reply(&header, session) => {
            session.note_refusals(1);
            Step::Continue
        }
        Ok(_) if wants_no_reply(&header, session) => Step::Continue,
        Ok((_, done)) => {
            let count = u8::try_from(done.sockets.len()).unwrap_or(u8::MAX);
            match codec::encode(outbox, O::KIND.reply(), header.request, count, &done.reply) {
                Ok(frame) => session.send(broker, header.request, frame, Sockets::Listeners(&done.sockets)),
                Err(error) => too_long(session, outbox, header.request, &error),
            }
        }
        Err(fault) => session.refuse_or_close(outbox, header.request, fault),
    };
    let has_sockets = outcome.as_ref().is_ok_and(|(_, done)| !done.sockets.is_empty());
    let write_audit = move |broker: &Broker, session: &Session, delivery: &Delivery| {
        let outcome = outcome.as_ref().map(|(permit, done)| (permit, &done.reply));
        audit_delivery(broker, session, &request, outcome, delivery, started);
    };
    after_delivery(broker, session, step, has_sockets, write_audit)
}

/// Writes the audit line once it is known what became of the reply. Without sockets the request is done in any case, so its
/// line does not wait.
pub fn after_delivery(
    broker: &Broker,
    session: &Session,
    step: Step,
    has_sockets: bool,
    action: impl FnOnce(&Broker, &Session, &Delivery) + 'static,
) -> Step {
    match step {
        Step::Wait(reply) if has_sockets => Step::Wait(Box::new(reply.when_delivered(Box::new(action)))),
        Step::Close(reason) if has_sockets => {
            let delivery = Delivery::Lost(reason.clone());
            action(broker, session, &delivery);
            Step::Close(reason)
        }
        step => {
            action(broker, session, &Delivery::Sent);
            step
        }
    }
}

/// Serves a request of an operation that takes a while.
pub fn deferred<O: Deferred>(broker: &Rc<Broker>, session: &Rc<Session>, received: Received<'_>) -> Step {
    let Received { header, body, outbox } = received;
    let started = Instant::now();
    let request: Rc<O> = match decode(broker, session, &header, body, outbox) {
        Ok(request) => Rc::new(request),
        Err(step) => return step,
    };
    let started_request = decide(broker, session, &*request).and_then(|permit| {
        session.begin_in_flight()?;
        Ok(Rc::new(permit))
    });
    let permit = match started_request {
        Ok(permit) => permit,
        Err(fault) => {
            audit(broker, session, &*request, Err(&fault), started);
            if wants_no_reply(&header, session) {
                session.note_refusals(1);
                return Step::Continue;
            }
            return session.refuse_or_close(outbox, header.request, &fault);
        }
    };
    let (broker, session) = (broker.clone(), session.clone());
    tokio::task::spawn_local(async move {
        let outcome = request.clone().act(permit.clone(), broker.clone(), session.clone()).await;
        let frame = {
            let mut outbox = codec::frame_buffer();
            let encoded = match &outcome {
                Ok(reply) => codec::encode(&mut outbox, O::KIND.reply(), header.request, 0, reply),
                Err(fault) => codec::encode(&mut outbox, Kind::FAULT, header.request, 0, fault),
            };
            encoded.map(<[u8]>::to_vec)
        };
        let frame =
            frame.inspect_err(|error| tracing::error!(operation = O::NAME, %error, "cannot encode a reply"));
        // Not after the reply: a peer that does not read it would delay the line.
        audit(&broker, &session, &*request, outcome.as_ref().map(|reply| (&*permit, reply)), started);
        session.end_in_flight(frame.ok().filter(|_| header.request != 0)).await;
    });
    Step::Continue
}

/// Decodes the request. If the peer sent something else, its session ends.
pub fn decode<O: Operation>(
    broker: &Broker,
    session: &Session,
    header: &Header,
    body: &[u8],
    outbox: &mut [u8],
) -> Result<O, Step> {
    codec::decode(body).map_err(|error| {
        broker.counters.malformed.up();
        session.close_with(
            outbox,
            header.request,
            &Fault::new(FaultCode::Malformed, &format!("cannot decode the request {}: {error}", O::NAME)),
        )
    })
}

/// The one decision about a request: the peer has sent hello, and is allowed the operation and the resources that it names.
pub fn decide<O: Handler>(broker: &Broker, session: &Session, request: &O) -> Result<O::Permit, Fault> {
    if !session.is_greeted() && O::KIND != Hello::KIND {
        return Err(Fault::new(FaultCode::Malformed, "the first request of a session must be hello"));
    }
    if broker.export.is_committed() {
        return Err(taken_over());
    }
    let policy = broker.policy.borrow();
    policy.operation(&session.requester, O::NAME)?;
    request.decide(&policy, &session.requester)
}

/// A request with the number 0 wants no reply; before hello, its fault is sent because the session ends.
fn wants_no_reply(header: &Header, session: &Session) -> bool {
    header.request == 0 && session.is_greeted()
}

fn too_long(session: &Session, outbox: &mut [u8], request: u32, error: &BodyError) -> Step {
    let fault = Fault::new(FaultCode::Unsupported, &format!("the reply does not fit in a frame: {error}"));
    session.refuse(outbox, request, &fault.remedy("request less at once"))
}
