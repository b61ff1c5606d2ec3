//! What happens in the cluster, as events for operators and their programs.
//!
//! A [`Node`](super::decide::Node) that was asked to collects [`News`] while it learns entries. The program stamps them with
//! [`Journal::record`], which remembers the last [`REMEMBERED`] of them.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::record::{Claim, Entry, Key, Name, NodeRecord, NodeState, Order, Phase, Value, Want};
use super::time::BootTime;

/// How many events a journal remembers.
pub const REMEMBERED: usize = 256;
/// Of how many beats the latencies are kept.
const LATENCIES: usize = 200;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A node took an address that nobody held, or whose owner's session had ended.
    AddressTaken,
    /// The owner of an address handed it over to the node.
    AddressGranted,
    /// The owner of an address gave it up.
    AddressReleased,
    /// A node joined the cluster.
    NodeJoined,
    /// A node is ready to hold addresses.
    NodeReady,
    /// A node must not hold addresses; the detail is why.
    NodeSick,
    /// A node hands its addresses over to leave the cluster.
    NodeLeaving,
    /// A node left the cluster.
    NodeLeft,
    /// A node was evicted.
    NodeEvicted,
    /// This node joined the cluster.
    SessionBegan,
    /// This process continues the session of the one before it.
    SessionResumed,
    /// The session of this node ended, or may have.
    SessionLost,
    /// The engine does not reply, and this node keeps its addresses because all who could take them promise not to do so.
    Holding,
    /// The lease of this node ends because no beat was confirmed in time: it removed its addresses.
    Withdrawn,
    /// The engine does not reply.
    EngineLost,
    /// The engine replies again.
    EngineBack,
    /// The engine has lost data.
    EngineReset,
    /// An operator drains a node.
    Drained,
    /// A node is not drained any more.
    Undrained,
    /// An operator stopped voluntary moves.
    Frozen,
    /// Voluntary moves are allowed again.
    Thawed,
    /// An operator pinned an address to the node.
    Pinned,
    /// A pin ended or was removed.
    Unpinned,
    /// The broker of this node refused to add an address; the detail is why.
    AddRefused,
    /// Another host uses an address; the detail is its hardware address.
    Conflict,
    /// Events that a follower lost because it read too slowly; the detail is how many.
    Gap,
}

impl Kind {
    /// The name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Kind::AddressTaken => "address-taken",
            Kind::AddressGranted => "address-granted",
            Kind::AddressReleased => "address-released",
            Kind::NodeJoined => "node-joined",
            Kind::NodeReady => "node-ready",
            Kind::NodeSick => "node-sick",
            Kind::NodeLeaving => "node-leaving",
            Kind::NodeLeft => "node-left",
            Kind::NodeEvicted => "node-evicted",
            Kind::SessionBegan => "session-began",
            Kind::SessionResumed => "session-resumed",
            Kind::SessionLost => "session-lost",
            Kind::Holding => "holding",
            Kind::Withdrawn => "withdrawn",
            Kind::EngineLost => "engine-lost",
            Kind::EngineBack => "engine-back",
            Kind::EngineReset => "engine-reset",
            Kind::Drained => "drained",
            Kind::Undrained => "undrained",
            Kind::Frozen => "frozen",
            Kind::Thawed => "thawed",
            Kind::Pinned => "pinned",
            Kind::Unpinned => "unpinned",
            Kind::AddRefused => "add-refused",
            Kind::Conflict => "conflict",
            Kind::Gap => "gap",
        }
    }
}

/// An event without its time.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct News {
    /// What happened.
    #[serde(rename = "event")]
    pub kind: Kind,
    /// The address that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The node that it is about, or the new owner of the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Name>,
    /// The previous owner of the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Name>,
    /// The epoch of the claim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// More about it, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

