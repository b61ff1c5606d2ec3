//! Audits: they compare the model, the broker's replies and the kernel's state.
//!
//! While the actors are paused, exactly what they hold must exist. While they are idle, everything must be as at the start.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use portreeve_protocol::address::{AddressRow, ListAddresses};
use portreeve_protocol::message::StatusRequest;
use portreeve_protocol::status::{Listener, Session as SessionRow};
use serde_json::Value;

use super::configuration::EXTRA_PORT;
use super::hostile_peer::is_address_of_hostile_peer;
use super::kernel_state::{self, Memory};
use super::model::Model;
use super::report::Snapshot;
use super::session::Session;
use super::supervisor::Supervisor;
use crate::resources::{self, Descriptors};
use crate::wait::TIMEOUT;

/// How long after the end of a lease the packet filter may admit its address. It counts in ticks of the kernel.
const FENCE_TOLERANCE: Duration = Duration::from_millis(500);
/// How long after the end of a lease the kernel may keep the address, for IPv4 and IPv6, if no broker removes it. The
/// kernel checks the lifetimes of IPv6 addresses only from time to time.
const REMOVAL_TOLERANCE: [Duration; 2] = [Duration::from_secs(3), Duration::from_secs(20)];
/// By how much a broker's memory may grow after its first idle audit, in kB.
const MAX_MEMORY_GROWTH: u64 = 16 * 1024;

/// See the module.
pub struct Auditor<'a> {
    model: &'a Model,
    user: u32,
    start: Option<Baseline>,
    first: Option<Snapshot>,
    /// A snapshot of each idle audit.
    pub snapshots: Vec<Snapshot>,
}

/// The state before the first request.
#[derive(PartialEq)]
struct Baseline {
    broker: Descriptors,
    worker: Descriptors,
    sockets: BTreeMap<&'static str, usize>,
    rules: Value,
}

/// The state according to the broker.
struct BrokerState {
    listeners: Vec<Listener>,
    sessions: Vec<SessionRow>,
    addresses: Vec<AddressRow>,
}

impl<'a> Auditor<'a> {
    /// An auditor with this user id.
    pub fn new(model: &'a Model, user: u32) -> Self {
        Self { model, user, start: None, first: None, snapshots: Vec::new() }
    }

    fn query_broker(&self) -> Option<BrokerState> {
        let mut session = Session::open(self.model, self.user).ok()?;
        let mut state = BrokerState { listeners: Vec::new(), sessions: Vec::new(), addresses: Vec::new() };
        let mut after = 0;
        loop {
            let (page, _) = session.request(self.model, &StatusRequest { after }).ok()?.ok()?;
            state.listeners.extend(page.listeners.into_vec());
            state.sessions = page.sessions.into_vec();
            after = page.next;
            if after == 0 {
                break;
            }
        }
        loop {
            let after = state.addresses.last().map(|row| row.lease.address);
            let (page, _) = session.request(self.model, &ListAddresses { after }).ok()?.ok()?;
            state.addresses.extend(page.addresses.into_vec());
            if !page.more {
                return Some(state);
            }
        }
    }

    /// Audits what the paused actors hold. The worker must be serving.
    pub fn audit_paused(&self) {
        self.model.count("audits while paused");
        self.leases();
        self.eventually("while paused", || self.listeners());
    }

