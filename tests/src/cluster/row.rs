//! One cluster under faults, with everything that the referee needs recorded from the beginning.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::fault::{Expected, Fault};
use super::fence::Fences;
use super::gateway::Gateway;
use super::history::{self, History};
use super::referee::{self, Change, SILENCE, longest_silence, runs};
use super::wire::Wire;
use super::{Cluster, FOLLOWER, NODES, Settings, addresses, mac_of};
use crate::neighbour::{MacAddress, Neighbour};
use crate::{Host, eventually};

/// How long one host must have answered for each address for the cluster to be up.
const CALM: Duration = Duration::from_millis(500);
/// How much longer than the patience of the others a failover may take: requests to the engine and the brokers, and probes,
/// which take 0.6 s for IPv4 addresses, and up to 2 s for IPv6 addresses: the kernel's duplicate address detection.
const REACTION: Duration = Duration::from_millis(3_000);
/// How long a handover may take.
const HANDOVER: Duration = Duration::from_millis(2_500);
/// A machine that is this busy may not run a cluster with a short lease in time.
const STALL: Duration = Duration::from_millis(100);
/// How often a fault is tried on such a machine.
const ATTEMPTS: usize = 3;
/// How long the cluster may take to settle after a fault, beyond the patience.
const SETTLING: Duration = Duration::from_secs(3);

/// A cluster, and what is recorded of it.
pub struct Bench {
    /// The cluster.
    pub cluster: Cluster,
    /// What it answers.
    pub wire: Wire,
    origin: Instant,
    history: Option<History>,
    /// The history of engines that lost it.
    past: Vec<Vec<Change>>,
    fences: Fences,
}

/// What a fault led to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The name of the fault.
    pub fault: &'static str,
    /// When it began.
    pub began: Duration,
    /// How long it took until the last of the victim's IPv4 addresses answered on another host, if they moved.
    pub moved_in: Option<Duration>,
    /// The same of its IPv6 addresses, if it had any.
    pub ipv6_moved_in: Option<Duration>,
    /// The longest time without an answer for one of them.
    pub silence: Duration,
    /// The longest time for which the machine was too busy to ask.
    pub stalled: Duration,
    /// What should not have happened.
    pub violations: Vec<String>,
}

impl Outcome {
    /// As JSON, with times in seconds.
    pub fn to_json(&self) -> Value {
        json!({
            "fault": self.fault,
            "began": self.began.as_secs_f64(),
            "moved_in": self.moved_in.map(|time| time.as_secs_f64()),
            "ipv6_moved_in": self.ipv6_moved_in.map(|time| time.as_secs_f64()),
            "silence": self.silence.as_secs_f64(),
            "stalled": self.stalled.as_secs_f64(),
            "violations": self.violations,
        })
    }
}

impl Bench {
    /// Starts a cluster, and returns when one host answers for each address.
    #[track_caller]
    pub fn start(host: &Host, settings: Settings) -> Self {
        let mut cluster = Cluster::prepare(host, settings);
        let origin = Instant::now();
        let wire = Wire::watch(Neighbour::number(NODES.len()), addresses(), origin);
        let (history, fences) = (Some(History::record(origin)), Fences::record(origin));
        cluster.start_coordinators();
        let bench = Self { cluster, wire, origin, history, past: Vec::new(), fences };
        bench.await_answers();
        bench
    }

    /// The time since the recording began.
    pub fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    /// Waits until one host answers for each address.
    #[track_caller]
    pub fn await_answers(&self) {
        let begin = self.now();
        eventually("one host to answer for each address", || {
            let from = self.now().checked_sub(CALM).filter(|from| *from >= begin)?;
            let answers = self.wire.answers_since(from);
            referee::unsettled(&answers, &addresses(), from, from + CALM).is_empty().then_some(())
        });
        println!("{:.3} s: one host answers for each address", self.now().as_secs_f64());
    }

