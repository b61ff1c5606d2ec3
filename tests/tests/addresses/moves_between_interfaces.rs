//! Moves of addresses between two interfaces of one host.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use portreeve_protocol::address::{AddAddress, ListAddresses, MoveAddress};
use portreeve_protocol::{EventCode, FaultCode, Text};
use portreeve_tests::broker::SOCKET;
use portreeve_tests::namespaces::run;
use portreeve_tests::packet_capture::PacketCapture;
use portreeve_tests::peer::one_address;
use portreeve_tests::{Broker, Host, Peer, binaries, eventually, isolated, lan, sample};

use crate::tracer::delay_messages;

/// A wider block on the second interface permits moves there and back.
fn configuration(host: &Host) -> Broker {
    lan::create(&["far"]);
    lan::add_second_interface();
    let more = "cluster {
        topology \"10.1.0.0/16\" { interface = eth2 }
        topology \"2001:db8::/48\" { interface = eth2 }
        topology \"10.1.1.99/32\" { interface = nowhere0 }
    }";
    Broker::start(host, &sample::addresses(more))
}

#[test]
fn an_address_moves_with_its_lease_its_listener_and_its_connections() {
    isolated(|host| {
        let broker = configuration(host);
        let (mut peer, mut watcher) = (broker.peer(), broker.peer());
        watcher.subscribe(true);
        for (address, at) in [("10.1.1.7", "10.1.1.7:25"), ("2001:db8::7", "[2001:db8::7]:25")] {
            let granted = peer.add_address(address, |add| (add.lease, add.epoch) = (Some(60), 3)).unwrap();
            assert_eq!(watcher.next_event().code, EventCode::AddressAdded);
            let (_, listener) = peer.listen(at).unwrap();
            let listener = TcpListener::from(listener);
            let at: SocketAddr = at.parse().unwrap();
            let connect =
                || lan::in_host("far", || TcpStream::connect_timeout(&at, Duration::from_secs(9)).unwrap());
            let mut before = connect();
            let (mut served, _) = listener.accept().unwrap();

            assert_eq!(
                peer.move_address(address, "eth2").unwrap_err().code,
                FaultCode::Expired,
                "epoch 0 after 3"
            );
            let to = MoveAddress {
                addresses: one_address(address),
                interface: Text::new("eth2").unwrap(),
                epoch: 3,
                announce: true,
            };
            let results = peer.request(&to).unwrap().0.results;
            assert!(format!("{results:?}").contains("Done"), "{results:?}");
            broker.log.wait_for(&["done", "move-address", address, "rules=", "portreeve.conf:"]);
            let listed = peer.request(&ListAddresses { after: None }).unwrap().0.addresses;
            let lease = &listed
                .iter()
                .find(|row| row.lease.address == address.parse::<std::net::IpAddr>().unwrap())
                .unwrap()
                .lease;
            assert_eq!((&*lease.interface, lease.prefix, lease.epoch), ("eth2", granted.prefix, 3));
            assert!(lease.remaining_ms <= granted.remaining_ms && lease.remaining_ms > 40_000, "{lease:?}");
            let shown = lan::show_address(address).unwrap();
            assert!(
                shown.contains("eth2") && shown.contains("valid_lft 60sec") | shown.contains("valid_lft 5"),
                "{shown}"
            );
            assert_eq!(lan::ip("-o addr show").matches(&format!(" {address}/")).count(), 1);
            let moved = watcher.next_event();
            assert_eq!(
                (moved.code, &*moved.interface, &*moved.detail),
                (EventCode::AddressMoved, "eth2", "eth1")
            );

            // The far host has learnt the new location: old and new connections are served.
            before.write_all(b"x").unwrap();
            served.read_exact(&mut [0]).unwrap();
            drop(connect());
            listener.accept().unwrap();
            peer.request(&portreeve_protocol::address::RemoveAddress {
                addresses: one_address(address),
                epoch: 3,
            })
            .unwrap();
            assert_eq!(watcher.await_event(EventCode::AddressRemoved).epoch, 3);
            assert_eq!(lan::show_address(address), None);
        }
    });
}

