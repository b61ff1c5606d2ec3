//! Addresses: each is on its interface exactly as long as its lease lasts, and nothing else on the host changes.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use portreeve_protocol::address::{AddAddress, Announce, ListAddresses, RemoveAddress};
use portreeve_protocol::message::Outcome;
use portreeve_protocol::{FaultCode, List};
use portreeve_tests::peer::one_address;
use portreeve_tests::{Broker, Peer, eventually, isolated, lan, resources, sample};
use rustix::process::Signal;

/// A limit for operations that should complete immediately.
const AT_ONCE: Duration = Duration::from_secs(2);

#[test]
fn an_address_exists_from_addition_to_removal_and_nothing_else_changes() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let (before, descriptors) = (lan::addresses(), broker.descriptors());
        let mut peer = broker.peer();
        for (address, prefix) in [("10.1.1.7", 32), ("2001:db8::7", 128)] {
            let lease = peer.add_address(address, |_| {}).unwrap();
            assert_eq!((&*lease.interface, lease.prefix), (lan::INTERFACE, prefix));
            let shown = lan::show_address(address).unwrap();
            assert!(shown.contains("scope global") && shown.contains("noprefixroute"), "{shown}");
            assert!(shown.contains("valid_lft 10sec") || shown.contains("valid_lft 9sec"), "{shown}");
            peer.renew_address(address).unwrap();
            assert!(peer.remove_address(address).unwrap().verified);
            assert_eq!(lan::show_address(address), None);
            assert_eq!(peer.renew_address(address).unwrap_err().code, FaultCode::NotFound);
        }
        assert_eq!(lan::addresses(), before);
        drop(peer);
        broker.await_no_leak(&descriptors);
    });
}

#[test]
fn a_starting_broker_removes_only_the_addresses_of_a_killed_one() {
    isolated(|host| {
        lan::create(&["far"]);
        for foreign in ["10.1.1.20/32", "10.1.1.21/24", "2001:db8::20/128"] {
            lan::ip(
                &format!("addr add {foreign} dev {} nodad", lan::INTERFACE)
                    .replace("/24 dev eth1 nodad", "/24 dev eth1"),
            );
        }
        let before = lan::addresses();
        let broker = Broker::start(host, &sample::addresses(""));
        let mut peer = broker.peer();
        for address in ["10.1.1.7", "2001:db8::7"] {
            peer.add_address(address, |add| add.lease = Some(600)).unwrap();
        }
        // More than the kernel returns in one netlink reply of at most 32 KiB.
        for third in 1..=4 {
            let all = (0..=255).map(|last| IpAddr::from([10, 2, third, last]));
            let add =
                AddAddress { addresses: List::truncated(all), lease: Some(600), ..AddAddress::default() };
            let results = peer.request(&add).unwrap().0.results;
            assert!(results.len() == 256 && results.iter().all(|one| matches!(one, Outcome::Done(_))));
        }
        broker.signal(Signal::KILL);
        drop(broker);
        assert!(lan::show_address("10.1.1.7").is_some() && lan::show_address("2001:db8::7").is_some());
        let mut broker = Broker::start(host, &sample::addresses(""));
        assert_eq!(lan::addresses(), before);
        broker.peer().add_address("10.1.1.7", |_| {}).unwrap();
        assert!(broker.terminate().success());
        assert_eq!(lan::addresses(), before, "a broker removes its addresses when it ends");
    });
}

#[test]
fn existing_addresses_are_never_adopted() {
    isolated(|host| {
        lan::create(&["far"]);
        lan::ip("addr add 10.1.1.20/32 dev eth1");
        lan::ip("addr add 10.1.1.21/24 dev eth1");
        let broker = Broker::start(host, &sample::addresses(""));
        let before = lan::addresses();
        let mut peer = broker.peer();
        for address in ["10.1.1.20", "10.1.1.21", "10.1.1.1", "2001:db8::1"] {
            assert_eq!(peer.add_address(address, |_| {}).unwrap_err().code, FaultCode::InUse, "{address}");
            assert_eq!(peer.remove_address(address).unwrap_err().code, FaultCode::NotFound, "{address}");
            assert_eq!(peer.renew_address(address).unwrap_err().code, FaultCode::NotFound, "{address}");
        }
        assert_eq!(lan::addresses(), before);
        // If the broker's address were primary, its removal would also remove the secondary addresses of its subnet.
        peer.add_address("10.1.1.22", |_| {}).unwrap();
        lan::ip("addr add 10.1.1.23/24 dev eth1");
        peer.remove_address("10.1.1.22").unwrap();
        assert!(lan::show_address("10.1.1.23").is_some());
    });
}

