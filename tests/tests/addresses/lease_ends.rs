//! The end of a lease while somebody interferes: nothing is put back that is about to end, nothing outlasts its lease, and
//! what was silent passes again once it is nobody's on this host.

use std::process::Command;
use std::time::{Duration, Instant};

use portreeve_protocol::EventCode;
use portreeve_protocol::address::ListAddresses;
use portreeve_tests::namespaces::run;
use portreeve_tests::{Broker, eventually, isolated, lan, sample};
use rustix::process::Signal;

const BOTH: [&str; 2] = ["10.1.1.7", "2001:db8::7"];

/// How often an address is in the sets of the fence.
fn fenced(address: &str) -> usize {
    run(Command::new("nft").args(["list", "ruleset"]), "nftables").matches(address).count()
}

#[test]
fn an_address_that_goes_in_the_last_second_of_its_lease_is_not_put_back() {
    isolated(|host| {
        lan::join(&["far"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let (mut peer, mut watcher) = (broker.peer(), broker.peer());
        watcher.follow(false);
        for address in BOTH {
            let lease = peer.add_address(address, |add| add.lease = Some(6)).unwrap();
            let begin = Instant::now();
            // What happens while it stands still it hears of in the last second, or later.
            broker.suspend();
            lan::ip(&format!("addr del {}/{} dev eth1", lease.address, lease.prefix));
            let last = Duration::from_millis(lease.left_ms - 500);
            std::thread::sleep(last.saturating_sub(begin.elapsed()));
            broker.signal(Signal::CONT);
            let end = loop {
                let event = watcher.event();
                assert_ne!(event.code, EventCode::AddressRestored);
                if matches!(event.code, EventCode::AddressExpired | EventCode::AddressLost) {
                    break event.code;
                }
            };
            assert_eq!(end, EventCode::AddressExpired, "{address}");
            assert_eq!(lan::shown(address), None);
        }
        assert!(!broker.log.lines().iter().any(|line| line.contains("restored it")));
    });
}

#[test]
fn an_address_that_is_put_back_does_not_outlast_its_lease() {
    isolated(|host| {
        lan::join(&["far"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let mut peer = broker.peer();
        for address in BOTH {
            let lease = peer.add_address(address, |add| add.lease = Some(30)).unwrap();
            let left = peer.ask(&ListAddresses { after: None }).unwrap().0.addresses;
            let left = left.iter().find(|row| row.lease.address == lease.address).unwrap().lease.left_ms;
            lan::ip(&format!("addr del {}/{} dev eth1", lease.address, lease.prefix));
            let shown = eventually("the address again", || lan::shown(address));
            let (_, valid) = shown.split_once("valid_lft ").unwrap();
            let valid: u64 = valid.split_once("sec").unwrap().0.parse().unwrap();
            assert!(valid * 1_000 <= left, "{valid} s of {left} ms");
        }
    });
}

#[test]
fn what_stays_on_this_host_passes_again_when_it_is_gone_there() {
    isolated(|host| {
        lan::join(&["far"]);
        let broker = Broker::start(host, &sample::addresses("cluster { if_check_interval = 3600 }"));
        let mut peer = broker.peer();
        // By the clock, and for somebody who asked.
        for asked in [false, true] {
            for (address, copy) in BOTH.into_iter().zip(["10.1.1.7/32", "2001:db8::7/128"]) {
                peer.add_address(address, |add| add.lease = Some(3)).unwrap();
                lan::copy_to_loopback(copy);
                match asked {
                    true => assert!(!peer.remove_address(address).unwrap().verified),
                    false => broker.log.wait_for(&["is still local", address]).clear(),
                }
                assert!(fenced(address) > 0, "{address} is silent");
                lan::ip(&format!("addr del {copy} dev lo"));
                eventually("an address that passes the fence", || (fenced(address) == 0).then_some(()));
            }
        }
    });
}

#[test]
fn everything_is_compared_with_the_kernel_as_often_as_the_configuration_says() {
    isolated(|host| {
        lan::join(&["far"]);
        for (every, is_seen) in [(3_600, false), (1, true)] {
            let more = format!("cluster {{ if_check_interval = {every} }}");
            let mut broker = Broker::start(host, &sample::addresses(&more));
            let mut peer = broker.peer();
            peer.add_address("10.1.1.7", |_| {}).unwrap();
            // Of routes the broker is told nothing.
            lan::ip("route add local 10.1.1.7/32 dev lo metric 9");
            assert!(!peer.remove_address("10.1.1.7").unwrap().verified);
            lan::ip("route del local 10.1.1.7/32 dev lo metric 9");
            match is_seen {
                true => eventually("a comparison", || (fenced("10.1.1.7") == 0).then_some(())),
                false => {
                    std::thread::sleep(Duration::from_secs(3));
                    assert!(fenced("10.1.1.7") > 0, "compared after 3 s");
                }
            }
            drop(peer);
            assert!(broker.terminate().success());
        }
    });
}
