//! Addresses added, renewed and removed through the broker, in requests of as many as fit, beside a privileged process
//! that does it itself; and how soon a neighbour hears of one. Conflict detection and announcements are off but where
//! they are what is measured. Of what the others do the broker is told by the kernel, like everybody: it has read that
//! before the clock of the next one runs, and what it is told of its own deeds while its own runs.
//!
//! There are three floors, for that process may do less: `bare` only puts addresses on the interface and takes them off;
//! `fenced` also has the packet filter end them with their lease; `checked` also asks first whether the host has them,
//! ends their connections, and looks whether they are gone, and so does what the broker does, but for nobody else.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::socket::SockProtocol;
use nix::time::{ClockId, clock_gettime};
use portreeve_broker::address::fence::Fence;
use portreeve_broker::sys::rtnl::{self, Placement};
use portreeve_broker::sys::sock_diag;
use portreeve_broker::sys::{Interface, Netlink};
use portreeve_protocol::address::{AddAddress, MAX_ADDRESSES, RemoveAddress, RenewAddress};
use portreeve_protocol::message::Outcome;
use portreeve_tests::figures::{self, Contender};
use portreeve_tests::peer::one_address;
use portreeve_tests::wire::Wire;
use portreeve_tests::{Broker, Host, Peer, lan, sample};

const LEASE: u32 = 600;

fn main() {
    figures::main("add, renew, remove: per address, median of rounds", inside);
}

fn inside(host: &Host) {
    lan::join(&["far"]);
    let broker = Broker::start_quietly(host, &sample::addresses(""));
    let mut peer = Peer::connect(Path::new(portreeve_tests::broker::SOCKET)).unwrap();
    peer.hello();
    let peer = RefCell::new(peer);
    // Whoever renews must know what the kernel has told.
    let read_news = || renew_these(&mut peer.borrow_mut(), &[]);
    let own = Own::new();
    let sizes =
        [(1, false), (100, false), (1_000, false), (10_000, false), (1, true), (100, true), (1_000, true)];
    for (count, v6) in sizes {
        let (ours, theirs) = (addresses(count, v6, 1), addresses(count, v6, 2));
        let places: Vec<Placement> = theirs
            .iter()
            .map(|address| Placement {
                address: *address,
                index: own.index,
                prefix: if v6 { 128 } else { 32 },
            })
            .collect();
        let spent = Spent::beside(broker.pid());
        let mut contenders = vec![Contender::new("ours", || {
            spent.on("ours", || {
                add(&mut peer.borrow_mut(), &ours);
                renew(&mut peer.borrow_mut(), &ours);
                remove(&mut peer.borrow_mut(), &ours);
                read_news();
            });
        })];
        for (name, fenced, checked) in
            [("bare", false, false), ("fenced", true, false), ("checked", true, true)]
        {
            let (own, places, spent) = (&own, &places, &spent);
            let round = move || spent.on(name, || own.round(places, fenced, checked));
            contenders.push(Contender::new(name, round).then(read_news));
        }
        let case = format!("addresses/{}/{count}", if v6 { "v6" } else { "v4" });
        figures::measure(&case, count, contenders);
        spent.tell(&case, count);
    }
    if figures::is_wanted("announcement") {
        first_announcement(&mut peer.borrow_mut());
    }
}

/// The processor time of each contender: on a busy machine the better measure, since whoever waits for another process
/// waits for strangers too.
struct Spent {
    broker: u32,
    /// Nanoseconds, and in how many rounds.
    by: RefCell<BTreeMap<&'static str, (u64, u64)>>,
}

impl Spent {
    fn beside(broker: u32) -> Self {
        Self { broker, by: RefCell::default() }
    }

    fn on(&self, name: &'static str, round: impl FnOnce()) {
        let before = self.now();
        round();
        let mut by = self.by.borrow_mut();
        let (spent, rounds) = by.entry(name).or_default();
        *spent += self.now() - before;
        *rounds += 1;
    }

    /// The broker's, see proc_pid_schedstat(5), and our own, for each does something for the other.
    fn now(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/schedstat", self.broker)).unwrap();
        let broker: u64 = text.split_whitespace().next().unwrap().parse().unwrap();
        let own = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap();
        broker + u64::try_from(Duration::from(own).as_nanos()).unwrap()
    }

