//! Accounts: how much of its quotas each peer uses. All sessions of one user share one account, so additional sessions give
//! no additional quota. All users without a `peer` scope share one account too: policy allows them nothing, and a process
//! can have many such user ids.
//!
//! An account counts and returns how long to wait; its caller waits or refuses. The worker never waits for a rate.
//!
//! Promises: what all peers use has a part for root and the worker alone, and the rest is divided by [`Share`], so that a
//! peer that has nothing finds something free.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use portreeve_protocol::{Fault, FaultCode};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::config::Quotas;
use crate::counter::Counter;
use crate::log::{self, Origin};
use crate::share::Share;

/// Beyond this many accounts, idle ones are evicted.
const MAX_IDLE_ACCOUNTS: usize = 64;
/// How long suppressed log lines are counted before one line reports the count.
const SUPPRESSION_REPORT: Duration = Duration::from_secs(5);
/// The largest number of open sessions of the control socket; fewer if the limit of open files is low.
pub const MAX_SESSIONS: u32 = 256;
/// How many of them only root can use.
const ROOT_SESSIONS: u32 = 16;
/// How peers share the others: the first session of each of nearly a hundred peers finds a slot.
const SESSION_SHARE: Share = Share { guaranteed: 1, set_aside: 96 };
/// How many listeners each peer gets in any case, as long as a quarter of the shared ones suffices for it.
const GUARANTEED_LISTENERS: usize = 16;
/// How long a request that changed the state makes its peer wait for a slow reader of the log.
const LOG_WAIT: Duration = Duration::from_secs(1);
/// As [`LOG_WAIT`], for the worker and root.
const TRUSTED_LOG_WAIT: Duration = Duration::from_millis(20);
/// The longest that a peer waits, however many requests of its sessions were refused: while it waits, the broker does
/// not notice that it closes the channel.
const MAX_WAIT: Duration = Duration::from_secs(5);
const SECOND: Duration = Duration::from_secs(1);

/// A rate limit: a burst of one second's worth, then one unit at a time.
#[derive(Default)]
struct Rate {
    /// When the units taken so far are within the rate again.
    paid_until: Cell<Option<Instant>>,
}

impl Rate {
    fn charge(&self, count: u32, per_second: u32, now: Instant) -> (Instant, Duration) {
        let paid =
            self.paid_until.get().map_or(now, |paid| paid.max(now)) + SECOND * count / per_second.max(1);
        let paid = paid.min(now + SECOND + MAX_WAIT);
        (paid, paid.saturating_duration_since(now + SECOND))
    }

    /// Takes `count` units, and returns how long to wait before the next one.
    fn take(&self, count: u32, per_second: u32) -> Duration {
        let (paid, wait) = self.charge(count, per_second, Instant::now());
        self.paid_until.set(Some(paid));
        wait
    }

    /// Takes one unit if no wait is needed.
    fn try_take(&self, per_second: u32) -> bool {
        let (paid, wait) = self.charge(1, per_second, Instant::now());
        if wait.is_zero() {
            self.paid_until.set(Some(paid));
        }
        wait.is_zero()
    }

    /// How long to wait before the next unit.
    fn wait(&self) -> Duration {
        let wait = |paid: Instant| paid.saturating_duration_since(Instant::now() + SECOND);
        self.paid_until.get().map_or(Duration::ZERO, wait)
    }

    fn is_idle(&self) -> bool {
        self.paid_until.get().is_none_or(|paid| paid <= Instant::now())
    }
}

/// Counts of all accounts together, evicted ones included.
#[derive(Default)]
pub struct Totals {
    /// How often a peer had to wait because of a rate limit, or of descriptors in flight.
    pub delayed: Counter,
    /// Log lines that were suppressed.
    pub not_logged: Counter,
}

