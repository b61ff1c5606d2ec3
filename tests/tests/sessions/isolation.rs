//! Each operation as each kind of peer against the objects of the others: whatever a peer sends, the state of the broker and
//! of the kernel is the same before and after.
//!
//! Left out of the comparison is only what the requests of any peer are supposed to change: [`without_counters`] names the
//! counters, and remaining times may only pass.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::net::{IpAddr, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use portreeve_protocol::address::{
    AddAddress, Announce, ListAddresses, MAX_ADDRESSES, MoveAddress, RemoveAddress, RenewAddress, RenewAll,
    SetLink,
};
use portreeve_protocol::cluster::ClusterRequest;
use portreeve_protocol::event::Subscribe;
use portreeve_protocol::limit::SetLimit;
use portreeve_protocol::message::{
    Hello, Listen, ListenMany, ListenerId, OPERATIONS, Operation, Outcome, StatusRequest,
};
use portreeve_protocol::metrics::MetricsRequest;
use portreeve_protocol::policy::PolicyRequest;
use portreeve_protocol::reload::Reload;
use portreeve_protocol::takeover::{Begin, Commit, NextBatch, TAKEOVER_VERSION, Takeover};
use portreeve_protocol::worker::{RestartWorker, SignalWorker, WorkerRequest};
use portreeve_protocol::{Event, EventCode, Fault, FaultCode, List, Text, codec};
use portreeve_tests::broker::SOCKET;
use portreeve_tests::peer::{listen, one_address};
use portreeve_tests::reload::reload;
use portreeve_tests::scripted_worker::{ScriptedWorker, WorkerSetup};
use portreeve_tests::{Broker, Peer, eventually, isolated, lan, sample};

/// The user that has objects, with its permits.
const VICTIM: u32 = 1001;
/// Another user with the same permits.
const RIVAL: u32 = 1002;
/// A user that may use every operation, and no permit that any object needs.
const STRANGER: u32 = 1003;
/// A user with the same permits as the victim, by its group.
const MEMBER: u32 = 1004;
const GROUP: u32 = 2001;

/// The epoch of each lease. No fault may contain it.
const EPOCH: u64 = 7_100_017;
const LEASE: u32 = 600;

fn configuration(setup: &WorkerSetup, lease: u32) -> String {
    let everything = "status listen address limit policy cluster metrics subscribe";
    let rest = format!(
        r#"
        security {{ capabilities = "cap_net_admin,cap_net_raw,cap_net_bind_service+ep" }}
        cluster {{ topology "10.1.1.0/24" {{ interface = eth1 }} }}
        binding "out" {{ bind_address = 10.1.1.80 enable_duravip = true }}
        ESMTP_Listener {{
            Listen "127.0.0.1:2525" {{}}
            Listen "10.1.1.81:25" {{ duravip_follow = "out" }}
        }}
        broker {{
            socket = "{SOCKET}"
            socket_mode = 0666
            lease = {lease}
            max_refusals = 100000
            max_log_lines = 1000
            permit "shared" {{
                address = ( "10.1.1.0/24" )
                listen = ( "127.0.0.0/8:1024-65535" "127.0.0.0/8:1024-65535/udp" "10.1.1.0/24:25" "/run/host/*" )
                limit = ( "core=unlimited" )
            }}
            permit "root's" {{ interface = ( eth1 eth2 ) }}
            permit "nothing" {{ listen = ( "127.0.0.1:9" ) }}
            peer {VICTIM} {{ allow = ( {everything} ) permit = ( "shared" ) }}
            peer {RIVAL} {{ allow = ( {everything} ) permit = ( "shared" ) }}
            peer {STRANGER} {{ allow = ( {everything} link reload ) permit = ( "nothing" ) }}
            peer "@{GROUP}" {{ allow = ( {everything} ) permit = ( "shared" ) }}
        }}"#
    );
    sample::worker(&setup.chroot, "( /run/host/bin/scripted_worker )", &rest).replacen(
        r#"capabilities = "cap_net_bind_service+ep""#,
        "",
        1,
    )
}

