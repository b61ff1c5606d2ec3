//! The beat: it keeps the session, and each one gives the addresses a new end.

use std::sync::Arc;
use std::time::Duration;

use super::{Attempt, BrokerCall, Node, Purpose, SHORTEST_LEASE, Stage};
use crate::core::news::{Kind, News};
use crate::core::record::{Beat, Key, Value};
use crate::core::txn::{self, Reply};

impl Node {
    pub(super) fn new_beat(&mut self) -> Arc<str> {
        self.sequence += 1;
        let roster = self.new_roster();
        let milliseconds = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let beat = Beat {
            nonce: self.nonce,
            boot: self.config.boot.clone(),
            process: self.config.nonce,
            sequence: self.sequence,
            lease_ms: milliseconds(self.config.lease),
            late_ms: milliseconds(self.config.late),
            roster: roster.to_vec(),
        };
        let text = Value::Beat(beat).encode();
        self.attempts.push(Attempt { text: Arc::clone(&text), sent: self.now, roster });
        // How long it is until the next attempt if this one fails is the engine's matter.
        self.beat_at = self.now.after(self.config.heartbeat);
        text
    }

    pub(super) fn beat(&mut self) {
        let Some(known) = self.membership.as_ref().map(|membership| Arc::clone(&membership.text)) else {
            return;
        };
        let at = self.beat_at;
        if self.is_sent(&Purpose::Beat) || self.is_sent(&Purpose::Leave) || !self.is_due(at) {
            return;
        }
        if self.rules.broker_answers && !self.broker_answered {
            self.ping();
            return;
        }
        self.broker_answered = false;
        let text = self.new_beat();
        let txn = txn::beat(&self.config.name, Some(known), &text, None, &self.monitored);
        self.send(Purpose::Beat, txn);
    }

    /// The reply to JOIN, RESUME or BEAT.
    pub(super) fn beat_replied(&mut self, reply: Option<&Reply>) {
        let Some(reply) = reply else {
            self.beat_at = self.now;
            return;
        };
        let key = Key::Beat(Arc::clone(&self.config.name));
        let attempt = match reply.succeeded {
            true => self.attempts.last().cloned(),
            false => {
                let entry = reply.entries.iter().find(|entry| entry.key == key);
                let text = entry.map(|entry| &entry.text);
                let own = self.attempts.iter().find(|attempt| Some(&attempt.text) == text).cloned();
                own.or_else(|| self.attempts.last().filter(|_| !self.rules.read_back).cloned())
            }
        };
        // An attempt whose outcome was unknown compares with a value that is not there any more.
        self.attempts.clear();
        let Some(Attempt { text, sent, roster }) = attempt else {
            self.session_is_over();
            return;
        };
        let sent = if self.rules.count_from_sending { sent } else { self.now };
        match &mut self.membership {
            Some(membership) => {
                (membership.text, membership.sent, membership.roster) = (text, sent, roster);
            }
            None => self.joined(text, sent, roster),
        }
        self.promises.has_beaten();
        if let Some(until) = self.end().filter(|end| *end > self.now.after(SHORTEST_LEASE)) {
            self.until = self.until.max(until);
            self.call(BrokerCall::RenewAll { until });
        }
    }

    /// The engine says that the session has ended. If that is because it lost data, all that is known of it is wrong.
    pub(super) fn session_is_over(&mut self) {
        if self.membership.is_some() {
            self.start_over();
        }
        self.read_at = self.now;
    }

    /// The session has ended, or may have: no address may stay.
    pub(super) fn lose_session(&mut self) {
        if self.membership.take().is_some() {
            let name = Arc::clone(&self.config.name);
            self.add_news(|| News::of_node(Kind::SessionLost, &name, ""));
            self.may_resume = false;
            self.stage = Stage::Outside;
            self.promises.lose_session();
            self.owned.clear();
            self.granted.clear();
            self.moves.clear();
        }
    }
}
