//! Events: published to every subscriber that may see them; the most recent ones are kept for later queries.
//!
//! Promises: publishing never waits and never fails. A subscriber that is slow loses events, learns how many, and costs no
//! more memory than [`MAX_QUEUED`] of them. Data only: nothing here makes a system call or consults policy.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use portreeve_protocol::Event;
use portreeve_protocol::event::{MAX_RECENT_EVENTS, Queue, QueueItem};
use portreeve_protocol::metrics::EventCounts;
use tokio::sync::Notify;

use crate::counter::Counter;
use crate::holder::Holder;

/// The largest number of events that are queued for one subscriber.
pub const MAX_QUEUED: usize = 256;

/// The peers that an event concerns. Peers that may see all events see it in any case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Audience {
    /// The holder of the address that it is about.
    Holder(Holder),
    /// Peers that may change the interface that it names, and the holders of addresses on it.
    Interface(Vec<Holder>),
    /// Every peer.
    Everyone,
    /// Only peers that may see all events.
    Operator,
}

/// A published event.
#[derive(Debug)]
pub struct Record {
    /// The event.
    pub event: Event,
    /// The peers that it concerns.
    pub audience: Audience,
}

/// Whether a subscriber may see an event.
type IsVisible = Box<dyn Fn(&Record) -> bool>;

/// A session that gets events.
pub struct Subscriber {
    /// The holder of its peer's addresses.
    holder: Holder,
    is_visible: IsVisible,
    queue: RefCell<Queue<Rc<Record>>>,
    wake: Notify,
    ended: Cell<bool>,
    lost: Rc<Counter>,
}

impl Subscriber {
    /// Waits for the next event, or a gap in place of lost events; `None` after the subscription has ended.
    pub async fn next(&self) -> Option<Event> {
        loop {
            if self.ended.get() {
                return None;
            }
            match self.queue.borrow_mut().pop() {
                Some(QueueItem::Event(record)) => return Some(record.event.clone()),
                Some(QueueItem::Gap(lost)) => {
                    self.lost.add(usize::try_from(lost).unwrap_or(usize::MAX));
                    return Some(Event::gap(lost));
                }
                None => {}
            }
            self.wake.notified().await;
        }
    }
}

/// The events of a broker.
#[derive(Default)]
pub struct Events {
    last_number: Cell<u64>,
    recent: RefCell<VecDeque<Rc<Record>>>,
    /// By the number of their session.
    subscribers: RefCell<BTreeMap<u64, Rc<Subscriber>>>,
    lost: Rc<Counter>,
}

impl Events {
    /// Publishes an event; its number and time are set here. Returns whether the holder that it concerns is subscribed.
    pub fn publish(&self, audience: Audience, mut event: Event) -> bool {
        event.number = self.last_number.get() + 1;
        self.last_number.set(event.number);
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        event.time_ms = u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX);
        let record = Rc::new(Record { event, audience });
        let mut holder_is_subscribed = false;
        for subscriber in self.subscribers.borrow().values().filter(|one| (one.is_visible)(&record)) {
            holder_is_subscribed |=
                matches!(&record.audience, Audience::Holder(holder) if *holder == subscriber.holder);
            subscriber.queue.borrow_mut().push(record.clone(), 1);
            subscriber.wake.notify_one();
        }
        let mut recent = self.recent.borrow_mut();
        if recent.len() >= MAX_RECENT_EVENTS {
            recent.pop_front();
        }
        recent.push_back(record);
        holder_is_subscribed
    }

    /// The counts for the metrics.
    pub fn counts(&self) -> EventCounts {
        EventCounts { subscribers: self.subscribers.borrow().len() as u64, lost: self.lost.get() }
    }

    /// The recent events that a peer may see, the oldest first.
    pub fn recent(&self, is_visible: impl Fn(&Record) -> bool) -> Vec<Event> {
        let recent = self.recent.borrow();
        recent.iter().filter(|record| is_visible(record)).map(|record| record.event.clone()).collect()
    }

    /// Subscribes a session. Events still queued by an earlier subscription of the same session are kept.
    pub fn subscribe(&self, session: u64, holder: Holder, is_visible: IsVisible) -> Rc<Subscriber> {
        let queue = self.unsubscribe(session).unwrap_or_else(|| Queue::new(MAX_QUEUED)).into();
        let (wake, ended, lost) = (Notify::new(), Cell::new(false), self.lost.clone());
        let subscriber = Rc::new(Subscriber { holder, is_visible, queue, wake, ended, lost });
        self.subscribers.borrow_mut().insert(session, subscriber.clone());
        subscriber
    }

    /// Ends the subscription of a session, and returns the events that are still queued for it.
    pub fn unsubscribe(&self, session: u64) -> Option<Queue<Rc<Record>>> {
        let subscriber = self.subscribers.borrow_mut().remove(&session)?;
        subscriber.ended.set(true);
        subscriber.wake.notify_one();
        Some(subscriber.queue.replace(Queue::new(0)))
    }
}