/// The owner of an object: the worker, or a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Worker,
    User(u32),
}

const ROOT: Owner = Owner::User(0);

/// What the peers own.
#[derive(Default)]
struct Objects {
    leases: Vec<(Owner, &'static str)>,
    /// Addresses that their owner has removed.
    removed: Vec<(Owner, &'static str)>,
    listeners: Vec<(Owner, &'static str, ListenerId)>,
}

/// The addresses of each owner: one that it holds, and one that it has removed.
const ADDRESSES: [(Owner, &str, &str); 4] = [
    (Owner::User(VICTIM), "10.1.1.11", "10.1.1.12"),
    (Owner::User(MEMBER), "10.1.1.21", "10.1.1.22"),
    (ROOT, "10.1.1.80", "10.1.1.32"),
    (Owner::Worker, "10.1.1.41", "10.1.1.42"),
];
/// It follows the address that root holds.
const FOLLOWER: &str = "10.1.1.81";

const ENDPOINTS: [(Owner, [&str; 3]); 4] = [
    (Owner::User(VICTIM), ["127.0.0.1:2001", "127.0.0.1:2002/udp", "/run/host/victim.sock"]),
    (Owner::User(MEMBER), ["127.0.0.1:2011", "127.0.0.1:2012/udp", "/run/host/member.sock"]),
    (ROOT, ["127.0.0.1:2021", "127.0.0.1:2022/udp", "/run/host/root.sock"]),
    (Owner::Worker, ["127.0.0.1:2031", "127.0.0.1:2032/udp", "seqpacket:/run/host/worker.sock"]),
];

/// A peer that has objects.
struct Victim {
    owner: Owner,
    peer: Peer,
    _sockets: Vec<OwnedFd>,
    /// A session of the same peer that is subscribed to its events.
    watcher: Option<Peer>,
}

/// A peer that tries every operation on the objects of the others.
struct Attacker<'p> {
    name: &'static str,
    owner: Owner,
    /// Whether it has the permits of the objects.
    permitted: bool,
    peer: &'p mut Peer,
}

fn add(peer: &mut Peer, address: &str, epoch: u64) -> Result<(), Fault> {
    peer.add_address(address, |add| (add.lease, add.epoch) = (Some(LEASE), epoch)).map(drop)
}

fn remove(peer: &mut Peer, address: &str, epoch: u64) {
    let removed = peer.request(&RemoveAddress { addresses: one_address(address), epoch }).unwrap().0;
    assert!(removed.results.iter().all(|result| result.fault().is_none()), "{removed:?}");
}

impl Victim {
    /// Adds the addresses of a peer and opens its listeners, or adopts them.
    fn new(owner: Owner, mut peer: Peer, watcher: Option<Peer>, objects: &mut Objects) -> Self {
        let (_, held, removed) = ADDRESSES.into_iter().find(|(of, ..)| *of == owner).unwrap();
        let request = AddAddress {
            addresses: List::truncated([held, removed].map(|address| address.parse().unwrap())),
            lease: Some(LEASE),
            epoch: EPOCH,
            ..AddAddress::default()
        };
        let added = peer.request(&request).unwrap().0;
        assert!(added.results.iter().all(|result| result.fault().is_none()), "{added:?}");
        remove(&mut peer, removed, EPOCH);
        objects.leases.push((owner, held));
        objects.removed.push((owner, removed));
        let (_, endpoints) = ENDPOINTS.into_iter().find(|(of, _)| *of == owner).unwrap();
        let sockets = endpoints.map(|endpoint| {
            let (id, socket) = peer.listen(endpoint).unwrap();
            objects.listeners.push((owner, endpoint, id));
            // The holder lets a Unix socket listen itself.
            if endpoint.contains('/') && !endpoint.ends_with("/udp") {
                let _ = rustix::net::listen(&socket, 16); // adopted, it listens already
            }
            socket
        });
        let mut victim = Self { owner, peer, _sockets: sockets.into(), watcher };
        victim.watcher.iter_mut().for_each(|watcher| drop(watcher.subscribe(false)));
        victim
    }

    /// Its lease is renewed with its epoch, and the one that it removed is remembered and nobody else's.
    #[track_caller]
    fn check(&mut self, what: &str) {
        let (_, held, removed) = ADDRESSES.into_iter().find(|(of, ..)| *of == self.owner).unwrap();
        let renew = RenewAddress {
            addresses: one_address(held),
            lease: None,
            epoch: EPOCH,
            ..RenewAddress::default()
        };
        let renewed = self.peer.request(&renew).unwrap().0;
        assert!(renewed.results.iter().all(|result| result.fault().is_none()), "{what}: {renewed:?}");
        let stale = add(&mut self.peer, removed, EPOCH - 1).unwrap_err();
        assert_eq!(stale.code, FaultCode::Expired, "{what}: {stale}");
        add(&mut self.peer, removed, EPOCH).unwrap_or_else(|fault| panic!("{what}: {fault}"));
        remove(&mut self.peer, removed, EPOCH);
        for (id, endpoint) in [0, 1, 2].map(|number| (number, endpoint_of(self.owner, number))) {
            connect(endpoint).unwrap_or_else(|error| panic!("{what}: {id}, {endpoint}: {error}"));
        }
    }

    /// No event reported that one of its objects leaves.
    #[track_caller]
    fn check_events(&mut self, what: &str) {
        let Some(watcher) = &mut self.watcher else { return };
        watcher.channel.set_nonblocking(true).unwrap();
        while let Ok(frame) = watcher.receive() {
            let event: Event = codec::decode(&frame.body).unwrap();
            let (_, held, _) = ADDRESSES.into_iter().find(|(of, ..)| *of == self.owner).unwrap();
            assert_ne!(event.address, Some(held.parse::<IpAddr>().unwrap()), "{what}: {event:?}");
            let leaving = matches!(event.code, EventCode::AddressLeaving | EventCode::ListenerStopping);
            assert!(!leaving, "{what}: {event:?}");
        }
        watcher.channel.set_nonblocking(false).unwrap();
    }
}

fn endpoint_of(owner: Owner, number: usize) -> &'static str {
    ENDPOINTS.into_iter().find(|(of, _)| *of == owner).unwrap().1[number]
}

/// Adds the listeners that the broker itself opened for the worker: a static and a floating one.
fn add_configured(observer: &mut Peer, objects: &mut Objects) {
    let listeners = observer.status().listeners;
    for endpoint in ["127.0.0.1:2525", "10.1.1.81:25"] {
        let row = listeners.iter().find(|row| &*row.endpoint == endpoint);
        let row = row.unwrap_or_else(|| panic!("no {endpoint} in {listeners:?}"));
        objects.listeners.push((Owner::Worker, endpoint, row.id));
    }
}

/// Connects a client to an endpoint, or sends it a datagram.
fn connect(endpoint: &str) -> std::io::Result<()> {
    if let Some(udp) = endpoint.strip_suffix("/udp") {
        let client = UdpSocket::bind("127.0.0.1:0")?;
        client.connect(udp)?;
        client.send(b"hello")?;
        // A refusal arrives with the next call.
        return client.send(b"hello").map(drop);
    }
    match endpoint.strip_prefix("seqpacket:") {
        Some(path) => Peer::connect(Path::new(path)).map(drop),
        None if endpoint.starts_with('/') => UnixStream::connect(endpoint).map(drop),
        None => TcpStream::connect(endpoint).map(drop),
    }
}

/// Fails unless every result is a fault, and returns the faults.
#[track_caller]
fn refused<T: Debug, const MAX: usize>(results: List<Outcome<T>, MAX>) -> Vec<Fault> {
    let fault = |result: Outcome<T>| match result {
        Outcome::Fault(fault) => fault,
        Outcome::Done(done) => panic!("it was granted: {done:?}"),
    };
    results.into_vec().into_iter().map(fault).collect()
}

impl Attacker<'_> {
    /// The addresses of others, and the follower.
    fn leases(&self, objects: &Objects) -> Vec<&'static str> {
        let others = objects.leases.iter().filter(|(owner, _)| *owner != self.owner);
        let follower = (self.owner != ROOT).then_some(FOLLOWER);
        others.map(|(_, address)| *address).chain(follower).collect()
    }

    fn removed(&self, objects: &Objects) -> Vec<&'static str> {
        let others = objects.removed.iter().filter(|(owner, _)| *owner != self.owner);
        others.map(|(_, address)| *address).collect()
    }

    fn listeners(&self, objects: &Objects) -> Vec<(&'static str, ListenerId)> {
        let others = objects.listeners.iter().filter(|(owner, ..)| *owner != self.owner);
        others.map(|(_, endpoint, id)| (*endpoint, *id)).collect()
    }

    /// Sends a request, which must be refused as a whole.
    #[track_caller]
    fn denied<O: Operation<Reply: Debug>>(&mut self, request: &O) {
        let fault = self.peer.request(request).unwrap_err();
        let expected = [FaultCode::Denied, FaultCode::Unsupported, FaultCode::Malformed, FaultCode::InUse];
        assert!(expected.contains(&fault.code), "{}: {fault}", self.name);
    }

    /// Sends a request for each set of addresses and each epoch, and checks that each result is a fault that tells nothing
    /// of the leases of others.
    #[track_caller]
    fn about_addresses<O: Operation, T: Debug>(
        &mut self,
        addresses: &[&str],
        request: impl Fn(List<IpAddr, MAX_ADDRESSES>, u64) -> O,
        results: impl Fn(O::Reply) -> List<Outcome<T>, MAX_ADDRESSES>,
    ) {
        let all: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
        let each = all.iter().map(|address| vec![*address]);
        for some in each.chain([all.clone(), [all.clone(), all.clone()].concat()]) {
            for epoch in [0, EPOCH, u64::MAX] {
                let reply = self.peer.request(&request(List::truncated(some.clone()), epoch));
                let faults = match reply {
                    Ok((reply, _)) => refused(results(reply)),
                    Err(fault) => vec![fault],
                };
                for fault in faults {
                    let text = format!("{fault:?}");
                    let tells = epoch != EPOCH && text.contains(&EPOCH.to_string());
                    assert!(!tells, "{} learns the epoch: {text}", self.name);
                    let tells = !self.permitted && text.contains("follows");
                    assert!(!tells, "{} learns of a follower: {text}", self.name);
                }
            }
        }
    }
}

