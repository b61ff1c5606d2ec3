//! The operations, one file each: policy is asked, then the thing is done. This file finds the operation for a
//! request's number, and takes every request the same way from its bytes to its audit line.

mod address;
mod audit;
mod hello;
mod limit;
mod link;
mod listen;
mod metrics;
mod move_address;
mod ping;
mod policy;
mod reload;
mod remove_address;
mod status;
mod stop;
mod subscribe;
mod takeover;

pub use self::listen::{permit as listen_permit, same_port_of_ipv4};

use std::rc::Rc;
use std::time::Instant;

use portreeve_protocol::address::{
    AddAddress, Announce, ListAddresses, MoveAddress, RemoveAddress, RenewAddress, SetLink,
};
use portreeve_protocol::codec::{self, BodyError};
use portreeve_protocol::event::Subscribe;
use portreeve_protocol::limit::SetLimit;
use portreeve_protocol::message::{
    Hello, Listen, ListenMany, ListenerId, Operation, Ping, StatusRequest, Stop,
};
use portreeve_protocol::metrics::MetricsRequest;
use portreeve_protocol::policy::PolicyRequest;
use portreeve_protocol::reload::Reload;
use portreeve_protocol::takeover::Takeover;
use portreeve_protocol::{Fault, FaultCode, Header, Kind};

use self::audit::{Arguments, audit};
use super::handover::taken_over;
use super::session::{Session, Turn};
use super::state::Broker;

/// What an operation gives back when it is no fault.
struct Done<Reply> {
    reply: Reply,
    /// The listeners whose sockets ride with the reply, in order.
    sockets: Vec<ListenerId>,
}

impl<Reply> Done<Reply> {
    fn new(reply: Reply) -> Self {
        Self { reply, sockets: Vec::new() }
    }
}

/// A request as it was received, and where its answer is written.
pub struct Received<'a> {
    /// Its header.
    pub header: Header,
    /// Its body.
    pub body: &'a [u8],
    /// Room for the answer.
    pub outbox: &'a mut [u8],
}

/// Finds the operation for the request and carries it out.
pub fn carry_out(broker: &Rc<Broker>, session: &Rc<Session>, received: Received<'_>) -> Turn {
    match received.header.kind {
        Hello::KIND => run(broker, session, received, hello::hello),
        Ping::KIND => run(broker, session, received, ping::ping),
        Listen::KIND => run(broker, session, received, listen::listen),
        ListenMany::KIND => run(broker, session, received, listen::listen_many),
        Stop::KIND => run(broker, session, received, stop::stop),
        StatusRequest::KIND => run(broker, session, received, status::status),
        AddAddress::KIND => run_later(broker, session, received, address::add),
        RenewAddress::KIND => run(broker, session, received, address::renew),
        RemoveAddress::KIND => run_later(broker, session, received, remove_address::remove),
        Announce::KIND => run(broker, session, received, address::announce),
        ListAddresses::KIND => run(broker, session, received, address::list),
        SetLink::KIND => run(broker, session, received, link::set_link),
        MoveAddress::KIND => run(broker, session, received, move_address::move_address),
        SetLimit::KIND => run(broker, session, received, limit::set_limit),
        PolicyRequest::KIND => run(broker, session, received, policy::policy),
        Subscribe::KIND => run_later(broker, session, received, subscribe::subscribe),
        MetricsRequest::KIND => run(broker, session, received, metrics::metrics),
        Reload::KIND => run_later(broker, session, received, reload::reload),
        Takeover::KIND => takeover::takeover(broker, session, received),
        Kind(number) => {
            let message = format!("this broker knows no operation {number}");
            let fault = Fault::new(FaultCode::Unsupported, &message).remedy("see Welcome for its release");
            if session.account.may_log() {
                let (peer, session, code) = (&session.requester, session.number, fault.code.name());
                tracing::warn!(target: "audit", session, %peer, operation = number, code, "refused");
            }
            session.refuse(received.outbox, received.header.request, &fault)
        }
    }
}

/// What an operation does once it is permitted.
type Act<O> = fn(&Broker, &Session, &O) -> Result<Done<<O as Operation>::Reply>, Fault>;

