//! The rules that keep an address from being on two nodes at once. All of them always hold; only the tests of this crate
//! can switch one off, to show that the referee of the simulator notices.

use std::time::Duration;

use super::patience;

/// Which rules hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rules {
    /// Observers wait for D, not for half of the lease.
    pub full_patience: bool,
    /// No claim within D after a join.
    pub quarantine: bool,
    /// No eviction before the engine has answered for a while.
    pub settle: bool,
    /// Leases end at the instant that follows from the sending of the beat, not a lease after the broker handles a request.
    pub absolute_deadlines: bool,
    /// A beat that is not this node's own attempt ends the session.
    pub read_back: bool,
    /// A beat counts from when it was sent, not from when the reply came.
    pub count_from_sending: bool,
    /// A claim compares that the previous owner's session is gone and that its own lives.
    pub compare_sessions: bool,
    /// A claim, grant or eviction compares that the key is unchanged.
    pub compare_unchanged: bool,
    /// An address is granted after the broker has removed it, not before.
    pub remove_first: bool,
    /// After a grant whose outcome is unknown, an address is added only with a new claim.
    pub claim_again: bool,
    /// A node that was told to stop adds no address: one may be granted to it while its request to leave is on its way.
    pub nothing_new_when_stopping: bool,
    /// No beat until the broker has answered since the last one.
    pub broker_answers: bool,
    /// An engine that has gone back ends the session.
    pub notice_regress: bool,
    /// Only the nodes on the roster of a beat evict its node.
    pub roster_only: bool,
    /// Addresses outlive the last beat only while all who may evict the node promise not to do so, not some.
    pub every_promise: bool,
    /// They are those of each beat that can be in the engine, not only of the one that it has confirmed.
    pub every_roster: bool,
    /// A promise counts from when it was asked for, not from when it came.
    pub promise_from_sending: bool,
    /// Whoever has promised waits for D before it evicts.
    pub promise_binds: bool,
    /// No promise while a request to evict the node may still be performed.
    pub promise_unless_evicting: bool,
    /// The same for a request of the process before.
    pub promise_seen: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Rules {
            full_patience: true,
            quarantine: true,
            settle: true,
            absolute_deadlines: true,
            read_back: true,
            count_from_sending: true,
            compare_sessions: true,
            compare_unchanged: true,
            remove_first: true,
            claim_again: true,
            nothing_new_when_stopping: true,
            broker_answers: true,
            notice_regress: true,
            roster_only: true,
            every_promise: true,
            every_roster: true,
            promise_from_sending: true,
            promise_binds: true,
            promise_unless_evicting: true,
            promise_seen: true,
        }
    }
}

impl Rules {
    /// D.
    pub(super) fn eviction(&self, lease: Duration, late: Duration) -> Duration {
        if self.full_patience { patience::eviction(lease, late) } else { lease / 2 }
    }
}
