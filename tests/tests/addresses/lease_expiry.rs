//! Expiry of a lease while another program interferes: an address is not restored just before it expires, no address
//! outlives its lease, and a fenced address passes again after the other program removes its copy.

use std::process::Command;
use std::time::{Duration, Instant};

use portreeve_protocol::EventCode;
use portreeve_protocol::address::ListAddresses;
use portreeve_tests::namespaces::run;
use portreeve_tests::{Broker, eventually, isolated, lan, sample};
use rustix::process::Signal;

const BOTH: [&str; 2] = ["10.1.1.7", "2001:db8::7"];

/// The number of entries for an address in the sets of the fence.
fn fenced(address: &str) -> usize {
    run(Command::new("nft").args(["list", "ruleset"]), "nftables").matches(address).count()
}

#[test]
fn an_address_removed_in_the_last_second_of_its_lease_is_not_restored() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let (mut peer, mut watcher) = (broker.peer(), broker.peer());
        watcher.subscribe(false);
        for address in BOTH {
            let lease = peer.add_address(address, |add| add.lease = Some(6)).unwrap();
            let begin = Instant::now();
            // The suspended broker learns of the removal in the last second of the lease, or later.
            broker.suspend();
            lan::ip(&format!("addr del {}/{} dev eth1", lease.address, lease.prefix));
            let last = Duration::from_millis(lease.remaining_ms - 500);
            std::thread::sleep(last.saturating_sub(begin.elapsed()));
            broker.signal(Signal::CONT);
            let end = loop {
                let event = watcher.next_event();
                assert_ne!(event.code, EventCode::AddressRestored);
                if matches!(event.code, EventCode::AddressExpired | EventCode::AddressLost) {
                    break event.code;
                }
            };
            assert_eq!(end, EventCode::AddressExpired, "{address}");
            assert_eq!(lan::show_address(address), None);
        }
        assert!(!broker.log.lines().iter().any(|line| line.contains("restored an address")));
    });
}

#[test]
fn a_restored_address_does_not_outlive_its_lease() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let mut peer = broker.peer();
        for address in BOTH {
            let lease = peer.add_address(address, |add| add.lease = Some(30)).unwrap();
            let remaining = peer.request(&ListAddresses { after: None }).unwrap().0.addresses;
            let remaining =
                remaining.iter().find(|row| row.lease.address == lease.address).unwrap().lease.remaining_ms;
            lan::ip(&format!("addr del {}/{} dev eth1", lease.address, lease.prefix));
            let shown = eventually("the restored address", || lan::show_address(address));
            let (_, valid) = shown.split_once("valid_lft ").unwrap();
            let valid: u64 = valid.split_once("sec").unwrap().0.parse().unwrap();
            assert!(valid * 1_000 <= remaining, "{valid} s of {remaining} ms");
        }
    });
}

#[test]
fn the_fence_is_lifted_after_another_programs_copy_is_removed() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses("cluster { if_check_interval = 3600 }"));
        let mut peer = broker.peer();
        // Removal by expiry, and removal by request.
        for by_request in [false, true] {
            for (address, copy) in BOTH.into_iter().zip(["10.1.1.7/32", "2001:db8::7/128"]) {
                peer.add_address(address, |add| add.lease = Some(3)).unwrap();
                lan::add_to_loopback(copy);
                match by_request {
                    true => assert!(!peer.remove_address(address).unwrap().verified),
                    false => broker.log.wait_for(&["is still local", address]).clear(),
                }
                assert!(fenced(address) > 0, "{address} is not fenced");
                lan::ip(&format!("addr del {copy} dev lo"));
                eventually("the fence to be lifted", || (fenced(address) == 0).then_some(()));
            }
        }
    });
}

#[test]
fn state_is_reconciled_with_the_kernel_at_the_configured_interval() {
    isolated(|host| {
        lan::create(&["far"]);
        for (every, is_seen) in [(3_600, false), (1, true)] {
            let more = format!("cluster {{ if_check_interval = {every} }}");
            let mut broker = Broker::start(host, &sample::addresses(&more));
            let mut peer = broker.peer();
            peer.add_address("10.1.1.7", |_| {}).unwrap();
            // The broker gets no notification of routes.
            lan::ip("route add local 10.1.1.7/32 dev lo metric 9");
            assert!(!peer.remove_address("10.1.1.7").unwrap().verified);
            lan::ip("route del local 10.1.1.7/32 dev lo metric 9");
            match is_seen {
                true => eventually("a reconciliation", || (fenced("10.1.1.7") == 0).then_some(())),
                false => {
                    std::thread::sleep(Duration::from_secs(3));
                    assert!(fenced("10.1.1.7") > 0, "reconciled after 3 s");
                }
            }
            drop(peer);
            assert!(broker.terminate().success());
        }
    });
}
