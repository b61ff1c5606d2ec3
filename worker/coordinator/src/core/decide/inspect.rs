//! What reports and events need to know of a node.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::{Config, Facts, LeaseStep, Node, Purpose};
use crate::core::news::{BeatCounts, News};
use crate::core::patience::Patience;
use crate::core::record::{Entry, Key, Name, NodeRecord, NodeState, Value};
use crate::core::time::BootTime;

/// How far an address is at the broker of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtBroker {
    /// The broker has added it.
    Held,
    /// The broker was asked to add it.
    Adding,
    /// The broker was asked to remove it.
    Removing,
    /// The connection to the broker ended.
    Unknown,
}

/// The instants of a session.
#[derive(Clone, Copy, Debug)]
pub struct SessionTimes {
    /// When this process joined or resumed.
    pub joined: BootTime,
    /// Until when the node claims nothing.
    pub quarantine_until: BootTime,
    /// When the node counts for placement, unless it is sick.
    pub ready_at: BootTime,
}

impl Node {
    /// Collects news from now on; see [`Node::take_news`].
    pub fn collect_news(&mut self) {
        self.news.get_or_insert_default();
    }

    /// What has happened since the last call.
    pub fn take_news(&mut self) -> Vec<News> {
        self.news.as_mut().map(|collector| collector.take()).unwrap_or_default()
    }

    /// The beats, counted since [`Node::collect_news`].
    pub fn beat_counts(&self) -> BeatCounts {
        self.news.as_ref().map(|collector| collector.counts()).unwrap_or_default()
    }

    pub(super) fn add_news(&mut self, news: impl FnOnce() -> News) {
        if let Some(collector) = &mut self.news {
            collector.add(news());
        }
    }

    /// Collects what the change of an entry means, unless it is the first that is known of the group.
    pub(super) fn add_change(&mut self, old: Option<&Entry>, entry: &Entry) {
        if self.news.is_none() || !self.is_loaded {
            return;
        }
        let Some(mut news) = News::of_change(old, entry) else { return };
        let target = news.address.and_then(|address| self.placement.target(address));
        if let (Some((why, belongs)), true) = (target, news.epoch.is_some())
            && belongs.is_some()
            && belongs == news.node.as_ref()
        {
            news.detail = format!("{}; {why}", news.detail);
        }
        self.add_news(|| news);
    }

    pub(super) fn add_reply(&mut self, purpose: &Purpose, has_replied: bool) {
        let sent = self.attempts.last().filter(|_| *purpose == Purpose::Beat);
        let latency = sent.map(|attempt| self.now.since(attempt.sent));
        if let Some(collector) = &mut self.news {
            collector.engine(has_replied, latency);
        }
    }

    /// What the node is configured to do.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What the host reports.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The digest of what the node declares.
    pub fn digest(&self) -> &Name {
        &self.digest
    }

    /// The instants of the session.
    pub fn session_times(&self) -> Option<SessionTimes> {
        self.membership.as_ref().map(|membership| SessionTimes {
            joined: membership.joined,
            quarantine_until: membership.quarantine_until,
            ready_at: membership.ready_at,
        })
    }

    /// Whether everything was read once.
    pub fn is_loaded(&self) -> bool {
        self.is_loaded
    }

    /// Whether the broker is connected, and whether it has not answered for so long that its addresses have ended.
    pub fn broker(&self) -> (bool, bool) {
        (self.broker_is_up, self.broker_hangs)
    }

    /// How far an address is at the broker.
    pub fn at_broker(&self, address: IpAddr) -> Option<AtBroker> {
        Some(match self.leases.get(&address)?.step {
            LeaseStep::Adding(_) => AtBroker::Adding,
            LeaseStep::Held => AtBroker::Held,
            LeaseStep::Removing(_) => AtBroker::Removing,
            LeaseStep::Unknown => AtBroker::Unknown,
        })
    }

    /// When an address that the broker refused is tried again, and why it was refused.
    pub fn refused(&self, address: IpAddr) -> Option<(BootTime, &str)> {
        self.refused.get(&address).map(|(until, _, why)| (*until, why.as_str()))
    }

    /// Whether the node is handing the address over.
    pub fn is_moving(&self, address: IpAddr) -> bool {
        self.moves.contains_key(&address)
    }

    /// When the next voluntary moves are due.
    pub fn balance_at(&self) -> BootTime {
        self.balance_at
    }

    /// When a pin ends by the count of this node.
    pub fn pin_ends(&self, address: IpAddr, lasts: Duration) -> Option<BootTime> {
        self.pins.get(&address).map(|(_, since)| since.after(lasts))
    }

    /// What the node saw of the beats and of the engine.
    pub fn patience(&self) -> &Patience {
        &self.patience
    }

    /// When the node evicts another one that it monitors, if that shows no life until then.
    pub fn evicts_at(&self, name: &Name) -> Option<BootTime> {
        let entry = self.state.get(&Key::Beat(Arc::clone(name)))?;
        let Some(Value::Beat(beat)) = &entry.value else { return None };
        if !self.may_evict(beat) || !self.monitored.contains(name) {
            return None;
        }
        self.evict_at(name, entry, beat)
    }

    /// The record of a node whose session ends.
    pub fn record_when_gone(&self, name: &Name) -> NodeRecord {
        self.gone(name)
    }

    /// Whether a node that is not gone is in the given state.
    pub fn is_in_state(&self, name: &Name, state: NodeState) -> bool {
        self.state.node(name).is_some_and(|record| record.state == state)
    }
}
