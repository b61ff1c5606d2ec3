//! Adding, renewing and removing addresses through the broker, with as many in a request as fit, compared with a privileged
//! process that does the same itself; and the time until a neighbour receives an announcement. Conflict detection and
//! announcements are disabled unless they are measured. The kernel notifies the broker of changes by the other
//! subjects. The broker reads those notifications before the next subject is measured, and reads those of its own changes
//! while it is measured.
//!
//! The three baselines do different amounts of work. `bare` only adds addresses to the interface and removes them.
//! `fenced` also makes the packet filter enforce their leases. `checked` also checks first whether the host has them, ends
//! their connections, and verifies the removal, which is all the work that the broker does.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::socket::SockProtocol;
use nix::time::{ClockId, clock_gettime};
use portreeve_broker::address::fence::Fence;
use portreeve_broker::sys::rtnl::{self, Destination, Lookup, Placement, SourceUse};
use portreeve_broker::sys::sock_diag;
use portreeve_broker::sys::{Interface, Netlink};
use portreeve_protocol::address::{AddAddress, MAX_ADDRESSES, RemoveAddress, RenewAddress};
use portreeve_protocol::message::Outcome;
use portreeve_tests::benchmark::{self, Subject};
use portreeve_tests::packet_capture::PacketCapture;
use portreeve_tests::peer::one_address;
use portreeve_tests::{Broker, Host, Peer, lan, sample};

const LEASE: u32 = 600;

fn main() {
    benchmark::main("Adding, renewing and removing an address: time for each, median of rounds", inside);
}

fn inside(host: &Host) {
    lan::create(&["far"]);
    let broker = Broker::start_with_log_file(host, &sample::addresses(""));
    let mut peer = Peer::connect(Path::new(portreeve_tests::broker::SOCKET)).unwrap();
    peer.hello();
    let peer = RefCell::new(peer);
    // The broker reads the kernel's notifications before it handles a renewal.
    let read_notifications = || renew_these(&mut peer.borrow_mut(), &[]);
    let direct = Direct::new();
    let sizes =
        [(1, false), (100, false), (1_000, false), (10_000, false), (1, true), (100, true), (1_000, true)];
    for (count, v6) in sizes {
        let (ours, theirs) = (addresses(count, v6, 1), addresses(count, v6, 2));
        let places: Vec<Placement> = theirs
            .iter()
            .map(|address| Placement {
                address: *address,
                index: direct.index,
                prefix: if v6 { 128 } else { 32 },
            })
            .collect();
        let cpu_time = CpuTime::new(broker.pid());
        let mut subjects = vec![Subject::new("portreeve", || {
            cpu_time.measure("portreeve", || {
                add(&mut peer.borrow_mut(), &ours);
                renew(&mut peer.borrow_mut(), &ours);
                remove(&mut peer.borrow_mut(), &ours);
                read_notifications();
            });
        })];
        for (name, fenced, checked) in
            [("bare", false, false), ("fenced", true, false), ("checked", true, true)]
        {
            let (direct, places, cpu_time) = (&direct, &places, &cpu_time);
            let round = move || cpu_time.measure(name, || direct.round(places, fenced, checked));
            subjects.push(Subject::new(name, round).after_round(read_notifications));
        }
        let case = format!("addresses/{}/{count}", if v6 { "v6" } else { "v4" });
        benchmark::measure(&case, count, subjects);
        cpu_time.print(&case, count);
    }
    if benchmark::is_selected("announcement") {
        first_announcement(&mut peer.borrow_mut());
    }
}

/// The CPU time of each subject. On a busy machine it is more reliable than elapsed time, which includes waiting for
/// unrelated processes.
struct CpuTime {
    broker: u32,
    /// Nanoseconds, and the number of rounds.
    by: RefCell<BTreeMap<&'static str, (u64, u64)>>,
}

impl CpuTime {
    fn new(broker: u32) -> Self {
        Self { broker, by: RefCell::default() }
    }

    fn measure(&self, name: &'static str, round: impl FnOnce()) {
        let before = self.now();
        round();
        let mut by = self.by.borrow_mut();
        let (spent, rounds) = by.entry(name).or_default();
        *spent += self.now() - before;
        *rounds += 1;
    }

    /// The CPU time of the broker, see proc_pid_schedstat(5), and of this process: each works for the other.
    fn now(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/schedstat", self.broker)).unwrap();
        let broker: u64 = text.split_whitespace().next().unwrap().parse().unwrap();
        let own = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap();
        broker + u64::try_from(Duration::from(own).as_nanos()).unwrap()
    }

    fn print(&self, case: &str, count: usize) {
        let by = self.by.borrow();
        let each =
            |name: &str| by.get(name).map(|(spent, rounds)| (spent / rounds / count as u64) as f64 / 1e3);
        // A case that was not selected has no samples.
        let Some(ours) = each("portreeve") else { return };
        for baseline in ["bare", "fenced", "checked"] {
            let theirs = each(baseline).unwrap();
            eprintln!("{case}: CPU time {ours:.1} µs, {baseline} {theirs:.1} µs: {:.2}", ours / theirs);
        }
    }
}