impl News {
    /// An event about nothing but the cluster.
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        News { kind, address: None, node: None, from: None, epoch: None, detail: detail.into() }
    }

    /// An event about a node.
    pub fn of_node(kind: Kind, node: &Name, detail: impl Into<String>) -> Self {
        News { node: Some(node.clone()), ..News::new(kind, detail) }
    }

    /// An event about an address.
    pub fn of_address(kind: Kind, address: IpAddr, detail: impl Into<String>) -> Self {
        News { address: Some(address), ..News::new(kind, detail) }
    }

    /// What the change of an entry means; `old`: what was known of it and existed.
    pub fn of_change(old: Option<&Entry>, new: &Entry) -> Option<News> {
        let old = old.and_then(|entry| entry.value.as_ref());
        match &new.key {
            Key::Claim(address) => {
                let Some(Value::Claim(claim)) = &new.value else { return None };
                let before = match old {
                    Some(Value::Claim(claim)) => Some(claim),
                    _ => None,
                };
                of_claim(*address, before, claim)
            }
            Key::Node(name) => {
                let Some(Value::Node(record)) = &new.value else { return None };
                let before = match old {
                    Some(Value::Node(record)) => Some(record),
                    _ => None,
                };
                of_node_record(name, before, record)
            }
            Key::Want(address) => match (old, &new.value) {
                (_, Some(Value::Want(want))) => {
                    let news = News::of_address(Kind::Pinned, *address, pin_text(want));
                    Some(News { node: Some(want.node.clone()), ..news })
                }
                (Some(Value::Want(want)), None) => {
                    let news = News::of_address(Kind::Unpinned, *address, "");
                    Some(News { node: Some(want.node.clone()), ..news })
                }
                _ => None,
            },
            Key::Drain(name) => match (&new.value, old) {
                (Some(value), _) => Some(News::of_node(Kind::Drained, name, order_text(value))),
                (None, Some(_)) => Some(News::of_node(Kind::Undrained, name, "")),
                (None, None) => None,
            },
            Key::Freeze => match (&new.value, old) {
                (Some(value), _) => Some(News::new(Kind::Frozen, order_text(value))),
                (None, Some(_)) => Some(News::new(Kind::Thawed, "")),
                (None, None) => None,
            },
            Key::Beat(_) | Key::Have(..) | Key::Foreign(_) => None,
        }
    }
}

fn of_claim(address: IpAddr, old: Option<&Claim>, new: &Claim) -> Option<News> {
    let before = old.filter(|old| old.phase != Phase::Free);
    if before
        .is_some_and(|old| old.node == new.node && old.session == new.session && new.phase != Phase::Free)
    {
        return None;
    }
    let (kind, node, detail) = match (new.phase, before) {
        (Phase::Free, None) => return None,
        (Phase::Free, Some(_)) => (Kind::AddressReleased, None, String::new()),
        (Phase::Granted, _) => (Kind::AddressGranted, Some(new.node.clone()), "handed over".to_owned()),
        (Phase::Held, None) => (Kind::AddressTaken, Some(new.node.clone()), "nobody had it".to_owned()),
        (Phase::Held, Some(old)) => {
            let detail = format!("the session of {} had ended", old.node);
            (Kind::AddressTaken, Some(new.node.clone()), detail)
        }
    };
    let from = before.map(|old| old.node.clone());
    Some(News { kind, address: Some(address), node, from, epoch: Some(new.epoch), detail })
}

fn of_node_record(name: &Name, old: Option<&NodeRecord>, new: &NodeRecord) -> Option<News> {
    let before = old.filter(|old| old.state != NodeState::Gone);
    let same_session = before.filter(|old| old.nonce == new.nonce);
    let kind = match (new.state, same_session) {
        (NodeState::Gone, _) => match before?.state {
            NodeState::Leaving => Kind::NodeLeft,
            _ => Kind::NodeEvicted,
        },
        (state, Some(old)) if state == old.state && new.why == old.why => return None,
        (NodeState::Joining | NodeState::Founding, _) => Kind::NodeJoined,
        (NodeState::Ready, _) => Kind::NodeReady,
        (NodeState::Sick, _) => Kind::NodeSick,
        (NodeState::Leaving, _) => Kind::NodeLeaving,
    };
    Some(News::of_node(kind, name, new.why.clone()))
}

fn order_text(value: &Value) -> String {
    match value {
        Value::Order(Order { by, why, .. }) => by_and_why(by, why),
        _ => String::new(),
    }
}

fn pin_text(want: &Want) -> String {
    let mut text = by_and_why(&want.by, "");
    if !want.until.is_empty() {
        text = format!("{text}{}until {}", if text.is_empty() { "" } else { " " }, want.until);
    }
    text
}

fn by_and_why(by: &str, why: &str) -> String {
    match (by, why) {
        ("", why) => why.to_owned(),
        (by, "") => format!("by {by}"),
        (by, why) => format!("by {by}: {why}"),
    }
}

/// What a node has collected since it was last asked, and counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Collector {
    news: Vec<News>,
    engine_is_lost: bool,
    counts: BeatCounts,
    /// How long the last beats took.
    latencies: VecDeque<Duration>,
}

/// The beats of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BeatCounts {
    /// Beats sent, with those that join or resume.
    pub sent: u64,
    /// Those to which the engine did not reply in time.
    pub failed: u64,
    /// The time in microseconds that 99 of 100 of the last ones took to be confirmed.
    pub p99_us: Option<u64>,
}

