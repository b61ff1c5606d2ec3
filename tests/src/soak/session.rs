//! A peer whose broker may end at any moment: what it asks is answered, or its session is lost, and then there has to
//! be a reason.

use std::os::fd::OwnedFd;
use std::path::Path;

use portreeve_protocol::message::{Hello, Operation};
use portreeve_protocol::{Fault, Text, channel, codec};

use super::ledger::Ledger;
use super::trouble::Moment;
use crate::Peer;
use crate::broker::SOCKET;

/// A session that lives, as far as its peer knows.
pub struct Session {
    peer: Peer,
    number: u32,
    buffer: Box<[u8]>,
    /// When it began, by the ends of brokers.
    pub began: Moment,
    /// Who the broker takes the peer for.
    pub name: String,
    /// Which broker it is with.
    pub generation: u64,
}

/// The session is over.
#[derive(Debug)]
pub struct Lost;

/// An answer: the reply with what rode with it, or a fault.
pub type Answer<T> = Result<(<T as Operation>::Reply, Vec<OwnedFd>), Fault>;

impl Session {
    /// Connects as a user and says hello.
    pub fn open(ledger: &Ledger, user: u32) -> Result<Self, Lost> {
        let (began, generation) = (ledger.broker_ends.now(), ledger.generation());
        let peer = Peer::connect_as(Path::new(SOCKET), user, user).map_err(|error| {
            excuse(ledger, began, &format!("user {user} could not connect to the broker: {error}"))
        })?;
        let (buffer, name) = (codec::frame_buffer(), format!("user {user}"));
        let mut session = Self { peer, number: 0, buffer, began, name, generation };
        let hello = Hello { client: Text::clipped("soak"), features: 0 };
        match session.request(ledger, &hello)? {
            Ok((welcome, _)) => session.name = welcome.peer.to_string(),
            Err(fault) => {
                ledger.violation(format_args!("the hello of user {user} was refused: {fault}"));
                return Err(Lost);
            }
        }
        // Whose broker it is cannot be told where one went and another came meanwhile.
        if ledger.generation() == generation { Ok(session) } else { Err(Lost) }
    }

    /// Asks and waits for the answer. A session that is lost while the broker lives is a violation.
    pub fn request<T: Operation>(&mut self, ledger: &Ledger, request: &T) -> Result<Answer<T>, Lost> {
        self.number += 1;
        ledger.count(T::NAME);
        let packet = codec::encode(&mut self.buffer, T::KIND, self.number, 0, request).unwrap();
        let lost = |error: &dyn std::fmt::Display| {
            excuse(ledger, self.began, &format!("{} lost its session at {}: {error}", self.name, T::NAME))
        };
        channel::send_bare(&self.peer.channel, packet).map_err(|error| lost(&error))?;
        let frame = self.peer.receive().map_err(|error| lost(&error))?;
        if frame.header.request != self.number {
            return Err(lost(&format_args!(
                "an answer to {}, and not to {}",
                frame.header.request, self.number
            )));
        }
        Ok(frame.reply::<T>())
    }
}

fn excuse(ledger: &Ledger, began: Moment, what: &str) -> Lost {
    match ledger.broker_ends.since(began) {
        true => ledger.count("sessions lost with their broker"),
        false => ledger.violation(what),
    }
    Lost
}