    /// Repeats a check until it finds no problems. What it still finds after [`TIMEOUT`] is a violation.
    fn eventually(&self, when: &str, look: impl Fn() -> Vec<String>) {
        let end = Instant::now() + TIMEOUT;
        loop {
            let problems = look();
            if problems.is_empty() {
                return;
            }
            if Instant::now() > end {
                return problems.iter().for_each(|line| self.model.violation(format_args!("{when}: {line}")));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Compares the listeners and their owners with the broker's status and the kernel's tables.
    fn listeners(&self) -> Vec<String> {
        let Some(state) = self.query_broker() else {
            return vec!["the broker does not report its state".to_owned()];
        };
        let owner = |row: &Listener| match row.owner.strip_prefix("session ").map(str::parse::<u64>) {
            Some(Ok(number)) => {
                let session = state.sessions.iter().find(|session| session.id == number);
                session.map_or_else(|| "nobody".to_owned(), |session| session.peer.to_string())
            }
            _ => row.owner.to_string(),
        };
        let rows = state.listeners.iter();
        let rows: BTreeMap<String, (u64, String)> =
            rows.map(|row| (row.endpoint.to_string(), (row.id.0, owner(row)))).collect();
        let (held, retained) = (self.model.listeners(), self.model.retained());
        let mut problems = Vec::new();
        for (endpoint, held) in retained.required() {
            if rows.get(endpoint) != Some(&(held.id.0, format!("{}, disconnected", held.owner))) {
                problems.push(format!(
                    "{endpoint} must be retained as {held:?}, but status lists {:?}",
                    rows.get(endpoint)
                ));
            }
        }
        let unclaimed: BTreeSet<String> = match retained.may_exist() {
            true => retained_rows(&state)
                .filter(|row| row.owner.ends_with(", disconnected"))
                .map(|row| row.endpoint.to_string())
                .collect(),
            false => BTreeSet::new(),
        };
        for (endpoint, held) in &held {
            if rows.get(endpoint) != Some(&(held.id.0, held.owner.clone())) {
                problems
                    .push(format!("{endpoint} must be {held:?}, but status lists {:?}", rows.get(endpoint)));
            }
        }
        let workers =
            super::mail_clients::PORTS.iter().chain([&EXTRA_PORT]).map(|port| format!("127.0.0.1:{port}"));
        let workers: Vec<String> = workers.collect();
        let known = |endpoint: &String| {
            held.contains_key(endpoint) || workers.contains(endpoint) || unclaimed.contains(endpoint)
        };
        problems.extend(
            rows.keys()
                .filter(|one| !known(one))
                .map(|one| format!("status lists {one}, which no peer holds")),
        );
        problems.extend(
            retained_rows(&state)
                .filter(|row| !unclaimed.contains(&row.endpoint.to_string()))
                .map(|row| format!("not adopted: {row:?}")),
        );
        problems.extend(compare_with_kernel(&rows));
        problems
    }

    /// Compares the addresses with the leases. Leases expire meanwhile, so this is checked once and not repeated.
    fn leases(&self) {
        let known = self.model.addresses().clone();
        let begin = Instant::now();
        let mut elements: Vec<(String, IpAddr)> = kernel_state::elements(&kernel_state::rules());
        let mut present = kernel_state::addresses();
        elements.retain(|(_, address)| !is_address_of_hostile_peer(address));
        present.retain(|address| !is_address_of_hostile_peer(address));
        let state = self.query_broker();
        let now = Instant::now();
        let is_late = |address: &IpAddr, late: Duration| {
            known.get(address).is_none_or(|one| one.latest_end.is_some_and(|until| begin > until + late))
        };
        for (set, address) in elements
            .iter()
            .filter(|(set, address)| set.starts_with("allowed") && is_late(address, FENCE_TOLERANCE))
        {
            self.model.violation(format_args!(
                "{address} is in set {set} after its lease: {:?}",
                known.get(address)
            ));
        }
        for address in
            present.iter().filter(|one| is_late(one, REMOVAL_TOLERANCE[usize::from(one.is_ipv6())]))
        {
            self.model
                .violation(format_args!("the host has {address} after its lease: {:?}", known.get(address)));
        }
        for (address, one) in
            known.iter().filter(|(_, one)| one.earliest_end.is_some_and(|until| until > now))
        {
            let row =
                state.iter().flat_map(|state| &state.addresses).find(|row| row.lease.address == *address);
            let is_listed = row.is_some_and(|row| *row.holder == *one.holder);
            let allowed =
                elements.iter().any(|(set, element)| set.starts_with("allowed") && element == address);
            if !present.contains(address) || !is_listed || !allowed {
                let on_interface = present.contains(address);
                self.model.violation(format_args!(
                    "{address}: {one:?}; on its interface: {on_interface}, admitted: {allowed}, in the broker's list: {row:?}"
                ));
            }
        }
    }

    /// Audits while all actors are idle. The worker must be serving. The first audit gives the baseline of the others.
    pub fn audit_idle(&mut self, supervisor: &Supervisor<'_>) {
        self.model.count("idle audits");
        let [_, _, broker, _, worker, _] = supervisor.expected_processes();
        if let Some(start) = &self.start {
            self.eventually("while idle", || self.differences(start, supervisor));
        } else {
            // Earlier connections may still be closing.
            self.start = Some(settled(|| Baseline {
                broker: kernel_state::descriptors(broker),
                worker: kernel_state::descriptors(worker),
                sockets: kernel_state::sockets(),
                rules: kernel_state::rules(),
            }));
        }
        let snapshot = Snapshot {
            at: self.model.age().as_secs_f64(),
            broker,
            descriptors: [broker, worker].map(|pid| kernel_state::descriptors(pid).0.len()),
            memory: Memory::of(broker),
            sockets: kernel_state::sockets(),
            addresses: kernel_state::addresses().len(),
            elements: kernel_state::elements(&kernel_state::rules()).len(),
            processes: kernel_state::processes().len(),
        };
        match &self.first {
            Some(first) if first.broker == broker => {
                let [before, now] = [first, &snapshot].map(|one| one.memory.resident);
                if now > before + MAX_MEMORY_GROWTH {
                    self.model.violation(format_args!(
                        "the idle broker's memory grew from {before} kB to {now} kB"
                    ));
                }
            }
            _ => self.first = Some(snapshot.clone()),
        }
        self.snapshots.push(snapshot);
    }

    fn differences(&self, start: &Baseline, supervisor: &Supervisor<'_>) -> Vec<String> {
        let family = supervisor.expected_processes();
        let [_, _, broker, _, worker, _] = family;
        let mut problems = Vec::new();
        // Checked before the auditor connects: the broker may not have noticed yet that an earlier session has ended.
        for (who, pid, before) in [("broker", broker, &start.broker), ("worker", worker, &start.worker)] {
            let more = kernel_state::descriptors(pid).not_in(before);
            if !more.is_empty() {
                problems
                    .push(format!("the {who} has descriptors that it did not have at the start: {more:?}"));
            }
        }
        for (kind, count) in kernel_state::sockets() {
            if count > start.sockets[kind] {
                problems.push(format!(
                    "there are {count} {kind} sockets, and were {} at the start: {:?}",
                    start.sockets[kind],
                    kernel_state::list_sockets(kind)
                ));
            }
        }
        problems.extend(self.listeners());
        if let Some(state) = self.query_broker().filter(|state| !state.addresses.is_empty()) {
            problems.push(format!("the broker still has addresses: {:?}", state.addresses));
        }
        let family = BTreeSet::from(family);
        let strangers = kernel_state::processes()
            .difference(&family)
            .map(|pid| kernel_state::name(*pid))
            .collect::<Vec<_>>();
        if !strangers.is_empty() {
            problems.push(format!("unexpected processes: {strangers:?}"));
        }
        for (what, now, before) in [
            ("addresses", format!("{:?}", kernel_state::addresses()), "{}".to_owned()),
            (
                "elements",
                format!("{:?}", kernel_state::elements(&kernel_state::rules())),
                format!("{:?}", kernel_state::elements(&start.rules)),
            ),
        ] {
            if now != before {
                problems.push(format!("{what}: now {now}, at the start {before}"));
            }
        }
        problems
    }
}

fn retained_rows(state: &BrokerState) -> impl Iterator<Item = &Listener> {
    state.listeners.iter().filter(|row| row.retained)
}

/// Reads until several reads in a row agree.
fn settled<T: PartialEq>(read: impl Fn() -> T) -> T {
    let (mut last, mut same) = (read(), 0);
    while same < 5 {
        std::thread::sleep(Duration::from_millis(100));
        let now = read();
        same = if now == last { same + 1 } else { 0 };
        last = now;
    }
    last
}

/// Compares the listening sockets in the kernel's tables with the broker's status.
fn compare_with_kernel(rows: &BTreeMap<String, (u64, String)>) -> Vec<String> {
    let (udp, tcp): (Vec<&String>, Vec<&String>) =
        rows.keys().partition(|endpoint| endpoint.ends_with("/udp"));
    let state: BTreeSet<SocketAddr> = tcp.iter().filter_map(|endpoint| endpoint.parse().ok()).collect();
    let found: BTreeSet<SocketAddr> = resources::tcp_listeners().into_iter().collect();
    let mut problems = Vec::new();
    if state != found {
        let [more, fewer] = [&found - &state, &state - &found];
        problems
            .push(format!("listening but not in status: {more:?}; in status but not listening: {fewer:?}"));
    }
    let bound = kernel_state::sockets()["udp"];
    if bound != udp.len() {
        problems.push(format!("there are {bound} UDP sockets, and status lists {}", udp.len()));
    }
    problems
}
