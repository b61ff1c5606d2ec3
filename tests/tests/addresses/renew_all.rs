//! The renewal of all addresses of a peer at once: one element of the fence lets all of them pass.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use portreeve_protocol::address::{
    AddAddress, ListAddresses, MAX_ADDRESSES, RemoveAddress, RenewAddress, RenewAll,
};
use portreeve_protocol::message::Outcome;
use portreeve_protocol::{FaultCode, List};
use portreeve_tests::kernel::command_denying;
use portreeve_tests::peer::one_address;
use portreeve_tests::{Broker, Host, Peer, binaries, broker, eventually, isolated, lan, reload, sample};
use rustix::process::Signal;

use crate::deadlines::{boot_time, nft};

const SECOND: u64 = 1_000_000_000;
const BOTH: [&str; 2] = ["10.1.1.7", "2001:db8::7"];
const ALL: RenewAll = RenewAll { lease: Some(600), until: None };
const MAX: u32 = 10_240;

#[track_caller]
fn add(peer: &mut Peer, addresses: &[&str]) {
    addresses.iter().for_each(|address| drop(peer.add_address(address, |add| add.lease = Some(20)).unwrap()));
}

/// Addresses that make a peer one that has many: only then does the fence have sets of its own for them.
const MANY: u32 = 65;

/// Adds them.
fn add_many(peer: &mut Peer) {
    let many = (1..=u8::try_from(MANY).unwrap()).map(|last| Ipv4Addr::new(10, 2, 200, last).into());
    let add = AddAddress { addresses: List::truncated(many), lease: Some(600), ..AddAddress::default() };
    let leases = peer.request(&add).unwrap().0;
    assert!(leases.results.iter().all(|one| matches!(one, Outcome::Done(_))), "{leases:?}");
}

/// The number of addresses in the sets of the fence of those that a user renews together.
fn members() -> u32 {
    let table = nft("list table inet portreeve");
    let sets = table.split("_members").skip(1).filter_map(|set| set.split_once("elements = {"));
    sets.map(|(_, elements)| elements.split('}').next().unwrap().split(',').count())
        .sum::<usize>()
        .try_into()
        .unwrap()
}

#[test]
fn all_addresses_of_a_peer_are_renewed_and_those_of_others_are_not() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let (mut peer, mut other) = (broker.peer(), Peer::of_user(65_534, 65_534));
        assert_eq!(peer.request(&ALL).unwrap().0.renewed, 0, "none yet");
        add(&mut peer, &BOTH);
        // Few addresses are renewed each by itself, many together.
        assert_eq!(peer.request(&ALL).unwrap().0.renewed, 2);
        assert_eq!(members(), 0);
        add_many(&mut peer);
        other.add_address("10.1.1.70", |add| add.lease = Some(20)).unwrap();
        let until = boot_time() + 100 * SECOND;
        let renewed = peer.request(&RenewAll { lease: None, until: Some(until) }).unwrap().0;
        assert_eq!((renewed.renewed, renewed.not_renewed, renewed.deadline), (MANY + 2, 0, until));
        assert!(renewed.bounds.ipv4_fenced && renewed.bounds.ipv6_fenced);
        assert!(renewed.now <= boot_time());
        assert_eq!(members(), MANY + 2);
        // One that was added since takes part from the next renewal on.
        add(&mut peer, &["10.1.1.8"]);
        assert_eq!(peer.request(&ALL).unwrap().0.renewed, MANY + 3);
        assert_eq!(members(), MANY + 3);
        let page = peer.request(&ListAddresses { after: None }).unwrap().0;
        assert!(page.fenced);
        for row in page.addresses.iter() {
            let expected = if row.lease.address.to_string() == "10.1.1.70" { 20_000 } else { 600_000 };
            assert!((expected - 10_000..=expected).contains(&row.lease.remaining_ms), "{row:?}");
        }
        // One renewed by itself has its own end from then on; the next renewal of all includes it again.
        let renew =
            RenewAddress { addresses: one_address(BOTH[0]), lease: Some(30), ..RenewAddress::default() };
        peer.request(&renew).unwrap();
        assert_eq!(members(), MANY + 2);
        assert!(peer.request(&ListAddresses { after: None }).unwrap().0.fenced);
        assert_eq!(peer.request(&ALL).unwrap().0.renewed, MANY + 3);
        // Removed and moved ones.
        let removed =
            peer.request(&RemoveAddress { addresses: one_address("10.1.1.8"), epoch: 0 }).unwrap().0;
        assert!(matches!(&removed.results[0], Outcome::Done(removed) if removed.verified), "{removed:?}");
        assert_eq!(members(), MANY + 2);
        peer.request(&RenewAll { lease: Some(2), until: None }).unwrap_err();
        assert_eq!(
            peer.request(&RenewAll { lease: Some(0), until: None }).unwrap_err().code,
            FaultCode::Invalid
        );
        assert_eq!(peer.request(&ALL).unwrap().0.renewed, MANY + 2);
        // Few again.
        let many = (1..=u8::try_from(MANY).unwrap()).map(|last| Ipv4Addr::new(10, 2, 200, last).into());
        peer.request(&RemoveAddress { addresses: List::truncated(many), epoch: 0 }).unwrap();
        assert_eq!(peer.request(&ALL).unwrap().0.renewed, 2);
        assert_eq!(members(), 0);
        assert!(peer.request(&ListAddresses { after: None }).unwrap().0.fenced);
    });
}

