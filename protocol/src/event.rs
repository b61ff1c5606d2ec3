//! Events: what the broker tells a session that asked for it, as it happens.
//!
//! An [`Event`] comes in a frame of its own, of the kind [`Kind::EVENT`](crate::Kind::EVENT) and with the request number 0.
//! A [`Queue`] keeps what is not taken yet, on either side; it promises to keep no more than its bound, and to say how
//! many it lost at the place where they are missing.

use std::collections::VecDeque;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::bounded::{List, Text};
use crate::endpoint::MAX_INTERFACE;

/// How many events of the past one reply tells of.
pub const MAX_RECENT_EVENTS: usize = 128;

/// Asks for what happened lately and, if wanted, to be told what happens from now on. A session has one subscription;
/// asking again changes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscribe {
    /// Tell what happens from now on; where this is false a subscription ends.
    pub follow: bool,
    /// Tell what concerns others too, as far as this peer may ask for `status`.
    pub all: bool,
}

/// The reply to [`Subscribe`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscribed {
    /// Whether events that concern others are told too.
    pub all: bool,
    /// What happened lately, the oldest first, as far as the broker remembers and this peer may know.
    pub recent: List<Event, MAX_RECENT_EVENTS>,
}

/// Something that happened. What an event of its kind does not have is 0, absent or empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its number: the broker's first event is 1, and each is one more than the one before. Those between that a session
    /// does not get concern others. 0 in a gap.
    pub number: u64,
    /// When, in milliseconds since 1970 by the host's clock.
    pub time_ms: u64,
    /// What happened.
    pub code: EventCode,
    /// The address.
    pub address: Option<IpAddr>,
    /// The interface's name.
    pub interface: Text<MAX_INTERFACE>,
    /// The interface's number.
    pub index: u32,
    /// The process.
    pub pid: u32,
    /// The number of the address's ownership.
    pub epoch: u64,
    /// A count or a time, as the code says.
    pub count: u64,
    /// More, as the code says.
    pub detail: Text<256>,
}

impl Event {
    /// What stands where so many events were lost.
    pub fn gap(lost: u64) -> Self {
        Self { code: EventCode::Gap, count: lost, ..Self::default() }
    }
}

/// What happened. The number is stable; one that this version does not know is kept as it came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "u16", into = "u16")]
#[non_exhaustive]
pub enum EventCode {
    /// Events were lost here, because they were not taken in time; `count` says how many.
    #[default]
    Gap,
    /// The broker put an address on an interface.
    AddressAdded,
    /// It took one away, because somebody asked for it.
    AddressRemoved,
    /// Somebody else took one away.
    AddressLost,
    /// One that somebody else took away is on its interface again.
    AddressRestored,
    /// Another host has it too; `detail` is that host's hardware address.
    AddressConflict,
    /// Its lease was not renewed, and it is gone.
    AddressExpired,
    /// It is about to be removed: its owner lets go of it within `count` milliseconds.
    AddressLeaving,
    /// It is on another interface of this host now; `detail` is the one before.
    AddressMoved,
    /// An interface has a carrier.
    LinkUp,
    /// It has none any more.
    LinkDown,
    /// It is gone.
    LinkGone,
    /// It has another name; `detail` is the one before.
    LinkRenamed,
    /// The worker was started; `count` says how often before.
    WorkerStarted,
    /// The worker ended; `detail` says how.
    WorkerEnded,
    /// The configuration was read again, and is in force.
    Reloaded,
    /// The configuration was read again and refused, and nothing changed; `detail` says why.
    ReloadFailed,
    /// Another broker took over from the one before, with everything that it had.
    TakenOver,
    /// A listener started, because its address was added; `detail` is where it listens and `count` its number.
    ListenerStarted,
    /// A listener stops now, because its address goes; `detail` and `count` as before.
    ListenerStopping,
    /// An event of a later version.
    Other(u16),
}

