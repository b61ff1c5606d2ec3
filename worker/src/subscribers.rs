//! The subscribers of a session: which parts of this program receive events, and the queue of each.
//!
//! Promises: a subscriber that takes no events keeps a bounded number of them, and learns how many it lost. The cost of an
//! event of an address depends on the number of subscribers to that address and to all events, not on the others.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::task::Waker;

use portreeve_protocol::event::{Queue, QueueItem, Subscribe, Subscribed};
use portreeve_protocol::{Event, EventCode};

/// Maximum number of queued events of a subscriber to all events, and of a subscriber to one address.
const MAX_QUEUED: usize = 1024;
const MAX_QUEUED_OF_ADDRESS: usize = 8;

/// The number of a subscriber.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SubscriberId(u64);

struct Subscriber {
    /// The address that it subscribes to; `None` for all events.
    address: Option<IpAddr>,
    /// Whether it subscribes to events of other peers.
    all: bool,
    queue: Queue<Event>,
    /// The number of the last event that it received in the reply to the subscription.
    seen: u64,
    waker: Option<Waker>,
}

/// All subscribers of a session.
#[derive(Default)]
pub(crate) struct Subscribers {
    last: u64,
    by_id: BTreeMap<SubscriberId, Subscriber>,
    by_address: HashMap<IpAddr, Vec<SubscriberId>>,
    unfiltered: BTreeSet<SubscriberId>,
    /// The subscription that the broker has granted to the session.
    subscription: Subscribe,
}

impl Subscribers {
    /// Adds a subscriber to one address, or to all events.
    pub fn add(&mut self, address: Option<IpAddr>, all: bool) -> SubscriberId {
        self.last += 1;
        let id = SubscriberId(self.last);
        let max_queued = if address.is_some() { MAX_QUEUED_OF_ADDRESS } else { MAX_QUEUED };
        let subscriber = Subscriber { address, all, queue: Queue::new(max_queued), seen: 0, waker: None };
        self.by_id.insert(id, subscriber);
        match address {
            Some(address) => self.by_address.entry(address).or_default().push(id),
            None => drop(self.unfiltered.insert(id)),
        }
        id
    }

    /// Removes a subscriber.
    pub fn remove(&mut self, id: SubscriberId) {
        self.unfiltered.remove(&id);
        let address = self.by_id.remove(&id).and_then(|subscriber| subscriber.address);
        if let Some(address) = address
            && let Some(ids) = self.by_address.get_mut(&address)
        {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.by_address.remove(&address);
            }
        }
    }

    /// The subscription to request from the broker; `None` if it is granted already.
    pub fn missing_subscription(&self) -> Option<Subscribe> {
        Some(self.required_subscription()).filter(|required| *required != self.subscription)
    }

    /// Records the subscription that the broker has granted.
    pub fn set_subscription(&mut self, granted: Subscribe) {
        self.subscription = granted;
    }

    /// Whether the broker sends no events.
    #[cfg(feature = "tokio")]
    pub fn expect_nothing(&self) -> bool {
        self.by_id.is_empty() && !self.subscription.follow
    }

    /// The subscription that serves all subscribers.
    pub fn required_subscription(&self) -> Subscribe {
        Subscribe {
            follow: !self.by_id.is_empty(),
            all: self.by_id.values().any(|subscriber| subscriber.all),
        }
    }

    /// Records that a subscriber has received the events of this reply.
    pub fn mark_seen(&mut self, id: SubscriberId, reply: &Subscribed) {
        if let (Some(subscriber), Some(newest)) = (self.by_id.get_mut(&id), reply.recent.last()) {
            subscriber.seen = newest.number;
        }
    }

    /// Queues an event for its subscribers.
    pub fn deliver(&mut self, event: &Event) {
        let is_gap = event.code == EventCode::Gap;
        let of_address =
            event.address.and_then(|address| self.by_address.get(&address)).into_iter().flatten();
        let ids: Vec<SubscriberId> = match is_gap {
            true => self.by_id.keys().copied().collect(),
            false => self.unfiltered.iter().chain(of_address).copied().collect(),
        };
        for id in ids {
            if let Some(subscriber) = self.by_id.get_mut(&id) {
                subscriber.queue.push(event.clone(), if is_gap { event.count } else { 1 });
                subscriber.waker.take().into_iter().for_each(Waker::wake);
            }
        }
    }

    /// Takes the next event of a subscriber. If its queue is empty, wakes the waker when an event arrives.
    pub fn next_event(&mut self, id: SubscriberId, waker: &Waker) -> Option<Event> {
        let subscriber = self.by_id.get_mut(&id)?;
        loop {
            match subscriber.queue.pop() {
                Some(QueueItem::Event(event)) if (1..=subscriber.seen).contains(&event.number) => {}
                Some(QueueItem::Event(event)) => return Some(event),
                Some(QueueItem::Gap(lost)) => return Some(Event::gap(lost)),
                None => {
                    subscriber.waker = Some(waker.clone());
                    return None;
                }
            }
        }
    }

    /// The subscription to request from the next broker. Every subscriber gets a gap, because events between two brokers
    /// are lost.
    pub fn resubscribe(&mut self) -> Subscribe {
        self.by_id.values_mut().for_each(|subscriber| subscriber.seen = 0);
        self.deliver(&Event::gap(0));
        self.subscription = self.required_subscription();
        self.subscription
    }

    /// Wakes all subscribers at the end of the session.
    pub fn wake_all(&mut self) {
        self.by_id.values_mut().filter_map(|subscriber| subscriber.waker.take()).for_each(Waker::wake);
    }
}