#[test]
fn every_invalid_request_gets_its_own_fault_and_changes_nothing() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let (before, links) = (lan::addresses(), lan::ip("-o link show"));
        let mut peer = broker.peer();
        for (address, code) in [
            ("192.0.2.1", FaultCode::Denied),
            ("10.3.0.1", FaultCode::Denied),
            ("224.0.0.1", FaultCode::Denied),
            ("127.0.0.1", FaultCode::Denied),
            ("0.0.0.0", FaultCode::Denied),
            ("255.255.255.255", FaultCode::Denied),
            ("ff02::1", FaultCode::Denied),
            ("::1", FaultCode::Denied),
            ("::", FaultCode::Denied),
            ("::ffff:10.1.1.7", FaultCode::Denied),
            ("fe80::7", FaultCode::Denied),
            ("10.9.0.1", FaultCode::UnknownInterface),
        ] {
            assert_eq!(peer.add_address(address, |_| {}).unwrap_err().code, code, "{address}");
        }
        let short = peer.add_address("10.1.1.7", |add| add.lease = Some(2)).unwrap_err();
        assert_eq!(short.code, FaultCode::Unsupported);
        peer.add_address("10.1.1.8", |add| add.epoch = 9).unwrap();
        assert_eq!(peer.renew_address("10.1.1.8").unwrap_err().code, FaultCode::Expired, "epoch 0 after 9");
        assert_eq!(peer.add_address("10.1.1.8", |add| add.epoch = 8).unwrap_err().code, FaultCode::Expired);
        let mut other = Peer::of_user(65_534, 65_534);
        assert_eq!(other.add_address("10.1.1.8", |add| add.epoch = 9).unwrap_err().code, FaultCode::InUse);
        assert_eq!(other.remove_address("10.1.1.8").unwrap_err().code, FaultCode::NotFound);
        assert_eq!(lan::ip("-o link show"), links);
        lan::ip("link set eth1 down");
        let down = peer.add_address("10.1.1.7", |_| {}).unwrap_err();
        assert_eq!((down.code, down.errno), (FaultCode::Os, libc::ENETDOWN.unsigned_abs()));
        lan::ip("link set eth1 up");
        lan::ip("addr add 2001:db8::1/64 dev eth1 nodad");
        peer.request(&RemoveAddress { addresses: one_address("10.1.1.8"), epoch: 9 }).unwrap();
        eventually("the same addresses", || (lan::addresses() == before).then_some(()));
    });
}

#[test]
fn an_expired_lease_cannot_be_renewed() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let mut peer = broker.peer();
        let begin = Instant::now();
        peer.add_address("10.1.1.7", |add| add.lease = Some(3)).unwrap();
        eventually("the removal of the address", || lan::show_address("10.1.1.7").is_none().then_some(()));
        let lasted = begin.elapsed();
        assert!(
            (2_990..3_500).contains(&lasted.as_millis()),
            "the broker must remove the address itself, on time: {lasted:?}"
        );
        assert_eq!(peer.renew_address("10.1.1.7").unwrap_err().code, FaultCode::Expired);
        assert_eq!(lan::show_address("10.1.1.7"), None);
        peer.add_address("10.1.1.7", |_| {}).unwrap();
    });
}

#[test]
fn an_address_can_be_added_again_at_the_moment_its_lease_expires() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let mut peer = broker.peer();
        for address in ["10.1.1.7", "2001:db8::7"] {
            let lease = peer.add_address(address, |add| add.lease = Some(3)).unwrap();
            std::thread::sleep(Duration::from_millis(lease.remaining_ms - 10));
            // Announce until the lease has expired, a moment before the broker's timer handles the expiry.
            let announce = Announce { addresses: one_address(address), epoch: 0 };
            let over =
                |one: &Outcome<_>| matches!(one, Outcome::Fault(fault) if fault.code == FaultCode::Expired);
            while !peer.request(&announce).unwrap().0.results.iter().any(over) {}
            peer.add_address(address, |_| {}).unwrap();
            assert!(lan::show_address(address).is_some());
        }
    });
}