    /// The node that answers for an address.
    #[track_caller]
    pub fn holder(&self, address: IpAddr) -> usize {
        eventually("an answer", || {
            let answers = self.wire.answers_since(self.now().saturating_sub(CALM));
            let last = answers.iter().rev().find(|answer| answer.address == address)?;
            (0..NODES.len()).find(|node| mac_of(*node) == last.mac)
        })
    }

    /// Begins the fault on the node that holds the first address, ends it, and observes the cluster for `quiet` once it has had
    /// time to settle. If that led to something else than it must, and the machine was too busy to run the cluster, all
    /// of it is repeated. What the referee has against the cluster is never excused so: see [`Bench::judge`].
    #[track_caller]
    pub fn run(&mut self, fault: &'static Fault, quiet: Duration) -> Outcome {
        for _ in 1..ATTEMPTS {
            let outcome = self.run_once(fault, quiet);
            if outcome.violations.is_empty() || outcome.stalled < STALL {
                return outcome;
            }
            println!("the machine stalled for {:?}: again", outcome.stalled);
            self.await_answers();
        }
        self.run_once(fault, quiet)
    }

    #[track_caller]
    fn run_once(&mut self, fault: &'static Fault, quiet: Duration) -> Outcome {
        self.wire.take_longest_pause();
        let victim = self.holder(addresses()[0]);
        let mine: Vec<IpAddr> =
            addresses().into_iter().filter(|address| self.holder(*address) == victim).collect();
        let mut violations = Vec::new();
        let began = self.now();
        println!("{:.3} s: {}: {}, at {}", began.as_secs_f64(), fault.name, fault.what, NODES[victim]);
        (fault.begin)(&mut self.cluster, victim);
        let limit = match fault.expected {
            Expected::Handover => HANDOVER,
            _ => self.cluster.settings.patience() + REACTION,
        };
        let [moved_in, ipv6_moved_in] = match fault.lasts.time(&self.cluster.settings) {
            Some(time) => {
                std::thread::sleep(time);
                [None; 2]
            }
            None => {
                let moved = self.await_move(victim, &mine, began, limit + REACTION);
                if moved.is_none_or(|times| times.into_iter().flatten().any(|time| time > limit)) {
                    violations.push(format!("the addresses moved in {moved:?}, not within {limit:?}"));
                }
                moved.unwrap_or_default()
            }
        };
        println!("{:.3} s: it ends", self.now().as_secs_f64());
        if fault.expected == Expected::Recovery {
            // The engine may begin again with revision 1.
            self.past.extend(self.history.take().map(|history| history.changes()));
        }
        (fault.end)(&mut self.cluster, victim);
        if self.history.is_none() {
            self.history = Some(History::record(self.origin));
        }
        let healed = self.now();
        let patience = self.cluster.settings.patience();
        let settled = healed
            + match fault.expected {
                Expected::Nothing => Duration::ZERO,
                // A node that lost its session claims nothing for the patience of the others.
                Expected::Recovery => 2 * patience + SETTLING,
                _ => patience + SETTLING,
            };
        let end = settled + quiet;
        std::thread::sleep(end.saturating_sub(self.now()));
        let answers = self.wire.answers_since(began.saturating_sub(CALM));
        violations.extend(referee::unsettled(&answers, &addresses(), settled, end));
        let mut silence = Duration::ZERO;
        for address in addresses() {
            let runs = runs(&answers, address);
            if matches!(fault.expected, Expected::Nothing | Expected::Outage) && runs.len() > 1 {
                violations.push(format!("{address} moved: {}", describe(&runs)));
            }
            if mine.contains(&address) || fault.expected != Expected::Failover {
                let of_address: Vec<_> =
                    answers.iter().filter(|answer| answer.address == address).copied().collect();
                let longest = longest_silence(&of_address, began, settled);
                silence = silence.max(longest.map_or(Duration::ZERO, |(begin, end)| end - begin));
            }
        }
        if fault.expected == Expected::Nothing && silence > SILENCE {
            violations.push(format!("nobody answered for {:.3} s", silence.as_secs_f64()));
        }
        if fault.expected == Expected::Outage && silence < SILENCE {
            violations.push("no address became silent although the engine was out".to_owned());
        }
        let coordinators = self.cluster.hosts.iter_mut().filter_map(|host| host.coordinator.as_mut());
        violations.extend(coordinators.filter_map(super::host::Coordinator::ended));
        let stalled = self.wire.take_longest_pause();
        println!(
            "{:.3} s: settled; moved in {moved_in:?} {ipv6_moved_in:?}, silent for {silence:?}, stalled for {stalled:?}, {violations:?}",
            self.now().as_secs_f64()
        );
        Outcome { fault: fault.name, began, moved_in, ipv6_moved_in, silence, stalled, violations }
    }

