//! Every run of a small cluster with a few faults, at every place where they can happen.
//!
//! Time goes from one instant at which something happens to the next. Each request to the engine has one of four
//! outcomes; all but the first cost one of the faults that a run may have, and so does a process that stops.

use std::time::Duration;

use stateright::{Checker, HasDiscoveries, Model, Property};

use super::host::{Broker, Clock, Wire};
use super::referee::Referee;
use super::{LATE, Setup, nanoseconds};
use crate::core::decide::{Action, BrokerCall, Config, Input, Node};
use crate::core::patience::ATTEMPT;
use crate::core::rules::Rules;
use crate::core::txn::{NoReply, Reply, Txn};
use crate::engine::memory::Store;

const SECOND: u64 = 1_000_000_000;
const LEASE: Duration = Duration::from_secs(6);
/// How long after the last fault may have begun the run ends, and each address must have a host: the fault lasts 9 s, and a node that
/// loses its session then waits twice for D before it claims anything.
const RECOVERY: u64 = 40 * SECOND;

struct Cluster {
    hosts: usize,
    addresses: usize,
    faults: usize,
    /// How long the faults may begin, after the cluster has formed.
    horizon: u64,
    rules: Rules,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Host {
    clock: Clock,
    node: Node,
    broker: Broker,
    node_stopped: u64,
    broker_stopped: u64,
    inputs: Vec<Input>,
    calls: Vec<(u64, BrokerCall)>,
}

/// A request to the engine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Request {
    host: usize,
    id: u64,
    txn: Option<Txn>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    now: u64,
    end: u64,
    hosts: Vec<Host>,
    store: Store,
    /// Requests whose outcome is to be chosen.
    pending: Vec<Request>,
    /// Requests without a reply, and when the coordinator gives up.
    silent: Vec<(u64, usize, u64)>,
    /// Requests that the engine may still perform.
    late: Vec<Request>,
    faults: usize,
    absolute_deadlines: bool,
    referee: Referee,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    /// What comes of the first pending request.
    Replies,
    LosesReply,
    LosesRequest,
    Delays,
    /// A delayed request reaches the engine.
    PerformsLate(usize),
    /// Time goes on.
    Advances,
    StopsCoordinator(usize, u64),
    StopsBroker(usize, u64),
    RestartsCoordinator(usize),
}

impl Cluster {
    fn config(&self, host: usize, nonce: u64) -> Config {
        Config {
            name: format!("n{host}").into(),
            boot: format!("boot-{host}"),
            nonce,
            version: String::new(),
            lease: LEASE,
            // The slowest one allowed makes for the fewest steps.
            heartbeat: LEASE / 3,
            late: LATE,
            mature: Duration::ZERO,
            balance_interval: Duration::from_secs(10),
            balance_set: 10,
            is_auto: true,
            hold: false,
            peer: String::new(),
            declared: (0..self.addresses).map(|number| (Setup::address(number), None)).collect(),
        }
    }

    /// A cluster that has formed without faults. Each clock is as fast or as slow as it may be.
    fn formed(&self, fast: usize) -> World {
        let host = |host: usize| {
            let error = if fast & (1 << host) == 0 { -5_000 } else { 5_000 };
            let clock = Clock { offset: 100 * SECOND, since: 0, error };
            Host {
                clock,
                node: Node::with_rules(self.config(host, 1_000), clock.at(0), self.rules),
                broker: Broker::default(),
                node_stopped: 0,
                broker_stopped: 0,
                inputs: Vec::new(),
                calls: Vec::new(),
            }
        };
        let mut world = World {
            now: 0,
            end: u64::MAX,
            hosts: (0..self.hosts).map(host).collect(),
            store: Store::default(),
            pending: Vec::new(),
            silent: Vec::new(),
            late: Vec::new(),
            faults: 0,
            absolute_deadlines: self.rules.absolute_deadlines,
            referee: Referee::default(),
        };
        (0..self.hosts).for_each(|host| world.input(host, Input::BrokerUp));
        while world.now < 12 * SECOND || !world.pending.is_empty() {
            world.step(self, if world.pending.is_empty() { Step::Advances } else { Step::Replies });
        }
        assert_eq!(world.referee.starts, u64::try_from(self.addresses).unwrap(), "{world:?}");
        (world.end, world.faults) = (world.now + self.horizon, self.faults);
        world
    }
}