#[test]
fn a_flush_of_the_packet_filter_ends_no_lease_that_is_renewed_with_all() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let mut peer = broker.peer();
        add(&mut peer, &BOTH);
        add_many(&mut peer);
        peer.request(&ALL).unwrap();
        for change in [
            "flush ruleset",
            "delete element inet portreeve user_0_renewed { ipv4 }",
            "delete element arp portreeve user_0_members4 { 10.1.1.7 }",
            "flush set inet portreeve user_0_members6",
            "flush chain inet portreeve out",
        ] {
            // The broker gets the request and the notification together.
            broker.signal(Signal::STOP);
            nft(change);
            peer.send(&ALL);
            broker.signal(Signal::CONT);
            let renewed = peer.receive().unwrap().reply::<RenewAll>().unwrap().0;
            assert_eq!((renewed.renewed, renewed.bounds.ipv4_fenced), (MANY + 2, true), "{change}");
            assert!(peer.request(&ListAddresses { after: None }).unwrap().0.fenced, "{change}");
            assert_eq!(members(), MANY + 2, "{change}");
        }
    });
}

#[test]
fn an_address_whose_permit_a_reload_removes_keeps_its_deadline() {
    isolated(|host| {
        lan::create(&["far"]);
        let text = sample::addresses("broker { on_narrow = keep }");
        let broker = Broker::start(host, &text);
        let mut peer = Peer::of_user(65_534, 65_534);
        peer.add_address("10.1.1.70", |add| add.lease = Some(20)).unwrap();
        add_many(&mut peer);
        assert_eq!(peer.request(&ALL).unwrap().0.renewed, MANY + 1);
        let until = boot_time() + 6 * SECOND;
        peer.request(&RenewAll { lease: None, until: Some(until) }).unwrap();
        let fewer = text.replace("\"10.0.0.0/8\"", "\"10.2.0.0/16\"");
        assert_ne!(fewer, text);
        reload::reload(host, &broker, &fewer);
        let renewed = peer.request(&ALL).unwrap().0;
        assert_eq!((renewed.renewed, renewed.not_renewed), (MANY, 1));
        assert_eq!(members(), MANY);
        eventually("the end of the lease", || lan::show_address("10.1.1.70").is_none().then_some(()));
        assert!(boot_time() >= until);
    });
}

