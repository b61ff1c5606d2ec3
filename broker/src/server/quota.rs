//! Accounts: how much of its quotas each peer uses. All sessions of one user share one account, so additional sessions give
//! no additional quota.
//!
//! An account counts and returns how long to wait; its caller waits or refuses. The worker never waits.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use portreeve_protocol::{Fault, FaultCode};

use crate::config::Quotas;
use crate::counter::Counter;
use crate::policy::Requester;

/// Beyond this many accounts, idle ones are evicted.
const MAX_IDLE_ACCOUNTS: usize = 64;
/// How long suppressed log lines are counted before one line reports the count.
const SUPPRESSION_REPORT: Duration = Duration::from_secs(5);
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

    fn is_idle(&self) -> bool {
        self.paid_until.get().is_none_or(|paid| paid <= Instant::now())
    }
}

/// Counts of all accounts together, evicted ones included.
#[derive(Default)]
pub struct Totals {
    /// How often a peer had to wait because of a rate limit.
    pub delayed: Counter,
    /// Log lines that were suppressed.
    pub not_logged: Counter,
}

/// The quotas that all sessions of one peer use together.
pub struct Account {
    quotas: Rc<Cell<Quotas>>,
    totals: Rc<Totals>,
    peer: Requester,
    sessions: Cell<u32>,
    opened: Rate,
    refused: Rate,
    lines: Rate,
    not_logged: Cell<u64>,
    refusals: Cell<u64>,
}

impl Account {
    /// Counts refused requests, and returns how long the peer's next request has to wait.
    pub fn refuse(&self, count: usize) -> Duration {
        self.refusals.set(self.refusals.get() + count as u64);
        let wait = match self.peer {
            Requester::Worker => Duration::ZERO,
            Requester::Local { .. } => {
                self.refused.take(u32::try_from(count).unwrap_or(u32::MAX), self.quotas.get().refusals)
            }
        };
        self.totals.delayed.add(usize::from(!wait.is_zero()));
        wait
    }

    /// Whether a line about this peer's refusals may be logged. Suppressed lines are counted, and one line reports the
    /// count after a while.
    pub fn may_log(self: &Rc<Self>) -> bool {
        if self.lines.try_take(self.quotas.get().lines) {
            return true;
        }
        self.totals.not_logged.up();
        let before = self.not_logged.replace(self.not_logged.get() + 1);
        if before == 0 {
            let account = self.clone();
            tokio::task::spawn_local(async move {
                tokio::time::sleep(SUPPRESSION_REPORT).await;
                let (peer, suppressed) = (&account.peer, account.not_logged.take());
                let limit = account.quotas.get().lines;
                tracing::warn!(target: "audit", %peer, suppressed, limit, "log lines about refusals and ends of sessions suppressed: more than max_log_lines a second");
            });
        }
        false
    }

    /// How many requests of this peer were refused.
    pub fn refusals(&self) -> u64 {
        self.refusals.get()
    }

    /// The peer.
    pub fn peer(&self) -> &Requester {
        &self.peer
    }

    /// How many of its sessions are open.
    pub fn open_sessions(&self) -> u32 {
        self.sessions.get()
    }

    fn is_idle(&self) -> bool {
        [&self.opened, &self.refused, &self.lines].into_iter().all(Rate::is_idle)
    }

    /// The fault for a peer that has too many sessions.
    fn session_quota_fault(&self) -> Fault {
        let message =
            format!("{} has {} open sessions, the limit of one peer", self.peer, self.sessions.get());
        Fault::new(FaultCode::Quota, &message).remedy("close one, or raise max_sessions in the broker scope")
    }

    /// The fault for a peer that holds `held` listeners, if that is its limit.
    pub fn listener_quota_fault(&self, held: usize, capacity: usize) -> Option<Fault> {
        // An eighth of the broker's capacity is reserved for the worker.
        let share = match self.peer {
            Requester::Worker => capacity,
            Requester::Local { .. } => capacity - capacity / 8,
        };
        let limit = usize::try_from(self.quotas.get().listeners).unwrap_or(usize::MAX).min(share);
        let message = || format!("{} holds {held} listeners, the limit of one peer is {limit}", self.peer);
        (held >= limit).then(|| {
            Fault::new(FaultCode::Quota, &message())
                .remedy("stop listeners, or raise max_listeners in the broker scope")
        })
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

/// The accounts of all peers.
pub struct Accounts {
    quotas: Rc<Cell<Quotas>>,
    totals: Rc<Totals>,
    /// By user id; `None` for the worker.
    by_user: RefCell<HashMap<Option<u32>, Rc<Account>>>,
}

impl Accounts {
    /// No accounts yet.
    pub fn new(quotas: Quotas) -> Self {
        Self { quotas: Rc::new(Cell::new(quotas)), totals: Rc::default(), by_user: RefCell::default() }
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
        let by_user = self.by_user.borrow();
        let mut accounts: Vec<_> = by_user.iter().collect();
        accounts.sort_by_key(|(key, _)| **key);
        accounts.into_iter().map(|(_, account)| value(account)).collect()
    }

    /// Takes a slot for one more session of this peer, or returns the fault if the peer has too many.
    pub fn take_session_slot(&self, peer: &Requester) -> Result<SessionSlot, (Rc<Account>, Fault)> {
        let key = match peer {
            Requester::Worker => None,
            Requester::Local { uid, .. } => Some(*uid),
        };
        let mut by_user = self.by_user.borrow_mut();
        if by_user.len() > MAX_IDLE_ACCOUNTS {
            by_user.retain(|_, account| account.sessions.get() > 0 || !account.is_idle());
        }
        let new = || Account {
            quotas: self.quotas.clone(),
            totals: self.totals.clone(),
            peer: peer.clone(),
            sessions: Cell::new(0),
            opened: Rate::default(),
            refused: Rate::default(),
            lines: Rate::default(),
            not_logged: Cell::new(0),
            refusals: Cell::new(0),
        };
        let account = by_user.entry(key).or_insert_with(|| Rc::new(new())).clone();
        if key.is_some() && account.sessions.get() >= self.quotas.get().sessions {
            let fault = account.session_quota_fault();
            return Err((account, fault));
        }
        let wait = match peer {
            Requester::Worker => Duration::ZERO,
            Requester::Local { .. } => account.opened.take(1, self.quotas.get().new_sessions),
        };
        self.totals.delayed.add(usize::from(!wait.is_zero()));
        account.sessions.set(account.sessions.get() + 1);
        Ok(SessionSlot { account, wait })
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
}