/// Tries one operation on every object of others. An operation without a row fails the test.
fn attempt(operation: &str, attacker: &mut Attacker<'_>, objects: &Objects) {
    let (leases, removed) = (attacker.leases(objects), attacker.removed(objects));
    let both = [leases.clone(), removed.clone()].concat();
    match operation {
        // These name no object.
        "hello" => {
            let hello = Hello { client: Text::new("test").unwrap(), features: u64::MAX };
            // It is sent once; the worker may repeat it.
            drop(attacker.peer.request(&hello));
        }
        "ping" => attacker.peer.ping(),
        "status" => drop(attacker.peer.request(&StatusRequest { after: u64::MAX })),
        "list-addresses" => drop(attacker.peer.request(&ListAddresses { after: None })),
        "cluster" => drop(attacker.peer.request(&ClusterRequest {})),
        "policy" => drop(attacker.peer.request(&PolicyRequest { after: u32::MAX })),
        "metrics" => drop(attacker.peer.request(&MetricsRequest {})),
        "subscribe" => {
            // It replaces and ends the attacker's own subscription alone.
            attacker.peer.request(&Subscribe { follow: true, all: true }).unwrap();
            attacker.peer.request(&Subscribe { follow: false, all: true }).unwrap();
        }
        // It names no process: the worker's limits and those of others cannot be named.
        "set-limit" => {
            for (soft, hard) in [(None, None), (Some(0), None)] {
                let limit = SetLimit { resource: Text::new("core").unwrap(), soft, hard };
                let set = attacker.peer.request(&limit).is_ok();
                // This process connected as other users than it runs as, so those are refused as well.
                assert!(!set || attacker.permitted && attacker.owner != Owner::Worker, "{}", attacker.name);
            }
        }
        "listen" => {
            for (endpoint, _) in attacker.listeners(objects) {
                attacker.denied(&listen(endpoint));
                let mut other = listen(endpoint);
                (other.options.backlog, other.options.reuse_port) = (Some(1), true);
                attacker.denied::<Listen>(&other);
            }
        }
        "listen-many" => {
            for all_or_nothing in [false, true] {
                let listeners = attacker.listeners(objects).into_iter().map(|(endpoint, _)| listen(endpoint));
                let many = ListenMany::truncated(all_or_nothing, listeners);
                refused(attacker.peer.request(&many).unwrap().0.results);
            }
        }
        // Root may stop every listener and remove every address.
        "stop" | "remove-address" if attacker.owner == ROOT => {}
        "stop" => {
            let ids: Vec<ListenerId> = attacker.listeners(objects).into_iter().map(|(_, id)| id).collect();
            let guesses = (0..64).map(ListenerId).filter(|id| !own(attacker.owner, objects, *id));
            for id in ids.iter().copied().chain(guesses) {
                assert_eq!(attacker.peer.stop(&[id]).unknown.to_vec(), [id]);
            }
            assert_eq!(attacker.peer.stop(&ids).unknown.to_vec(), ids);
        }
        "add-address" => {
            attacker.about_addresses(
                &leases,
                |addresses, epoch| AddAddress {
                    addresses,
                    epoch,
                    lease: Some(900),
                    probes: 0,
                    announce: true,
                    ..AddAddress::default()
                },
                |reply| reply.results,
            );
            // A free address may be had for a while, with any epoch. Root's epochs are meant to count for all.
            if attacker.permitted && attacker.owner != ROOT {
                for address in removed {
                    add(attacker.peer, address, u64::MAX).unwrap();
                    remove(attacker.peer, address, u64::MAX);
                }
            }
        }
        "renew-address" => {
            let renew = |addresses, epoch| RenewAddress {
                addresses,
                lease: Some(900),
                epoch,
                ..RenewAddress::default()
            };
            attacker.about_addresses(&both, renew, |reply| reply.results);
        }
        // It renews only what the attacker has; for its own addresses the fence would change.
        "renew-all" if objects.leases.iter().any(|(of, _)| *of == attacker.owner) => {
            attacker.denied(&RenewAll { lease: Some(1), until: None });
        }
        "renew-all" => {
            let renewed = attacker.peer.request(&RenewAll { lease: Some(900), until: None });
            assert!(renewed.is_ok_and(|(renewed, _)| renewed.renewed + renewed.not_renewed == 0));
        }
        "remove-address" => {
            let remove = |addresses, epoch| RemoveAddress { addresses, epoch };
            attacker.about_addresses(&both, remove, |reply| {
                // The attacker's own last request about a removed address may be newer.
                let is_not_found = |fault: &Fault| match fault.code {
                    FaultCode::Expired => *fault.subject == u64::MAX.to_string(),
                    code => code == FaultCode::NotFound,
                };
                let faults = reply.results.iter().map(|result| result.fault());
                assert!(faults.flatten().all(is_not_found), "{:?}", reply.results);
                reply.results
            });
        }
        "announce" => {
            let announce = |addresses, epoch| Announce { addresses, epoch };
            attacker.about_addresses(&both, announce, |reply| reply.results);
        }
        "move-address" => {
            for interface in ["eth1", "eth2", "lo"] {
                let interface = Text::new(interface).unwrap();
                let to = |addresses, epoch| MoveAddress {
                    addresses,
                    interface: interface.clone(),
                    epoch,
                    announce: true,
                };
                attacker.about_addresses(&both, to, |reply| reply.results);
            }
        }
        // Root and the worker are permitted the interface.
        "set-link" if attacker.owner == ROOT || attacker.owner == Owner::Worker => {
            attacker.denied(&SetLink { interface: Text::new("lo").unwrap(), up: Some(false), mtu: None });
        }
        "set-link" => {
            for (up, mtu) in [(Some(false), None), (None, Some(1280))] {
                attacker.denied(&SetLink { interface: Text::new("eth1").unwrap(), up, mtu });
            }
        }
        // Whoever is allowed these changes the state of all by them.
        "reload" if is_operator(attacker.owner) => {}
        "reload" => attacker.denied(&Reload::default()),
        "worker" | "restart-worker" | "signal-worker" if is_operator(attacker.owner) => {}
        "worker" => drop(attacker.peer.request(&WorkerRequest {})),
        "restart-worker" => attacker.denied(&RestartWorker {}),
        "signal-worker" => attacker.denied(&SignalWorker { signal: 9 }),
        "takeover" if attacker.owner == ROOT => {
            attacker.denied(&Takeover::Commit(Commit {}));
            attacker.denied(&Takeover::NextBatch(NextBatch {}));
        }
        "takeover" => {
            let begin = Begin { oldest: TAKEOVER_VERSION, newest: TAKEOVER_VERSION };
            let steps =
                [Takeover::Begin(begin), Takeover::NextBatch(NextBatch {}), Takeover::Commit(Commit {})];
            steps.iter().for_each(|step| attacker.denied(step));
        }
        other => panic!("the operation {other} has no row in this test"),
    }
}