#[test]
fn the_kernel_keeps_addresses_that_are_renewed_with_all_beyond_its_first_lifetime() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let mut peer = broker.peer();
        BOTH.iter().for_each(|address| drop(peer.add_address(address, |add| add.lease = Some(5)).unwrap()));
        add_many(&mut peer);
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(10) {
            let renewed = peer.request(&RenewAll { lease: Some(8), until: None }).unwrap().0;
            assert_eq!((renewed.renewed, renewed.not_renewed), (MANY + 2, 0));
            for address in BOTH {
                assert!(lan::show_address(address).is_some(), "{address} after {:?}", begin.elapsed());
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        // Without the broker the kernel removes them, later than without such renewals but soon.
        broker.signal(Signal::KILL);
        for address in BOTH {
            eventually("the removal of the address", || lan::show_address(address).is_none().then_some(()));
        }
        assert!(!broker.log.lines().iter().any(|line| line.contains("restored")));
    });
}

#[test]
fn a_successor_goes_on_with_the_renewal_of_all() {
    isolated(|host| {
        lan::create(&["far"]);
        let text = sample::addresses("");
        let mut broker = Broker::start(host, &text);
        let mut peer = broker.peer();
        add(&mut peer, &BOTH);
        add_many(&mut peer);
        peer.request(&ALL).unwrap();
        broker.replace(host, &text);
        assert_eq!(members(), MANY + 2);
        let mut peer = broker.peer();
        assert!(peer.request(&ListAddresses { after: None }).unwrap().0.fenced);
        assert_eq!(peer.request(&ALL).unwrap().0.renewed, MANY + 2);
        assert_eq!(members(), MANY + 2);
        assert!(!broker.log.lines().iter().any(|line| line.contains("removed parts of the fence")));
    });
}

#[test]
fn leases_that_the_peer_does_not_renew_in_time_end_and_are_not_renewed_any_more() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let mut peer = broker.peer();
        add(&mut peer, &BOTH);
        add_many(&mut peer);
        peer.request(&RenewAll { lease: Some(3), until: None }).unwrap();
        // The lease ends while the broker is stopped, and the request waits until then.
        broker.suspend();
        peer.send(&ALL);
        std::thread::sleep(Duration::from_millis(3_100));
        broker.signal(Signal::CONT);
        match peer.receive().unwrap().reply::<RenewAll>() {
            Ok((renewed, _)) => assert_eq!(renewed.renewed, 0),
            Err(fault) => assert_eq!(fault.code, FaultCode::Expired, "{fault}"),
        }
        for address in BOTH {
            eventually("the removal of the address", || lan::show_address(address).is_none().then_some(()));
        }
        add(&mut peer, &BOTH);
        assert_eq!(peer.request(&ALL).unwrap().0.renewed, 2);
    });
}

#[test]
fn without_the_fence_all_addresses_are_renewed_in_the_kernel_if_they_are_few() {
    isolated(|host| {
        lan::create(&["far"]);
        let config = broker::config(host, &sample::addresses(""));
        // The third argument is NETLINK_NETFILTER.
        let broker = Broker::start_command(
            host,
            command_denying(host, &["socket:12@2=EPROTONOSUPPORT"], binaries::BROKER, &config),
        );
        let mut peer = broker.peer();
        BOTH.iter().for_each(|address| drop(peer.add_address(address, |add| add.lease = Some(3)).unwrap()));
        let renewed = peer.request(&ALL).unwrap().0;
        assert_eq!(renewed.renewed, 2);
        assert!(!renewed.bounds.ipv4_fenced && !renewed.bounds.ipv6_fenced);
        for address in BOTH {
            let shown = lan::show_address(address).unwrap();
            assert!(shown.contains("valid_lft 6") || shown.contains("valid_lft 5"), "{shown}");
        }
        for block in 0..2 {
            let many =
                (1..=u8::try_from(MAX_ADDRESSES / 2).unwrap()).map(|last| Ipv4Addr::new(10, 2, block, last));
            let add = AddAddress {
                addresses: List::truncated(many.map(IpAddr::from)),
                lease: Some(600),
                ..AddAddress::default()
            };
            peer.request(&add).unwrap();
        }
        let refused = peer.request(&ALL).unwrap_err();
        assert_eq!(refused.code, FaultCode::Unsupported, "{refused}");
    });
}

