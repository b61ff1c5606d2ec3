//! Events: changes that the broker reports to a session that subscribed.
//!
//! Each [`Event`] arrives in a frame of its own, of kind [`Kind::EVENT`](crate::Kind::EVENT) and with request number 0.
//! Both sides buffer undelivered events in a [`Queue`] of bounded length. A full queue discards new events and reports
//! their number as a gap, at the position where they are missing.

use std::collections::VecDeque;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::bounded::{List, Text};
use crate::endpoint::MAX_INTERFACE;

/// The maximum number of past events in one [`Subscribed`] reply.
pub const MAX_RECENT_EVENTS: usize = 128;

/// Request: return recent events, and start or end this session's subscription. A session has at most one
/// subscription; a second request replaces the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscribe {
    /// True subscribes to future events. False ends the subscription.
    pub follow: bool,
    /// Include events that concern other peers. Takes effect only if this peer is allowed to request `status`.
    pub all: bool,
}

/// The reply to [`Subscribe`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscribed {
    /// Events that concern other peers are included.
    pub all: bool,
    /// Recent events that this peer is allowed to see, the oldest first.
    pub recent: List<Event, MAX_RECENT_EVENTS>,
}

/// One event. A field that does not apply to the event's code is 0, `None` or empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The sequence number. The broker's first event is 1, and each later event is one higher. Numbers that a session
    /// does not receive belong to events that concern other peers. 0 in a gap.
    pub number: u64,
    /// The time in milliseconds since 1970-01-01 UTC, by CLOCK_REALTIME.
    pub time_ms: u64,
    /// The kind of event.
    pub code: EventCode,
    /// The address.
    pub address: Option<IpAddr>,
    /// The interface's name.
    pub interface: Text<MAX_INTERFACE>,
    /// The interface's index.
    pub index: u32,
    /// The process id.
    pub pid: u32,
    /// The epoch of the address's lease; see [`AddAddress`](crate::address::AddAddress).
    pub epoch: u64,
    /// A count or a duration; see [`EventCode`].
    pub count: u64,
    /// Further information; see [`EventCode`].
    pub detail: Text<256>,
}

impl Event {
    /// An event that reports `lost` missing events.
    pub fn gap(lost: u64) -> Self {
        Self { code: EventCode::Gap, count: lost, ..Self::default() }
    }
}

/// The kind of an event. The numbers are stable. A number that this version does not know becomes
/// [`EventCode::Other`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "u16", into = "u16")]
#[non_exhaustive]
pub enum EventCode {
    /// Events are missing here, because the subscriber read too slowly; `count` is their number.
    #[default]
    Gap,
    /// The broker added an address to an interface.
    AddressAdded,
    /// The broker removed an address on request.
    AddressRemoved,
    /// Another program removed an address.
    AddressLost,
    /// An address that another program removed is on its interface again.
    AddressRestored,
    /// Another host uses the address too; `detail` is that host's hardware address.
    AddressConflict,
    /// A lease expired, and the broker removed its address.
    AddressExpired,
    /// The broker will remove an address within `count` milliseconds. The owner should stop using the address.
    AddressLeaving,
    /// An address moved to another interface of this host; `detail` is the previous interface.
    AddressMoved,
    /// An interface has a carrier.
    LinkUp,
    /// An interface lost its carrier.
    LinkDown,
    /// An interface was removed.
    LinkGone,
    /// An interface was renamed; `detail` is the previous name.
    LinkRenamed,
    /// The worker was started; `count` is the number of earlier starts.
    WorkerStarted,
    /// The worker exited; `detail` is its exit status.
    WorkerEnded,
    /// The configuration was reloaded and is in force.
    Reloaded,
    /// A reload was refused, and the previous configuration stays in force; `detail` is the cause.
    ReloadFailed,
    /// A new broker took over all listeners and addresses from its predecessor.
    TakenOver,
    /// A floating listener started, because its address was added; `detail` is its endpoint, `count` its number.
    ListenerStarted,
    /// A floating listener stops, because its address will be removed; `detail` and `count` as in
    /// [`EventCode::ListenerStarted`].
    ListenerStopping,
    /// A listener receives nothing, because its only interface was deleted; `detail` and `count` as in
    /// [`EventCode::ListenerStarted`].
    ListenerLost,
    /// A listener is bound to its only interface again, which was deleted and made again; `detail` and `count` as above.
    ListenerRestored,
    /// A code of a later version.
    Other(u16),
}

/// The number, variant and name of each code. The name appears in JSON and tables.
const CODES: [(u16, EventCode, &str); 22] = [
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
    (21, EventCode::ListenerLost, "listener-lost"),
    (22, EventCode::ListenerRestored, "listener-restored"),
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
    /// The name of the code: `address-lost`, `link-up`, …; `other` for a code of a later version.
    pub fn name(self) -> &'static str {
        CODES.iter().find(|row| row.1 == self).map_or("other", |row| row.2)
    }
}

/// A queue of bounded length for events that the subscriber has not read yet.
#[derive(Debug)]
pub struct Queue<T> {
    events: VecDeque<T>,
    capacity: usize,
    lost: u64,
}

/// An item of a [`Queue`].
#[derive(Debug, PartialEq, Eq)]
pub enum QueueItem<T> {
    /// The oldest event.
    Event(T),
    /// This many events are missing here.
    Gap(u64),
}

impl<T> Queue<T> {
    /// Creates an empty queue of at most `capacity` events.
    pub fn new(capacity: usize) -> Self {
        Self { events: VecDeque::new(), capacity, lost: 0 }
    }

    /// Appends an event, or counts it as lost if the queue is full. `count` is the number of events that `event` stands
    /// for: 1, or the length of a gap. After the first loss every event is counted as lost until [`Queue::pop`] has
    /// returned the gap, so a queue has one gap at most, and it is at the end.
    pub fn push(&mut self, event: T, count: u64) {
        if self.lost > 0 || self.events.len() >= self.capacity {
            self.lost = self.lost.saturating_add(count);
        } else {
            self.events.push_back(event);
        }
    }

    /// Removes and returns the oldest item.
    pub fn pop(&mut self) -> Option<QueueItem<T>> {
        match self.events.pop_front() {
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
    fn every_code_converts_to_its_number_and_back() {
        for (number, code, name) in CODES {
            assert_eq!(EventCode::from(number), code);
            assert_eq!(u16::from(code), number);
            assert_eq!(code.name(), name);
        }
        assert_eq!(u16::from(EventCode::from(700)), 700);
    }

    #[test]
    fn a_full_queue_reports_the_lost_events_at_their_position() {
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