/// Whether the configuration lets a peer reload it.
fn is_operator(owner: Owner) -> bool {
    owner == ROOT || owner == Owner::User(STRANGER)
}

fn own(owner: Owner, objects: &Objects, id: ListenerId) -> bool {
    objects.listeners.iter().any(|(of, _, other)| *of == owner && *other == id)
}

/// Everything that a peer could change of others.
#[derive(Debug)]
struct State {
    parts: BTreeMap<&'static str, String>,
    /// When each lease ends, in milliseconds since the first snapshot.
    deadlines: BTreeMap<IpAddr, u64>,
}

/// The counters that requests of any peer change.
fn without_counters(observer: &mut Peer) -> String {
    let mut metrics = observer.request(&MetricsRequest {}).unwrap().0;
    metrics.uptime_ms = 0;
    metrics.operations = List::default();
    metrics.log = Default::default();
    (metrics.sessions.opened, metrics.sessions.delayed) = (0, 0);
    let mut peers = metrics.peers.into_vec();
    peers.iter_mut().for_each(|peer| peer.refused = 0);
    metrics.peers = List::truncated(peers);
    if let Some(addresses) = &mut metrics.addresses {
        addresses.next_expiry_ms = None;
    }
    format!("{metrics:#?}")
}

impl State {
    fn take(broker: &Broker, observer: &mut Peer, began: Instant) -> Self {
        let mut parts = BTreeMap::new();
        let mut status = observer.status();
        let pids: Vec<u32> = status.processes.iter().map(|process| process.pid).collect();
        assert!(pids.contains(&broker.pid()));
        let mut listeners = status.listeners.to_vec();
        while status.next != 0 {
            status = observer.request(&StatusRequest { after: status.next }).unwrap().0;
            listeners.extend(status.listeners.to_vec());
        }
        status.uptime_ms = 0;
        status.listeners = List::default();
        let mut sessions = status.sessions.into_vec();
        sessions.iter_mut().for_each(|session| session.refused = 0);
        status.sessions = List::truncated(sessions);
        parts.insert("status", format!("{status:#?}"));
        parts.insert("listeners", format!("{listeners:#?}"));
        parts.insert("metrics", without_counters(observer));
        let mut rows = Vec::new();
        loop {
            let after = rows.last().map(|row: &portreeve_protocol::address::AddressRow| row.lease.address);
            let page = observer.request(&ListAddresses { after }).unwrap().0;
            rows.extend(page.addresses.into_vec());
            if !page.more {
                break;
            }
        }
        let now = u64::try_from(began.elapsed().as_millis()).unwrap();
        let deadlines =
            rows.iter_mut().map(|row| (row.lease.address, now + std::mem::take(&mut row.lease.remaining_ms)));
        let deadlines = deadlines.collect();
        parts.insert("leases", format!("{rows:#?}"));
        parts.insert("policy", format!("{:#?}", observer.request(&PolicyRequest { after: 0 }).unwrap().0));
        parts.insert("addresses of the host", lan::addresses().join("\n"));
        parts.insert("fence", fence());
        parts.insert("sockets", sockets());
        let limits = pids.iter().map(|pid| std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap());
        parts.insert("limits", limits.collect());
        Self { parts, deadlines }
    }

