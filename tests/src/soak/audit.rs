//! The audit: what the ledger says against what the broker says against what the kernel says.
//!
//! Frozen, everything that is held has to be there and nothing else. Calm, everything has to be as it was at the start.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use portreeve_protocol::address::{AddressRow, ListAddresses};
use portreeve_protocol::message::StatusRequest;
use portreeve_protocol::status::{Listener, Session as SessionRow};
use serde_json::Value;

use super::configuration::EXTRA;
use super::figures::Snapshot;
use super::ledger::Ledger;
use super::session::Session;
use super::supervisor::Supervisor;
use super::tables::{self, Memory};
use crate::resources::{self, Descriptors};
use crate::wait::TIMEOUT;

/// How long after its lease the packet filter may let an address through: it counts in ticks of the kernel.
const FENCE: Duration = Duration::from_millis(500);
/// How long after its lease the kernel may leave an address where no broker removes it: its own work on IPv6 addresses
/// comes seldom.
const KERNEL: [Duration; 2] = [Duration::from_secs(3), Duration::from_secs(20)];
/// How much more memory than at its first rest a broker may have at a later one, in kB.
const GROWTH: u64 = 16 * 1024;

/// The auditor.
pub struct Auditor<'a> {
    ledger: &'a Ledger,
    user: u32,
    start: Option<Start>,
    first: Option<Snapshot>,
    /// Every rest.
    pub snapshots: Vec<Snapshot>,
}

/// How things were before anybody asked for anything.
#[derive(PartialEq)]
struct Start {
    broker: Descriptors,
    worker: Descriptors,
    sockets: BTreeMap<&'static str, usize>,
    rules: Value,
}

/// What the broker says.
struct Told {
    listeners: Vec<Listener>,
    sessions: Vec<SessionRow>,
    addresses: Vec<AddressRow>,
}

impl<'a> Auditor<'a> {
    /// One that asks as this user.
    pub fn new(ledger: &'a Ledger, user: u32) -> Self {
        Self { ledger, user, start: None, first: None, snapshots: Vec::new() }
    }

    fn request(&self) -> Option<Told> {
        let mut session = Session::open(self.ledger, self.user).ok()?;
        let mut told = Told { listeners: Vec::new(), sessions: Vec::new(), addresses: Vec::new() };
        let mut after = 0;
        loop {
            let (page, _) = session.request(self.ledger, &StatusRequest { after }).ok()?.ok()?;
            told.listeners.extend(page.listeners.into_vec());
            told.sessions = page.sessions.into_vec();
            after = page.next;
            if after == 0 {
                break;
            }
        }
        loop {
            let after = told.addresses.last().map(|row| row.lease.address);
            let (page, _) = session.request(self.ledger, &ListAddresses { after }).ok()?.ok()?;
            told.addresses.extend(page.addresses.into_vec());
            if !page.more {
                return Some(told);
            }
        }
    }

    /// With everyone standing still. The worker serves.
    pub fn frozen(&self) {
        self.ledger.count("audits of what is held");
        self.leases();
        self.eventually("held", || self.listeners());
    }