/// The privileged process that does not use the broker.
struct Direct {
    route: Netlink,
    diag: Netlink,
    /// It adds its addresses to the broker's own sets, so that packets traverse the same rules for both.
    fence: Fence,
    index: u32,
}

impl Direct {
    fn new() -> Self {
        let route = Netlink::open(SockProtocol::NetlinkRoute).unwrap();
        let index = Interface::by_name(&route, lan::INTERFACE).unwrap().index;
        let diag = Netlink::open(SockProtocol::NetlinkSockDiag).unwrap();
        Self { route, diag, fence: Fence::open().unwrap(), index }
    }

    /// Adds, renews and removes addresses.
    fn round(&self, places: &[Placement], fenced: bool, checked: bool) {
        let all: Vec<IpAddr> = places.iter().map(|place| place.address).collect();
        let leased: Vec<_> = places.iter().map(|place| (*place, Some(LEASE))).collect();
        let time = Some(Duration::from_secs(LEASE.into()));
        let timed: Vec<_> = all.iter().map(|address| (*address, time)).collect();
        let done = |outcomes: rtnl::Outcomes| outcomes.into_iter().for_each(|one| one.unwrap());
        let none_is_local = || {
            let lookups: Vec<Lookup> =
                all.iter().map(|address| Lookup { address: *address, vrf: None }).collect();
            let destinations = rtnl::destinations(&self.route, &lookups).unwrap();
            assert!(destinations.iter().all(|to| *to == Ok(Destination::Elsewhere)));
        };
        if checked {
            none_is_local();
        }
        if fenced {
            self.fence.open_for(&timed).unwrap();
        }
        done(rtnl::add(&self.route, &leased, SourceUse::Never, false));
        if fenced {
            assert!(self.fence.renew(&timed).unwrap().is_empty());
        }
        done(rtnl::renew(&self.route, &leased, SourceUse::Never));
        if checked {
            let connections = sock_diag::connections_at(&self.diag, &all).unwrap();
            sock_diag::destroy(&self.diag, &connections).unwrap();
        }
        if fenced {
            self.fence.close(&all).unwrap();
        }
        done(rtnl::remove(&self.route, places));
        if checked {
            none_is_local();
        }
        if fenced {
            self.fence.forget(&all).unwrap();
        }
    }
}

fn addresses(count: usize, v6: bool, owner: u16) -> Vec<IpAddr> {
    let numbers = 1..=u16::try_from(count).unwrap();
    match v6 {
        true => numbers.map(|n| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, owner, n, 0, 1).into()).collect(),
        false => {
            let base = 0x0a02_0000 + u32::from(owner) * 0x4000;
            numbers.map(|n| Ipv4Addr::from(base + u32::from(n)).into()).collect()
        }
    }
}

fn add(peer: &mut Peer, all: &[IpAddr]) {
    for some in all.chunks(MAX_ADDRESSES) {
        let addresses = portreeve_protocol::List::new(some.to_vec()).unwrap();
        let add = AddAddress { addresses, lease: Some(LEASE), ..AddAddress::default() };
        let leases = peer.request(&add).unwrap().0;
        assert!(leases.results.iter().all(|one| matches!(one, Outcome::Done(_))));
    }
}

fn renew(peer: &mut Peer, all: &[IpAddr]) {
    all.chunks(MAX_ADDRESSES).for_each(|some| renew_these(peer, some));
}

fn renew_these(peer: &mut Peer, some: &[IpAddr]) {
    let addresses = portreeve_protocol::List::new(some.to_vec()).unwrap();
    let leases = peer.request(&RenewAddress { addresses, ..RenewAddress::default() }).unwrap().0;
    assert!(leases.results.iter().all(|one| matches!(one, Outcome::Done(_))));
}

fn remove(peer: &mut Peer, all: &[IpAddr]) {
    for some in all.chunks(MAX_ADDRESSES) {
        let addresses = portreeve_protocol::List::new(some.to_vec()).unwrap();
        let removed = peer.request(&RemoveAddress { addresses, epoch: 0 }).unwrap().0;
        assert!(removed.results.iter().all(|one| matches!(one, Outcome::Done(_))));
    }
}

/// The time from the request until a neighbour receives the first announcement.
fn first_announcement(peer: &mut Peer) {
    let mut wire = PacketCapture::on("far");
    let mut times = Vec::new();
    for _ in 0..50 {
        let begin = Instant::now();
        peer.send(&AddAddress {
            addresses: one_address("10.1.1.7"),
            lease: Some(LEASE),
            announce: true,
            ..AddAddress::default()
        });
        let arp = |frame: &[u8]| {
            frame.get(12..14) == Some(&[8, 6])
                && frame.get(21) == Some(&1)
                && frame.get(28..32) == Some(&[10, 1, 1, 7])
        };
        let frames = wire.collect(Duration::from_secs(2), arp, |frames| !frames.is_empty());
        times.push(frames[0].at.duration_since(begin));
        peer.receive().unwrap();
        peer.remove_address("10.1.1.7").unwrap();
    }
    times.sort_unstable();
    eprintln!("from request to first announcement: median {:?}, worst {:?}", times[25], times[49]);
}
