//! Floating listeners (DuraVIP): each starts when its address is added and stops before the address is removed. Some
//! addresses follow another address.

use std::io::{ErrorKind, Read as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::time::Duration;

use portreeve_protocol::FaultCode;
use portreeve_protocol::address::{AddAddress, Announce, Lease, RemoveAddress, RenewAddress};
use portreeve_protocol::message::Outcome;
use portreeve_tests::packet_capture::PacketCapture;
use portreeve_tests::peer::one_address;
use portreeve_tests::scripted_worker::WorkerSetup;
use portreeve_tests::{Broker, Host, eventually, isolated, lan, resources, sample};
use rustix::net::sockopt::socket_cookie;

const AT_ONCE: Duration = Duration::from_secs(5);

/// A listener that is floating by its own option, one that is floating by its binding, a static one, and one that
/// starts only on request.
const LISTENERS: &str = r#"
    binding "out" { bind_address = "2001:db8::7" enable_duravip = true }
    ESMTP_Listener {
        Listen "10.1.1.7:25" { enable_duravip = true listen_backlog = 50 }
        Listen "10.1.1.7:587" { enable = false }
        Listen "[2001:db8::7]:25" {}
        Listen "10.1.1.1:26" {}
    }"#;

fn start(host: &Host) -> (WorkerSetup, Broker) {
    let setup = WorkerSetup::new(host, "chroot");
    let rest = sample::addresses(&format!("{LISTENERS} worker {{ stable_after = 0 }}"));
    let text = sample::worker(&setup.chroot, "( /run/host/bin/scripted_worker )", &rest);
    let broker = Broker::start(host, &text);
    (setup, broker)
}

fn at(endpoint: &str) -> SocketAddr {
    endpoint.parse().unwrap()
}

fn connect(endpoint: &str) -> TcpStream {
    let at = at(endpoint);
    let client = lan::in_host("far", || TcpStream::connect_timeout(&at, AT_ONCE)).unwrap();
    client.set_read_timeout(Some(AT_ONCE)).unwrap();
    client
}

#[test]
fn a_floating_listener_starts_with_its_address_stops_before_removal_and_restarts() {
    isolated(|host| {
        lan::create(&["far"]);
        let (setup, broker) = start(host);
        let (mut scripted, mut worker) = setup.accept();
        worker.hello();
        assert_eq!(
            resources::tcp_listeners(),
            [at("10.1.1.1:26")],
            "the static listener exists from the start"
        );
        let early = worker.listen("10.1.1.7:25").unwrap_err();
        assert_eq!(early.code, FaultCode::NotLocal, "{early}");
        assert!(early.remedy.contains("once its address is added"), "{early}");
        let mut cluster = broker.peer();
        let descriptors = broker.descriptors();
        for (address, endpoint) in [("10.1.1.7", "10.1.1.7:25"), ("2001:db8::7", "[2001:db8::7]:25")] {
            for _ in 0..2 {
                cluster.add_address(address, |_| {}).unwrap();
                assert_eq!(resources::tcp_listeners(), [at("10.1.1.1:26"), at(endpoint)]);
                // A client that connects before the worker requests the socket waits in the queue.
                let mut client = connect(endpoint);
                let (_, socket) = worker.listen(endpoint).unwrap();
                let (_served, from) = TcpListener::from(socket).accept().unwrap();
                assert_eq!(from, client.local_addr().unwrap());
                assert!(cluster.remove_address(address).unwrap().verified);
                assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
                assert_eq!(resources::tcp_listeners(), [at("10.1.1.1:26")]);
            }
        }
        broker.await_no_leak(&descriptors);
        assert_eq!(
            scripted.run("descriptors").matches(":socket").count(),
            1,
            "the worker inherits only the static listener"
        );
    });
}

#[test]
fn a_floating_listener_outlives_its_worker_while_its_address_exists() {
    isolated(|host| {
        lan::create(&["far"]);
        let (setup, broker) = start(host);
        let (mut scripted, mut worker) = setup.accept();
        worker.hello();
        let mut cluster = broker.peer();
        cluster.add_address("10.1.1.7", |add| add.lease = Some(60)).unwrap();
        let (id, before) = worker.listen("10.1.1.7:25").unwrap();
        let listed = broker.peer().status().listeners;
        let row = listed.iter().find(|row| row.id == id).unwrap();
        assert_eq!((&*row.owner, row.retained), ("duravip ESMTP_Listener", false));
        assert_eq!(scripted.run("descriptors").matches(":socket").count(), 1);
        drop(scripted);
        broker.log.wait_for(&["the worker has exited"]);
        let client = connect("10.1.1.7:25");
        let (mut scripted, mut worker) = setup.accept();
        worker.hello();
        assert_eq!(
            scripted.run("descriptors").matches(":socket").count(),
            1,
            "the worker does not inherit the floating listener"
        );
        let (again, socket) = worker.listen("10.1.1.7:25").unwrap();
        assert_eq!(again, id);
        assert_eq!(socket_cookie(socket.as_fd()).unwrap(), socket_cookie(before.as_fd()).unwrap());
        let (_served, from) = TcpListener::from(socket).accept().unwrap();
        assert_eq!(from, client.local_addr().unwrap());
    });
}

#[test]
fn an_expired_lease_stops_the_floating_listener() {
    isolated(|host| {
        lan::create(&["far"]);
        let (_setup, broker) = start(host);
        broker.peer().add_address("10.1.1.7", |add| add.lease = Some(3)).unwrap();
        assert_eq!(resources::tcp_listeners(), [at("10.1.1.1:26"), at("10.1.1.7:25")]);
        eventually("the removal of the address", || lan::show_address("10.1.1.7").is_none().then_some(()));
        eventually("the end of the listener", || (resources::tcp_listeners().len() == 1).then_some(()));
    });
}

#[test]
fn an_address_is_not_added_if_its_listener_cannot_start() {
    isolated(|host| {
        lan::create(&["far"]);
        let (_setup, broker) = start(host);
        let before = lan::addresses();
        let foreign = TcpListener::bind("0.0.0.0:25").unwrap();
        let mut cluster = broker.peer();
        let mut wire = PacketCapture::on("far");
        let refused = cluster.add_address("10.1.1.7", |add| add.announce = true).unwrap_err();
        assert_eq!((refused.code, &*refused.subject), (FaultCode::InUse, "another program"), "{refused}");
        assert_eq!(lan::addresses(), before);
        assert_eq!(cluster.renew_address("10.1.1.7").unwrap_err().code, FaultCode::NotFound);
        let announced = wire.collect(
            Duration::from_millis(300),
            |frame| frame.get(12..14) == Some(&[8, 6]) && frame.get(28..32) == Some(&[10, 1, 1, 7]),
            |_| false,
        );
        assert!(announced.is_empty(), "the address must not be announced");
        drop(foreign);
        cluster.add_address("10.1.1.7", |_| {}).unwrap();
        drop(connect("10.1.1.7:25"));
    });
}

/// Two addresses that follow a third, one by the binding's name and one by its address.
const FOLLOWERS: &str = r#"
    binding "out" { bind_address = 10.1.1.7 enable_duravip = true }
    ESMTP_Listener {
        Listen "10.1.1.8:25" { duravip_follow = "out" }
        Listen "[2001:db8::8]:25" { duravip_follow = "10.1.1.7" }
    }"#;
const TOGETHER: [&str; 3] = ["10.1.1.7", "10.1.1.8", "2001:db8::8"];

fn done<T>(results: impl IntoIterator<Item = Outcome<T>>) -> Vec<T> {
    let done = |result| match result {
        Outcome::Done(done) => done,
        Outcome::Fault(fault) => panic!("{fault}"),
    };
    results.into_iter().map(done).collect()
}

fn rows_of(leases: &[Lease]) -> Vec<(String, Option<String>)> {
    let row = |lease: &Lease| (lease.address.to_string(), lease.follows.map(|leader| leader.to_string()));
    leases.iter().map(row).collect()
}

/// Whether a frame of this host announces an address.
fn announces(frame: &[u8], address: &str) -> bool {
    if frame.get(6..12) != Some(&lan::MAC_ADDRESS) {
        return false;
    }
    match address.parse().unwrap() {
        std::net::IpAddr::V4(own) => {
            frame.get(12..14) == Some(&[8, 6]) && frame.get(28..32) == Some(&own.octets())
        }
        std::net::IpAddr::V6(own) => frame.get(54) == Some(&136) && frame.get(62..78) == Some(&own.octets()),
    }
}

fn follow(host: &Host, more: &str) -> (WorkerSetup, Broker) {
    let setup = WorkerSetup::new(host, "chroot");
    let rest = sample::addresses(&format!("{FOLLOWERS} {more}"));
    let broker =
        Broker::start(host, &sample::worker(&setup.chroot, "( /run/host/bin/scripted_worker )", &rest));
    (setup, broker)
}

#[test]
fn followers_are_added_renewed_announced_and_removed_with_their_leader() {
    isolated(|host| {
        lan::create(&["far"]);
        let (_setup, broker) = follow(host, "");
        let before = lan::addresses();
        let mut peer = broker.peer();
        let mut wire = PacketCapture::on("far");
        let add = AddAddress {
            addresses: one_address("10.1.1.7"),
            lease: Some(10),
            announce: true,
            ..AddAddress::default()
        };
        let expected =
            [("10.1.1.7", None), ("10.1.1.8", Some("10.1.1.7")), ("2001:db8::8", Some("10.1.1.7"))]
                .map(|(own, leader)| (own.to_owned(), leader.map(str::to_owned)));
        let leases = done(peer.request(&add).unwrap().0.results.into_vec());
        assert_eq!(rows_of(&leases), expected);
        let exists = |address: &&str| lan::show_address(address).is_some();
        assert!(TOGETHER.iter().all(exists), "{:?}", lan::addresses());
        assert_eq!(resources::tcp_listeners(), [at("10.1.1.8:25"), at("[2001:db8::8]:25")]);
        drop(connect("[2001:db8::8]:25"));
        for _ in 0..2 {
            // First for the addition, then for an announce request.
            for address in TOGETHER {
                let seen = |frame: &[u8]| announces(frame, address);
                assert!(!wire.collect(AT_ONCE, seen, |seen| !seen.is_empty()).is_empty(), "{address}");
            }
            let announce = Announce { addresses: one_address("10.1.1.7"), epoch: 0 };
            assert_eq!(rows_of(&done(peer.request(&announce).unwrap().0.results.into_vec())), expected);
        }
        let renew = RenewAddress {
            addresses: one_address("10.1.1.7"),
            lease: Some(60),
            epoch: 0,
            ..RenewAddress::default()
        };
        let renewed = done(peer.request(&renew).unwrap().0.results.into_vec());
        assert_eq!(rows_of(&renewed), expected);
        assert!(renewed.iter().all(|lease| lease.remaining_ms > 50_000), "{renewed:?}");

        for own in ["10.1.1.8", "2001:db8::8"] {
            let refused = [peer.renew_address(own).err(), peer.remove_address(own).err()];
            for fault in refused {
                let fault = fault.unwrap();
                assert_eq!(fault.code, FaultCode::Denied, "{fault}");
                assert!(fault.to_string().contains("10.1.1.7"), "{fault}");
            }
        }
        let remove = RemoveAddress { addresses: one_address("10.1.1.7"), epoch: 0 };
        let removed = done(peer.request(&remove).unwrap().0.results.into_vec());
        assert!(removed.len() == 3 && removed.iter().all(|removed| removed.verified), "{removed:?}");
        assert_eq!(lan::addresses(), before);
        assert!(resources::tcp_listeners().is_empty());
        assert_eq!(peer.add_address("10.1.1.8", |_| {}).unwrap_err().code, FaultCode::Denied);
    });
}

#[test]
fn an_address_is_not_added_if_a_follower_cannot_be_added() {
    isolated(|host| {
        lan::create(&["far"]);
        let (_setup, broker) = follow(host, "");
        let before = lan::addresses();
        let mut peer = broker.peer();
        let mut refused = |probes: u8, code: FaultCode| {
            let addresses = one_address("10.1.1.7");
            let add =
                AddAddress { addresses, lease: Some(10), probes, announce: true, ..AddAddress::default() };
            let mut wire = PacketCapture::on("far");
            for result in peer.request(&add).unwrap().0.results.into_vec() {
                match result {
                    Outcome::Fault(fault) => assert_eq!(fault.code, code, "{fault}"),
                    Outcome::Done(lease) => panic!("{lease:?}"),
                }
            }
            assert_eq!(lan::addresses(), before);
            assert!(resources::tcp_listeners().iter().all(|at| at.ip().is_unspecified()));
            let any = |frame: &[u8]| TOGETHER.iter().any(|address| announces(frame, address));
            assert!(wire.collect(Duration::from_millis(200), any, |_| false).is_empty());
        };
        lan::ip("-n far addr add 10.1.1.8/32 dev eth1");
        refused(1, FaultCode::Conflict);
        lan::ip("-n far addr del 10.1.1.8/32 dev eth1");
        let foreign = TcpListener::bind("[::]:25").unwrap();
        refused(0, FaultCode::InUse);
        drop(foreign);
        // Addresses that expire are removed together too.
        let add = AddAddress { addresses: one_address("10.1.1.7"), lease: Some(3), ..AddAddress::default() };
        assert_eq!(done(peer.request(&add).unwrap().0.results.into_vec()).len(), 3);
        assert_eq!(resources::tcp_listeners().len(), 2);
        eventually("the removal of all addresses", || (lan::addresses() == before).then_some(()));
        eventually("the end of their listeners", || resources::tcp_listeners().is_empty().then_some(()));
    });
}