    #[track_caller]
    fn assert_same(&self, before: &Self, what: &str) {
        for (part, before) in &before.parts {
            assert_eq!(&self.parts[part], before, "{what} changed the {part}");
        }
        assert_eq!(self.deadlines.keys().collect::<Vec<_>>(), before.deadlines.keys().collect::<Vec<_>>());
        for (address, deadline) in &before.deadlines {
            // Two readings of one deadline differ by the time that a request takes; the requests ask for 300 s more.
            let difference = self.deadlines[address].abs_diff(*deadline);
            assert!(difference < 30_000, "{what} changed the lease of {address} by {difference} ms");
        }
    }
}

/// The packet filter rules of the fence, without the time that remains of each element.
fn fence() -> String {
    fn normalize(value: &mut serde_json::Value) {
        match value {
            serde_json::Value::Object(map) => {
                map.remove("expires");
                map.values_mut().for_each(normalize);
            }
            serde_json::Value::Array(values) => {
                values.iter_mut().for_each(normalize);
                values.sort_by_key(ToString::to_string);
            }
            _ => {}
        }
    }
    let output = Command::new("nft").args(["-j", "list", "ruleset"]).output().unwrap();
    let mut rules: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    normalize(&mut rules);
    assert!(rules.to_string().contains("10.1.1.11"), "the fence has the addresses: {rules}");
    format!("{rules:#}")
}