#[test]
fn a_denied_or_failed_move_changes_nothing() {
    isolated(|host| {
        let broker = configuration(host);
        let mut peer = broker.peer();
        peer.add_address("10.1.1.7", |_| {}).unwrap();
        peer.add_address("10.1.1.8", |_| {}).unwrap();
        lan::ip("addr add 10.1.1.8/32 dev eth2");
        lan::ip("link add eth3 type bridge");
        let before = lan::addresses();
        let mut other = Peer::of_user(65_534, 65_534);
        for (address, interface, code) in [
            ("10.1.1.7", "eth3", FaultCode::Denied),
            ("10.1.1.7", "lo", FaultCode::Denied),
            ("10.1.1.7", "", FaultCode::Denied),
            ("192.0.2.1", "eth2", FaultCode::Denied),
            ("224.0.0.1", "eth2", FaultCode::Denied),
            ("10.1.1.9", "eth2", FaultCode::NotFound),
            ("10.1.1.99", "nowhere0", FaultCode::UnknownInterface),
            ("10.1.1.8", "eth2", FaultCode::InUse),
        ] {
            let fault = peer.move_address(address, interface).unwrap_err();
            assert_eq!(fault.code, code, "{address} to {interface:?}: {fault}");
        }
        assert_eq!(other.move_address("10.1.1.7", "eth2").unwrap_err().code, FaultCode::NotFound);
        lan::ip("link set eth2 down");
        let down = peer.move_address("10.1.1.7", "eth2").unwrap_err();
        assert_eq!((down.code, down.errno), (FaultCode::Os, libc::ENETDOWN.unsigned_abs()));
        lan::ip("link del eth2");
        assert_eq!(peer.move_address("10.1.1.7", "eth2").unwrap_err().code, FaultCode::UnknownInterface);
        let remaining: Vec<String> = before.into_iter().filter(|line| !line.contains("eth2")).collect();
        assert_eq!(lan::addresses(), remaining);
        peer.renew_address("10.1.1.7").unwrap();
        assert_eq!(
            &*peer.move_address("10.1.1.7", "eth1").unwrap().interface,
            "eth1",
            "a move to the current interface succeeds"
        );
    });
}

#[test]
fn an_address_that_cannot_be_removed_from_its_interface_stays_there() {
    isolated(|host| {
        let broker = configuration(host);
        let mut peer = broker.peer();
        peer.add_address("10.1.1.7", |add| add.lease = Some(60)).unwrap();
        // Another program's entry with a peer address, which the broker's removal does not delete.
        lan::ip("addr add 10.1.1.7 peer 10.1.1.99/32 dev eth1");
        let before = lan::addresses();
        let fault = peer.move_address("10.1.1.7", "eth2").unwrap_err();
        assert_eq!((fault.code, fault.errno), (FaultCode::InUse, libc::EEXIST.unsigned_abs()), "{fault}");
        assert_eq!(lan::addresses(), before);
        assert_eq!(&*peer.renew_address("10.1.1.7").unwrap().interface, "eth1");
        lan::ip("addr del 10.1.1.7 peer 10.1.1.99/32 dev eth1");
        assert_eq!(&*peer.move_address("10.1.1.7", "eth2").unwrap().interface, "eth2");
        assert!(lan::show_address("10.1.1.7").unwrap().contains("eth2"));
    });
}

#[test]
fn a_lease_in_its_last_second_is_not_moved() {
    isolated(|host| {
        let broker = configuration(host);
        let mut peer = broker.peer();
        let lease = peer.add_address("10.1.1.7", |add| add.lease = Some(3)).unwrap();
        std::thread::sleep(Duration::from_millis(lease.remaining_ms - 900));
        assert_eq!(peer.move_address("10.1.1.7", "eth2").unwrap_err().code, FaultCode::Expired);
    });
}