/// The quotas that all sessions of one peer use together.
pub struct Account {
    quotas: Rc<Cell<Quotas>>,
    totals: Rc<Totals>,
    peer: Origin,
    sessions: Cell<u32>,
    in_flight: Cell<u32>,
    opened: Rate,
    requests: Rate,
    refused: Rate,
    lines: Rate,
    not_logged: Cell<u64>,
    refusals: Cell<u64>,
    /// One session of the peer is served at a time, in the order in which they became ready.
    turn: Semaphore,
    /// How many sessions wait for their turn.
    waiting: Cell<u32>,
    /// A request has changed the state and written the line about it since the last turn.
    has_recorded: Cell<bool>,
    /// Descriptors that were sent to its sessions and may be unread.
    pub descriptors_in_flight: Cell<usize>,
}

impl Account {
    /// Counts refused requests, and returns how long the peer's next request has to wait.
    pub fn refuse(&self, count: usize) -> Duration {
        self.refusals.set(self.refusals.get() + count as u64);
        let wait = match self.peer {
            Origin::Worker => Duration::ZERO,
            _ => self.refused.take(u32::try_from(count).unwrap_or(u32::MAX), self.quotas.get().refusals),
        };
        self.totals.delayed.add(usize::from(!wait.is_zero()));
        wait
    }

    /// Counts a request. Returns whether the next one has to wait.
    pub fn request(&self) -> bool {
        match self.peer {
            Origin::Worker | Origin::User(0) => self.fills_the_log(),
            _ => !self.requests.take(1, self.quotas.get().requests).is_zero() || self.fills_the_log(),
        }
    }

    fn fills_the_log(&self) -> bool {
        self.has_recorded.get() && log::is_crowded_by(self.peer)
    }

    /// Logs the lines of a request that has changed the state. The next request waits if the log has no room for its own.
    pub fn record<T>(&self, write: impl FnOnce() -> T) -> T {
        self.has_recorded.set(true);
        log::record(self.peer, write)
    }