    fn tell(&self, case: &str, count: usize) {
        let by = self.by.borrow();
        let each =
            |name: &str| by.get(name).map(|(spent, rounds)| (spent / rounds / count as u64) as f64 / 1e3);
        // A case that was not asked for has none.
        let Some(ours) = each("ours") else { return };
        for floor in ["bare", "fenced", "checked"] {
            let theirs = each(floor).unwrap();
            eprintln!("{case}: processor time {ours:.1} µs, {floor} {theirs:.1} µs: {:.2}", ours / theirs);
        }
    }
}

/// A process that needs no broker.
struct Own {
    route: Netlink,
    diag: Netlink,
    /// It has the broker's own sets hold its addresses, which makes the rules that all packets pass the same for both.
    fence: Fence,
    index: u32,
}

impl Own {
    fn new() -> Self {
        let route = Netlink::open(SockProtocol::NetlinkRoute).unwrap();
        let index = Interface::by_name(&route, lan::INTERFACE).unwrap().index;
        let diag = Netlink::open(SockProtocol::NetlinkSockDiag).unwrap();
        Self { route, diag, fence: Fence::open().unwrap(), index }
    }

    /// Adds, renews and removes.
    fn round(&self, places: &[Placement], fenced: bool, checked: bool) {
        let all: Vec<IpAddr> = places.iter().map(|place| place.address).collect();
        let leased: Vec<_> = places.iter().map(|place| (*place, Some(LEASE))).collect();
        let time = Some(Duration::from_secs(LEASE.into()));
        let timed: Vec<_> = all.iter().map(|address| (*address, time)).collect();
        let done = |outcomes: rtnl::Outcomes| outcomes.into_iter().for_each(|one| one.unwrap());
        let none_is_local = || {
            let local = rtnl::are_local(&self.route, &all).unwrap();
            assert!(local.iter().all(|local| *local == Ok(false)));
        };
        if checked {
            none_is_local();
        }
        if fenced {
            self.fence.open_for(&timed).unwrap();
        }
        done(rtnl::add(&self.route, &leased, false));
        if fenced {
            assert!(self.fence.renew(&timed).unwrap().is_empty());
        }
        done(rtnl::renew(&self.route, &leased));
        if checked {
            sock_diag::destroy_connections(&self.diag, &all).unwrap();
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

fn addresses(count: usize, v6: bool, whose: u16) -> Vec<IpAddr> {
    let numbers = 1..=u16::try_from(count).unwrap();
    match v6 {
        true => numbers.map(|n| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, whose, n, 0, 1).into()).collect(),
        false => {
            let base = 0x0a02_0000 + u32::from(whose) * 0x4000;
            numbers.map(|n| Ipv4Addr::from(base + u32::from(n)).into()).collect()
        }
    }
}

fn add(peer: &mut Peer, all: &[IpAddr]) {
    for some in all.chunks(MAX_ADDRESSES) {
        let addresses = portreeve_protocol::List::new(some.to_vec()).unwrap();
        let add = AddAddress { addresses, lease: Some(LEASE), ..AddAddress::default() };
        let leases = peer.ask(&add).unwrap().0;
        assert!(leases.results.iter().all(|one| matches!(one, Outcome::Done(_))));
    }
}

fn renew(peer: &mut Peer, all: &[IpAddr]) {
    all.chunks(MAX_ADDRESSES).for_each(|some| renew_these(peer, some));
}

fn renew_these(peer: &mut Peer, some: &[IpAddr]) {
    let addresses = portreeve_protocol::List::new(some.to_vec()).unwrap();
    let leases = peer.ask(&RenewAddress { addresses, ..RenewAddress::default() }).unwrap().0;
    assert!(leases.results.iter().all(|one| matches!(one, Outcome::Done(_))));
}

fn remove(peer: &mut Peer, all: &[IpAddr]) {
    for some in all.chunks(MAX_ADDRESSES) {
        let addresses = portreeve_protocol::List::new(some.to_vec()).unwrap();
        let removed = peer.ask(&RemoveAddress { addresses, epoch: 0 }).unwrap().0;
        assert!(removed.results.iter().all(|one| matches!(one, Outcome::Done(_))));
    }
}

/// The time from the request to the first announcement at a neighbour.
fn first_announcement(peer: &mut Peer) {
    let mut wire = Wire::at("far");
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