impl World {
    fn input(&mut self, at: usize, input: Input) {
        let host = &mut self.hosts[at];
        if host.node_stopped > self.now {
            host.inputs.push(input);
            return;
        }
        for action in host.node.step(host.clock.at(self.now), input) {
            match action {
                Action::Read(id) => self.pending.push(Request { host: at, id, txn: None }),
                Action::Txn(id, txn) => self.pending.push(Request { host: at, id, txn: Some(txn) }),
                Action::Watch(_) | Action::AskPromise(..) | Action::AnswerPromise(..) => {}
                Action::Broker(id, call) => self.call(at, id, call),
            }
        }
    }

    fn call(&mut self, at: usize, id: u64, mut call: BrokerCall) {
        let now = self.now;
        let host = &mut self.hosts[at];
        if host.broker_stopped > now {
            host.calls.push((id, call));
            return;
        }
        let local = host.clock.at(now);
        if let (false, BrokerCall::Add { until, .. } | BrokerCall::RenewAll { until }) =
            (self.absolute_deadlines, &mut call)
        {
            *until = local.after(LEASE);
        }
        let (reply, wire) = host.broker.call(local, &call);
        let clock = host.clock;
        for change in wire {
            match change {
                Wire::Answers(address, until) => {
                    self.referee.answers(now, at, address, clock.instant(until) + nanoseconds(LATE));
                }
                Wire::Stops(address) => self.referee.stops(at, address),
            }
        }
        self.input(at, Input::Broker(id, reply));
    }

    fn perform(&mut self, txn: Option<&Txn>) -> Reply {
        let Some(txn) = txn else { return self.store.read() };
        let (reply, changed) = self.store.txn(txn);
        if !changed.is_empty() {
            self.referee.changed(self.now, &self.store, &changed);
            let input = Input::Watch(0, changed.into());
            (0..self.hosts.len()).for_each(|host| self.input(host, input.clone()));
        }
        reply
    }

    /// The next instant at which something happens by itself.
    fn next(&self) -> u64 {
        let of_host = |host: &Host| {
            let wake = host.clock.instant(host.node.wake()).max(self.now + 1);
            let wake = wake.max(host.node_stopped);
            if host.broker_stopped > self.now { wake.min(host.broker_stopped) } else { wake }
        };
        let silent = self.silent.iter().map(|(at, ..)| *at);
        self.hosts.iter().map(of_host).chain(silent).min().unwrap()
    }

    fn advance(&mut self) {
        self.now = self.next();
        let now = self.now;
        for at in 0..self.hosts.len() {
            if self.hosts[at].broker_stopped <= now {
                for (id, call) in std::mem::take(&mut self.hosts[at].calls) {
                    self.call(at, id, call);
                }
            }
            if self.hosts[at].node_stopped <= now {
                for input in std::mem::take(&mut self.hosts[at].inputs) {
                    self.input(at, input);
                }
            }
        }
        let (due, rest) = std::mem::take(&mut self.silent).into_iter().partition(|(at, ..)| *at <= now);
        self.silent = rest;
        let due: Vec<(u64, usize, u64)> = due;
        for (_, host, id) in due {
            self.input(host, Input::Engine(id, Err(NoReply)));
        }
        for at in 0..self.hosts.len() {
            let host = &self.hosts[at];
            if host.node_stopped <= now && host.clock.instant(host.node.wake()) <= now {
                self.input(at, Input::Time);
            }
        }
    }

    fn step(&mut self, cluster: &Cluster, step: Step) {
        let costs = !matches!(step, Step::Replies | Step::PerformsLate(_) | Step::Advances);
        self.faults -= usize::from(costs);
        match step {
            Step::Replies | Step::LosesReply | Step::LosesRequest | Step::Delays => {
                let request = self.pending.remove(0);
                if step == Step::Replies {
                    let reply = self.perform(request.txn.as_ref());
                    self.input(request.host, Input::Engine(request.id, Ok(reply)));
                    return;
                }
                self.silent.push((self.now + nanoseconds(ATTEMPT), request.host, request.id));
                match step {
                    Step::LosesReply => drop(self.perform(request.txn.as_ref())),
                    Step::Delays => self.late.push(request),
                    _ => {}
                }
            }
            Step::PerformsLate(number) => {
                let request = self.late.remove(number);
                self.perform(request.txn.as_ref());
            }
            Step::Advances => self.advance(),
            Step::StopsCoordinator(host, duration) => self.hosts[host].node_stopped = self.now + duration,
            Step::StopsBroker(host, duration) => self.hosts[host].broker_stopped = self.now + duration,
            Step::RestartsCoordinator(at) => {
                let nonce = 2_000 + self.now;
                let host = &mut self.hosts[at];
                host.node =
                    Node::with_rules(cluster.config(at, nonce), host.clock.at(self.now), cluster.rules);
                host.inputs.clear();
                self.silent.retain(|(_, host, _)| *host != at);
                self.input(at, Input::BrokerUp);
            }
        }
    }
}