#[test]
fn a_thousand_moves_leave_no_trace_and_respect_the_announcement_limit() {
    isolated(|host| {
        let broker = configuration(host);
        let mut peer = broker.peer();
        for address in ["10.1.1.7", "2001:db8::7"] {
            peer.add_address(address, |add| (add.lease, add.announce) = (Some(600), true)).unwrap();
        }
        let (before, descriptors) = (lan::addresses(), broker.descriptors());
        let rules = || run(Command::new("nft").args(["list", "table", "inet", "portreeve"]), "nftables");
        let elements = |text: String| text.matches("10.1.1.7").count();
        let fenced = elements(rules());
        let mut wire = PacketCapture::on("far");
        let begin = Instant::now();
        for round in 0..500 {
            for interface in ["eth2", "eth1"] {
                for address in ["10.1.1.7", "2001:db8::7"] {
                    let moved = peer.move_address(address, interface).unwrap();
                    assert_eq!(&*moved.interface, interface, "{address} in round {round}");
                }
            }
        }
        println!("2,000 moves took {:?}", begin.elapsed());
        assert_eq!(lan::addresses(), before);
        assert_eq!(elements(rules()), fenced, "the fence must be unchanged");
        assert!(
            !broker.log.lines().iter().any(|line| line.contains("restored an address")),
            "no address may be regarded as lost"
        );
        for address in ["10.1.1.7", "2001:db8::7"] {
            peer.renew_address(address).unwrap();
        }
        broker.await_no_leak(&descriptors);
        // Count per interface, by hardware address.
        let frames = wire.collect(
            Duration::from_secs(1),
            |frame| frame.get(6..11) == Some(&[2, 0, 0, 0, 0]),
            |_| false,
        );
        for last in [1, 9] {
            let own: Vec<Instant> =
                frames.iter().filter(|frame| frame.bytes[11] == last).map(|frame| frame.at).collect();
            let second = Duration::from_secs(1);
            let most = (0..own.len())
                .map(|at| own[at..].iter().take_while(|end| **end - own[at] < second).count())
                .max();
            assert!(most.is_some_and(|most| (1..=500).contains(&most)), "{most:?} frames in a second");
        }
    });
}

#[test]
fn the_command_moves_an_address_and_status_shows_its_interface() {
    isolated(|host| {
        let broker = configuration(host);
        broker.peer().add_address("10.1.1.7", |_| {}).unwrap();
        let mut command = Command::new(host.binary(binaries::CLIENT));
        command.args(["--socket", SOCKET, "address", "move", "10.1.1.7", "--to", "eth2"]);
        let moved = run(&mut command, "portreeve");
        assert!(moved.starts_with("10.1.1.7/32 is on eth2 for "), "{moved}");
        assert!(lan::show_address("10.1.1.7").unwrap().contains("eth2"));
        let status = |words: &[&str]| {
            run(
                Command::new(host.binary(binaries::CLIENT)).args(["--socket", SOCKET]).args(words),
                "portreeve",
            )
        };
        let shown = status(&["status"]);
        let row = shown.lines().find(|line| line.starts_with("10.1.1.7/32")).unwrap();
        assert!(row.contains("eth2") && row.contains("user 0"), "{row}");
        let value: serde_json::Value = serde_json::from_str(&status(&["status", "--json"])).unwrap();
        assert_eq!(value["addresses"][0]["address"], "10.1.1.7");
        assert!(row.ends_with(if value["fenced"] == true { " fenced" } else { "not fenced" }), "{row}");
    });
}