fn run<O: Operation + Arguments>(
    broker: &Broker,
    session: &Session,
    received: Received<'_>,
    act: Act<O>,
) -> Turn {
    let Received { header, body, outbox } = received;
    let started = Instant::now();
    let request: O = match decode(broker, session, &header, body, outbox) {
        Ok(request) => request,
        Err(over) => return over,
    };
    let outcome = permitted::<O>(broker, session).and_then(|()| act(broker, session, &request));
    let turn = match &outcome {
        // A request without a number wants no answer.
        Err(_) if header.request == 0 && session.is_greeted() => {
            session.note_refusals(1);
            Turn::Answered
        }
        Ok(_) if header.request == 0 && session.is_greeted() => Turn::Answered,
        Ok(done) => {
            let count = u8::try_from(done.sockets.len()).unwrap_or(u8::MAX);
            match codec::encode(outbox, O::KIND.reply(), header.request, count, &done.reply) {
                Ok(frame) => session.send(broker, frame, &done.sockets),
                Err(error) => too_long(session, outbox, header.request, &error),
            }
        }
        Err(fault) if session.is_greeted() => session.refuse(outbox, header.request, fault),
        Err(fault) => session.last_fault(outbox, header.request, fault),
    };
    audit(broker, session, &request, outcome.as_ref().map(|done| &done.reply), started);
    turn
}

/// An operation that takes a while: other requests are answered meanwhile.
fn run_later<O, F>(
    broker: &Rc<Broker>,
    session: &Rc<Session>,
    received: Received<'_>,
    act: fn(Rc<Broker>, Rc<Session>, Rc<O>) -> F,
) -> Turn
where
    O: Operation + Arguments + 'static,
    F: Future<Output = Result<O::Reply, Fault>> + 'static,
{
    let Received { header, body, outbox } = received;
    let started = Instant::now();
    let request: Rc<O> = match decode(broker, session, &header, body, outbox) {
        Ok(request) => Rc::new(request),
        Err(over) => return over,
    };
    let too_many = || {
        let message =
            format!("{} requests of this session are under way, as many as may be", session.in_flight);
        Fault::new(FaultCode::Busy, &message).remedy("wait for an answer first, or raise max_in_flight")
    };
    let begun = permitted::<O>(broker, session)
        .and_then(|()| if session.begin_later() { Ok(()) } else { Err(too_many()) });
    if let Err(fault) = begun {
        audit(broker, session, &*request, Err(&fault), started);
        return match session.is_greeted() {
            true => session.refuse(outbox, header.request, &fault),
            false => session.last_fault(outbox, header.request, &fault),
        };
    }
    let (broker, session) = (broker.clone(), session.clone());
    tokio::task::spawn_local(async move {
        let outcome = act(broker.clone(), session.clone(), request.clone()).await;
        let frame = {
            let mut outbox = codec::frame_buffer();
            let encoded = match &outcome {
                Ok(reply) => codec::encode(&mut outbox, O::KIND.reply(), header.request, 0, reply),
                Err(fault) => codec::encode(&mut outbox, Kind::FAULT, header.request, 0, fault),
            };
            encoded.map(<[u8]>::to_vec)
        };
        let frame = frame.inspect_err(|error| tracing::error!(%error, "an answer could not be encoded"));
        session.end_later(frame.ok().filter(|_| header.request != 0)).await;
        audit(&broker, &session, &*request, outcome.as_ref(), started);
    });
    Turn::Answered
}

/// The request, or the end of a session whose peer sent none.
fn decode<O: Operation>(
    broker: &Broker,
    session: &Session,
    header: &Header,
    body: &[u8],
    outbox: &mut [u8],
) -> Result<O, Turn> {
    codec::decode(body).map_err(|error| {
        broker.counters.malformed.up();
        session.last_fault(outbox, header.request, &Fault::new(FaultCode::Malformed, &error.to_string()))
    })
}

/// A peer says hello first; and each operation has to be allowed to it.
fn permitted<O: Operation>(broker: &Broker, session: &Session) -> Result<(), Fault> {
    if !session.is_greeted() && O::KIND != Hello::KIND {
        return Err(Fault::new(FaultCode::Malformed, "the first request of a session is hello"));
    }
    if broker.handover.is_over() {
        return Err(taken_over());
    }
    broker.policy.borrow().operation(&session.requester, O::NAME).map_err(|denied| denied.fault())
}

fn too_long(session: &Session, outbox: &mut [u8], request: u32, error: &BodyError) -> Turn {
    let fault = Fault::new(FaultCode::Unsupported, &format!("the answer does not fit in a frame: {error}"));
    session.refuse(outbox, request, &fault.remedy("ask for less at once"))
}
