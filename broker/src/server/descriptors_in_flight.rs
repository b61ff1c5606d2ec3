//! Descriptors in flight: sent to a peer and not received by it. They stay in flight after the broker has closed its end of
//! the channel, until the peer receives them or closes its own end.
//!
//! The kernel refuses to send descriptors for a user with too many in flight (see [`crate::in_flight_limit`]), and every
//! broker of the host sends as user 0. So each session, each peer and all users together have a bound, far below the
//! kernel's. A reply that would exceed one waits.
//!
//! Promises: the bounds hold for replies that peers leave unread, whether their sessions are open or have ended. A session
//! that ends with unread descriptors, or with requests in flight, keeps its place among the sessions of its user, so nobody
//! collects such channels. Root and the worker share nothing with other users. Counting needs no system call until a bound
//! is near.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use portreeve_protocol::frame::MAX_DESCRIPTORS;

use super::quota::SessionSlot;
use super::reply::Blocked;
use super::session::Session;
use super::state::Broker;
use crate::policy::Requester;
use crate::sys::sockopt;

/// The bound of one user: the largest reply, and a few single sockets for other sessions if one session leaves that reply
/// unread.
const MAX_OF_USER: usize = MAX_DESCRIPTORS + 16;
/// Beyond the common bound, small replies have this part of it, as a divisor; 128 descriptors at most.
const SMALL_PART: usize = 6;
/// Beyond the common bound, a user may have this part of what is free, as a divisor.
const SHARE: usize = 16;
/// How many sessions of workers that have exited may keep their channels: descendants of a worker can hold the other ends.
const MAX_LINGERING_WORKERS: usize = 8;
/// The shortest time between two checks of all channels, unless the last one freed [`WORTHWHILE`] descriptors.
const CHECK_INTERVAL: Duration = Duration::from_millis(2);
const WORTHWHILE: usize = 32;
/// The pauses between checks of an ended session's channel.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const MAX_PAUSE: Duration = Duration::from_millis(100);

/// The largest numbers of descriptors in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bounds {
    /// Of root's sessions, and of the worker's, each.
    reserve: usize,
    /// Of all other users, whatever their share.
    common: usize,
    /// Of all other users, when each has only its share of the rest.
    all: usize,
}

impl Bounds {
    /// The bounds of a broker with this limit of open descriptors. All users except root together stay below 1024, a common
    /// soft limit, so they alone do not keep a program of root with that limit from sending.
    fn of(max_descriptors: u64) -> Self {
        let limit = usize::try_from(max_descriptors).unwrap_or(usize::MAX);
        let reserve = (limit / 8).clamp(MAX_OF_USER, 2 * MAX_OF_USER);
        let common = (limit / 4).clamp(MAX_OF_USER, 3 * MAX_OF_USER);
        Self { reserve, common, all: common + (common / SMALL_PART).min(128) }
    }

    /// Whether `count` more descriptors may be sent to a user other than root that has `own` in flight, when all have `all`.
    fn admit_user(&self, own: usize, all: usize, count: usize) -> Result<(), Blocked> {
        let share = (self.all.saturating_sub(all) / SHARE).max(1);
        match own + count {
            total if total > MAX_OF_USER => Err(Blocked::Peer),
            _ if all + count <= self.common => Ok(()),
            total if total <= share && all + count <= self.all => Ok(()),
            _ => Err(Blocked::Users),
        }
    }

    fn admit_reserved(&self, own: usize, count: usize) -> Result<(), Blocked> {
        if own + count <= self.reserve { Ok(()) } else { Err(Blocked::Peer) }
    }
}

/// The descriptors in flight of all sessions.
pub struct DescriptorsInFlight {
    bounds: Bounds,
    /// Those of all users except root.
    users: Cell<usize>,
    /// The sessions that are open or linger.
    sessions: RefCell<BTreeMap<u64, Weak<Session>>>,
    /// When all channels were last checked, and how many descriptors had been received.
    checked: Cell<Option<(Instant, usize)>>,
    /// Sessions that have ended and keep their place, except the worker's.
    lingering: Cell<usize>,
    lingering_workers: Cell<usize>,
}

impl DescriptorsInFlight {
    /// None yet, in a broker with this limit of open descriptors.
    pub fn new(max_descriptors: u64) -> Self {
        Self {
            bounds: Bounds::of(max_descriptors),
            users: Cell::new(0),
            sessions: RefCell::default(),
            checked: Cell::new(None),
            lingering: Cell::new(0),
            lingering_workers: Cell::new(0),
        }
    }

    /// Counts the descriptors of a session from now on.
    pub fn begin(&self, session: &Rc<Session>) {
        self.sessions.borrow_mut().insert(session.number, Rc::downgrade(session));
    }

    /// How many sessions have ended, and keep their place among the sessions.
    pub fn lingering(&self) -> usize {
        self.lingering.get()
    }

    /// Whether `count` descriptors may be sent to the session's peer now; the kernel is asked only if the counts say no.
    pub fn admit(&self, session: &Session, count: usize) -> Result<(), Blocked> {
        if self.check(session, count).is_ok() {
            return Ok(());
        }
        self.update(session);
        match self.check(session, count) {
            Err(Blocked::Peer | Blocked::Users) if self.update_all() => self.check(session, count),
            result => result,
        }
    }

    fn check(&self, session: &Session, count: usize) -> Result<(), Blocked> {
        let of_session = session.descriptors_in_flight.get();
        if of_session + count > MAX_DESCRIPTORS {
            return Err(Blocked::Unread);
        }
        let of_peer = session.account.descriptors_in_flight.get();
        match session.requester {
            // A successor gets one batch at a time, and root's other sessions must not prevent a takeover.
            _ if session.is_successor() => Ok(()),
            Requester::Worker | Requester::Local { uid: 0, .. } => self.bounds.admit_reserved(of_peer, count),
            Requester::Local { .. } => self.bounds.admit_user(of_peer, self.users.get(), count),
        }
    }

