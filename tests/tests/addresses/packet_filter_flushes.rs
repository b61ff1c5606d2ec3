//! Other programs that flush the packet filter, or remove parts of the fence from it: the fence is built again at once, and
//! no lease ends early or lasts longer.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use portreeve_protocol::address::{AddAddress, ListAddresses, RenewAddress, RenewAll};
use portreeve_protocol::message::Outcome;
use portreeve_protocol::metrics::MetricsRequest;
use portreeve_protocol::{FaultCode, List};
use portreeve_tests::packet_capture::{PacketCapture, assert_silence_after_lease};
use portreeve_tests::{Broker, Peer, eventually, isolated, lan, sample};
use rustix::process::Signal;

use crate::deadlines::nft;
use crate::tracer::delay_messages;

const BOTH: [&str; 2] = ["10.1.1.7", "2001:db8::7"];
const REPAIRED: &str = "another program removed parts of the fence";

/// How often the broker has built the fence again.
fn repairs(broker: &Broker) -> usize {
    broker.log.lines().iter().filter(|line| line.contains(REPAIRED)).count()
}

fn is_fenced(peer: &mut Peer) -> bool {
    peer.request(&ListAddresses { after: None }).unwrap().0.fenced
}

#[test]
fn whatever_another_program_removes_from_the_fence_is_built_again_at_once() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let mut peer = broker.peer();
        BOTH.iter().for_each(|address| drop(peer.add_address(address, |add| add.lease = Some(600)).unwrap()));
        peer.add_address("10.1.1.9", |add| add.lease = Some(0)).unwrap_err();
        assert!(is_fenced(&mut peer));
        nft("add table inet other");
        for (count, change) in [
            "flush ruleset",
            "delete table inet portreeve",
            "delete table arp portreeve",
            "flush table inet portreeve",
            "flush chain arp portreeve in",
            "flush set inet portreeve allowed4",
            "delete element inet portreeve allowed6 { 2001:db8::7 }",
            "delete element arp portreeve allowed4 { 10.1.1.7 }",
        ]
        .into_iter()
        .enumerate()
        {
            nft(change);
            eventually("the fence", || (repairs(&broker) == count + 1).then_some(()));
            let rules = nft("list ruleset");
            // In two sets each: of the inet table, and for IPv4 also of the arp table.
            assert_eq!(
                (rules.matches(BOTH[0]).count(), rules.matches(BOTH[1]).count()),
                (4, 2),
                "{change}: {rules}"
            );
            assert_eq!(rules.matches(" drop").count(), 6, "{change}: {rules}");
            assert!(is_fenced(&mut peer), "{change}");
            for address in BOTH {
                let remaining = peer.renew_address(address).unwrap().remaining_ms;
                assert!(remaining > 590_000, "{change}: {remaining}");
            }
        }
        // Of other tables the broker takes no notice.
        nft("add table inet other");
        nft("delete table inet other");
        peer.add_address("10.1.1.8", |_| {}).unwrap();
        assert!(peer.remove_address("10.1.1.8").unwrap().verified);
        assert_eq!(repairs(&broker), 8);
        let counted = peer.request(&MetricsRequest {}).unwrap().0.addresses.unwrap().fence_repairs;
        assert_eq!(counted, 8);
    });
}

#[test]
fn a_lease_that_is_about_to_end_blocks_no_other_address_on_a_slow_host() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let mut peer = broker.peer();
        peer.add_address(BOTH[0], |add| add.lease = Some(600)).unwrap();
        for _ in 0..3 {
            peer.add_address("10.1.1.9", |add| add.lease = Some(3)).unwrap();
            eventually("the last second of a lease", || {
                let (page, _) = peer.request(&ListAddresses { after: None }).unwrap();
                page.addresses.iter().any(|row| row.lease.remaining_ms < 900).then_some(())
            });
            // The kernel gets each deadline so late that the broker has to allow for that, and there is too little time for it.
            let (mut tracer, before) = (delay_messages(&broker, "10ms"), repairs(&broker));
            nft("flush ruleset");
            eventually("the fence", || (repairs(&broker) > before).then_some(()));
            let rules = nft("list ruleset");
            assert_eq!(rules.matches(BOTH[0]).count(), 4, "{rules}");
            tracer.kill().unwrap();
            tracer.wait().unwrap();
            peer.renew_address(BOTH[0]).unwrap();
            eventually("the end of a lease", || {
                (!lan::addresses().iter().any(|address| address.contains("10.1.1.9"))).then_some(())
            });
        }
    });
}

