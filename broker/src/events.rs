//! Events: what happened, told to every subscriber that it concerns, and remembered for a while.
//!
//! Promises: telling waits for nobody and never fails; a subscriber that takes its events late loses some, is told how
//! many, and costs no more memory than [`WAITING`] of them. Data only: touches nothing, and asks no policy.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use portreeve_protocol::Event;
use portreeve_protocol::event::{Next, Queue, RECENT};
use portreeve_protocol::metrics::EventCounts;
use tokio::sync::Notify;

use crate::counter::Counter;
use crate::holder::Holder;

/// How many events wait for one subscriber at most.
pub const WAITING: usize = 256;

/// Whom an event concerns, beside who may know of everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Concern {
    /// Whose address it is about.
    Holder(Holder),
    /// Who may change the interface that it names, and whose addresses are on it.
    Interface(Vec<Holder>),
    /// Everyone.
    Everyone,
    /// Nobody beside.
    Operator,
}

/// An event and whom it concerns.
#[derive(Debug)]
pub struct Told {
    /// The event.
    pub event: Event,
    /// Whom it concerns.
    pub concern: Concern,
}

/// Whether a subscriber may know of an event.
type Sees = Box<dyn Fn(&Told) -> bool>;

/// Who wants to know what happens.
pub struct Subscriber {
    /// Whose addresses its own are.
    holder: Holder,
    sees: Sees,
    queue: RefCell<Queue<Rc<Told>>>,
    more: Notify,
    over: Cell<bool>,
    lost: Rc<Counter>,
}

impl Subscriber {
    /// Waits for the next event, or the gap where some are missing; `None` when the subscription is over.
    pub async fn next(&self) -> Option<Event> {
        loop {
            if self.over.get() {
                return None;
            }
            match self.queue.borrow_mut().pop() {
                Some(Next::Event(told)) => return Some(told.event.clone()),
                Some(Next::Gap(lost)) => {
                    self.lost.add(usize::try_from(lost).unwrap_or(usize::MAX));
                    return Some(Event::gap(lost));
                }
                None => {}
            }
            self.more.notified().await;
        }
    }
}

/// The events of a broker.
#[derive(Default)]
pub struct Events {
    last: Cell<u64>,
    recent: RefCell<VecDeque<Rc<Told>>>,
    /// By the number of their session.
    subscribers: RefCell<BTreeMap<u64, Rc<Subscriber>>>,
    lost: Rc<Counter>,
}

impl Events {
    /// Tells that something happened; number and time are given here. Says whether a holder whom it concerns hears of it.
    pub fn tell(&self, concern: Concern, mut event: Event) -> bool {
        event.number = self.last.get() + 1;
        self.last.set(event.number);
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        event.time_ms = u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX);
        let told = Rc::new(Told { event, concern });
        let mut heard = false;
        for subscriber in self.subscribers.borrow().values().filter(|one| (one.sees)(&told)) {
            heard |= matches!(&told.concern, Concern::Holder(holder) if *holder == subscriber.holder);
            subscriber.queue.borrow_mut().push(told.clone(), 1);
            subscriber.more.notify_one();
        }
        let mut recent = self.recent.borrow_mut();
        if recent.len() >= RECENT {
            recent.pop_front();
        }
        recent.push_back(told);
        heard
    }

    /// As metrics tell it.
    pub fn counted(&self) -> EventCounts {
        EventCounts { subscribers: self.subscribers.borrow().len() as u64, lost: self.lost.get() }
    }

    /// What is remembered of what somebody may see, the oldest first.
    pub fn recent(&self, sees: impl Fn(&Told) -> bool) -> Vec<Event> {
        self.recent.borrow().iter().filter(|told| sees(told)).map(|told| told.event.clone()).collect()
    }

    /// Begins to tell a session what happens. What an earlier subscription of its has not told yet is not lost.
    pub fn subscribe(&self, session: u64, holder: Holder, sees: Sees) -> Rc<Subscriber> {
        let queue = self.forget(session).unwrap_or_else(|| Queue::new(WAITING)).into();
        let (more, over, lost) = (Notify::new(), Cell::new(false), self.lost.clone());
        let subscriber = Rc::new(Subscriber { holder, sees, queue, more, over, lost });
        self.subscribers.borrow_mut().insert(session, subscriber.clone());
        subscriber
    }

    /// Tells a session nothing more, and gives what it was not told yet.
    pub fn forget(&self, session: u64) -> Option<Queue<Rc<Told>>> {
        let subscriber = self.subscribers.borrow_mut().remove(&session)?;
        subscriber.over.set(true);
        subscriber.more.notify_one();
        Some(subscriber.queue.replace(Queue::new(0)))
    }
}
