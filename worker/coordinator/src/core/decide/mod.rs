//! One node: from what happens to what it does, without clock, input and output.
//!
//! Promises: the node asks its broker for an address only while its claim names this node's session, and never past the
//! end E that follows from its last beat: when that was sent, plus the lease. It hands an address over only after the
//! broker has removed it. What is unknown (a lost reply, a broker that hangs) counts as the worse of what it can be.

mod beat;
mod claims;
mod eviction;
mod exchange;
mod handover;
mod inspect;
mod leases;
mod membership;
mod promises;
mod watch;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::news::Collector;
use super::patience::{Patience, Ring};
use super::placement::{self, Placement};
use super::promise::{PromiseReply, PromiseRequest};
use super::record::{Block, Entry, Name, NodeState, Piece, Session, Value};
use super::rules::Rules;
use super::state::State;
use super::time::BootTime;
use super::txn::{self, NoReply, Operation, Reply, Txn};
pub use inspect::{AtBroker, SessionTimes};
pub use promises::Promiser;
use promises::Promises;

/// The broker refuses a lease that ends within a second; a request takes time too.
const SHORTEST_LEASE: Duration = Duration::from_millis(1_200);
/// How often everything is read again, because a watch can lose events.
pub(crate) const READ_INTERVAL: Duration = Duration::from_secs(30);
/// How many claims one transaction writes; each can need two comparisons.
const CLAIMS: usize = (txn::MAX_OPERATIONS - 1) / 2;

/// What a node is configured to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    /// Its name.
    pub name: Name,
    /// Tells the boots of all hosts apart, and the network namespaces of one.
    pub boot: String,
    /// A random number; the sessions of this process have it and those after it.
    pub nonce: u64,
    /// The coordinator's version.
    pub version: String,
    /// L.
    pub lease: Duration,
    /// h.
    pub heartbeat: Duration,
    /// How late the kernel of this host may end an address.
    pub late: Duration,
    /// How long the node must be up before it counts for placement.
    pub mature: Duration,
    /// The time between two voluntary moves of a set of addresses.
    pub balance_interval: Duration,
    /// How many addresses such a set has.
    pub balance_set: usize,
    /// Whether addresses move voluntarily.
    pub is_auto: bool,
    /// Whether the node keeps its addresses without the engine while all who may evict it promise not to do so.
    pub hold: bool,
    /// Where the node accepts requests for promises; empty: nowhere.
    pub peer: String,
    /// The addresses that lead, each with its preferred node.
    pub declared: Piece,
}

/// What the host reports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Facts {
    /// A reason for which the node must not hold any address.
    pub sick: Option<String>,
    /// The blocks whose interface is down.
    pub down: Vec<Block>,
}

/// Why the broker did not add an address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// It knows a higher epoch.
    OldEpoch,
    /// The lease would have ended at once: the request came too late.
    TooLate,
    /// Anything else.
    Other(String),
}

/// A request to the broker of this host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum BrokerCall {
    /// Adds addresses, each with its epoch, until an instant.
    Add {
        /// The addresses and their epochs.
        leases: Vec<(IpAddr, u64)>,
        /// When they end.
        until: BootTime,
        /// How often to ask first whether another host has them.
        probes: u8,
    },
    /// Extends all addresses of this coordinator.
    RenewAll {
        /// When they end.
        until: BootTime,
    },
    /// Removes addresses and resets their connections.
    Remove {
        /// The addresses and their epochs.
        leases: Vec<(IpAddr, u64)>,
    },
    /// Returns the addresses of this coordinator.
    List,
}

/// The reply to a [`BrokerCall`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum BrokerReply {
    /// For each address, whether the broker has added it with this epoch.
    Added(Vec<(IpAddr, u64, Result<(), Refusal>)>),
    /// How many addresses were renewed.
    Renewed(usize),
    /// For each address, whether the broker has verified that the host does not have it any more.
    Removed(Vec<(IpAddr, bool)>),
    /// The addresses and their epochs.
    Listed(Vec<(IpAddr, u64)>),
}

/// What happens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// The time of [`Node::wake`] has come.
    Time,
    /// The engine replied to a read or a transaction, or did not.
    Engine(u64, Result<Reply, NoReply>),
    /// The watch with that number saw changes. It may lose, repeat and reorder them.
    Watch(u64, Arc<[Arc<Entry>]>),
    /// The watch has lost events for certain.
    WatchLost,
    /// The broker is connected.
    BrokerUp,
    /// The connection to the broker ended. Replies to earlier calls do not come any more.
    BrokerDown,
    /// The broker replied to the call with that number. Replies come in the order in which it sent them.
    Broker(u64, BrokerReply),
    /// The host's state changed.
    Facts(Facts),
    /// Another node asks for a promise. The first number goes with the reply.
    PromiseAsked(u64, PromiseRequest),
    /// Another node replied to such a request. Replies may be lost, late, repeated and reordered.
    Promised(PromiseReply),
    /// Hand everything over and leave.
    Stop,
}

