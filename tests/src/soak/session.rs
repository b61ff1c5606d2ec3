//! A peer of a broker that may end at any time: each request gets a reply, or the session is lost for a known reason.

use std::os::fd::OwnedFd;
use std::path::Path;

use portreeve_protocol::message::{Hello, Operation};
use portreeve_protocol::{Fault, Text, channel, codec};

use super::disruption::Mark;
use super::model::Model;
use crate::Peer;
use crate::broker::SOCKET;

/// A session that is open as far as its peer knows.
pub struct Session {
    peer: Peer,
    number: u32,
    buffer: Box<[u8]>,
    /// When it began, relative to [`Model::broker_down`].
    pub began: Mark,
    /// The peer's name in the broker's replies.
    pub name: String,
    /// The generation of its broker.
    pub generation: u64,
}

/// The session has ended.
#[derive(Debug)]
pub struct SessionLost;

/// The reply and its descriptors, or a fault.
pub type Reply<T> = Result<(<T as Operation>::Reply, Vec<OwnedFd>), Fault>;

impl Session {
    /// Connects as a user and sends Hello.
    pub fn open(model: &Model, user: u32) -> Result<Self, SessionLost> {
        let (began, generation) = (model.broker_down.mark(), model.generation());
        let peer = Peer::connect_as(Path::new(SOCKET), user, user).map_err(|error| {
            lost_session(model, began, &format!("user {user} could not connect to the broker: {error}"))
        })?;
        let (buffer, name) = (codec::frame_buffer(), format!("user {user}"));
        let mut session = Self { peer, number: 0, buffer, began, name, generation };
        let hello = Hello { client: Text::truncated("soak"), features: 0 };
        match session.request(model, &hello)? {
            Ok((welcome, _)) => session.name = welcome.peer.to_string(),
            Err(fault) => {
                model.violation(format_args!("Hello of user {user} was refused: {fault}"));
                return Err(SessionLost);
            }
        }
        // If another broker has started meanwhile, it is unknown which one accepted the session.
        if model.generation() == generation { Ok(session) } else { Err(SessionLost) }
    }

    /// Sends a request and waits for the reply. Losing the session while the broker runs is a violation.
    pub fn request<T: Operation>(&mut self, model: &Model, request: &T) -> Result<Reply<T>, SessionLost> {
        self.number += 1;
        model.count(T::NAME);
        let packet = codec::encode(&mut self.buffer, T::KIND, self.number, 0, request).unwrap();
        let lost = |error: &dyn std::fmt::Display| {
            lost_session(
                model,
                self.began,
                &format!("{} lost its session at {}: {error}", self.name, T::NAME),
            )
        };
        channel::send_bytes(&self.peer.channel, packet).map_err(|error| lost(&error))?;
        let frame = self.peer.receive().map_err(|error| lost(&error))?;
        if frame.header.request != self.number {
            return Err(lost(&format_args!(
                "the reply is to request {}, not to {}",
                frame.header.request, self.number
            )));
        }
        Ok(frame.reply::<T>())
    }
}

fn lost_session(model: &Model, began: Mark, what: &str) -> SessionLost {
    match model.broker_down.occurred_since(began) {
        true => model.count("sessions lost with their broker"),
        false => model.violation(what),
    }
    SessionLost
}