    /// Waits until other hosts answer for all these addresses, and returns how long that took for IPv4 and for IPv6.
    fn await_move(
        &self,
        victim: usize,
        mine: &[IpAddr],
        began: Duration,
        limit: Duration,
    ) -> Option<[Option<Duration>; 2]> {
        loop {
            let answers = self.wire.answers_since(began);
            let first = |address: &IpAddr| {
                let elsewhere =
                    |answer: &&referee::Answer| answer.address == *address && answer.mac != mac_of(victim);
                answers.iter().find(elsewhere).map(|answer| answer.at - began)
            };
            let moved: Vec<(bool, Duration)> =
                mine.iter().filter_map(|address| Some((address.is_ipv6(), first(address)?))).collect();
            if moved.len() == mine.len() {
                let latest = |is_ipv6: bool| {
                    moved.iter().filter(|(of, _)| *of == is_ipv6).map(|(_, time)| *time).max()
                };
                return Some([latest(false), latest(true)]);
            }
            if self.now() > began + limit {
                return None;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What the referee has against the whole time since the start.
    pub fn judge(&self) -> Vec<String> {
        let (answers, samples) = (self.wire.answers(), self.fences.samples());
        // The beats on which the last samples are based may be reported a little later.
        std::thread::sleep(CALM);
        let current = self.history.as_ref().map(History::changes).unwrap_or_default();
        let watched: Vec<Change> = self.past.iter().flatten().chain(&current).cloned().collect();
        let mut violations = referee::shared(&answers);
        let leader_of = |address: IpAddr| match address.to_string() == FOLLOWER.0 {
            true => FOLLOWER.1.parse().unwrap(),
            false => address,
        };
        let read = NODES.iter().find_map(|host| history::read(Gateway::of(host)).ok());
        let Some(read) = read else {
            violations.push("no member of the engine answers".to_owned());
            return violations;
        };
        let all: Vec<Change> = self.past.iter().flatten().chain(&read).cloned().collect();
        violations.extend(referee::unclaimed(&answers, &all, leader_of));
        for changes in self.past.iter().chain([&read]) {
            violations.extend(referee::history(changes));
        }
        // With hold, addresses may outlive the last beat.
        if self.cluster.settings.on_engine_loss == "release" {
            violations.extend(referee::outlived(&samples, &watched, self.cluster.settings.lease()));
        }
        println!("{} answers, {} readings of fences, {} changes", answers.len(), samples.len(), all.len());
        violations
    }

    /// Judges, and fails the test if there is a violation.
    #[track_caller]
    pub fn assert_good(&self, outcomes: &[Outcome]) {
        let mut violations = self.judge();
        for outcome in outcomes {
            violations.extend(outcome.violations.iter().map(|text| format!("{}: {text}", outcome.fault)));
        }
        assert!(violations.is_empty(), "{violations:#?}");
    }
}

fn describe(runs: &[(MacAddress, Duration, Duration)]) -> String {
    let run = |(mac, from, to): &(MacAddress, Duration, Duration)| {
        format!("{} from {:.3} to {:.3} s", super::name_of(*mac), from.as_secs_f64(), to.as_secs_f64())
    };
    runs.iter().map(run).collect::<Vec<_>>().join(", ")
}