    /// Looks until nothing is otherwise than it should be; what still is after a while is a violation.
    fn eventually(&self, when: &str, look: impl Fn() -> Vec<String>) {
        let end = Instant::now() + TIMEOUT;
        loop {
            let wrong = look();
            if wrong.is_empty() {
                return;
            }
            if Instant::now() > end {
                return wrong.iter().for_each(|line| self.ledger.violation(format_args!("{when}: {line}")));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Who holds which listener, by the broker and by the kernel.
    fn listeners(&self) -> Vec<String> {
        let Some(told) = self.request() else { return vec!["the broker does not tell its state".to_owned()] };
        let owner = |row: &Listener| match row.owner.strip_prefix("session ").map(str::parse::<u64>) {
            Some(Ok(number)) => {
                let session = told.sessions.iter().find(|session| session.id == number);
                session.map_or_else(|| "nobody".to_owned(), |session| session.peer.to_string())
            }
            _ => row.owner.to_string(),
        };
        let rows = told.listeners.iter();
        let rows: BTreeMap<String, (u64, String)> =
            rows.map(|row| (row.endpoint.to_string(), (row.id.0, owner(row)))).collect();
        let (held, kept) = (self.ledger.listeners(), self.ledger.kept());
        let mut wrong = Vec::new();
        for (endpoint, held) in kept.certain() {
            if rows.get(endpoint) != Some(&(held.id.0, format!("{}, gone", held.owner))) {
                wrong.push(format!("{endpoint} is kept, {held:?}, and status has {:?}", rows.get(endpoint)));
            }
        }
        let left: BTreeSet<String> = match kept.is_possible() {
            true => retained(&told)
                .filter(|row| row.owner.ends_with(", gone"))
                .map(|row| row.endpoint.to_string())
                .collect(),
            false => BTreeSet::new(),
        };
        for (endpoint, held) in &held {
            if rows.get(endpoint) != Some(&(held.id.0, held.owner.clone())) {
                wrong.push(format!("{endpoint} is {held:?} and status has {:?}", rows.get(endpoint)));
            }
        }
        let workers = super::clients::SERVED.iter().chain([&EXTRA]).map(|port| format!("127.0.0.1:{port}"));
        let workers: Vec<String> = workers.collect();
        let known = |endpoint: &String| {
            held.contains_key(endpoint) || workers.contains(endpoint) || left.contains(endpoint)
        };
        wrong.extend(
            rows.keys().filter(|one| !known(one)).map(|one| format!("status has {one}, which nobody holds")),
        );
        wrong.extend(
            retained(&told)
                .filter(|row| !left.contains(&row.endpoint.to_string()))
                .map(|row| format!("{row:?} is not adopted")),
        );
        wrong.extend(kernel(&rows));
        wrong
    }

    /// Which addresses are there, against who was granted what until when. Time runs on, so this is looked at once.
    fn leases(&self) {
        let known = self.ledger.addresses().clone();
        let begin = Instant::now();
        let elements: Vec<(String, IpAddr)> = tables::elements(&tables::rules());
        let present = tables::addresses();
        let told = self.request();
        let now = Instant::now();
        let over = |address: &IpAddr, late: Duration| {
            known.get(address).is_none_or(|one| one.until.is_some_and(|until| begin > until + late))
        };
        for (set, address) in
            elements.iter().filter(|(set, address)| set.starts_with("allowed") && over(address, FENCE))
        {
            self.ledger
                .violation(format_args!("{address} is in {set} after its lease: {:?}", known.get(address)));
        }
        for address in present.iter().filter(|one| over(one, KERNEL[usize::from(one.is_ipv6())])) {
            self.ledger
                .violation(format_args!("{address} is there after its lease: {:?}", known.get(address)));
        }
        for (address, one) in known.iter().filter(|(_, one)| one.granted.is_some_and(|until| until > now)) {
            let row = told.iter().flat_map(|told| &told.addresses).find(|row| row.lease.address == *address);
            let is_told = row.is_some_and(|row| *row.holder == *one.holder);
            let allowed =
                elements.iter().any(|(set, element)| set.starts_with("allowed") && element == address);
            if !present.contains(address) || !is_told || !allowed {
                let there = present.contains(address);
                self.ledger.violation(format_args!(
                    "{address}: {one:?}; on its interface {there}, let through {allowed}, told as {row:?}"
                ));
            }
        }
    }

    /// With everyone having given back what they had. The worker serves. The first one is the measure of the others.
    pub fn calm(&mut self, supervisor: &Supervisor<'_>) {
        self.ledger.count("audits at rest");
        let [_, _, broker, _, worker, _] = supervisor.family();
        if let Some(start) = &self.start {
            self.eventually("at rest", || self.differences(start, supervisor));
        } else {
            // What came before this may still be hanging up.
            self.start = Some(settled(|| Start {
                broker: tables::descriptors(broker),
                worker: tables::descriptors(worker),
                sockets: tables::sockets(),
                rules: tables::rules(),
            }));
        }
        let snapshot = Snapshot {
            at: self.ledger.age().as_secs_f64(),
            broker,
            descriptors: [broker, worker].map(|pid| tables::descriptors(pid).0.len()),
            memory: Memory::of(broker),
            sockets: tables::sockets(),
            addresses: tables::addresses().len(),
            elements: tables::elements(&tables::rules()).len(),
            processes: tables::processes().len(),
        };
        match &self.first {
            Some(first) if first.broker == broker => {
                let [before, now] = [first, &snapshot].map(|one| one.memory.resident);
                if now > before + GROWTH {
                    self.ledger
                        .violation(format_args!("the broker had {before} kB and has {now} kB at rest"));
                }
            }
            _ => self.first = Some(snapshot.clone()),
        }
        self.snapshots.push(snapshot);
    }

    fn differences(&self, start: &Start, supervisor: &Supervisor<'_>) -> Vec<String> {
        let family = supervisor.family();
        let [_, _, broker, _, worker, _] = family;
        let mut wrong = Vec::new();
        // Before this asks anything: the broker may still have to hear that its session is over.
        for (who, pid, before) in [("broker", broker, &start.broker), ("worker", worker, &start.worker)] {
            let more = tables::descriptors(pid).not_in(before);
            if !more.is_empty() {
                wrong.push(format!("the {who} has {more:?} more than at the start"));
            }
        }
        for (kind, count) in tables::sockets() {
            if count > start.sockets[kind] {
                wrong.push(format!("{count} {kind} sockets, and {} at the start", start.sockets[kind]));
            }
        }
        wrong.extend(self.listeners());
        if let Some(told) = self.request().filter(|told| !told.addresses.is_empty()) {
            wrong.push(format!("the broker still has {:?}", told.addresses));
        }
        let family = BTreeSet::from(family);
        let strangers =
            tables::processes().difference(&family).map(|pid| tables::name(*pid)).collect::<Vec<_>>();
        if !strangers.is_empty() {
            wrong.push(format!("there are processes {strangers:?}"));
        }
        for (what, now, before) in [
            ("addresses", format!("{:?}", tables::addresses()), "{}".to_owned()),
            (
                "elements",
                format!("{:?}", tables::elements(&tables::rules())),
                format!("{:?}", tables::elements(&start.rules)),
            ),
        ] {
            if now != before {
                wrong.push(format!("{what}: {now}, and {before} at the start"));
            }
        }
        wrong
    }
}

fn retained(told: &Told) -> impl Iterator<Item = &Listener> {
    told.listeners.iter().filter(|row| row.retained)
}

/// Reads until the same was read several times.
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

/// What listens, by the kernel, against what the broker tells.
fn kernel(rows: &BTreeMap<String, (u64, String)>) -> Vec<String> {
    let (udp, tcp): (Vec<&String>, Vec<&String>) =
        rows.keys().partition(|endpoint| endpoint.ends_with("/udp"));
    let told: BTreeSet<SocketAddr> = tcp.iter().filter_map(|endpoint| endpoint.parse().ok()).collect();
    let found: BTreeSet<SocketAddr> = resources::tcp_listeners().into_iter().collect();
    let mut wrong = Vec::new();
    if told != found {
        let [more, fewer] = [&found - &told, &told - &found];
        wrong.push(format!("{more:?} listen and status has not, {fewer:?} do not listen and it has"));
    }
    let bound = tables::sockets()["udp"];
    if bound != udp.len() {
        wrong.push(format!("{bound} UDP sockets, and status has {}", udp.len()));
    }
    wrong
}