#[test]
fn an_address_and_its_follower_move_together_or_not_at_all() {
    isolated(|host| {
        lan::create(&["far"]);
        lan::add_second_interface();
        let more = "cluster {
            topology \"10.1.1.0/28\" { interface = eth1 }
            topology \"10.1.1.0/25\" { interface = eth2 }
        }
        binding both { bind_address = 10.1.1.7 enable_duravip = true }
        binding one { bind_address = 10.1.1.9 enable_duravip = true }
        ESMTP_Listener {
            Listen \"10.1.1.8:25\" { duravip_follow = both }
            Listen \"[2001:db8::9]:25\" { duravip_follow = one }
        }";
        let broker = Broker::start(host, &sample::addresses(more));
        let mut peer = broker.peer();
        let request_move = |peer: &mut Peer, address: &str| {
            let to = MoveAddress {
                addresses: one_address(address),
                interface: Text::new("eth2").unwrap(),
                epoch: 0,
                announce: false,
            };
            format!("{:?}", peer.request(&to).unwrap().0.results)
        };
        for leader in ["10.1.1.7", "10.1.1.9"] {
            let add = AddAddress { addresses: one_address(leader), lease: Some(60), ..AddAddress::default() };
            assert_eq!(peer.request(&add).unwrap().0.results.len(), 2);
        }
        let on =
            |address: &str| lan::show_address(address).unwrap().split_whitespace().nth(1).unwrap().to_owned();
        let moved = request_move(&mut peer, "10.1.1.7");
        assert!(!moved.contains("Fault"), "{moved}");
        assert_eq!((on("10.1.1.7"), on("10.1.1.8")), ("eth2".to_owned(), "eth2".to_owned()));
        // Root may change only eth1, and no topology block of this follower names eth2.
        let refused = request_move(&mut peer, "10.1.1.9");
        assert!(refused.contains("2001:db8::9") && !refused.contains("Done"), "{refused}");
        assert_eq!((on("10.1.1.9"), on("2001:db8::9")), ("eth1".to_owned(), "eth1".to_owned()));
    });
}

/// The address is removed from the new interface by another program, and the old interface is deleted, before the broker has
/// seen the address on the new one. So the move fails, and the kernel refuses to return the address to the old interface.
#[test]
fn an_address_that_cannot_return_after_a_failed_move_is_restored_when_its_interface_is_created_again() {
    isolated(|host| {
        let broker = configuration(host);
        let (mut peer, mut watcher) = (broker.peer(), broker.peer());
        watcher.subscribe(true);
        peer.add_address("10.1.1.7", |add| add.lease = Some(60)).unwrap();
        peer.move_address("10.1.1.7", "eth2").unwrap();
        // The messages of a move are: find the interface, add the address, remove it from the old interface, list all addresses.
        let mut pause = delay_messages(&broker, "600s:when=4");
        let moved = std::thread::scope(|scope| {
            let mover = scope.spawn(|| peer.move_address("10.1.1.7", "eth1"));
            eventually("the address on eth1 alone", || {
                let shown = lan::show_address("10.1.1.7")?;
                (shown.contains("eth1") && !shown.contains("eth2")).then_some(())
            });
            lan::ip("addr del 10.1.1.7/32 dev eth1");
            lan::ip("link del eth2");
            pause.kill().unwrap();
            pause.wait().unwrap();
            mover.join().unwrap()
        });
        let fault = moved.unwrap_err();
        assert!(fault.message.contains("10.1.1.7"), "{fault:?}");
        broker.log.wait_for(&["cannot return an address to its interface after a failed move", "10.1.1.7"]);
        watcher.await_event(EventCode::AddressLost);

        lan::add_second_interface();
        watcher.await_event(EventCode::AddressRestored);
        let shown = lan::show_address("10.1.1.7").unwrap();
        assert!(shown.contains("eth2") && !shown.contains("eth1"), "{shown}");
        let lease = peer.renew_address("10.1.1.7").unwrap();
        assert_eq!(&*lease.interface, "eth2");
        peer.move_address("10.1.1.7", "eth1").unwrap();
    });
}
