//! What each peer has used up of its quotas. All sessions of one user share one account, so more sessions give no more.
//!
//! An account counts and says how long to wait; who asks does the waiting and the refusing. The worker never waits.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use portreeve_protocol::{Fault, FaultCode};

use crate::config::Quotas;
use crate::counter::Counter;
use crate::policy::Requester;

/// As many accounts are kept as users can hardly be; beyond that those that owe nothing are forgotten.
const KEPT: usize = 64;
/// How long what is not logged is counted before a line tells the count.
const COUNTING: Duration = Duration::from_secs(5);
/// The longest that a peer waits, however much all of its sessions together were refused: nobody sees it hang up
/// meanwhile.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
const SECOND: Duration = Duration::from_secs(1);

/// So many in a second: a second's worth at once, then one after the other.
#[derive(Default)]
struct Rate {
    /// When everything taken until now is paid for.
    paid: Cell<Option<Instant>>,
}

impl Rate {
    fn after(&self, count: u32, per_second: u32, now: Instant) -> (Instant, Duration) {
        let paid = self.paid.get().map_or(now, |paid| paid.max(now)) + SECOND * count / per_second.max(1);
        let paid = paid.min(now + SECOND + LONGEST_WAIT);
        (paid, paid.saturating_duration_since(now + SECOND))
    }

    /// Takes some, and says how long to wait before the next.
    fn take(&self, count: u32, per_second: u32) -> Duration {
        let (paid, wait) = self.after(count, per_second, Instant::now());
        self.paid.set(Some(paid));
        wait
    }

    /// Takes one where there is one to be had now.
    fn try_take(&self, per_second: u32) -> bool {
        let (paid, wait) = self.after(1, per_second, Instant::now());
        if wait.is_zero() {
            self.paid.set(Some(paid));
        }
        wait.is_zero()
    }

    fn owes_nothing(&self) -> bool {
        self.paid.get().is_none_or(|paid| paid <= Instant::now())
    }
}

/// What was counted of all accounts together, also of those that are forgotten.
#[derive(Default)]
pub struct Totals {
    /// How often a peer had to wait.
    pub delayed: Counter,
    /// Lines that were not logged.
    pub not_logged: Counter,
}

/// What the sessions of one peer have used together.
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
    /// Notes refused requests, and says how long the peer is to wait before its next one is taken.
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

    /// Whether there may be a line in the log about this peer's refusals. What may not is counted, and the count told
    /// in one line a little later.
    pub fn may_log(self: &Rc<Self>) -> bool {
        if self.lines.try_take(self.quotas.get().lines) {
            return true;
        }
        self.totals.not_logged.up();
        let before = self.not_logged.replace(self.not_logged.get() + 1);
        if before == 0 {
            let account = self.clone();
            tokio::task::spawn_local(async move {
                tokio::time::sleep(COUNTING).await;
                let (peer, suppressed) = (&account.peer, account.not_logged.take());
                let most = account.quotas.get().lines;
                tracing::warn!(target: "audit", %peer, suppressed, most, "refusals and ends of sessions not logged");
            });
        }
        false
    }

    /// How many requests were refused.
    pub fn refusals(&self) -> u64 {
        self.refusals.get()
    }

    /// Whose it is.
    pub fn peer(&self) -> &Requester {
        &self.peer
    }

    /// How many of its sessions are open.
    pub fn open_sessions(&self) -> u32 {
        self.sessions.get()
    }

    fn owes_nothing(&self) -> bool {
        [&self.opened, &self.refused, &self.lines].into_iter().all(Rate::owes_nothing)
    }

    /// What a peer may have open is open.
    fn full(&self) -> Fault {
        let message =
            format!("{} has {} sessions open, as many as a peer may", self.peer, self.sessions.get());
        Fault::new(FaultCode::Quota, &message).remedy("close one, or raise max_sessions in the broker scope")
    }

    /// Why a peer that holds so many listeners may not have another, if it may not.
    pub fn listeners_used_up(&self, held: usize, capacity: usize) -> Option<Fault> {
        // Where the broker itself can hold few, no peer of the control socket takes the last of them.
        let part = match self.peer {
            Requester::Worker => capacity,
            Requester::Local { .. } => capacity - capacity / 8,
        };
        let most = usize::try_from(self.quotas.get().listeners).unwrap_or(usize::MAX).min(part);
        let message = || format!("{} holds {held} listeners, and a peer may hold {most}", self.peer);
        (held >= most).then(|| {
            Fault::new(FaultCode::Quota, &message())
                .remedy("stop listeners, or raise max_listeners in the broker scope")
        })
    }
}