/// Tells the fence a deadline by `renew` so that it ends for an address of the set more than half a second before the lease, because
/// the broker allows for a delay that does not repeat itself. Returns when it has ended there.
fn end_early(broker: &Broker, peer: &mut Peer, set: &str, element: &str, mut renew: impl FnMut(&mut Peer)) {
    eventually("a fence that ends before the lease", || {
        // The first message may be another one.
        let mut tracer = delay_messages(broker, "1500ms:when=1");
        renew(peer);
        tracer.kill().unwrap();
        tracer.wait().unwrap();
        loop {
            let (page, _) = peer.request(&ListAddresses { after: None }).unwrap();
            let remaining = page.addresses.iter().map(|row| row.lease.remaining_ms).min().unwrap();
            if remaining < 500 {
                renew(peer);
                return None;
            }
            if !nft(&format!("list set inet portreeve {set}")).contains(element) {
                return Some(());
            }
        }
    });
}

#[test]
fn an_address_for_which_the_fence_ends_before_the_lease_is_renewed_and_no_program_is_blamed() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let mut peer = broker.peer();
        let renew = |peer: &mut Peer| drop(peer.renew_address(BOTH[0]).unwrap());
        peer.add_address(BOTH[0], |add| add.lease = Some(6)).unwrap();
        end_early(&broker, &mut peer, "allowed4", BOTH[0], renew);
        renew(&mut peer);
        assert!(is_fenced(&mut peer));
        assert!(nft("list set inet portreeve allowed4").contains(BOTH[0]));
        assert!(nft("list set arp portreeve allowed4").contains(BOTH[0]));
        assert_eq!(repairs(&broker), 0);
    });
}

#[test]
fn addresses_of_a_holder_for_which_the_fence_ends_before_the_leases_are_renewed_and_no_program_is_blamed() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let mut peer = broker.peer();
        let addresses: Vec<IpAddr> = (1..=65).map(|last| Ipv4Addr::new(10, 2, 0, last).into()).collect();
        let add =
            AddAddress { addresses: List::truncated(addresses), lease: Some(6), ..AddAddress::default() };
        peer.request(&add).unwrap();
        let renew = |peer: &mut Peer| {
            let renewed = peer.request(&RenewAll { lease: Some(6), until: None }).unwrap().0;
            assert_eq!((renewed.renewed, renewed.not_renewed), (65, 0));
        };
        renew(&mut peer);
        end_early(&broker, &mut peer, "user_0_renewed", "elements", renew);
        renew(&mut peer);
        assert!(is_fenced(&mut peer));
        assert!(nft("list set inet portreeve user_0_renewed").contains("elements"));
        assert_eq!(repairs(&broker), 0);
    });
}

#[test]
fn a_renewal_and_an_addition_right_after_a_flush_succeed() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let mut peer = broker.peer();
        BOTH.iter().for_each(|address| drop(peer.add_address(address, |_| {}).unwrap()));
        for round in 0..20 {
            // The broker gets the request and the notification together.
            broker.signal(Signal::STOP);
            nft("flush ruleset");
            match round % 2 {
                0 => {
                    let addresses = List::truncated(BOTH.iter().map(|address| address.parse().unwrap()));
                    peer.send(&RenewAddress { addresses, ..RenewAddress::default() });
                    broker.signal(Signal::CONT);
                    let (renewed, _) = peer.receive().unwrap().reply::<RenewAddress>().unwrap();
                    for outcome in renewed.results.into_vec() {
                        assert!(matches!(outcome, Outcome::Done(_)), "{outcome:?}");
                    }
                }
                _ => {
                    broker.signal(Signal::CONT);
                    peer.add_address("10.1.1.8", |_| {}).unwrap();
                    peer.remove_address("10.1.1.8").unwrap();
                }
            }
            assert!(is_fenced(&mut peer));
        }
    });
}