    /// Waits until a session of this peer may serve requests: not before those of its other sessions that were ready
    /// earlier, nor beyond the rate of requests, nor while the log has no room for lines about further changes.
    pub async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        let waiting = Waiting::begin(&self.waiting);
        let turn = self.turn.acquire().await.ok(); // never closed
        drop(waiting);
        let wait = self.requests.wait();
        if !wait.is_zero() {
            self.count_delay();
            tokio::time::sleep(wait).await;
        }
        if self.has_recorded.take() {
            let limit = if self.peer.is_trusted() { TRUSTED_LOG_WAIT } else { LOG_WAIT };
            log::wait_for_room(self.peer, limit).await;
        }
        turn
    }

    /// Counts that the peer had to wait.
    pub fn count_delay(&self) {
        self.totals.delayed.up();
    }

    /// Whether other sessions of this peer wait for their turn.
    pub fn has_waiting_sessions(&self) -> bool {
        self.waiting.get() > 0
    }

    /// Counts a request that begins, or returns the fault if there are too many in flight.
    pub fn begin_in_flight(&self) -> Result<(), Fault> {
        let limit = self.quotas.get().in_flight;
        if self.in_flight.get() >= limit {
            let message = format!("{limit} requests of {} are in flight", self.peer);
            let remedy = "wait for a reply first, or raise max_in_flight in the broker scope";
            return Err(Fault::new(FaultCode::Busy, &message).remedy(remedy));
        }
        self.in_flight.update(|count| count + 1);
        Ok(())
    }

    /// Counts the end of such a request.
    pub fn end_in_flight(&self) {
        self.in_flight.update(|count| count.saturating_sub(1));
    }

    /// Whether a line about a request that changed nothing, or about the end of a session, may be logged. Suppressed lines
    /// are counted, and one line reports the count after a while.
    fn may_log(self: &Rc<Self>) -> bool {
        if self.lines.try_take(self.quotas.get().lines) {
            return true;
        }
        self.totals.not_logged.up();
        let before = self.not_logged.replace(self.not_logged.get() + 1);
        if before == 0 {
            let account = self.clone();
            tokio::task::spawn_local(async move {
                tokio::time::sleep(SUPPRESSION_REPORT).await;
                let (peer, suppressed) = (log::named(account.peer), account.not_logged.take());
                let limit = account.quotas.get().lines;
                let write = || tracing::warn!(target: "audit", %peer, suppressed, limit, "log lines suppressed: more than max_log_lines a second");
                log::record(account.peer, write);
            });
        }
        false
    }

    /// Logs a line that is no record of a change, if the peer has not caused too many.
    pub fn notice(self: &Rc<Self>, write: impl FnOnce()) {
        if self.may_log() {
            log::about(self.peer, write);
        }
    }

    /// How many requests of this peer were refused.
    pub fn refusals(&self) -> u64 {
        self.refusals.get()
    }

    /// The peer.
    pub fn peer(&self) -> Origin {
        self.peer
    }

    /// How many of its sessions are open.
    pub fn open_sessions(&self) -> u32 {
        self.sessions.get()
    }

    fn is_idle(&self) -> bool {
        self.in_flight.get() == 0
            && self.descriptors_in_flight.get() == 0
            && [&self.opened, &self.requests, &self.refused, &self.lines].into_iter().all(Rate::is_idle)
    }

    /// The fault for a peer that has too many sessions.
    fn session_quota_fault(&self) -> Fault {
        let message =
            format!("{} has {} open sessions, the limit of one peer", self.peer, self.sessions.get());
        Fault::new(FaultCode::Quota, &message).remedy("close one, or raise max_sessions in the broker scope")
    }

    /// The fault for a peer that holds `held` of the broker's `count` listeners, if it may have no further one. An eighth
    /// of the capacity is reserved for root and the worker, and half of that for the worker.
    pub fn listener_quota_fault(&self, held: usize, count: usize, capacity: usize) -> Option<Fault> {
        let limit = usize::try_from(self.quotas.get().listeners).unwrap_or(usize::MAX);
        if held >= limit {
            let message = format!("{} holds {held} listeners, the limit of one peer is {limit}", self.peer);
            return Some(
                Fault::new(FaultCode::Quota, &message)
                    .remedy("stop listeners, or raise max_listeners in the broker scope"),
            );
        }
        let pool = capacity - capacity / 8;
        let share = Share { guaranteed: GUARANTEED_LISTENERS, set_aside: pool / 4 };
        let (free, has_share) = match self.peer {
            Origin::Broker | Origin::Worker => (capacity.saturating_sub(count), true),
            Origin::User(0) => ((capacity - capacity / 16).saturating_sub(count), true),
            Origin::User(_) | Origin::Strangers => {
                let free = pool.saturating_sub(count);
                (free, share.allows(held + 1, 1, free))
            }
        };
        let message = match free {
            0 => format!(
                "{count} of the broker's {capacity} listeners are in use, and the others are reserved"
            ),
            _ if has_share => return None,
            _ => format!(
                "{} holds {held} listeners, its share while {count} of the broker's {capacity} are in use",
                self.peer
            ),
        };
        let remedy = "stop listeners, or start the broker with a higher limit of open files (LimitNOFILE= in the unit)";
        Some(Fault::new(FaultCode::Quota, &message).remedy(remedy))
    }
}

/// Counts a session that waits, until it is dropped.
struct Waiting<'a>(&'a Cell<u32>);

impl<'a> Waiting<'a> {
    fn begin(count: &'a Cell<u32>) -> Self {
        count.update(|count| count + 1);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.update(|count| count.saturating_sub(1));
    }
}

/// The slot of one session in an account, released when it is dropped.
pub struct SessionSlot {
    /// The account.
    pub account: Rc<Account>,
    /// How long the session waits before its first request is served.
    pub wait: Duration,
}

impl Drop for SessionSlot {
    fn drop(&mut self) {
        self.account.sessions.set(self.account.sessions.get().saturating_sub(1));
    }
}

/// Why a peer gets no session.
pub struct NoSlot {
    /// The fault for the peer.
    pub fault: Fault,
    /// The peer has none, but all are in use.
    pub all_in_use: bool,
}