/// One session's place in an account, given back when it ends.
pub struct Seat {
    /// The account.
    pub account: Rc<Account>,
    /// How long the session waits before it is served.
    pub wait: Duration,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.account.sessions.set(self.account.sessions.get().saturating_sub(1));
    }
}

/// The accounts of all peers.
pub struct Accounts {
    quotas: Rc<Cell<Quotas>>,
    totals: Rc<Totals>,
    /// By user id; the worker's has none.
    of: RefCell<HashMap<Option<u32>, Rc<Account>>>,
}

impl Accounts {
    /// None yet.
    pub fn new(quotas: Quotas) -> Self {
        Self { quotas: Rc::new(Cell::new(quotas)), totals: Rc::default(), of: RefCell::default() }
    }

    /// What every peer may use.
    pub fn quotas(&self) -> Quotas {
        self.quotas.get()
    }

    /// Changes it, for those that are here too.
    pub fn set_quotas(&self, quotas: Quotas) {
        self.quotas.set(quotas);
    }

    /// What was counted of all of them.
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Tells of each account, the worker's first.
    pub fn each<T>(&self, tell: impl Fn(&Account) -> T) -> Vec<T> {
        let of = self.of.borrow();
        let mut accounts: Vec<_> = of.iter().collect();
        accounts.sort_by_key(|(key, _)| **key);
        accounts.into_iter().map(|(_, account)| tell(account)).collect()
    }

    /// A place for one more session of this peer, or why it gets none.
    pub fn seat(&self, peer: &Requester) -> Result<Seat, (Rc<Account>, Fault)> {
        let key = match peer {
            Requester::Worker => None,
            Requester::Local { uid, .. } => Some(*uid),
        };
        let mut of = self.of.borrow_mut();
        if of.len() > KEPT {
            of.retain(|_, account| account.sessions.get() > 0 || !account.owes_nothing());
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
        let account = of.entry(key).or_insert_with(|| Rc::new(new())).clone();
        if key.is_some() && account.sessions.get() >= self.quotas.get().sessions {
            let fault = account.full();
            return Err((account, fault));
        }
        let wait = match peer {
            Requester::Worker => Duration::ZERO,
            Requester::Local { .. } => account.opened.take(1, self.quotas.get().new_sessions),
        };
        self.totals.delayed.add(usize::from(!wait.is_zero()));
        account.sessions.set(account.sessions.get() + 1);
        Ok(Seat { account, wait })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seconds_worth_comes_at_once_and_the_rest_one_after_the_other() {
        let rate = Rate::default();
        assert!((0..10).all(|_| rate.take(1, 10).is_zero()));
        let waits: Vec<Duration> = (0..5).map(|_| rate.take(1, 10)).collect();
        assert!(waits.windows(2).all(|pair| pair[0] < pair[1]), "{waits:?}");
        assert!(waits[4] > Duration::from_millis(400) && waits[4] <= Duration::from_millis(500), "{waits:?}");
        assert_eq!(rate.take(u32::MAX, 1), LONGEST_WAIT);
    }

    #[test]
    fn what_is_not_to_be_had_is_not_taken() {
        let rate = Rate::default();
        assert_eq!((0..100).filter(|_| rate.try_take(10)).count(), 10);
        assert!(rate.take(1, 10) <= Duration::from_millis(100));
    }
}