#[test]
fn no_lease_of_a_thousand_is_lost_when_the_packet_filter_is_flushed_while_they_are_added() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let mut peer = broker.peer();
        let (stop, mut added) = (AtomicBool::new(false), Vec::new());
        let flushes = std::thread::scope(|scope| {
            // The next flush comes as soon as the broker has built the fence again.
            let flusher = scope.spawn(|| {
                let mut flushes = 0;
                while !stop.load(Ordering::Relaxed) {
                    if repairs(&broker) >= flushes {
                        nft("flush ruleset");
                        flushes += 1;
                    }
                    std::thread::yield_now();
                }
                flushes
            });
            let added_all = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                for block in 0..4 {
                    let addresses: Vec<IpAddr> =
                        (1..=250).map(|last| Ipv4Addr::new(10, 2, block, last).into()).collect();
                    let add = AddAddress {
                        addresses: List::truncated(addresses.clone()),
                        lease: Some(600),
                        ..AddAddress::default()
                    };
                    for outcome in peer.request(&add).unwrap().0.results.into_vec() {
                        assert!(matches!(outcome, Outcome::Done(_)), "{outcome:?}");
                    }
                    added.push(addresses);
                }
            }));
            // Also after a panic: the scope waits for the other thread.
            stop.store(true, Ordering::Relaxed);
            let flushes = flusher.join().unwrap();
            added_all.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            flushes
        });
        println!("1,000 addresses were added during {flushes} flushes and {} repairs", repairs(&broker));
        assert!(flushes > 0);
        for addresses in added {
            let renew = RenewAddress { addresses: List::truncated(addresses), ..RenewAddress::default() };
            for outcome in peer.request(&renew).unwrap().0.results.into_vec() {
                assert!(matches!(outcome, Outcome::Done(_)), "{outcome:?}");
            }
        }
        eventually("the fence", || is_fenced(&mut peer).then_some(()));
        assert_eq!(nft("list set inet portreeve allowed4").matches("10.2.").count(), 1_000);
    });
}

#[test]
fn a_fence_that_was_built_again_ends_each_lease_in_time_and_renews_none_that_has_ended() {
    const LEASE: Duration = Duration::from_secs(3);
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let mut peer = broker.peer();
        let mut wire = PacketCapture::on("far");
        peer.add_address("10.1.1.7", |add| add.lease = Some(3)).unwrap();
        let begin = Instant::now();
        peer.renew_address("10.1.1.7").unwrap();
        let sure = begin.elapsed();
        nft("flush ruleset");
        broker.log.wait_for(&[REPAIRED]);
        broker.signal(Signal::STOP);
        assert_silence_after_lease(&mut wire, begin, sure, LEASE);
        // The lease has ended, the fence is gone again, and the request is older than both.
        nft("flush ruleset");
        let addresses = List::truncated(["10.1.1.7".parse().unwrap()]);
        peer.send(&RenewAddress { addresses, ..RenewAddress::default() });
        broker.signal(Signal::CONT);
        let (renewed, _) = peer.receive().unwrap().reply::<RenewAddress>().unwrap();
        let outcome = renewed.results.into_vec().remove(0);
        assert!(matches!(&outcome, Outcome::Fault(fault) if fault.code == FaultCode::Expired), "{outcome:?}");
        eventually("the removal of the address", || lan::show_address("10.1.1.7").is_none().then_some(()));
    });
}

#[test]
fn a_broker_that_finds_addresses_but_no_fence_at_its_start_reports_no_error() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses(""));
        broker.peer().add_address("10.1.1.7", |add| add.lease = Some(600)).unwrap();
        broker.signal(Signal::KILL);
        drop(broker);
        nft("flush ruleset");
        let broker = Broker::start(host, &sample::addresses(""));
        broker.log.wait_for(&["removed a leftover address", "10.1.1.7"]);
        let lines = broker.log.lines();
        assert!(!lines.iter().any(|line| line.contains("ERROR")), "{lines:?}");
        assert_eq!(lan::show_address("10.1.1.7"), None);
    });
}
