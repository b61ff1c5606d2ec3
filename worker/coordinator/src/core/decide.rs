//! One node: from what happens to what it does, without clock, input and output.
//!
//! Promises: the node asks its broker for an address only while its claim names this node's session, and never past the
//! end E that follows from its last beat: when that was sent, plus the lease. It hands an address over only after the
//! broker has removed it. What is unknown (a lost reply, a broker that hangs) counts as the worse of what it can be.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::patience::{self, Patience, Ring};
use super::placement::{self, Placement};
use super::record::{
    Beat, Block, Claim, Entry, Key, Name, NodeRecord, NodeState, Phase, Piece, Session, Value,
};
use super::rules::Rules;
use super::state::State;
use super::time::BootTime;
use super::txn::{self, Change, Compare, NoReply, Operation, Reply, Txn};

/// How long before E the node removes its addresses at most, so that connections are reset and not left hanging. Less with a
/// short lease, of which it would be too large a part.
const WITHDRAW: Duration = Duration::from_secs(1);
/// The broker refuses a lease that ends within a second; a request takes time too.
const SHORTEST_LEASE: Duration = Duration::from_millis(1_200);
/// How often everything is read again, because a watch can lose events.
const READ_INTERVAL: Duration = Duration::from_secs(30);
/// How long a node must stay until its earlier joins do not count any more; also the longest time to maturity.
const FORGET_JOINS: Duration = Duration::from_secs(600);
/// How long an address that the broker refused is not tried again, at first and at most.
const BACK_OFF: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(300)];
/// How many addresses one value of a declaration contains.
const PIECE: usize = 1_000;
/// How long after a change as planned the plan is made again.
const REVIEW: Duration = Duration::from_secs(1);
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
        /// Whether to ask first whether another host has them.
        probe: bool,
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
    /// The newest beat that is known to be in the engine, and when it was sent.
    text: Arc<str>,
    sent: BootTime,
    joined: BootTime,
    joined_revision: i64,
    quarantine_until: BootTime,
    ready_at: BootTime,
    state: NodeState,
    joins: u32,
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
    attempts: Vec<(Arc<str>, BootTime)>,
    beat_at: BootTime,
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
        self.membership.as_ref().map(|membership| membership.sent.after(self.config.lease))
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
        self.write_record();
        self.plan();
        self.hold();
        self.hand_over();
        self.leave();
        self.evict();
        self.unpin();
    }

    // The engine.

    fn send(&mut self, purpose: Purpose, mut txn: Txn) {
        if !self.rules.compare_sessions && matches!(purpose, Purpose::Claim(_) | Purpose::Grant(_)) {
            txn.compare.retain(|compare| {
                let (Compare::Value(key, _) | Compare::Created(key, _) | Compare::NotCreated(key, _)) =
                    compare;
                !matches!(key, Key::Beat(_))
            });
        }
        if !self.rules.compare_unchanged && !matches!(purpose, Purpose::Beat) {
            txn.compare.retain(|compare| {
                !matches!(compare, Compare::Value(..) | Compare::Created(Key::Claim(_), _))
            });
        }
        self.last_id += 1;
        let puts = txn.success.iter().filter(|operation| !matches!(operation, Operation::Get(_)));
        let request = Request { purpose, floor: self.state.revision, puts: puts.cloned().collect() };
        self.requests.insert(self.last_id, request);
        self.out.push(Action::Txn(self.last_id, txn));
    }

    fn is_sent(&self, purpose: &Purpose) -> bool {
        self.requests.values().any(|request| request.purpose == *purpose)
    }

    fn read(&mut self) {
        let at = self.read_at;
        if self.is_due(at) && !self.is_sent(&Purpose::Read) {
            self.read_at = self.now.after(READ_INTERVAL);
            self.last_id += 1;
            let request = Request { purpose: Purpose::Read, floor: self.state.revision, puts: Vec::new() };
            self.requests.insert(self.last_id, request);
            self.out.push(Action::Read(self.last_id));
        }
    }

    /// Learns an entry, and what follows from it.
    fn learn(&mut self, entry: &Arc<Entry>) {
        let old = self.state.get(&entry.key).cloned();
        if self.state.apply(entry) {
            self.note(old.as_deref(), entry);
        }
    }

    fn note(&mut self, old: Option<&Entry>, entry: &Arc<Entry>) {
        let was_dirty = self.is_dirty;
        match &entry.key {
            Key::Beat(name) => {
                self.patience.observe(self.now, entry, &self.rules);
                self.is_touched |= *name == self.config.name;
            }
            Key::Node(name) => {
                let lives = self.state.session(name).is_some();
                if self.ring.set(name, lives) {
                    self.monitored = self.ring.monitored_by(&self.config.name);
                }
                let role = |entry: &Entry| entry.value.as_ref().map(placement::role);
                self.is_dirty |= old.and_then(role) != role(entry);
                self.is_touched |= *name == self.config.name;
            }
            Key::Claim(address) => self.note_claim(*address, entry),
            Key::Want(address) => {
                self.pins.remove(address);
                (self.is_dirty, self.is_touched) = (true, true);
            }
            Key::Have(..) => (self.is_dirty, self.is_declared) = (true, false),
            Key::Drain(_) | Key::Freeze => self.is_dirty = true,
            Key::Foreign(_) => {}
        }
        self.is_touched |= (self.is_dirty && !was_dirty) || self.has_twin;
    }

    fn note_claim(&mut self, address: IpAddr, entry: &Arc<Entry>) {
        let claim = match &entry.value {
            Some(Value::Claim(claim)) => Some(claim),
            _ => None,
        };
        let mine = self.membership.as_ref().map(|membership| membership.session);
        // An engine that lost data counts the same revisions again, and claims compare only these: with such a claim of an
        // earlier session, only a new session helps.
        let is_twin = |claim: &Claim| {
            mine.is_some_and(|mine| {
                claim.session.created == mine.created && claim.session.nonce != mine.nonce
            })
        };
        self.has_twin |= claim.is_some_and(|claim| claim.node == self.config.name && is_twin(claim));
        let is_mine = claim.is_some_and(|claim| {
            claim.node == self.config.name && Some(claim.session) == mine && claim.phase != Phase::Free
        });
        if is_mine {
            self.owned.insert(address, Arc::clone(entry));
            self.is_touched = true;
        } else if self.owned.remove(&address).is_some() {
            self.moves.remove(&address);
            self.is_touched = true;
        }
        // What happens as planned is no reason to plan again at once, only when all of it had time to happen: addresses
        // without a holder can belong elsewhere then.
        let owner = claim.filter(|claim| claim.phase != Phase::Free).map(|claim| &claim.node);
        if owner.is_none() || owner != self.placement.node(address) {
            self.is_dirty = true;
        } else if self.review_at.is_none() {
            self.review_at = Some(self.now.after(REVIEW));
            self.is_touched = true;
        }
    }

    fn engine_replied(&mut self, id: u64, reply: Result<Reply, NoReply>) {
        let Some(request) = self.requests.remove(&id) else { return };
        let reply = reply.ok();
        if let Some(reply) = &reply {
            self.patience.answered(self.now, patience::settle(self.config.heartbeat));
            let is_older = |entry: &Arc<Entry>| self.state.contradicts(request.floor, entry);
            if self.rules.notice_regress
                && (reply.revision < request.floor || reply.entries.iter().any(is_older))
            {
                self.start_over();
                return;
            }
            let entries: &[Arc<Entry>] = if request.purpose == Purpose::Read { &[] } else { &reply.entries };
            entries.iter().for_each(|entry| self.learn(entry));
            if reply.succeeded {
                let written = |operation: &Operation| match operation {
                    Operation::Put(key, text) => {
                        let created = match self.state.get(key) {
                            Some(known) => known.created,
                            None => reply.revision,
                        };
                        Some(Entry::decode(key.clone(), created, reply.revision, Arc::clone(text)))
                    }
                    Operation::Delete(key) => Some(Entry::deleted(key.clone(), reply.revision)),
                    Operation::Get(_) => None,
                };
                let written: Vec<Entry> = request.puts.iter().filter_map(written).collect();
                written.into_iter().for_each(|entry| self.learn(&Arc::new(entry)));
            }
            self.state.revision = self.state.revision.max(reply.revision);
        }
        let succeeded = reply.as_ref().is_some_and(|reply| reply.succeeded);
        match request.purpose {
            Purpose::Read => match reply {
                Some(reply) => {
                    let news = self.state.replace(reply.revision, &reply.entries);
                    news.iter().for_each(|entry| self.note(None, entry));
                    self.is_loaded = true;
                }
                None => self.read_at = self.now,
            },
            Purpose::Beat => self.beat_replied(reply.as_ref()),
            Purpose::Leave if succeeded => self.stage = Stage::Left,
            Purpose::Grant(addresses) => {
                for address in addresses {
                    self.moves.remove(&address);
                }
                self.plan_again(reply.is_some() && !succeeded);
            }
            Purpose::Claim(_) => self.plan_again(reply.is_some() && !succeeded),
            // It compares nothing but that the session lives.
            Purpose::Record if reply.is_some() && !succeeded => self.session_is_over(),
            Purpose::Look
            | Purpose::Leave
            | Purpose::Evict(_)
            | Purpose::Record
            | Purpose::Declare
            | Purpose::Unpin(_) => {}
        }
    }

    /// A transaction that failed is not repeated at once: what made it fail may last.
    fn plan_again(&mut self, has_failed: bool) {
        self.is_dirty = true;
        if has_failed {
            self.plan_at = self.now.after(self.config.heartbeat / 4);
        }
    }

    /// The engine was restored from a backup, or lost what it knew.
    fn start_over(&mut self) {
        self.requests.clear();
        self.state = State::default();
        self.patience.forget();
        self.ring = Ring::default();
        self.monitored = Vec::new();
        self.watch += 1;
        self.out.push(Action::Watch(self.watch));
        (self.is_loaded, self.is_declared, self.read_at) = (false, false, self.now);
        self.lose_session();
    }

    // The session.

    fn new_beat(&mut self) -> Arc<str> {
        self.sequence += 1;
        let milliseconds = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let beat = Beat {
            nonce: self.nonce,
            boot: self.config.boot.clone(),
            process: self.config.nonce,
            sequence: self.sequence,
            lease_ms: milliseconds(self.config.lease),
            late_ms: milliseconds(self.config.late),
            roster: Vec::new(),
        };
        let text = Value::Beat(beat).encode();
        self.attempts.push((Arc::clone(&text), self.now));
        // How long it is until the next attempt if this one fails is the engine's matter.
        self.beat_at = self.now.after(self.config.heartbeat);
        text
    }

    fn beat(&mut self) {
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

    /// A call to which a broker that works replies.
    fn ping(&mut self) {
        let at = self.broker_ping_at;
        if self.broker_is_up && self.is_due(at) {
            self.broker_ping_at = self.now.after(self.config.heartbeat);
            self.call(BrokerCall::List);
        }
    }

    /// The reply to JOIN, RESUME or BEAT.
    fn beat_replied(&mut self, reply: Option<&Reply>) {
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
                let own = self.attempts.iter().find(|(attempt, _)| Some(attempt) == text).cloned();
                own.or_else(|| self.attempts.last().filter(|_| !self.rules.read_back).cloned())
            }
        };
        // An attempt whose outcome was unknown compares with a value that is not there any more.
        self.attempts.clear();
        let Some((text, sent)) = attempt else {
            self.session_is_over();
            return;
        };
        let sent = if self.rules.count_from_sending { sent } else { self.now };
        match &mut self.membership {
            Some(membership) => (membership.text, membership.sent) = (text, sent),
            None => self.joined(text, sent),
        }
        if let Some(until) = self.end().filter(|end| *end > self.now.after(SHORTEST_LEASE)) {
            self.until = self.until.max(until);
            self.call(BrokerCall::RenewAll { until });
        }
    }

    /// Tries to get a session.
    fn enter(&mut self) {
        if !self.is_loaded || self.is_sent(&Purpose::Beat) || self.is_stopping {
            if self.is_stopping && self.leases.is_empty() {
                self.stage = Stage::Left;
            }
            return;
        }
        if !self.is_listed {
            self.ping();
            return;
        }
        let key = Key::Beat(Arc::clone(&self.config.name));
        let Some(entry) = self.state.get(&key).cloned() else {
            self.may_resume = false;
            if self.leases.is_empty() && self.declare() {
                self.join();
            }
            return;
        };
        match &entry.value {
            Some(Value::Beat(beat)) if beat.boot == self.config.boot => {
                if self.may_resume {
                    self.nonce = beat.nonce;
                    let text = self.new_beat();
                    let txn = txn::beat(&self.config.name, Some(Arc::clone(&entry.text)), &text, None, &[]);
                    self.send(Purpose::Beat, txn);
                } else if self.leases.is_empty() {
                    // What is left of the session that this process lost.
                    self.send_evict(Arc::clone(&self.config.name), &entry);
                }
            }
            Some(Value::Beat(beat)) => {
                self.may_resume = false;
                let name = Arc::clone(&self.config.name);
                if self.patience.has_changed(&name) {
                    let boot = &beat.boot;
                    self.stage =
                        Stage::Refused(format!("another host ({boot}) is the node {name} of this cluster"));
                    return;
                }
                let at = self.evict_at(&name, &entry, beat);
                if at.is_some_and(|at| self.is_due(at)) {
                    self.send_evict(name, &entry);
                } else {
                    self.look();
                }
            }
            _ => {
                let name = &self.config.name;
                self.stage = Stage::Refused(format!("the value of beat/{name} in the engine cannot be read"));
            }
        }
    }

    /// Reads the beats that a node without a session waits for.
    fn look(&mut self) {
        let at = self.beat_at;
        if self.is_due(at) && !self.is_sent(&Purpose::Look) {
            self.beat_at = self.now.after(self.config.heartbeat);
            let names = self.monitored.iter().chain([&self.config.name]);
            let success = names.map(|name| Operation::Get(Key::Beat(Arc::clone(name)))).collect();
            self.send(Purpose::Look, Txn { success, ..Txn::default() });
        }
    }

    /// Writes the pieces of the declaration that are missing. Returns whether none is.
    fn declare(&mut self) -> bool {
        if self.is_declared {
            return true;
        }
        let declared: Vec<(IpAddr, Option<Name>)> = self.config.declared.clone().into_iter().collect();
        let mut is_complete = true;
        for (number, piece) in (0..).zip(declared.chunks(PIECE)) {
            let key = Key::Have(Arc::clone(&self.digest), number);
            if self.state.get(&key).is_none() {
                is_complete = false;
                if !self.is_sent(&Purpose::Declare) {
                    let value = Value::Have(piece.iter().cloned().collect());
                    self.send(Purpose::Declare, txn::create(key, &value));
                }
            }
        }
        self.is_declared = is_complete;
        is_complete
    }

    fn join(&mut self) {
        let is_mature = |record: &NodeRecord| {
            matches!(record.state, NodeState::Ready | NodeState::Sick | NodeState::Leaving)
        };
        let is_first = !self.state.nodes().any(|(_, record)| is_mature(record));
        self.joins += 1;
        self.nonce = self.config.nonce.wrapping_add(self.joins);
        let record = NodeRecord {
            nonce: self.nonce,
            created: None,
            version: self.config.version.clone(),
            state: if is_first { NodeState::Founding } else { NodeState::Joining },
            why: String::new(),
            declares: Arc::clone(&self.digest),
            joins: self.state.node(&self.config.name).map_or(0, |record| record.joins).saturating_add(1),
            down: self.facts.down.clone(),
            refused: Vec::new(),
        };
        let text = self.new_beat();
        let txn = txn::beat(&self.config.name, None, &text, Some(record), &[]);
        self.send(Purpose::Beat, txn);
    }

    fn joined(&mut self, text: Arc<str>, sent: BootTime) {
        let key = Key::Beat(Arc::clone(&self.config.name));
        let entry = self.state.get(&key).cloned();
        let beat = entry.as_ref().and_then(|entry| match &entry.value {
            Some(Value::Beat(beat)) => Some((entry.created, beat.nonce)),
            _ => None,
        });
        let record = self.state.node(&self.config.name).cloned();
        let (Some((created, nonce)), Some(record)) = (beat, record) else {
            // An event overtook the reply: read both again.
            (self.is_loaded, self.read_at) = (false, self.now);
            return;
        };
        let own = self.rules.eviction(self.config.lease, self.config.late);
        let quarantine =
            if self.rules.quarantine { own.max(self.patience.longest()) } else { Duration::ZERO };
        let doubled = 2_u32.checked_pow(record.joins.saturating_sub(1)).unwrap_or(u32::MAX);
        let mature = self.config.mature.saturating_mul(doubled).min(FORGET_JOINS);
        let ready_at = match record.state {
            NodeState::Founding => self.now.after(quarantine),
            NodeState::Joining => self.now.after(quarantine.max(mature)),
            _ => self.now,
        };
        self.nonce = nonce;
        self.may_resume = false;
        self.stage = Stage::Member;
        self.membership = Some(Membership {
            session: Session { created, nonce },
            text,
            sent,
            joined: self.now,
            joined_revision: self.state.revision,
            quarantine_until: self.now.after(quarantine),
            ready_at,
            state: record.state,
            joins: record.joins,
        });
        let claims: Vec<Arc<Entry>> = self.state.claims().map(|(_, entry, _)| Arc::clone(entry)).collect();
        for entry in claims {
            if let Key::Claim(address) = entry.key {
                self.note_claim(address, &entry);
            }
        }
        self.is_dirty = true;
    }

    /// The engine says that the session has ended. If that is because it lost data, all that is known of it is wrong.
    fn session_is_over(&mut self) {
        if self.membership.is_some() {
            self.start_over();
        }
        self.read_at = self.now;
    }

    /// The session has ended, or may have: no address may stay.
    fn lose_session(&mut self) {
        if self.membership.take().is_some() {
            self.may_resume = false;
            self.stage = Stage::Outside;
            self.owned.clear();
            self.granted.clear();
            self.moves.clear();
        }
    }

    fn leave(&mut self) {
        let Some(membership) = &self.membership else { return };
        if !self.is_stopping || !self.owned.is_empty() || !self.leases.is_empty() || !self.requests.is_empty()
        {
            return;
        }
        let text = Arc::clone(&membership.text);
        let record = self.gone(&Arc::clone(&self.config.name));
        self.send(Purpose::Leave, txn::evict(&self.config.name, &text, record));
    }

    fn gone(&self, name: &Name) -> NodeRecord {
        let known = self.state.node(name).cloned();
        let record = known.unwrap_or_else(|| NodeRecord {
            nonce: 0,
            created: None,
            version: String::new(),
            state: NodeState::Gone,
            why: String::new(),
            declares: "".into(),
            joins: 0,
            down: Vec::new(),
            refused: Vec::new(),
        });
        NodeRecord { state: NodeState::Gone, why: String::new(), ..record }
    }

    fn send_evict(&mut self, name: Name, entry: &Entry) {
        let purpose = Purpose::Evict(Arc::clone(&name));
        if !self.is_sent(&purpose) {
            let record = self.gone(&name);
            self.send(purpose, txn::evict(&name, &entry.text, record));
        }
    }

    fn evict_at(&self, name: &Name, entry: &Entry, beat: &Beat) -> Option<BootTime> {
        self.patience.evict_at(self.now, (name, entry, beat), self.config.heartbeat, &self.rules)
    }

    /// Evicts the monitored nodes that have shown no life for long enough.
    fn evict(&mut self) {
        if !self.is_loaded {
            return;
        }
        for name in self.monitored.clone() {
            let Some(entry) = self.state.get(&Key::Beat(Arc::clone(&name))).cloned() else { continue };
            let Some(Value::Beat(beat)) = &entry.value else { continue };
            if !beat.roster.is_empty() && !beat.roster.contains(&self.config.name) {
                continue;
            }
            let at = self.evict_at(&name, &entry, beat);
            if at.is_some_and(|at| self.is_due(at)) {
                self.send_evict(name, &entry);
            }
        }
    }

    /// Keeps `node/NODE` as it should be.
    fn write_record(&mut self) {
        let Some(Membership { session, state, ready_at, joined, joins, .. }) = self.membership.clone() else {
            return;
        };
        let Some(known) = self.state.node(&self.config.name).cloned() else { return };
        if !self.declare() {
            return;
        }
        let refused: Vec<(IpAddr, BootTime)> =
            self.refused.iter().map(|(address, (until, ..))| (*address, *until)).collect();
        let refused = refused.into_iter().filter(|(_, until)| !self.is_due(*until));
        let refused = refused.map(|(address, _)| address).collect();
        let forget_at = joined.after(FORGET_JOINS);
        let joins = if joins > 0 && self.is_due(forget_at) { 0 } else { joins };
        let hangs = self.broker_hangs.then(|| "the broker does not answer".to_owned());
        let sick = self.facts.sick.clone().or(hangs);
        let (state, why) = match sick {
            _ if self.is_stopping => (NodeState::Leaving, String::new()),
            Some(why) => (NodeState::Sick, why),
            None if self.is_due(ready_at) => (NodeState::Ready, String::new()),
            None => (state, String::new()),
        };
        let record = NodeRecord {
            nonce: session.nonce,
            created: Some(session.created),
            version: self.config.version.clone(),
            state,
            why,
            declares: Arc::clone(&self.digest),
            joins,
            down: self.facts.down.clone(),
            refused,
        };
        if record != known && !self.is_sent(&Purpose::Record) {
            self.send(Purpose::Record, txn::record(&self.config.name, session, record));
        }
    }

    // The broker.

    /// Calls the broker, and returns the number of the call.
    fn call(&mut self, call: BrokerCall) -> u64 {
        self.last_id += 1;
        if self.broker_is_up {
            self.broker_asked.get_or_insert(self.now);
            self.out.push(Action::Broker(self.last_id, call));
        }
        self.last_id
    }

    fn broker_replied(&mut self, id: u64, reply: BrokerReply) {
        (self.broker_answered, self.broker_asked) = (true, None);
        match reply {
            BrokerReply::Added(results) => {
                // A call that hung until its leases were over is not the newest one for its addresses.
                for (address, epoch, result) in results {
                    let lease = self.leases.get(&address).copied();
                    let is_newest = lease.is_some_and(|lease| lease.step == LeaseStep::Adding(id));
                    match result {
                        Ok(()) if is_newest || lease.is_none() => {
                            self.leases.insert(address, Lease { epoch, step: LeaseStep::Held });
                            self.refused.remove(&address);
                        }
                        Err(refusal) if is_newest => {
                            self.leases.remove(&address);
                            self.add_refused(address, epoch, refusal);
                        }
                        _ => {}
                    }
                }
            }
            BrokerReply::Renewed(count) => {
                let held = self.leases.values().filter(|lease| lease.step == LeaseStep::Held).count();
                if count != held {
                    self.call(BrokerCall::List);
                }
            }
            BrokerReply::Removed(results) => {
                for (address, is_verified) in results {
                    let removing = LeaseStep::Removing(id);
                    match self.leases.get_mut(&address).filter(|lease| lease.step == removing) {
                        Some(_) if is_verified => drop(self.leases.remove(&address)),
                        // Another attempt follows.
                        Some(lease) => lease.step = LeaseStep::Held,
                        None => {}
                    }
                }
            }
            BrokerReply::Listed(leases) => {
                self.is_listed = true;
                let listed: BTreeMap<IpAddr, u64> = leases.into_iter().collect();
                self.leases.retain(|address, lease| {
                    let is_changing = matches!(lease.step, LeaseStep::Adding(_) | LeaseStep::Removing(_));
                    is_changing || listed.contains_key(address)
                });
                for (address, epoch) in listed {
                    let held = Lease { epoch, step: LeaseStep::Held };
                    let lease = self.leases.entry(address).or_insert(held);
                    if lease.step == LeaseStep::Unknown {
                        *lease = held;
                    }
                }
            }
        }
    }

    fn add_refused(&mut self, address: IpAddr, epoch: u64, refusal: Refusal) {
        match refusal {
            // The engine has lost epochs that the broker remembers. Doubling soon gets above them.
            Refusal::OldEpoch => {
                self.epoch_floor.insert(address, epoch.saturating_mul(2));
                if let Some(entry) = self.owned.get(&address) {
                    self.granted.insert(address, entry.modified);
                }
            }
            Refusal::Other(why) => {
                let [first, most] = BACK_OFF;
                let last = self.refused.get(&address).map(|(_, back_off, _)| *back_off * 2);
                let back_off = last.unwrap_or(first).min(most);
                self.refused.insert(address, (self.now.after(back_off), back_off, why));
            }
        }
        self.is_dirty = true;
    }

    /// Every address has ended by the kernel when the last lease is over, whatever a broker that hangs did or did not do.
    fn drop_dead_leases(&mut self) {
        let hangs_at = self.broker_asked.map(|asked| asked.after(self.config.lease / 2));
        let hangs = !self.broker_is_up || hangs_at.is_some_and(|at| self.is_due(at));
        let over = self.until.after(patience::over(self.config.late));
        self.broker_hangs = hangs && self.is_due(over);
        if self.broker_hangs && !self.leases.is_empty() {
            self.leases.clear();
            self.is_dirty = true;
        }
    }

    /// Brings the addresses at the broker in line with the claims of this session.
    fn hold(&mut self) {
        let end = self.end();
        let before = WITHDRAW.min(self.config.lease / 6);
        let withdraw = match end {
            Some(end) => self.is_due(end.before(before)),
            // What the previous process left stays until it is clear whether its session lives.
            None => !self.may_resume,
        };
        let mut remove = Vec::new();
        for (address, lease) in &self.leases {
            let moves = self.rules.remove_first && self.moves.contains_key(address);
            let must_go = withdraw || moves || (end.is_some() && !self.owned.contains_key(address));
            if self.broker_is_up && lease.step == LeaseStep::Held && must_go {
                remove.push((*address, lease.epoch));
            }
        }
        if !remove.is_empty() {
            let id = self.call(BrokerCall::Remove { leases: remove.clone() });
            for (address, epoch) in remove {
                self.leases.insert(address, Lease { epoch, step: LeaseStep::Removing(id) });
            }
        }

        let Some(membership) = &self.membership else { return };
        let Some(until) = end.filter(|end| *end > self.now.after(SHORTEST_LEASE) && self.is_listed) else {
            return;
        };
        let (quarantine_until, joined_revision) = (membership.quarantine_until, membership.joined_revision);
        let mut add: [Vec<(IpAddr, u64)>; 2] = [Vec::new(), Vec::new()];
        let mut waits = false;
        for (address, entry) in &self.owned {
            let Some(Value::Claim(claim)) = &entry.value else { continue };
            let is_spent = self.rules.claim_again && self.granted.get(address) == Some(&entry.modified);
            if self.leases.contains_key(address)
                || self.moves.contains_key(address)
                || self.refused.get(address).is_some_and(|(until, ..)| *until > self.now)
                || is_spent
            {
                continue;
            }
            // A resumed session in a restored engine may find claims that others have taken since.
            if entry.modified <= joined_revision && self.now < quarantine_until {
                waits = true;
                continue;
            }
            let [probed, unprobed] = &mut add;
            let list = if claim.phase == Phase::Granted { unprobed } else { probed };
            list.push((*address, claim.epoch));
        }
        if waits {
            self.is_due(quarantine_until);
        }
        for (leases, probe) in add.into_iter().zip([true, false]) {
            if !leases.is_empty() {
                self.until = self.until.max(until);
                let id = self.call(BrokerCall::Add { leases: leases.clone(), until, probe });
                let adding = |(address, epoch)| (address, Lease { epoch, step: LeaseStep::Adding(id) });
                self.leases.extend(leases.into_iter().map(adding));
            }
        }
    }

    // The placement.

    /// Claims what belongs here and has no holder, and begins to hand over what belongs elsewhere.
    fn plan(&mut self) {
        let Some(membership) = self.membership.clone() else { return };
        if self.has_voluntary {
            let at = self.balance_at;
            self.is_dirty |= self.is_due(at);
        }
        self.is_dirty |= self.review_at.is_some_and(|at| self.is_due(at));
        let at = self.plan_at.max(membership.quarantine_until);
        if !self.is_dirty || !self.is_loaded || !self.is_due(at) {
            return;
        }
        (self.is_dirty, self.review_at) = (false, None);
        self.placement = placement::place(&self.state, self.config.is_auto);
        let may_balance = self.is_due(self.balance_at);
        let mut room = self.config.balance_set;
        self.has_voluntary = false;
        let in_flight: BTreeSet<IpAddr> = self
            .requests
            .values()
            .flat_map(|request| match &request.purpose {
                Purpose::Claim(addresses) | Purpose::Grant(addresses) => addresses.as_slice(),
                _ => &[],
            })
            .copied()
            .collect();
        let mut changes = Vec::new();
        for (target, node) in self.placement.targets() {
            let address = target.address;
            if in_flight.contains(&address) || target.why == placement::Why::Unreadable {
                continue;
            }
            // Whoever leaves keeps nothing, even if nobody else can hold it.
            let node = node.filter(|_| !(self.is_stopping && target.why == placement::Why::NobodyElse));
            let is_here = node == Some(&self.config.name);
            match self.owned.get(&address) {
                Some(entry) if is_here => {
                    self.moves.remove(&address);
                    if self.granted.get(&address) == Some(&entry.modified)
                        && !self.leases.contains_key(&address)
                    {
                        changes.push(self.change(address, &membership));
                    }
                }
                Some(_) if self.moves.contains_key(&address) => {}
                Some(_) => {
                    if !target.is_urgent {
                        if !may_balance || room == 0 {
                            self.has_voluntary = true;
                            continue;
                        }
                        room -= 1;
                        self.balance_at = self.now.after(self.config.balance_interval);
                    }
                    self.moves.insert(address, Move { to: node.cloned(), is_sent: false });
                }
                None if is_here => {
                    let claim = self.state.get(&Key::Claim(address));
                    let is_held = claim.is_some_and(|entry| {
                        matches!(&entry.value, Some(Value::Claim(claim)) if self.state.is_held(claim))
                    });
                    if !is_held {
                        changes.push(self.change(address, &membership));
                    }
                }
                None => {}
            }
        }
        if self.has_voluntary {
            let at = self.balance_at;
            self.is_due(at);
        }
        for changes in changes.chunks(CLAIMS) {
            let addresses = changes.iter().map(|change| change.address).collect();
            let txn = txn::claim(&self.config.name, membership.session, changes);
            self.send(Purpose::Claim(addresses), txn);
        }
    }

    fn change(&self, address: IpAddr, membership: &Membership) -> Change {
        self.change_to(address, Arc::clone(&self.config.name), membership.session, Phase::Held)
    }

    fn change_to(&self, address: IpAddr, node: Name, session: Session, phase: Phase) -> Change {
        let known = self.state.get(&Key::Claim(address)).cloned();
        let last = match known.as_ref().and_then(|entry| entry.value.as_ref()) {
            Some(Value::Claim(claim)) => claim.epoch,
            _ => 0,
        };
        let floor = self.epoch_floor.get(&address).copied().unwrap_or_default();
        let epoch = last.max(floor).saturating_add(1);
        Change { address, known, claim: Claim { epoch, node, session, phase } }
    }

    /// Grants or releases the addresses that the broker has removed.
    fn hand_over(&mut self) {
        let Some(mine) = self.membership.as_ref().map(|membership| membership.session) else { return };
        let mut groups: BTreeMap<Option<Name>, Vec<Change>> = BTreeMap::new();
        let ready = self.moves.iter().filter(|(address, step)| {
            let is_removed = !self.rules.remove_first || !self.leases.contains_key(*address);
            is_removed && !step.is_sent
        });
        for (address, step) in ready {
            let to = step.to.as_ref().and_then(|to| Some((Arc::clone(to), self.state.session(to)?)));
            let change = match &to {
                Some((node, session)) => self.change_to(*address, Arc::clone(node), *session, Phase::Granted),
                None => self.change_to(*address, Arc::clone(&self.config.name), mine, Phase::Free),
            };
            groups.entry(to.map(|(node, _)| node)).or_default().push(change);
        }
        for (to, changes) in groups {
            for changes in changes.chunks(CLAIMS) {
                for change in changes {
                    if let Some(step) = self.moves.get_mut(&change.address) {
                        step.is_sent = true;
                    }
                    if let Some(known) = &change.known {
                        self.granted.insert(change.address, known.modified);
                    }
                }
                let session = changes.first().map(|change| change.claim.session);
                let txn = txn::grant(to.as_ref().zip(session), changes);
                let addresses = changes.iter().map(|change| change.address).collect();
                self.send(Purpose::Grant(addresses), txn);
            }
        }
    }

    /// Removes pins that are over.
    fn unpin(&mut self) {
        let wants: Vec<(IpAddr, Arc<Entry>, Duration)> = self
            .state
            .wants()
            .filter_map(|(address, entry, want)| {
                Some((address, Arc::clone(entry), Duration::from_millis(want.for_ms?)))
            })
            .collect();
        for (address, entry, lasts) in wants {
            let (_, since) = *self.pins.entry(address).or_insert((entry.modified, self.now));
            let claim = self.state.get(&Key::Claim(address));
            let is_others = claim.is_some_and(
                |entry| matches!(&entry.value, Some(Value::Claim(claim)) if self.state.is_held(claim)),
            ) && !self.owned.contains_key(&address);
            let purpose = Purpose::Unpin(address);
            if !is_others && self.is_due(since.after(lasts)) && !self.is_sent(&purpose) {
                self.send(purpose, txn::delete(&entry));
            }
        }
    }
}
