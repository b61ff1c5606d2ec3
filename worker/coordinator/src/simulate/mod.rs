//! A whole cluster in one process: hosts with wrong clocks, brokers, an engine that fails, a network that loses, delays and
//! repeats, and a referee that sees everything.
//!
//! The hosts run the same [`Node`] as the program. Everything follows from the seed.

#[cfg(test)]
mod explore;
#[cfg(test)]
mod hold;
pub mod host;
pub mod random;
pub mod referee;
#[cfg(test)]
mod scenarios;
pub mod script;
#[cfg(test)]
mod seeds;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use crate::core::decide::{Action, BrokerCall, Config, Facts, Input, Node, Stage};
use crate::core::patience;
use crate::core::promise::{PromiseReply, PromiseRequest};
use crate::core::record::{Entry, Key, Name, Order, Value, Want};
use crate::core::rules::Rules;
use crate::core::time::BootTime;
use crate::core::txn::{NoReply, Operation, Reply, Txn};
use crate::engine::memory::Store;
use host::{Broker, Clock, Host, Wire};
use random::Random;
use referee::Referee;

/// How long a broker waits for answers after each probe.
const PROBE: Duration = Duration::from_millis(200);
/// The time between two frames of a broker.
const FRAME: Duration = Duration::from_millis(2);
/// How late a kernel ends an address at most.
const LATE: Duration = Duration::from_millis(10);
const MILLISECOND: u64 = 1_000_000;

/// A cluster to simulate.
#[derive(Clone, Debug)]
pub struct Setup {
    /// How many nodes it has.
    pub nodes: usize,
    /// How many addresses it has.
    pub addresses: usize,
    /// L.
    pub lease: Duration,
    /// How long a node must be up before it counts for placement.
    pub mature: Duration,
    /// Whether addresses move voluntarily.
    pub is_auto: bool,
    /// Whether each address prefers a node: the first one the first node, and so on.
    pub has_preferences: bool,
    /// How many nodes, the first ones, hold their addresses without the engine while all others promise not to take them.
    pub holders: usize,
    /// How many of a thousand messages are lost, much too late, or come twice.
    pub noise: u64,
    /// The largest error of a clock's rate in millionths.
    pub clock_error: u64,
    /// What the randomness follows from.
    pub seed: u64,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            nodes: 3,
            addresses: 10,
            lease: Duration::from_secs(6),
            mature: Duration::from_secs(5),
            is_auto: true,
            has_preferences: false,
            holders: 0,
            noise: 0,
            clock_error: 1_000 * u64::from(patience::RATE_ERROR),
            seed: 1,
        }
    }
}