/// The accounts of all peers.
pub struct Accounts {
    /// The largest number of open sessions of the control socket.
    max_sessions: u32,
    quotas: Rc<Cell<Quotas>>,
    totals: Rc<Totals>,
    by_peer: RefCell<BTreeMap<Origin, Rc<Account>>>,
}

impl Accounts {
    /// No accounts yet.
    pub fn new(quotas: Quotas, max_sessions: u32) -> Self {
        let quotas = Rc::new(Cell::new(quotas));
        Self { max_sessions, quotas, totals: Rc::default(), by_peer: RefCell::default() }
    }

    /// The quotas of every peer.
    pub fn quotas(&self) -> Quotas {
        self.quotas.get()
    }

    /// Changes the quotas, for existing accounts too.
    pub fn set_quotas(&self, quotas: Quotas) {
        self.quotas.set(quotas);
    }

    /// The counts of all accounts together.
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// A value for each account, the worker's first.
    pub fn map<T>(&self, value: impl Fn(&Account) -> T) -> Vec<T> {
        self.by_peer.borrow().values().map(|account| value(account)).collect()
    }

    /// Takes a slot for one more session of this peer, or returns why the peer gets none.
    pub fn take_session_slot(&self, peer: Origin) -> Result<SessionSlot, (Rc<Account>, NoSlot)> {
        let mut by_peer = self.by_peer.borrow_mut();
        if by_peer.len() > MAX_IDLE_ACCOUNTS {
            by_peer.retain(|_, account| account.sessions.get() > 0 || !account.is_idle());
        }
        let new = || Account {
            quotas: self.quotas.clone(),
            totals: self.totals.clone(),
            peer,
            sessions: Cell::new(0),
            in_flight: Cell::new(0),
            opened: Rate::default(),
            requests: Rate::default(),
            refused: Rate::default(),
            lines: Rate::default(),
            not_logged: Cell::new(0),
            refusals: Cell::new(0),
            turn: Semaphore::new(1),
            waiting: Cell::new(0),
            has_recorded: Cell::new(false),
            descriptors_in_flight: Cell::new(0),
        };
        let account = by_peer.entry(peer).or_insert_with(|| Rc::new(new())).clone();
        let wait = match peer {
            Origin::Worker => Duration::ZERO,
            _ => {
                if let Some(refused) = self.no_slot(&account, &by_peer) {
                    return Err((account, refused));
                }
                account.opened.take(1, self.quotas.get().new_sessions)
            }
        };
        self.totals.delayed.add(usize::from(!wait.is_zero()));
        account.sessions.set(account.sessions.get() + 1);
        Ok(SessionSlot { account, wait })
    }