#[test]
fn an_address_removed_by_another_program_is_restored_a_limited_number_of_times() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses("cluster { if_down_limit = 2 }"));
        let mut peer = broker.peer();
        peer.add_address("10.1.1.7", |add| add.lease = Some(30)).unwrap();
        for _ in 0..2 {
            lan::ip("addr del 10.1.1.7/32 dev eth1");
            eventually("the restored address", || lan::show_address("10.1.1.7"));
        }
        lan::ip("addr del 10.1.1.7/32 dev eth1");
        // A renewal that is handled before the kernel's removal notification would restore the address.
        eventually("the broker to notice the removal", || {
            let (page, _) = peer.request(&ListAddresses { after: None }).unwrap();
            (!page.addresses[0].present).then_some(())
        });
        assert_eq!(peer.renew_address("10.1.1.7").unwrap_err().code, FaultCode::NotLocal);
        assert_eq!(lan::show_address("10.1.1.7"), None);
        // A link that goes down loses its IPv6 addresses.
        peer.add_address("2001:db8::7", |add| add.lease = Some(30)).unwrap();
        lan::ip("link set eth1 down");
        eventually("the removal of the address", || lan::show_address("2001:db8::7").is_none().then_some(()));
        lan::ip("link set eth1 up");
        eventually("the restored address", || lan::show_address("2001:db8::7"));
        peer.renew_address("2001:db8::7").unwrap();
    });
}

#[test]
fn removing_an_address_resets_its_connections_and_stops_its_listeners() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let mut peer = broker.peer();
        for (address, at) in [("10.1.1.7", "10.1.1.7:25"), ("2001:db8::7", "[2001:db8::7]:25")] {
            peer.add_address(address, |_| {}).unwrap();
            let (_, listener) = peer.listen(at).unwrap();
            let listener = TcpListener::from(listener);
            let at: SocketAddr = at.parse().unwrap();
            let mut client = lan::in_host("far", || TcpStream::connect_timeout(&at, AT_ONCE).unwrap());
            let (_served, _) = listener.accept().unwrap();
            client.set_read_timeout(Some(AT_ONCE)).unwrap();
            assert!(peer.remove_address(address).unwrap().verified);
            let end = client.read(&mut [0]).unwrap_err();
            assert_eq!(end.kind(), ErrorKind::ConnectionReset, "{address}");
            assert!(resources::tcp_listeners().is_empty(), "{address}");
        }
    });
}

#[test]
fn removal_resets_connections_of_both_socket_families_and_of_no_other_address() {
    isolated(|host| {
        lan::create(&["far", "rival", "third"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let mut peer = broker.peer();
        peer.add_address("10.1.1.7", |_| {}).unwrap();
        // An IPv6 socket that accepts IPv4 connections under mapped addresses.
        let listener = TcpListener::bind("[::]:2525").unwrap();
        let connect = |at: &str| {
            let at: SocketAddr = at.parse().unwrap();
            let client = lan::in_host("far", || TcpStream::connect_timeout(&at, AT_ONCE).unwrap());
            client.set_read_timeout(Some(AT_ONCE)).unwrap();
            (client, listener.accept().unwrap().0)
        };
        let (mut removed, _served) = connect("10.1.1.7:2525");
        let others = [connect("10.1.1.1:2525"), connect("[2001:db8::1]:2525")];
        assert!(peer.remove_address("10.1.1.7").unwrap().verified);
        assert_eq!(removed.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        for (mut client, mut served) in others {
            served.write_all(b"2").unwrap();
            client.read_exact(&mut [0]).unwrap();
        }
    });
}

#[test]
fn an_address_elsewhere_on_this_host_is_neither_added_nor_reported_as_removed() {
    isolated(|host| {
        lan::create(&["far", "rival", "third"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let mut peer = broker.peer();
        // A local route makes a whole block local without any address.
        lan::ip("route add local 10.2.7.0/24 dev lo");
        lan::ip("-6 route add local 2001:db8:0:0:9::/80 dev lo");
        for address in ["10.2.7.7", "2001:db8::9:0:0:7"] {
            assert_eq!(peer.add_address(address, |_| {}).unwrap_err().code, FaultCode::InUse, "{address}");
        }
        for (address, copy) in [("10.1.1.7", "10.1.1.7/32"), ("2001:db8::7", "2001:db8::7/128")] {
            peer.add_address(address, |_| {}).unwrap();
            lan::add_to_loopback(copy);
            assert!(!peer.remove_address(address).unwrap().verified, "{address} is still on lo");
            lan::ip(&format!("addr del {copy} dev lo"));
            peer.add_address(address, |_| {}).unwrap();
            assert!(peer.remove_address(address).unwrap().verified);
        }
    });
}