impl Setup {
    /// The addresses: 10.0.0.1 and those after it.
    pub fn address(number: usize) -> IpAddr {
        let first = Ipv4Addr::new(10, 0, 0, 1).to_bits();
        Ipv4Addr::from_bits(first + u32::try_from(number).unwrap_or_default()).into()
    }

    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        (0..self.addresses).map(Setup::address)
    }

    fn preferred(&self, number: usize) -> Option<Name> {
        self.has_preferences.then(|| Simulation::name(number % self.nodes))
    }

    /// D.
    pub fn patience(&self) -> Duration {
        patience::eviction(self.lease, LATE)
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Event {
    Wake(usize),
    Input(usize, u32, Input),
    /// Changes since the engine's last loss of data.
    Watch(usize, u32, u32, Input),
    ToEngine(usize, u32, u64, Option<Txn>),
    ToBroker(usize, u32, u32, u64, BrokerCall),
    Probed(usize, u32, u32, u64, BrokerCall),
    Continue(usize),
    StallEnds,
    /// A message from one host to another.
    Peer(usize, usize, Message),
}

/// What coordinators tell each other without the engine.
#[derive(Clone, Debug)]
pub(crate) enum Message {
    Ask(PromiseRequest),
    Answer(PromiseReply),
}

/// A running simulation.
#[derive(Clone, Debug)]
pub struct Simulation {
    setup: Setup,
    rules: Rules,
    random: Random,
    now: u64,
    events: BTreeMap<(u64, u64), Event>,
    last_event: u64,
    /// How many events were processed.
    pub processed: u64,
    hosts: Vec<Host>,
    store: Store,
    /// Counts the engine's losses of data.
    history: u32,
    engine_is_up: bool,
    engine_stalls_until: u64,
    /// The requests that it performs, in this order, when it does not stall any more.
    stalled: Vec<(usize, u32, u64, Option<Txn>)>,
    backup: Store,
    /// The referee.
    pub referee: Referee,
}

impl Simulation {
    /// A cluster of which nothing runs yet.
    pub fn new(setup: Setup) -> Self {
        Simulation::with_rules(setup, Rules::default())
    }

    pub(crate) fn with_rules(setup: Setup, rules: Rules) -> Self {
        let mut random = Random(setup.seed);
        let host = |_| Host {
            clock: Clock { offset: 0, since: 0, error: random.error(setup.clock_error) },
            boot: 0,
            is_up: false,
            node: None,
            generation: 0,
            broker_generation: 0,
            broker: Broker::default(),
            broker_is_up: false,
            node_stopped: 0,
            broker_stopped: 0,
            link: (true, true),
            peers: (true, true),
            facts: Facts::default(),
            watch: 0,
            call_at: 0,
            frames_at: 0,
            reply_at: 0,
            wake_at: 0,
            is_leaving: false,
            node_queue: Vec::new(),
            broker_queue: Vec::new(),
        };
        Simulation {
            hosts: (0..setup.nodes).map(host).collect(),
            setup,
            rules,
            random,
            now: 0,
            events: BTreeMap::new(),
            last_event: 0,
            processed: 0,
            store: Store::default(),
            history: 0,
            engine_is_up: true,
            engine_stalls_until: 0,
            stalled: Vec::new(),
            backup: Store::default(),
            referee: Referee::default(),
        }
    }

    /// The time since the beginning.
    pub fn now(&self) -> Duration {
        Duration::from_nanos(self.now)
    }

    /// The cluster.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// The keys in the engine.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The coordinator of a host.
    pub fn node(&self, host: usize) -> Option<&Node> {
        self.hosts.get(host)?.node.as_ref()
    }

    /// The coordinator of a host and the current instant of its clock.
    pub fn node_now(&self, host: usize) -> Option<(&Node, BootTime)> {
        let host = self.hosts.get(host)?;
        host.node.as_ref().map(|node| (node, host.clock.at(self.now)))
    }

    /// The coordinator of a host, to collect its news.
    pub fn node_mut(&mut self, host: usize) -> Option<&mut Node> {
        self.hosts.get_mut(host)?.node.as_mut()
    }

    fn name(host: usize) -> Name {
        format!("n{host}").into()
    }

    fn at(&mut self, time: u64, event: Event) {
        self.last_event += 1;
        self.events.insert((time, self.last_event), event);
    }

    /// Runs until an instant.
    pub fn run_until(&mut self, end: Duration) {
        let end = nanoseconds(end);
        while let Some(entry) = self.events.first_entry() {
            if entry.key().0 > end {
                break;
            }
            let ((time, _), event) = entry.remove_entry();
            self.now = self.now.max(time);
            self.processed += 1;
            self.process(event);
        }
        self.now = self.now.max(end);
    }

    /// Runs for a while.
    pub fn run_for(&mut self, duration: Duration) {
        self.run_until(self.now() + duration);
    }

    fn process(&mut self, event: Event) {
        match event {
            Event::Wake(at) => {
                let now = self.now;
                if self.hosts.get(at).is_some_and(|host| host.wake_at == now) {
                    let generation = self.hosts.get(at).map_or(0, |host| host.generation);
                    self.input(at, generation, Input::Time);
                }
            }
            Event::Input(at, generation, input) => self.input(at, generation, input),
            Event::Watch(at, generation, history, input) => {
                if history == self.history {
                    self.input(at, generation, input);
                }
            }
            Event::ToEngine(at, generation, id, txn) => self.perform(at, generation, id, txn),
            Event::ToBroker(at, generation, broker, id, call) => match call {
                BrokerCall::Add { probes: 1.., .. } => self.probe(at, generation, broker, id, call),
                call => self.broker(at, generation, broker, id, call),
            },
            Event::Probed(at, generation, broker, id, call) => self.broker(at, generation, broker, id, call),
            Event::Continue(at) => self.resume(at),
            Event::StallEnds => self.perform_stalled(),
            Event::Peer(from, to, message) => self.deliver(from, to, message),
        }
    }

    /// A broker probes for addresses before it adds them.
    fn probe(&mut self, at: usize, generation: u32, broker: u32, id: u64, call: BrokerCall) {
        let BrokerCall::Add { leases, probes, .. } = &call else { return };
        let Some(host) = self.hosts.get_mut(at) else { return };
        let frames = u64::from(*probes) * u64::try_from(leases.len()).unwrap_or(u64::MAX);
        host.frames_at = host.frames_at.max(self.now) + frames * nanoseconds(FRAME);
        let end = host.frames_at + u64::from(*probes) * nanoseconds(PROBE);
        self.at(end, Event::Probed(at, generation, broker, id, call));
    }

    /// Processes of a host that were stopped may run again, and find what came for them.
    fn resume(&mut self, at: usize) {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(at) else { return };
        let mut events = Vec::new();
        if host.node_stopped <= now {
            events.append(&mut host.node_queue);
        }
        if host.broker_stopped <= now {
            events.append(&mut host.broker_queue);
        }
        for event in events {
            self.at(now, event);
        }
    }

    /// Gives an input to a coordinator, unless it runs no more; later, if it is stopped.
    fn input(&mut self, at: usize, generation: u32, input: Input) {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(at).filter(|host| host.generation == generation) else { return };
        if host.node_stopped > now {
            host.node_queue.push(Event::Input(at, generation, input));
            return;
        }
        let Some(node) = &mut host.node else { return };
        let local = host.clock.at(now);
        let actions = node.step(local, input);
        if matches!(node.stage(), Stage::Left | Stage::Refused(_)) {
            host.wake_at = u64::MAX;
        } else {
            let wake = host.clock.instant(node.wake()).max(now + 1);
            if wake != host.wake_at || host.wake_at <= now {
                host.wake_at = wake;
                self.at(wake, Event::Wake(at));
            }
        }
        for action in actions {
            self.act(at, generation, action);
        }
    }

    fn act(&mut self, at: usize, generation: u32, action: Action) {
        match action {
            Action::Read(id) => self.request(at, generation, id, None),
            Action::Txn(id, txn) => self.request(at, generation, id, Some(txn)),
            Action::Watch(watch) => {
                if let Some(host) = self.hosts.get_mut(at) {
                    host.watch = watch;
                }
            }
            Action::AskPromise(peer, request) => {
                if let Some(to) = peer.strip_prefix('n').and_then(|number| number.parse().ok()) {
                    self.tell(at, to, &Message::Ask(request));
                }
            }
            Action::AnswerPromise(to, reply) => {
                self.tell(at, usize::try_from(to).unwrap_or_default(), &Message::Answer(reply));
            }
            Action::Broker(id, call) => {
                let delay = self.random.below(2 * MILLISECOND);
                let Some(host) = self.hosts.get_mut(at) else { return };
                host.call_at = host.call_at.max(self.now + delay) + 1;
                let (call_at, broker) = (host.call_at, host.broker_generation);
                self.at(call_at, Event::ToBroker(at, generation, broker, id, call));
            }
        }
    }

    /// Sends a message to another host. It may be lost, late or repeated.
    fn tell(&mut self, from: usize, to: usize, message: &Message) {
        if !self.hosts.get(from).is_some_and(|host| host.peers.0) || self.is_lost() {
            return;
        }
        let copies = if self.is_lost() { 2 } else { 1 };
        for _ in 0..copies {
            let delay = self.delay();
            self.at(self.now + delay, Event::Peer(from, to, message.clone()));
        }
    }

    fn deliver(&mut self, from: usize, to: usize, message: Message) {
        let Some(host) = self.hosts.get(to).filter(|host| host.is_up && host.peers.1) else { return };
        let input = match message {
            // The number with which the coordinator replies.
            Message::Ask(request) => Input::PromiseAsked(u64::try_from(from).unwrap_or_default(), request),
            Message::Answer(reply) => Input::Promised(reply),
        };
        self.input(to, host.generation, input);
    }

    fn delay(&mut self) -> u64 {
        if self.random.below(1_000) < self.setup.noise {
            return self.random.below(3_000) * MILLISECOND;
        }
        MILLISECOND / 2 + self.random.below(4 * MILLISECOND)
    }

    fn is_lost(&mut self) -> bool {
        self.random.below(1_000) < self.setup.noise
    }

    fn request(&mut self, at: usize, generation: u32, id: u64, txn: Option<Txn>) {
        let late = nanoseconds(patience::ATTEMPT);
        self.at(self.now + late, Event::Input(at, generation, Input::Engine(id, Err(NoReply))));
        let is_linked = self.hosts.get(at).is_some_and(|host| host.link.0);
        if is_linked && !self.is_lost() {
            let delay = self.delay();
            self.at(self.now + delay, Event::ToEngine(at, generation, id, txn));
        }
    }

    /// The engine performs a request.
    fn perform(&mut self, at: usize, generation: u32, id: u64, txn: Option<Txn>) {
        if !self.engine_is_up {
            return;
        }
        if self.engine_stalls_until > self.now {
            self.stalled.push((at, generation, id, txn));
            return;
        }
        let reply = match txn {
            Some(txn) => self.txn(&txn),
            None => self.store.read(),
        };
        let is_linked = self.hosts.get(at).is_some_and(|host| host.link.1);
        if is_linked && !self.is_lost() {
            let copies = if self.is_lost() { 2 } else { 1 };
            for _ in 0..copies {
                let delay = self.delay();
                let input = Input::Engine(id, Ok(reply.clone()));
                self.at(self.now + delay, Event::Input(at, generation, input));
            }
        }
    }

    fn perform_stalled(&mut self) {
        if self.engine_stalls_until <= self.now {
            for (at, generation, id, txn) in std::mem::take(&mut self.stalled) {
                self.perform(at, generation, id, txn);
            }
        }
    }

    /// The engine performs a transaction, and the nodes learn of it.
    pub fn txn(&mut self, txn: &Txn) -> Reply {
        let (reply, changed) = self.store.txn(txn);
        if changed.is_empty() {
            return reply;
        }
        self.referee.changed(self.now, &self.store, &changed);
        let all: Arc<[Arc<Entry>]> = changed.into();
        let beat = match all.first().map(|entry| &entry.key) {
            Some(Key::Beat(name)) if all.len() == 1 => Some(Arc::clone(name)),
            _ => None,
        };
        for at in 0..self.hosts.len() {
            let Some(host) = self.hosts.get(at).filter(|host| host.is_up && host.link == (true, true)) else {
                continue;
            };
            let Some(node) = &host.node else { continue };
            let is_small = self.setup.nodes <= 16;
            if beat.as_ref().is_some_and(|beat| !is_small && !node.monitored().contains(beat)) {
                continue;
            }
            let (generation, watch) = (host.generation, host.watch);
            let copies = if self.is_lost() { 2 * self.random.below(2) } else { 1 };
            for _ in 0..copies {
                let delay = self.delay();
                let input = Input::Watch(watch, Arc::clone(&all));
                self.at(self.now + delay, Event::Watch(at, generation, self.history, input));
            }
        }
        reply
    }

    /// A broker performs a call, unless it was killed since; later, if it is stopped.
    fn broker(&mut self, at: usize, generation: u32, broker: u32, id: u64, mut call: BrokerCall) {
        let (now, rules) = (self.now, self.rules);
        let late = self.random.below(nanoseconds(LATE));
        let delay = self.random.below(2 * MILLISECOND);
        let lease = self.setup.lease;
        let Some(host) = self.hosts.get_mut(at) else { return };
        if !host.broker_is_up || host.broker_generation != broker {
            return;
        }
        if host.broker_stopped > now {
            host.broker_queue.push(Event::Probed(at, generation, broker, id, call));
            return;
        }
        let local = host.clock.at(now);
        if let (false, BrokerCall::Add { until, .. } | BrokerCall::RenewAll { until }) =
            (rules.absolute_deadlines, &mut call)
        {
            *until = local.after(lease);
        }
        let (reply, wire) = host.broker.call(local, &call);
        host.reply_at = host.reply_at.max(now + delay) + 1;
        let (clock, reply_at) = (host.clock, host.reply_at);
        for change in wire {
            match change {
                Wire::Answers(address, until) => {
                    self.referee.answers(now, at, address, clock.instant(until) + late);
                }
                Wire::Stops(address) => self.referee.stops(at, address),
            }
        }
        self.at(reply_at, Event::Input(at, generation, Input::Broker(id, reply)));
    }

    // Faults and orders.

    /// Boots a host; nothing if it is up.
    pub fn start(&mut self, at: usize) {
        let (now, error) = (self.now, self.random.error(self.setup.clock_error));
        let offset = 20_000 * MILLISECOND + self.random.below(1_000_000) * MILLISECOND;
        let Some(host) = self.hosts.get_mut(at).filter(|host| !host.is_up) else { return };
        host.is_up = true;
        host.boot += 1;
        host.clock = Clock { offset, since: now, error };
        host.broker = Broker { refuses: std::mem::take(&mut host.broker.refuses), ..Broker::default() };
        (host.broker_is_up, host.node_stopped, host.broker_stopped) = (true, 0, 0);
        host.broker_generation += 1;
        self.start_coordinator(at);
    }

    /// Cuts the power of a host.
    pub fn kill(&mut self, at: usize) {
        let Some(host) = self.hosts.get_mut(at) else { return };
        (host.is_up, host.broker_is_up, host.node) = (false, false, None);
        host.generation += 1;
        for address in std::mem::take(&mut host.broker.leases).into_keys() {
            self.referee.stops(at, address);
        }
    }

    /// Starts the coordinator of a host that is up; nothing if it runs.
    pub fn start_coordinator(&mut self, at: usize) {
        self.start_coordinator_named(at, &Simulation::name(at));
    }

    fn start_coordinator_named(&mut self, at: usize, name: &str) {
        let (now, nonce) = (self.now, self.random.below(1 << 53));
        let setup = &self.setup;
        let Some(host) = self.hosts.get_mut(at).filter(|host| host.is_up && host.is_stopped()) else {
            return;
        };
        let config = Config {
            name: name.into(),
            boot: format!("boot-{at}-{}", host.boot),
            nonce,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            lease: setup.lease,
            heartbeat: setup.lease / 6,
            late: LATE,
            mature: setup.mature,
            balance_interval: Duration::from_secs(10),
            balance_set: 10,
            is_auto: setup.is_auto,
            hold: at < setup.holders,
            peer: name.to_owned(),
            declared: (0..setup.addresses).map(|n| (Setup::address(n), setup.preferred(n))).collect(),
        };
        host.node = Some(Node::with_rules(config, host.clock.at(now), self.rules));
        host.generation += 1;
        (host.node_stopped, host.is_leaving) = (0, false);
        host.node_queue.clear();
        let (generation, facts) = (host.generation, host.facts.clone());
        self.input(at, generation, Input::Facts(facts));
        if self.hosts.get(at).is_some_and(|host| host.broker_is_up) {
            self.input(at, generation, Input::BrokerUp);
        }
    }

    /// Kills the coordinator of a host.
    pub fn kill_coordinator(&mut self, at: usize) {
        if let Some(host) = self.hosts.get_mut(at) {
            host.node = None;
            host.generation += 1;
        }
    }

    /// Sends SIGTERM to the coordinator of a host.
    pub fn stop_coordinator(&mut self, at: usize) {
        if let Some(host) = self.hosts.get_mut(at).filter(|host| host.node.is_some()) {
            host.is_leaving = true;
            let generation = host.generation;
            self.input(at, generation, Input::Stop);
        }
    }

    /// Stops the coordinator of a host by SIGSTOP for a while.
    pub fn pause_coordinator(&mut self, at: usize, duration: Duration) {
        let until = self.now + nanoseconds(duration);
        if let Some(host) = self.hosts.get_mut(at) {
            host.node_stopped = until;
            self.at(until, Event::Continue(at));
        }
    }

    /// Kills the broker of a host; the kernel ends its addresses at their deadlines.
    pub fn kill_broker(&mut self, at: usize) {
        if let Some(host) = self.hosts.get_mut(at).filter(|host| host.broker_is_up) {
            host.broker_is_up = false;
            let generation = host.generation;
            self.input(at, generation, Input::BrokerDown);
        }
    }

    /// Starts the broker of a host that is up; it removes what the earlier one left.
    pub fn start_broker(&mut self, at: usize) {
        let Some(host) = self.hosts.get_mut(at).filter(|host| host.is_up && !host.broker_is_up) else {
            return;
        };
        (host.broker_is_up, host.broker_stopped) = (true, 0);
        host.broker_generation += 1;
        host.broker.epochs.clear();
        let generation = host.generation;
        for address in std::mem::take(&mut host.broker.leases).into_keys() {
            self.referee.stops(at, address);
        }
        self.input(at, generation, Input::BrokerUp);
    }

    /// Stops the broker of a host by SIGSTOP for a while.
    pub fn pause_broker(&mut self, at: usize, duration: Duration) {
        let until = self.now + nanoseconds(duration);
        if let Some(host) = self.hosts.get_mut(at) {
            host.broker_stopped = until;
            self.at(until, Event::Continue(at));
        }
    }

    /// Makes a broker refuse an address, or all that it did refuse not any more.
    pub fn refuse(&mut self, at: usize, address: Option<IpAddr>) {
        if let Some(host) = self.hosts.get_mut(at) {
            match address {
                Some(address) => host.broker.refuses.push(address),
                None => host.broker.refuses.clear(),
            }
        }
    }

    /// Sets whether a host reaches the engine, and whether the engine's replies reach the host.
    pub fn link(&mut self, at: usize, requests: bool, replies: bool) {
        let Some(host) = self.hosts.get_mut(at) else { return };
        let was_cut = host.link != (true, true);
        host.link = (requests, replies);
        if was_cut && requests && replies {
            let generation = host.generation;
            self.input(at, generation, Input::WatchLost);
        }
    }

    /// Sets whether what a host sends to other hosts arrives, and whether what they send to it does. The engine is another matter.
    pub fn peers(&mut self, at: usize, sends: bool, hears: bool) {
        if let Some(host) = self.hosts.get_mut(at) {
            host.peers = (sends, hears);
        }
    }

    /// Tells a coordinator about its host.
    pub fn facts(&mut self, at: usize, facts: Facts) {
        if let Some(host) = self.hosts.get_mut(at) {
            host.facts = facts.clone();
            let generation = host.generation;
            self.input(at, generation, Input::Facts(facts));
        }
    }

    /// Stops or starts the engine.
    pub fn engine(&mut self, is_up: bool) {
        self.engine_is_up = is_up;
    }

    /// The engine elects a leader: it performs nothing for a while, and then all that it got.
    pub fn stall(&mut self, duration: Duration) {
        self.engine_stalls_until = self.now + nanoseconds(duration);
        self.at(self.engine_stalls_until, Event::StallEnds);
    }

    /// Keeps a copy of the engine's data.
    pub fn back_up(&mut self) {
        self.backup = self.store.clone();
    }

    /// Replaces the engine's data by the copy.
    pub fn restore(&mut self) {
        self.lose_data(self.backup.clone());
    }

    /// Replaces the engine's data by nothing.
    pub fn wipe(&mut self) {
        self.lose_data(Store::default());
    }

    fn lose_data(&mut self, store: Store) {
        self.store = store;
        self.history += 1;
        self.referee.restored();
        for at in 0..self.hosts.len() {
            let generation = self.hosts.get(at).map_or(0, |host| host.generation);
            self.input(at, generation, Input::WatchLost);
        }
    }

    /// Writes or deletes an operator's key.
    pub fn order(&mut self, key: Key, value: Option<&Value>) {
        let operation = match value {
            Some(value) => Operation::Put(key, value.encode()),
            None => Operation::Delete(key),
        };
        let _ = self.txn(&Txn { success: vec![operation], ..Txn::default() }); // it compares nothing
    }

    /// Drains a node, or ends that.
    pub fn drain(&mut self, at: usize, is_drained: bool, releases: bool) {
        let order = Value::Order(Order { release: releases, ..Order::default() });
        self.order(Key::Drain(Simulation::name(at)), is_drained.then_some(&order));
    }

    /// Pins an address to a node for a while.
    pub fn pin(&mut self, address: IpAddr, at: usize, lasts: Option<Duration>) {
        let for_ms = lasts.and_then(|lasts| u64::try_from(lasts.as_millis()).ok());
        let want =
            Want { node: Simulation::name(at), by: "operator".to_owned(), for_ms, until: String::new() };
        self.order(Key::Want(address), Some(&Value::Want(want)));
    }

    /// Ends every fault and order, and starts what does not run.
    pub fn heal(&mut self) {
        self.engine_is_up = true;
        self.engine_stalls_until = self.now;
        self.perform_stalled();
        self.setup.noise = 0;
        self.order(Key::Freeze, None);
        for address in self.setup.addresses().collect::<Vec<_>>() {
            if self.store.get(&Key::Want(address)).is_some() {
                self.order(Key::Want(address), None);
            }
        }
        for at in 0..self.hosts.len() {
            if self.store.get(&Key::Drain(Simulation::name(at))).is_some() {
                self.drain(at, false, false);
            }
            self.refuse(at, None);
            self.link(at, true, true);
            self.peers(at, true, true);
            if let Some(host) = self.hosts.get_mut(at) {
                host.node_stopped = host.node_stopped.min(self.now);
                host.broker_stopped = host.broker_stopped.min(self.now);
                if host.is_leaving {
                    (host.node, host.is_leaving) = (None, false);
                }
                // Watches that lost events are opened again.
                let generation = host.generation;
                self.input(at, generation, Input::WatchLost);
            }
            // What came while a process was stopped comes before what comes now.
            self.resume(at);
            self.run_until(self.now());
            self.start(at);
            self.start_coordinator(at);
            self.start_broker(at);
            self.facts(at, Facts::default());
        }
    }

    /// The addresses for which not exactly one host answers.
    pub fn unowned(&self) -> Vec<IpAddr> {
        self.setup.addresses().filter(|address| self.referee.hosts(self.now, *address).len() != 1).collect()
    }

    /// How many addresses each host that is up answers for.
    pub fn counts(&self) -> Vec<usize> {
        let counts = self.referee.counts(self.now);
        let up = (0..).zip(&self.hosts).filter(|(_, host)| host.is_up);
        up.map(|(at, _)| counts.get(&at).copied().unwrap_or_default()).collect()
    }

    /// Reports the addresses for which not exactly one host answers, now and for longer than a move takes, in which the new
    /// broker may probe and know a higher epoch.
    pub fn expect_owned(&mut self) {
        let before = self.unowned();
        self.run_for(Duration::from_secs(2));
        let mut unowned = self.unowned();
        unowned.retain(|address| before.contains(address));
        if let Some(first) = unowned.first() {
            let text = format!("{} addresses are not on exactly one node, {first} among them", unowned.len());
            self.referee.missing(self.now, text);
        }
    }

    /// Runs for a while, in which no address may move.
    pub fn expect_quiet(&mut self, duration: Duration) {
        let before = self.referee.starts;
        self.run_for(duration);
        let moves = self.referee.starts - before;
        if moves > 0 {
            self.referee.missing(self.now, format!("{moves} addresses moved, although nothing had happened"));
        }
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