    /// Why a peer of the control socket gets no further session, if so. Root's sessions beyond its reserve use the same
    /// slots as those of others.
    fn no_slot(&self, account: &Account, by_peer: &BTreeMap<Origin, Rc<Account>>) -> Option<NoSlot> {
        let held = account.sessions.get();
        if held >= self.quotas.get().sessions {
            return Some(NoSlot { fault: account.session_quota_fault(), all_in_use: false });
        }
        let shared = |account: &Account| match account.peer {
            Origin::Worker => 0,
            Origin::User(0) => account.sessions.get().saturating_sub(ROOT_SESSIONS),
            _ => account.sessions.get(),
        };
        let used: u32 = by_peer.values().map(|account| shared(account)).sum();
        let all = self.max_sessions.saturating_sub(ROOT_SESSIONS);
        let free = all.saturating_sub(used);
        let peer = account.peer;
        let (next, free) = (shared(account) as usize + 1, free as usize);
        if peer == Origin::User(0) && held < ROOT_SESSIONS || SESSION_SHARE.allows(next, 1, free) {
            None
        } else if held == 0 {
            let message = format!("all {used} sessions of the control socket are in use by other peers");
            let fault = Fault::new(FaultCode::Quota, &message)
                .remedy("connect again later; as root, portreeve status shows the programs that hold them");
            Some(NoSlot { fault, all_in_use: true })
        } else {
            let message =
                format!("{peer} has {held} open sessions, its share while {used} of {all} are in use");
            let fault = Fault::new(FaultCode::Quota, &message).remedy("close one, or connect again later");
            Some(NoSlot { fault, all_in_use: false })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_of_one_second_is_immediate_and_the_rest_is_spread() {
        let rate = Rate::default();
        assert!((0..10).all(|_| rate.take(1, 10).is_zero()));
        let waits: Vec<Duration> = (0..5).map(|_| rate.take(1, 10)).collect();
        assert!(waits.windows(2).all(|pair| pair[0] < pair[1]), "{waits:?}");
        assert!(waits[4] > Duration::from_millis(400) && waits[4] <= Duration::from_millis(500), "{waits:?}");
        assert_eq!(rate.take(u32::MAX, 1), MAX_WAIT);
    }

    #[test]
    fn a_refused_unit_is_not_counted() {
        let rate = Rate::default();
        assert_eq!((0..100).filter(|_| rate.try_take(10)).count(), 10);
        assert!(rate.take(1, 10) <= Duration::from_millis(100));
    }

    fn accounts() -> Accounts {
        Accounts::new(Quotas { sessions: 64, new_sessions: 100_000, ..Quotas::default() }, MAX_SESSIONS)
    }

    /// Opens sessions of a peer until it gets no further one.
    fn fill(accounts: &Accounts, peer: Origin) -> Vec<SessionSlot> {
        std::iter::from_fn(|| accounts.take_session_slot(peer).ok()).collect()
    }

    #[test]
    fn every_peer_finds_a_session_free_however_many_peers_take_all_that_they_get() {
        for hostile in [1, 4, 20, 90] {
            let accounts = accounts();
            let held: Vec<_> = (1..=hostile).map(|uid| fill(&accounts, Origin::User(uid))).collect();
            let victim = accounts.take_session_slot(Origin::User(1000));
            assert!(
                victim.is_ok(),
                "{hostile} users hold {:?}",
                held.iter().map(Vec::len).collect::<Vec<_>>()
            );
            assert!(fill(&accounts, Origin::User(0)).len() >= 16, "root has a reserve");
            assert!(accounts.take_session_slot(Origin::Worker).is_ok());
        }
    }

    #[test]
    fn one_peer_alone_gets_less_than_half_of_the_sessions() {
        let quotas = Quotas { sessions: 256, new_sessions: 100_000, ..Quotas::default() };
        let accounts = Accounts::new(quotas, MAX_SESSIONS);
        assert_eq!(fill(&accounts, Origin::User(7)).len(), 72);
    }

    #[test]
    fn with_every_session_in_use_a_peer_without_one_is_told_so_and_root_is_not_concerned() {
        let accounts = accounts();
        let _held: Vec<_> = (1..=240).map(|uid| fill(&accounts, Origin::User(uid))).collect();
        let refused = accounts.take_session_slot(Origin::User(1000));
        assert!(refused.is_err_and(|(_, refused)| refused.all_in_use));
        assert_eq!(fill(&accounts, Origin::User(0)).len(), 16);
    }

    #[test]
    fn listeners_have_a_reserve_for_root_and_a_larger_one_for_the_worker() {
        let accounts = accounts();
        let may_have = |peer, held: usize, count| {
            let Ok(slot) = accounts.take_session_slot(peer) else { panic!("{peer} gets no session") };
            slot.account.listener_quota_fault(held, count, 800).is_none()
        };
        assert!(may_have(Origin::User(7), 261, 261) && !may_have(Origin::User(7), 263, 263));
        assert!(may_have(Origin::User(8), 15, 699) && !may_have(Origin::User(8), 0, 700));
        assert!(may_have(Origin::User(0), 749, 749) && !may_have(Origin::User(0), 0, 750));
        assert!(may_have(Origin::Worker, 799, 799) && !may_have(Origin::Worker, 0, 800));
    }
}