/// As many addresses as a broker can have. Those of IPv6 share their low 24 bits, and so one multicast group: the kernel adds them fast.
fn many(ipv4: bool) -> Vec<IpAddr> {
    let address = |number: u32| -> IpAddr {
        match ipv4 {
            true => Ipv4Addr::from(0x0a02_0000 + 1 + number).into(),
            false => Ipv6Addr::from((0x2001_0db8_u128 << 96) | (u128::from(1 + number) << 32) | 7).into(),
        }
    };
    (0..MAX).map(address).collect()
}

/// The processor time of a process in seconds.
fn processor_time(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap();
    text.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1e9
}

/// Takes some minutes: `cargo test --release -p portreeve-tests renew_all -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn cost_of_a_renewal_of_all_ipv4_addresses_each_second_for_a_minute() {
    isolated(|host| measure(host, true));
}

#[test]
#[ignore = "a measurement"]
fn cost_of_a_renewal_of_all_ipv6_addresses_each_second_for_a_minute() {
    isolated(|host| measure(host, false));
}

fn measure(host: &Host, ipv4: bool) {
    lan::create(&["far"]);
    let broker = Broker::start_with_log_file(host, &sample::addresses(""));
    let (mut peer, mut other) = (broker.peer(), broker.peer());
    let begin = Instant::now();
    let beat = RenewAll { lease: Some(6), until: None };
    for some in many(ipv4).chunks(MAX_ADDRESSES) {
        let addresses = List::new(some.to_vec()).unwrap();
        let add = AddAddress { addresses, lease: Some(60), ..AddAddress::default() };
        let leases = peer.request(&add).unwrap().0;
        assert!(leases.results.iter().all(|one| matches!(one, Outcome::Done(_))), "{leases:?}");
        peer.request(&beat).unwrap();
    }
    println!("{MAX} addresses, IPv4 {ipv4}: added in {:.1} s", begin.elapsed().as_secs_f64());
    let (begin, used) = (Instant::now(), processor_time(broker.pid()));
    let (mut beats, mut pings, mut late) = (Vec::new(), Vec::new(), Vec::new());
    for second in 0..60 {
        let due = begin + Duration::from_secs(second);
        // Another peer meanwhile.
        while Instant::now() < due {
            let asked = Instant::now();
            other.ping();
            pings.push(asked.elapsed());
            std::thread::sleep(Duration::from_millis(2));
        }
        late.push(due.elapsed());
        let asked = Instant::now();
        let renewed = peer.request(&beat).unwrap().0;
        beats.push(asked.elapsed());
        assert_eq!((renewed.renewed, renewed.not_renewed), (MAX, 0));
    }
    let share = (processor_time(broker.pid()) - used) / begin.elapsed().as_secs_f64() * 100.0;
    [&mut beats, &mut pings, &mut late].into_iter().for_each(|times| times.sort_unstable());
    let of = |times: &[Duration]| (times[times.len() / 2], times[times.len() - 1]);
    println!(
        "60 renewals of all: {:?} (median, worst); sent late by {:?}; replies to another peer {:?}; the broker took {share:.1} % of a processor",
        of(&beats),
        of(&late),
        of(&pings)
    );
    assert!(!broker.log.lines().iter().any(|line| line.contains("restored")));
    // All leases end together.
    let (begin, mut pings) = (Instant::now(), Vec::new());
    loop {
        let asked = Instant::now();
        other.ping();
        pings.push(asked.elapsed());
        std::thread::sleep(Duration::from_millis(2));
        if pings.len() % 500 == 0
            && other.request(&ListAddresses { after: None }).unwrap().0.addresses.is_empty()
        {
            break;
        }
    }
    pings.sort_unstable();
    println!(
        "the end of all: {:.1} s after the last renewal the last address is removed; replies to another peer {:?}, {:?}",
        begin.elapsed().as_secs_f64(),
        pings[pings.len() / 2],
        pings[pings.len() - 1]
    );
}
