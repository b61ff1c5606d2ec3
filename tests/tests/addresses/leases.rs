//! Leases held through the client library: a guard renews each lease and reports its loss.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use portreeve::{AddressOptions, Channel, Client, Error, EventCode, FaultCode, blocking};
use portreeve_protocol::address::RenewAddress;
use portreeve_tests::broker::SOCKET;
use portreeve_tests::namespaces::run;
use portreeve_tests::peer::one_address;
use portreeve_tests::{Broker, Peer, binaries, eventually, exclusive, isolated, lan, sample};
use rustix::process::Signal;

const QUIET: AddressOptions = AddressOptions::new().lease(3).probes(0).announce(false);

fn with_client<T>(act: impl AsyncFnOnce(Client) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = Client::open(Channel::connect(Path::new(SOCKET)).unwrap(), "test").await.unwrap();
        act(client).await
    })
}

#[test]
fn a_held_address_is_renewed_until_its_guard_is_dropped() {
    isolated(|host| {
        lan::create(&["far"]);
        let _broker = Broker::start(host, &sample::addresses(""));
        with_client(async |client| {
            // Renewed every 1.2 s: the lease survives a machine that stalls this program for some seconds.
            let lease = QUIET.lease(6);
            let held = client.hold_address("10.1.1.7".parse().unwrap(), &lease).await.unwrap();
            assert_eq!(held.interface(), lan::INTERFACE);
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_millis(7_500) {
                assert!(lan::show_address("10.1.1.7").is_some(), "removed after {:?}", begin.elapsed());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            assert!(held.remove().await.unwrap());
            assert_eq!(lan::show_address("10.1.1.7"), None);
            drop(client.hold_address("10.1.1.8".parse().unwrap(), &QUIET).await.unwrap());
            // The drop has sent its request already.
            client.ping().await.unwrap();
            eventually("the removal of the address", || {
                lan::show_address("10.1.1.8").is_none().then_some(())
            });
        });
    });
}

#[test]
fn a_burst_of_dropped_guards_beyond_the_in_flight_quota_does_not_end_the_session() {
    isolated(|host| {
        lan::create(&["far"]);
        let _broker = Broker::start(host, &sample::addresses("broker { max_in_flight = 1 }"));
        with_client(async |client| {
            let mut held = Vec::new();
            for address in ["10.1.1.7", "10.1.1.8", "10.1.1.9"] {
                held.push(client.hold_address(address.parse().unwrap(), &QUIET).await.unwrap());
            }
            drop(held);
            client.ping().await.unwrap();
            // A refused removal leaves the address until its lease ends.
            eventually("the removal of the addresses", || {
                let removed = |address| lan::show_address(address).is_none();
                ["10.1.1.7", "10.1.1.8", "10.1.1.9"].into_iter().all(removed).then_some(())
            });
            client.ping().await.unwrap();
        });
    });
}

#[test]
fn a_holder_learns_in_time_that_a_hanging_broker_does_not_renew_its_lease() {
    exclusive(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses(""));
        with_client(async |client| {
            let mut held = client.hold_address("10.1.1.7".parse().unwrap(), &QUIET).await.unwrap();
            broker.suspend();
            let begin = Instant::now();
            let why = held.lost().await;
            assert!(matches!(&why, Error::Fault(fault) if fault.code == FaultCode::Expired), "{why}");
            assert!(begin.elapsed() <= Duration::from_millis(3_500), "{:?}", begin.elapsed());
            broker.signal(Signal::CONT);
        });
    });
}

/// Permits permanent leases for some addresses, beside the permit for all addresses.
const PERMANENT: &str =
    r#"broker { lease = 3 permit "ever" { address = ( "10.1.1.64/26" ) permanent = true } }"#;

#[test]
fn a_permanent_lease_needs_a_permit_and_ends_with_its_broker() {
    isolated(|host| {
        lan::create(&["far"]);
        let before = lan::addresses();
        let broker = Broker::start(host, &sample::addresses(PERMANENT));
        let mut peer = broker.peer();
        let denied = peer.add_address("10.1.1.7", |add| add.lease = Some(0)).unwrap_err();
        assert_eq!(denied.code, FaultCode::Denied, "{denied}");
        assert!(denied.remedy.contains("permanent = true"), "{denied}");
        let mut other = Peer::of_user(65_534, 65_534);
        let denied = other.add_address("10.1.1.70", |add| add.lease = Some(0)).unwrap_err();
        assert_eq!(denied.code, FaultCode::Denied, "its peer scope has another permit: {denied}");

        let lease = peer.add_address("10.1.1.70", |add| add.lease = Some(0)).unwrap();
        assert_eq!(lease.remaining_ms, u64::MAX);
        peer.add_address("10.1.1.71", |add| add.lease = Some(0)).unwrap();
        // A renewal without a time keeps the lease permanent; a renewal with a time makes it expire.
        assert_eq!(peer.renew_address("10.1.1.70").unwrap().remaining_ms, u64::MAX);
        let shorter =
            RenewAddress { addresses: one_address("10.1.1.71"), lease: Some(3), ..RenewAddress::default() };
        peer.request(&shorter).unwrap();
        eventually("the removal of the other address", || {
            lan::show_address("10.1.1.71").is_none().then_some(())
        });
        let shown = lan::show_address("10.1.1.70").unwrap();
        assert!(shown.contains("valid_lft forever"), "{shown}");
        let ping = |address: &str| {
            let at = format!("{address}:9").parse().unwrap();
            lan::in_host("far", || std::net::TcpStream::connect_timeout(&at, Duration::from_secs(5)))
        };
        let answer = ping("10.1.1.70").unwrap_err();
        assert_eq!(
            answer.kind(),
            std::io::ErrorKind::ConnectionRefused,
            "the address must pass the fence: {answer}"
        );

        broker.signal(Signal::KILL);
        drop(broker);
        assert!(
            lan::show_address("10.1.1.70").is_some(),
            "no process remained that could remove the address"
        );
        let mut broker = Broker::start(host, &sample::addresses(PERMANENT));
        assert_eq!(lan::addresses(), before, "the next broker removes the addresses of the killed one");
        broker.peer().add_address("10.1.1.70", |add| add.lease = Some(0)).unwrap();
        assert!(broker.terminate().success());
        assert_eq!(lan::addresses(), before);
    });
}