/// What the node does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Reads all keys of the group.
    Read(u64),
    /// Performs a transaction.
    Txn(u64, Txn),
    /// Watches all keys of the group from now on, with that number; earlier watches end. In a cluster of more than 16 nodes
    /// it needs no beats but those of [`Node::monitored`].
    Watch(u64),
    /// Calls the broker. Calls arrive in this order, or not at all if the connection ends.
    Broker(u64, BrokerCall),
    /// Asks the node at an address for a promise. Nobody waits for the reply.
    AskPromise(String, PromiseRequest),
    /// Replies to the request of another node with that number.
    AnswerPromise(u64, PromiseReply),
}

/// How far the node is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// It has no session.
    Outside,
    /// It has a session.
    Member,
    /// It must not join, for that reason; the program ends.
    Refused(String),
    /// It left.
    Left,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Membership {
    session: Session,
    /// The newest beat that is known to be in the engine, when it was sent, and its roster.
    text: Arc<str>,
    sent: BootTime,
    roster: Arc<[Name]>,
    joined: BootTime,
    joined_revision: i64,
    quarantine_until: BootTime,
    ready_at: BootTime,
    state: NodeState,
    joins: u32,
}

/// An attempt to write the beat.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Attempt {
    text: Arc<str>,
    sent: BootTime,
    roster: Arc<[Name]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Lease {
    epoch: u64,
    step: LeaseStep,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum LeaseStep {
    /// The call with that number adds it.
    Adding(u64),
    Held,
    /// The call with that number removes it.
    Removing(u64),
    /// The connection to the broker ended; the list will tell.
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Move {
    to: Option<Name>,
    is_sent: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Purpose {
    Read,
    /// JOIN, RESUME or BEAT.
    Beat,
    Look,
    Leave,
    Evict(Name),
    Record,
    Declare,
    Unpin(IpAddr),
    Claim(Vec<IpAddr>),
    Grant(Vec<IpAddr>),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Request {
    purpose: Purpose,
    /// The engine's revision when it was sent: the reply cannot be older.
    floor: i64,
    puts: Vec<Operation>,
}

/// One node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    config: Config,
    rules: Rules,
    digest: Name,
    now: BootTime,
    wake: BootTime,
    out: Vec<Action>,
    /// What operators are told. No decision depends on it, and without one nothing is collected.
    news: Option<Box<Collector>>,

    state: State,
    patience: Patience,
    ring: Ring,
    monitored: Vec<Name>,
    requests: BTreeMap<u64, Request>,
    last_id: u64,
    watch: u64,
    is_loaded: bool,
    read_at: BootTime,

    stage: Stage,
    membership: Option<Membership>,
    sequence: u64,
    /// The nonce of the current session, or of the attempt to get one.
    nonce: u64,
    /// How often this process tried to join.
    joins: u64,
    /// The attempts to write the beat since the last one of which the outcome is known.
    attempts: Vec<Attempt>,
    beat_at: BootTime,
    promises: Promises,
    /// Whether the session of a previous process may live.
    may_resume: bool,
    has_twin: bool,
    is_declared: bool,
    is_stopping: bool,

    facts: Facts,
    broker_is_up: bool,
    broker_answered: bool,
    broker_ping_at: BootTime,
    /// When the oldest call was made to which there is no reply.
    broker_asked: Option<BootTime>,
    broker_hangs: bool,
    is_listed: bool,
    /// When a removal that failed is tried again.
    remove_at: BootTime,
    /// The latest end of a lease that the broker was ever asked for.
    until: BootTime,
    leases: BTreeMap<IpAddr, Lease>,
    refused: BTreeMap<IpAddr, (BootTime, Duration, String)>,
    epoch_floor: BTreeMap<IpAddr, u64>,

    /// The claims of this session.
    owned: BTreeMap<IpAddr, Arc<Entry>>,
    /// Addresses of which a grant was sent, and the revision of the claim that it replaces.
    granted: BTreeMap<IpAddr, i64>,
    moves: BTreeMap<IpAddr, Move>,
    pins: BTreeMap<IpAddr, (i64, BootTime)>,
    placement: Placement,
    is_dirty: bool,
    /// Whether an event asks for a decision.
    is_touched: bool,
    has_voluntary: bool,
    balance_at: BootTime,
    plan_at: BootTime,
    review_at: Option<BootTime>,
}

impl Node {
    /// A node that has just started.
    pub fn new(config: Config, now: BootTime) -> Self {
        Node::with_rules(config, now, Rules::default())
    }

    pub(crate) fn with_rules(config: Config, now: BootTime, rules: Rules) -> Self {
        let text = Value::Have(config.declared.clone()).encode();
        let nonce = config.nonce;
        Node {
            config,
            rules,
            digest: format!("{:016x}", placement::hash(text.as_bytes())).into(),
            now,
            wake: now,
            out: vec![Action::Watch(0)],
            news: None,
            state: State::default(),
            patience: Patience::default(),
            ring: Ring::default(),
            monitored: Vec::new(),
            requests: BTreeMap::new(),
            last_id: 0,
            watch: 0,
            is_loaded: false,
            read_at: now,
            stage: Stage::Outside,
            membership: None,
            sequence: 0,
            nonce,
            joins: 0,
            attempts: Vec::new(),
            beat_at: now,
            promises: Promises::default(),
            may_resume: true,
            has_twin: false,
            is_declared: false,
            is_stopping: false,
            facts: Facts::default(),
            broker_is_up: false,
            broker_answered: false,
            broker_ping_at: now,
            broker_asked: None,
            broker_hangs: true,
            is_listed: false,
            remove_at: now,
            until: now,
            leases: BTreeMap::new(),
            refused: BTreeMap::new(),
            epoch_floor: BTreeMap::new(),
            owned: BTreeMap::new(),
            granted: BTreeMap::new(),
            moves: BTreeMap::new(),
            pins: BTreeMap::new(),
            placement: Placement::default(),
            is_dirty: true,
            is_touched: true,
            has_voluntary: false,
            balance_at: now,
            plan_at: now,
            review_at: None,
        }
    }

    /// When [`Input::Time`] is due.
    pub fn wake(&self) -> BootTime {
        self.wake
    }

    /// How far the node is.
    pub fn stage(&self) -> &Stage {
        &self.stage
    }

    /// What the node knows of the group.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The nodes whose beats this one watches.
    pub fn monitored(&self) -> &[Name] {
        &self.monitored
    }

    /// What is not visible in the engine, for whoever debugs a simulation.
    #[cfg(test)]
    pub(crate) fn summary(&self) -> String {
        format!(
            "{} {:?} now {:?} wake {:?} membership {:?}\n  leases {:?} moves {:?} granted {:?} refused {:?} requests {:?}\n  dirty {} loaded {} listed {} up {} answered {} asked {:?} hangs {} until {:?} owned {:?} floor {:?}",
            self.config.name,
            self.stage,
            self.now,
            self.wake,
            self.membership,
            self.leases,
            self.moves,
            self.granted,
            self.refused,
            self.requests,
            self.is_dirty,
            self.is_loaded,
            self.is_listed,
            self.broker_is_up,
            self.broker_answered,
            self.broker_asked,
            self.broker_hangs,
            self.until,
            self.owned.keys().collect::<Vec<_>>(),
            self.epoch_floor,
        )
    }

    /// E: when the addresses of this node end.
    pub fn end(&self) -> Option<BootTime> {
        let sent = self.membership.as_ref()?.sent;
        let end = sent.after(self.config.lease);
        Some(self.promises.until().map_or(end, |until| until.max(end)))
    }

    /// Takes note of what happens at an instant not before the previous one, and returns what to do, in this order.
    pub fn step(&mut self, now: BootTime, input: Input) -> Vec<Action> {
        self.now = self.now.max(now);
        match input {
            Input::Time => {}
            Input::Engine(id, reply) => self.engine_replied(id, reply),
            Input::Watch(watch, entries) => {
                self.is_touched = false;
                if watch == self.watch {
                    entries.iter().for_each(|entry| self.learn(entry));
                }
                // In a large cluster most events are about others.
                if !self.is_touched {
                    return Vec::new();
                }
            }
            Input::WatchLost => self.read_at = self.now,
            Input::BrokerUp => {
                (self.broker_is_up, self.is_listed) = (true, false);
                self.call(BrokerCall::List);
            }
            Input::BrokerDown => {
                (self.broker_is_up, self.is_listed, self.broker_answered) = (false, false, false);
                self.broker_asked = None;
                for lease in self.leases.values_mut() {
                    lease.step = LeaseStep::Unknown;
                }
            }
            Input::Broker(id, reply) => self.broker_replied(id, reply),
            Input::Facts(facts) => self.facts = facts,
            Input::PromiseAsked(ticket, request) => self.promise_asked(ticket, &request),
            Input::Promised(reply) => self.promised(&reply),
            Input::Stop => {
                (self.is_stopping, self.may_resume) = (true, false);
            }
        }
        self.decide();
        std::mem::take(&mut self.out)
    }

    /// Whether an instant has come; if not, the node wakes then.
    fn is_due(&mut self, at: BootTime) -> bool {
        if self.now < at {
            self.wake = self.wake.min(at);
        }
        self.now >= at
    }

    fn decide(&mut self) {
        self.wake = self.now.after(READ_INTERVAL);
        if matches!(self.stage, Stage::Refused(_) | Stage::Left) {
            return;
        }
        if std::mem::take(&mut self.has_twin) {
            self.start_over();
        }
        self.read();
        self.drop_dead_leases();
        if self.membership.is_some() {
            self.beat();
        } else {
            self.enter();
        }
        self.ask_for_promises();
        self.write_record();
        self.plan();
        self.hold();
        self.hand_over();
        self.leave();
        self.evict();
        self.unpin();
    }
}
