//! Followers: who in this process wants to hear of events, and what each has not taken yet.
//!
//! Promises: a follower that takes nothing keeps a bounded number of events, and learns how many it lost; an event of an
//! address costs as much as there are followers of that address and of everything, however many others there are.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::task::Waker;

use portreeve_protocol::event::{Queue, QueueItem, Subscribe, Subscribed};
use portreeve_protocol::{Event, EventCode};

/// How many events wait for one follower of everything, and for one of an address.
const WAITING: usize = 1024;
const WAITING_OF_ONE: usize = 8;

/// A follower's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FollowerId(u64);

struct Follower {
    about: Option<IpAddr>,
    all: bool,
    queue: Queue<Event>,
    /// It knows everything up to this number.
    after: u64,
    waker: Option<Waker>,
}

/// All followers of a session.
#[derive(Default)]
pub(crate) struct Followers {
    last: u64,
    each: BTreeMap<FollowerId, Follower>,
    of: HashMap<IpAddr, Vec<FollowerId>>,
    of_everything: BTreeSet<FollowerId>,
    asked: Subscribe,
}

impl Followers {
    /// Adds a follower of one address, or of everything.
    pub fn add(&mut self, about: Option<IpAddr>, all: bool) -> FollowerId {
        self.last += 1;
        let id = FollowerId(self.last);
        let most = if about.is_some() { WAITING_OF_ONE } else { WAITING };
        let follower = Follower { about, all, queue: Queue::new(most), after: 0, waker: None };
        self.each.insert(id, follower);
        match about {
            Some(address) => self.of.entry(address).or_default().push(id),
            None => drop(self.of_everything.insert(id)),
        }
        id
    }

    /// Removes one.
    pub fn remove(&mut self, id: FollowerId) {
        self.of_everything.remove(&id);
        let address = self.each.remove(&id).and_then(|follower| follower.about);
        if let Some(address) = address
            && let Some(ids) = self.of.get_mut(&address)
        {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.of.remove(&address);
            }
        }
    }

    /// What the broker has to be asked for, where it was not yet.
    pub fn to_ask(&self) -> Option<Subscribe> {
        Some(self.wanted()).filter(|wanted| *wanted != self.asked)
    }

    /// What the broker was asked for, and grants.
    pub fn asked(&mut self, asked: Subscribe) {
        self.asked = asked;
    }

    /// What the followers want together.
    pub fn wanted(&self) -> Subscribe {
        Subscribe { follow: !self.each.is_empty(), all: self.each.values().any(|follower| follower.all) }
    }

    /// What the broker remembers was told to this one.
    pub fn knows(&mut self, id: FollowerId, subscribed: &Subscribed) {
        if let (Some(follower), Some(newest)) = (self.each.get_mut(&id), subscribed.recent.last()) {
            follower.after = newest.number;
        }
    }

    /// Hands an event to those that it is for.
    pub fn tell(&mut self, event: &Event) {
        let gap = event.code == EventCode::Gap;
        let of = event.address.and_then(|address| self.of.get(&address)).into_iter().flatten();
        let ids: Vec<FollowerId> = match gap {
            true => self.each.keys().copied().collect(),
            false => self.of_everything.iter().chain(of).copied().collect(),
        };
        for id in ids {
            if let Some(follower) = self.each.get_mut(&id) {
                follower.queue.push(event.clone(), if gap { event.count } else { 1 });
                follower.waker.take().into_iter().for_each(Waker::wake);
            }
        }
    }

    /// The next event of a follower; without one, the waker is woken when there is.
    pub fn take(&mut self, id: FollowerId, waker: &Waker) -> Option<Event> {
        let follower = self.each.get_mut(&id)?;
        loop {
            match follower.queue.pop() {
                Some(QueueItem::Event(event)) if (1..=follower.after).contains(&event.number) => {}
                Some(QueueItem::Event(event)) => return Some(event),
                Some(QueueItem::Gap(lost)) => return Some(Event::gap(lost)),
                None => {
                    follower.waker = Some(waker.clone());
                    return None;
                }
            }
        }
    }

    /// For another broker: what it has to be asked for. What happened between it and the one before nobody tells.
    #[cfg(feature = "tokio")]
    pub fn renew(&mut self) -> Subscribe {
        self.each.values_mut().for_each(|follower| follower.after = 0);
        self.tell(&Event::gap(0));
        self.asked = self.wanted();
        self.asked
    }

    /// Wakes them all, at the end.
    pub fn wake(&mut self) {
        self.each.values_mut().filter_map(|follower| follower.waker.take()).for_each(Waker::wake);
    }
}