#[test]
fn a_holder_learns_at_once_that_another_peer_removed_its_address() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses(""));
        with_client(async |client| {
            let address = "10.1.1.7".parse().unwrap();
            let mut held = client.hold_address(address, &QUIET.lease(3_600)).await.unwrap();
            broker.peer().remove_address("10.1.1.7").unwrap();
            // Twelve minutes before the next renewal.
            let why = tokio::time::timeout(Duration::from_secs(20), held.lost()).await.unwrap();
            assert!(matches!(&why, Error::Fault(fault) if fault.code == FaultCode::NotFound), "{why}");
        });
    });
}

#[test]
fn every_event_stream_of_a_session_gets_all_events_and_the_end() {
    isolated(|host| {
        lan::create(&["far"]);
        let mut broker = Broker::start(host, &sample::addresses(""));
        with_client(async |client| {
            let mut first = client.events(true).await.unwrap();
            broker.peer().add_address("10.1.1.7", |_| {}).unwrap();
            assert_eq!(first.next().await.unwrap().code, EventCode::AddressAdded);
            let mut second = client.events(false).await.unwrap();
            assert_eq!(second.next().await.unwrap().number, 1, "the stream begins with past events");
            broker.peer().remove_address("10.1.1.7").unwrap();
            for stream in [&mut first, &mut second] {
                let next = stream.next().await.unwrap();
                assert_eq!((next.code, next.number), (EventCode::AddressRemoved, 2));
            }
            assert_eq!(client.recent_events(true).await.unwrap().len(), 2);
            drop(first);
            assert!(broker.terminate().success());
            assert!(matches!(second.next().await, Err(Error::Closed)));
        });
    });
}

#[test]
fn the_blocking_client_delivers_events_while_another_thread_sends_requests() {
    isolated(|host| {
        lan::create(&["far"]);
        let mut broker = Broker::start(host, &sample::addresses(""));
        let channel = Channel::connect(Path::new(SOCKET)).unwrap();
        let client = blocking::Client::open(channel, "test").unwrap();
        let mut events = client.events(false).unwrap();
        let address = ["10.1.1.7".parse().unwrap()];
        let requester = client.clone();
        let thread = std::thread::spawn(move || {
            for _ in 0..20 {
                let added = requester.add_addresses(&address, &QUIET).unwrap();
                assert_eq!(&*added[0].as_ref().unwrap().interface, lan::INTERFACE);
                requester.renew_addresses(&address, Some(9), 0).unwrap()[0].as_ref().unwrap();
                requester.announce_addresses(&address, 0).unwrap()[0].as_ref().unwrap();
                assert_eq!(requester.addresses(None).unwrap().addresses.len(), 1);
                assert!(requester.remove_addresses(&address, 0).unwrap()[0].as_ref().unwrap().verified);
            }
        });
        for round in 0..20 {
            for code in [EventCode::AddressAdded, EventCode::AddressRemoved] {
                assert_eq!(events.next().unwrap().unwrap().code, code, "round {round}");
            }
        }
        thread.join().unwrap();
        assert_eq!(client.recent_events(false).unwrap().len(), 40);
        assert!(broker.terminate().success());
        assert!(matches!(events.next(), Some(Err(Error::Closed))));
        assert!(events.next().is_none());
    });
}

#[test]
fn the_command_adds_lists_renews_and_removes_addresses() {
    isolated(|host| {
        lan::create(&["far"]);
        let _broker = Broker::start(host, &sample::addresses(""));
        let command = |words: &str| {
            let mut command = Command::new(host.binary(binaries::CLIENT));
            run(command.args(["--socket", SOCKET, "address"]).args(words.split(' ')), "portreeve")
        };
        let added = command("add 10.1.1.7 2001:db8::7 --lease 30 --probes 0 --epoch 4");
        assert_eq!(added.lines().count(), 2, "{added}");
        assert!(added.starts_with("10.1.1.7/32 is on eth1 for "), "{added}");
        let list = command("list");
        for part in ["10.1.1.7/32", "2001:db8::7/128", "eth1", "user 0"] {
            assert!(list.contains(part), "no {part:?} in {list}");
        }
        assert!(command("renew 10.1.1.7 --epoch 4 --lease 60").contains("for 60.0 s"));
        command("announce 10.1.1.7 --epoch 5");
        assert_eq!(
            command("remove 10.1.1.7 2001:db8::7 --epoch 5"),
            "10.1.1.7 was removed\n2001:db8::7 was removed\n"
        );
        assert_eq!(lan::show_address("10.1.1.7"), None);
    });
}