impl Collector {
    pub(super) fn add(&mut self, news: News) {
        self.news.push(news);
    }

    pub(super) fn take(&mut self) -> Vec<News> {
        std::mem::take(&mut self.news)
    }

    /// The engine replied, or not; `beat`: how long ago the beat was sent that it replied to.
    pub(super) fn engine(&mut self, has_replied: bool, beat: Option<Duration>) {
        if let Some(latency) = beat {
            self.counts.sent += 1;
            self.counts.failed += u64::from(!has_replied);
            if has_replied {
                if self.latencies.len() == LATENCIES {
                    self.latencies.pop_front();
                }
                self.latencies.push_back(latency);
            }
        }
        if self.engine_is_lost == has_replied {
            self.engine_is_lost = !has_replied;
            let kind = if has_replied { Kind::EngineBack } else { Kind::EngineLost };
            self.add(News::new(kind, ""));
        }
    }

    pub(super) fn counts(&self) -> BeatCounts {
        let mut sorted: Vec<Duration> = self.latencies.iter().copied().collect();
        sorted.sort_unstable();
        let p99 = sorted.get((sorted.len() * 99).div_ceil(100).saturating_sub(1));
        let p99_us = p99.map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
        BeatCounts { p99_us, ..self.counts }
    }
}

/// An event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Counts the events of this process from 1 on.
    pub number: u64,
    /// When this process saw it, in milliseconds since 1970 by the host's clock.
    pub time_ms: u64,
    /// What happened.
    #[serde(flatten)]
    pub news: News,
}

/// The events of this process, and since when addresses and nodes are as they are.
#[derive(Clone, Debug, Default)]
pub struct Journal {
    number: u64,
    events: VecDeque<Event>,
    owned: BTreeMap<IpAddr, BootTime>,
    joined: BTreeMap<Name, BootTime>,
    counts: Counts,
}

/// How often something happened since the process started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Addresses that a node took after the session of their owner.
    pub taken: u64,
    /// Addresses that were handed over.
    pub granted: u64,
    /// Addresses that were given up.
    pub released: u64,
    /// Nodes that were evicted.
    pub evictions: u64,
    /// Sessions of this node that were lost.
    pub sessions_lost: u64,
    /// Adds that the broker of this node refused.
    pub refused: u64,
}

impl Journal {
    /// Records what has just happened. Returns the events, for whoever follows them.
    pub fn record(&mut self, now: BootTime, unix_ms: u64, news: Vec<News>) -> Vec<Event> {
        let mut recorded = Vec::with_capacity(news.len());
        for news in news {
            self.note(now, &news);
            self.number += 1;
            let event = Event { number: self.number, time_ms: unix_ms, news };
            if self.events.len() == REMEMBERED {
                self.events.pop_front();
            }
            self.events.push_back(event.clone());
            recorded.push(event);
        }
        recorded
    }

    fn note(&mut self, now: BootTime, news: &News) {
        let counts = &mut self.counts;
        match news.kind {
            Kind::AddressTaken => counts.taken += 1,
            Kind::AddressGranted => counts.granted += 1,
            Kind::AddressReleased => counts.released += 1,
            Kind::NodeEvicted => counts.evictions += 1,
            Kind::SessionLost => counts.sessions_lost += 1,
            Kind::AddRefused => counts.refused += 1,
            _ => {}
        }
        match (news.kind, news.address, &news.node) {
            (Kind::AddressTaken | Kind::AddressGranted | Kind::AddressReleased, Some(address), _) => {
                self.owned.insert(address, now);
            }
            (Kind::NodeJoined, _, Some(node)) => {
                self.joined.insert(node.clone(), now);
            }
            (Kind::NodeEvicted | Kind::NodeLeft, _, Some(node)) => {
                self.joined.remove(node);
            }
            // What changed while the engine's data was replaced is not known.
            (Kind::EngineReset, ..) => {
                self.owned.clear();
                self.joined.clear();
            }
            _ => {}
        }
    }

    /// The remembered events, the oldest first.
    pub fn events(&self) -> impl Iterator<Item = &Event> {
        self.events.iter()
    }

    /// When this process saw the address change its owner, if it did.
    pub fn owned_since(&self, address: IpAddr) -> Option<BootTime> {
        self.owned.get(&address).copied()
    }

    /// When this process saw the node join, if it did.
    pub fn joined_at(&self, node: &Name) -> Option<BootTime> {
        self.joined.get(node).copied()
    }

    /// How often things happened.
    pub fn counts(&self) -> Counts {
        self.counts
    }
}