impl Model for Cluster {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        (0..1 << self.hosts).map(|fast| self.formed(fast)).collect()
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        if !world.referee.violations.is_empty() || world.now > world.end + RECOVERY {
            return;
        }
        let may_fail = world.faults > 0 && world.now < world.end;
        if let Some(request) = world.pending.first() {
            steps.push(Step::Replies);
            // The fate of a mere read makes no difference that a lost reply does not make.
            if may_fail {
                steps.push(Step::LosesRequest);
                if request.txn.is_some() {
                    steps.extend([Step::LosesReply, Step::Delays]);
                }
            }
            return;
        }
        steps.push(Step::Advances);
        steps.extend((0..world.late.len()).map(Step::PerformsLate));
        if may_fail {
            for host in 0..self.hosts {
                for duration in [2 * SECOND, 9 * SECOND] {
                    steps.extend([Step::StopsCoordinator(host, duration), Step::StopsBroker(host, duration)]);
                }
                steps.push(Step::RestartsCoordinator(host));
            }
        }
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let mut next = world.clone();
        next.step(self, step);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("one node at a time", |_: &Cluster, world: &World| {
                world.referee.violations.is_empty()
            }),
            Property::always("each address has a host at the end", |cluster: &Cluster, world: &World| {
                let is_owned = |number| world.referee.hosts(world.now, Setup::address(number)).len() == 1;
                world.now <= world.end + RECOVERY || (0..cluster.addresses).all(is_owned)
            }),
            Property::sometimes("an address moves", |cluster: &Cluster, world: &World| {
                world.referee.starts > u64::try_from(cluster.addresses).unwrap()
            }),
        ]
    }
}

/// Explores a cluster, and returns how many states it has.
fn explore(cluster: Cluster) -> usize {
    let checker = cluster.checker().threads(2).spawn_dfs().join();
    for promise in ["one node at a time", "each address has a host at the end"] {
        let violation = checker
            .discovery(promise)
            .map(|path| (path.last_state().referee.violations.clone(), path.into_actions()));
        assert_eq!(violation, None, "{promise}");
    }
    assert!(checker.discovery("an address moves").is_some());
    checker.unique_state_count()
}

fn explore_all(clusters: &[(usize, usize, usize, u64)]) {
    for (hosts, addresses, faults, seconds) in clusters.iter().copied() {
        let horizon = seconds * SECOND;
        let states = explore(Cluster { hosts, addresses, faults, horizon, rules: Rules::default() });
        println!("{hosts} nodes, {addresses} addresses, {faults} faults in {seconds} s: {states} states");
    }
}

#[test]
fn every_run_of_a_small_cluster_with_few_faults_is_safe_and_recovers() {
    explore_all(&[(2, 1, 2, 4), (3, 2, 1, 4)]);
}

#[test]
#[ignore = "takes minutes"]
fn every_run_of_a_small_cluster_with_more_faults_is_safe_and_recovers() {
    explore_all(&[(2, 1, 2, 8), (3, 2, 1, 8), (2, 1, 3, 2), (3, 2, 2, 2)]);
}

#[test]
fn the_exploration_finds_the_overlap_of_a_cluster_without_a_rule() {
    for rules in [
        Rules { full_patience: false, ..Rules::default() },
        Rules { absolute_deadlines: false, ..Rules::default() },
    ] {
        let cluster = Cluster { hosts: 2, addresses: 1, faults: 2, horizon: 4 * SECOND, rules };
        let checker =
            cluster.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_dfs().join();
        assert!(checker.discovery("one node at a time").is_some(), "{rules:?}");
    }
}