/// The sockets that wait for clients, with their inode numbers.
fn sockets() -> String {
    let mut lines = Vec::new();
    for table in ["tcp", "tcp6", "udp", "udp6"] {
        let text = std::fs::read_to_string(format!("/proc/net/{table}")).unwrap();
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if table.starts_with("udp") || fields[3] == "0A" {
                lines.push(format!("{table} {} {}", fields[1], fields[9]));
            }
        }
    }
    let unix = std::fs::read_to_string("/proc/net/unix").unwrap();
    // The flag of a listening socket.
    let listening = unix.lines().filter(|line| line.split_whitespace().nth(3) == Some("00010000"));
    lines.extend(listening.map(|line| line.split_whitespace().skip(4).collect::<Vec<_>>().join(" ")));
    lines.sort();
    lines.join("\n")
}

/// The sessions of the attackers that connect to the control socket.
fn attackers() -> [(&'static str, Owner, bool, Peer); 4] {
    [
        ("a user with the same permits", Owner::User(RIVAL), true, Peer::of_user(RIVAL, RIVAL)),
        ("a user without these permits", Owner::User(STRANGER), false, Peer::of_user(STRANGER, STRANGER)),
        ("a peer by its group", Owner::User(MEMBER), true, Peer::of_user(MEMBER, GROUP)),
        ("root", ROOT, true, Peer::of_user(0, 0)),
    ]
}

/// Lets every attacker try every operation, and compares the state after each.
fn attack(
    phase: &str,
    broker: &Broker,
    worker: &mut Peer,
    objects: &Objects,
    victims: &mut [Victim],
    began: Instant,
) {
    let mut connected = attackers();
    let mut observer = broker.peer();
    let others = connected.iter_mut().map(|(name, owner, permitted, peer)| Attacker {
        name,
        owner: *owner,
        permitted: *permitted,
        peer,
    });
    let by_worker = Attacker { name: "the worker", owner: Owner::Worker, permitted: true, peer: worker };
    for mut attacker in others.chain([by_worker]) {
        let mut before = State::take(broker, &mut observer, began);
        for (_, operation) in OPERATIONS {
            let what = format!("{phase}: {operation} by {}", attacker.name);
            attempt(operation, &mut attacker, objects);
            let after = State::take(broker, &mut observer, began);
            after.assert_same(&before, &what);
            victims.iter_mut().for_each(|victim| victim.check_events(&what));
            before = after;
        }
    }
}

#[test]
fn no_operation_of_a_peer_changes_the_state_of_another() {
    isolated(|host| {
        lan::create(&["far"]);
        lan::add_second_interface();
        let setup = WorkerSetup::new(host, "chroot");
        let broker = Broker::start(host, &configuration(&setup, 10));
        let (_scripted, worker) = greeted(&setup);
        let mut objects = Objects::default();
        let began = Instant::now();
        let mut victims = [
            Victim::new(
                Owner::User(VICTIM),
                Peer::of_user(VICTIM, VICTIM),
                Some(Peer::of_user(VICTIM, VICTIM)),
                &mut objects,
            ),
            Victim::new(
                Owner::User(MEMBER),
                Peer::of_user(MEMBER, GROUP),
                Some(Peer::of_user(MEMBER, GROUP)),
                &mut objects,
            ),
            Victim::new(ROOT, broker.peer(), Some(broker.peer()), &mut objects),
            Victim::new(Owner::Worker, worker, None, &mut objects),
        ];
        add_configured(&mut broker.peer(), &mut objects);
        // A second handle of the worker's channel, which the victim uses too.
        let mut attacking_worker = Peer::from_channel(victims[3].peer.channel.try_clone().unwrap());
        attack("at first", &broker, &mut attacking_worker, &objects, &mut victims, began);
        victims.iter_mut().for_each(|victim| victim.check("at first"));

        reload(host, &broker, &configuration(&setup, 20));
        attack("after a reload", &broker, &mut attacking_worker, &objects, &mut victims, began);
        victims.iter_mut().for_each(|victim| victim.check("after a reload"));
    });
}

fn greeted(setup: &WorkerSetup) -> (ScriptedWorker, Peer) {
    let (scripted, mut peer) = setup.accept();
    peer.hello();
    (scripted, peer)
}

#[test]
fn no_operation_of_a_peer_changes_the_state_of_another_after_a_takeover() {
    isolated(|host| {
        lan::create(&["far"]);
        lan::add_second_interface();
        let setup = WorkerSetup::new(host, "chroot");
        let text = configuration(&setup, 10);
        let mut broker = Broker::start(host, &text);
        let (_scripted, worker) = greeted(&setup);
        let mut objects = Objects::default();
        let began = Instant::now();
        let victims = [
            Victim::new(Owner::User(VICTIM), Peer::of_user(VICTIM, VICTIM), None, &mut objects),
            Victim::new(Owner::User(MEMBER), Peer::of_user(MEMBER, GROUP), None, &mut objects),
            Victim::new(ROOT, broker.peer(), None, &mut objects),
            Victim::new(Owner::Worker, worker, None, &mut objects),
        ];
        add_configured(&mut broker.peer(), &mut objects);
        let next = broker.start_successor(host, &text);
        assert!(broker.wait_for_exit().success());
        drop(victims);
        // The objects are retained for owners that have not connected to the new broker yet.
        let (_scripted, mut worker) = greeted(&setup);
        attack("after a takeover", &next, &mut worker, &objects, &mut [], began);
        let mut again = Objects::default();
        let mut victims = [
            Victim::new(Owner::User(VICTIM), Peer::of_user(VICTIM, VICTIM), None, &mut again),
            Victim::new(Owner::User(MEMBER), Peer::of_user(MEMBER, GROUP), None, &mut again),
            Victim::new(ROOT, next.peer(), None, &mut again),
            Victim::new(Owner::Worker, worker, None, &mut again),
        ];
        add_configured(&mut next.peer(), &mut again);
        assert_eq!(objects.listeners, again.listeners, "the owners adopt their listeners");
        victims.iter_mut().for_each(|victim| victim.check("after a takeover"));
        eventually("no leftover", || (next.peer().status().listeners_held == 14).then_some(()));
    });
}