    /// Counts descriptors that were sent.
    pub fn add(&self, session: &Session, count: usize) {
        session.descriptors_in_flight.update(|sum| sum + count);
        session.account.descriptors_in_flight.update(|sum| sum + count);
        if is_user(session) {
            self.users.update(|sum| sum + count);
        }
    }

    /// Asks the kernel whether the session's peer has received everything, and returns how many descriptors it has received
    /// since the last time.
    fn update(&self, session: &Session) -> usize {
        let count = session.descriptors_in_flight.get();
        if count == 0 || sockopt::has_unread_packets(&session.channel).unwrap_or(true) {
            return 0;
        }
        session.descriptors_in_flight.set(0);
        session.account.descriptors_in_flight.update(|sum| sum.saturating_sub(count));
        if is_user(session) {
            self.users.update(|sum| sum.saturating_sub(count));
        }
        count
    }

    /// Updates the counts of all sessions, unless that was done a moment ago in vain. Returns whether it was done.
    fn update_all(&self) -> bool {
        let now = Instant::now();
        if let Some((last, freed)) = self.checked.get()
            && freed < WORTHWHILE
            && now.duration_since(last) < CHECK_INTERVAL
        {
            return false;
        }
        let sessions = self.sessions.borrow();
        let freed = sessions.values().filter_map(Weak::upgrade).map(|session| self.update(&session)).sum();
        self.checked.set(Some((now, freed)));
        true
    }
}

fn is_user(session: &Session) -> bool {
    !session.is_worker() && !session.is_root()
}

impl Broker {
    /// Releases a session that has ended, once its requests have ended and its peer has received all descriptors or closed
    /// its end.
    pub(super) fn release(self: &Rc<Self>, session: Rc<Session>, slot: SessionSlot) {
        let in_flight = &self.in_flight;
        in_flight.update(&session);
        let is_in_use =
            |session: &Session| session.descriptors_in_flight.get() > 0 || session.in_flight.get() > 0;
        let lingering = if session.is_worker() { &in_flight.lingering_workers } else { &in_flight.lingering };
        // Without its channel the broker cannot notice when the descriptors are received, so they count for ever.
        let is_abandoned = session.is_worker() && lingering.get() >= MAX_LINGERING_WORKERS;
        if !is_in_use(&session) || is_abandoned {
            in_flight.sessions.borrow_mut().remove(&session.number);
            return;
        }
        lingering.update(|count| count + 1);
        let broker = self.clone();
        tokio::task::spawn_local(async move {
            let mut pause = FIRST_PAUSE;
            while is_in_use(&session) {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(MAX_PAUSE);
                broker.in_flight.update(&session);
            }
            let in_flight = &broker.in_flight;
            let lingering =
                if session.is_worker() { &in_flight.lingering_workers } else { &in_flight.lingering };
            lingering.update(|count| count.saturating_sub(1));
            in_flight.sessions.borrow_mut().remove(&session.number);
            drop(slot);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many descriptors a user gets that reads nothing: first in replies of `count`, then one by one.
    fn hoard(bounds: &Bounds, all: &mut usize, count: usize) -> usize {
        let mut own = 0;
        for count in [count, 1] {
            while bounds.admit_user(own, *all, count).is_ok() {
                own += count;
                *all += count;
            }
        }
        own
    }

    #[test]
    fn all_bounds_together_are_below_the_limit_of_the_broker() {
        for limit in [1024, 1025, 1536, 2048, 4096, 20_000, 1 << 20, u64::MAX] {
            let Bounds { reserve, common, all } = Bounds::of(limit);
            let sum = u64::try_from(all + 2 * reserve).unwrap();
            assert!(sum < limit && all < 1024, "{limit}: {sum}");
            assert!(common >= MAX_DESCRIPTORS && reserve >= MAX_DESCRIPTORS, "{limit}");
        }
    }

    #[test]
    fn two_users_who_read_nothing_leave_room_for_the_largest_reply_to_a_third() {
        let bounds = Bounds::of(4096);
        for count in [1, 7, 253] {
            let mut all = 0;
            let hoarded = [hoard(&bounds, &mut all, count), hoard(&bounds, &mut all, count)];
            assert!(hoarded.iter().all(|hoarded| *hoarded <= MAX_OF_USER), "{hoarded:?}");
            assert_eq!(bounds.admit_user(0, all, MAX_DESCRIPTORS), Ok(()), "{hoarded:?}");
        }
    }

    #[test]
    fn fifty_users_who_read_nothing_leave_room_for_one_socket() {
        let bounds = Bounds::of(4096);
        for count in [253, 1] {
            let mut all = 0;
            for user in 0..50 {
                hoard(&bounds, &mut all, count);
                assert_eq!(bounds.admit_user(0, all, 1), Ok(()), "after {user} users, {all} descriptors");
            }
            assert!(all < bounds.all);
        }
    }

    #[test]
    fn a_user_at_its_bound_is_told_apart_from_users_at_theirs() {
        let bounds = Bounds::of(4096);
        assert_eq!(bounds.admit_user(MAX_OF_USER, MAX_OF_USER, 1), Err(Blocked::Peer));
        assert_eq!(bounds.admit_user(0, bounds.common, 253), Err(Blocked::Users));
        assert_eq!(bounds.admit_user(0, bounds.all, 1), Err(Blocked::Users));
        assert_eq!(bounds.admit_reserved(bounds.reserve, 1), Err(Blocked::Peer));
        assert_eq!(bounds.admit_reserved(0, 253), Ok(()));
    }
}