/// The codes and the words that stand for them in JSON and tables; one row is one event.
const CODES: [(u16, EventCode, &str); 20] = [
    (1, EventCode::Gap, "gap"),
    (2, EventCode::AddressAdded, "address-added"),
    (3, EventCode::AddressRemoved, "address-removed"),
    (4, EventCode::AddressLost, "address-lost"),
    (5, EventCode::AddressRestored, "address-restored"),
    (6, EventCode::AddressConflict, "address-conflict"),
    (7, EventCode::AddressExpired, "address-expired"),
    (8, EventCode::AddressLeaving, "address-leaving"),
    (9, EventCode::AddressMoved, "address-moved"),
    (10, EventCode::LinkUp, "link-up"),
    (11, EventCode::LinkDown, "link-down"),
    (12, EventCode::LinkGone, "link-gone"),
    (13, EventCode::LinkRenamed, "link-renamed"),
    (14, EventCode::WorkerStarted, "worker-started"),
    (15, EventCode::WorkerEnded, "worker-ended"),
    (16, EventCode::Reloaded, "reloaded"),
    (17, EventCode::ReloadFailed, "reload-failed"),
    (18, EventCode::TakenOver, "taken-over"),
    (19, EventCode::ListenerStarted, "listener-started"),
    (20, EventCode::ListenerStopping, "listener-stopping"),
];

impl From<u16> for EventCode {
    fn from(number: u16) -> Self {
        CODES.iter().find(|row| row.0 == number).map_or(EventCode::Other(number), |row| row.1)
    }
}

impl From<EventCode> for u16 {
    fn from(code: EventCode) -> u16 {
        match code {
            EventCode::Other(number) => number,
            known => CODES.iter().find(|row| row.1 == known).map_or(0, |row| row.0),
        }
    }
}

impl EventCode {
    /// The word for it: `address-lost`, `link-up`, …; `other` for a code of a later version.
    pub fn name(self) -> &'static str {
        CODES.iter().find(|row| row.1 == self).map_or("other", |row| row.2)
    }
}

/// Events that wait to be taken.
#[derive(Debug)]
pub struct Queue<T> {
    waiting: VecDeque<T>,
    most: usize,
    lost: u64,
}

/// What a queue gives.
#[derive(Debug, PartialEq, Eq)]
pub enum QueueItem<T> {
    /// The oldest event.
    Event(T),
    /// So many are missing here.
    Gap(u64),
}

impl<T> Queue<T> {
    /// An empty one that keeps so many.
    pub fn new(most: usize) -> Self {
        Self { waiting: VecDeque::new(), most, lost: 0 }
    }

    /// Adds an event, or a gap that stands for many. Once one was lost all are, until what waits and the gap were taken: a
    /// gap has one place.
    pub fn push(&mut self, event: T, stands_for: u64) {
        if self.lost > 0 || self.waiting.len() >= self.most {
            self.lost = self.lost.saturating_add(stands_for);
        } else {
            self.waiting.push_back(event);
        }
    }

    /// Takes the oldest.
    pub fn pop(&mut self) -> Option<QueueItem<T>> {
        match self.waiting.pop_front() {
            Some(event) => Some(QueueItem::Event(event)),
            None if self.lost > 0 => Some(QueueItem::Gap(std::mem::take(&mut self.lost))),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_the_wire() {
        for (number, code, word) in CODES {
            assert_eq!(EventCode::from(number), code);
            assert_eq!(u16::from(code), number);
            assert_eq!(code.name(), word);
        }
        assert_eq!(u16::from(EventCode::from(700)), 700);
    }

    #[test]
    fn a_full_queue_says_how_many_are_missing_and_where() {
        let mut queue = Queue::new(2);
        (1..=5).for_each(|number| queue.push(number, 1));
        assert_eq!(queue.pop(), Some(QueueItem::Event(1)));
        queue.push(6, 10);
        assert_eq!(queue.pop(), Some(QueueItem::Event(2)));
        assert_eq!(queue.pop(), Some(QueueItem::Gap(13)));
        queue.push(7, 1);
        assert_eq!(queue.pop(), Some(QueueItem::Event(7)));
        assert_eq!(queue.pop(), None);
    }
}
