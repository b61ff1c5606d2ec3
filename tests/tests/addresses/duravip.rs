//! Listeners of addresses that move: they start when their address is added and stop before it goes, and some follow
//! another address.

use std::io::{ErrorKind, Read as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::time::Duration;

use portreeve_protocol::FaultCode;
use portreeve_protocol::address::{AddAddress, Announce, Lease, RemoveAddress, RenewAddress};
use portreeve_protocol::message::Outcome;
use portreeve_tests::peer::one_address;
use portreeve_tests::puppet::Stage;
use portreeve_tests::wire::Wire;
use portreeve_tests::{Broker, Host, census, eventually, isolated, lan, sample};
use rustix::net::sockopt::socket_cookie;

const AT_ONCE: Duration = Duration::from_secs(5);

/// One listener that says so itself, one whose binding does, one that stays, one that is only asked for.
const LISTENERS: &str = r#"
    binding "out" { bind_address = "2001:db8::7" enable_duravip = true }
    ESMTP_Listener {
        Listen "10.1.1.7:25" { enable_duravip = true listen_backlog = 50 }
        Listen "10.1.1.7:587" { enable = false }
        Listen "[2001:db8::7]:25" {}
        Listen "10.1.1.1:26" {}
    }"#;

fn start(host: &Host) -> (Stage, Broker) {
    let stage = Stage::new(host, "chroot");
    let rest = sample::addresses(&format!("{LISTENERS} worker {{ stable_after = 0 }}"));
    let text = sample::worker(&stage.chroot, "( /run/host/bin/puppet )", &rest);
    let broker = Broker::start(host, &text);
    (stage, broker)
}

fn at(endpoint: &str) -> SocketAddr {
    endpoint.parse().unwrap()
}

fn connect(endpoint: &str) -> TcpStream {
    let at = at(endpoint);
    let client = lan::within("far", || TcpStream::connect_timeout(&at, AT_ONCE)).unwrap();
    client.set_read_timeout(Some(AT_ONCE)).unwrap();
    client
}

#[test]
fn a_listener_starts_when_its_address_is_added_and_stops_before_that_goes_and_starts_again() {
    isolated(|host| {
        lan::join(&["far"]);
        let (stage, broker) = start(host);
        let (mut puppet, mut worker) = stage.enter();
        worker.hello();
        assert_eq!(census::listening(), [at("10.1.1.1:26")], "what stays is there from the start");
        let early = worker.listen("10.1.1.7:25").unwrap_err();
        assert_eq!(early.code, FaultCode::NotLocal, "{early}");
        assert!(early.remedy.contains("once its address is added"), "{early}");
        let mut cluster = broker.peer();
        let descriptors = broker.census();
        for (address, endpoint) in [("10.1.1.7", "10.1.1.7:25"), ("2001:db8::7", "[2001:db8::7]:25")] {
            for _ in 0..2 {
                cluster.add_address(address, |_| {}).unwrap();
                assert_eq!(census::listening(), [at("10.1.1.1:26"), at(endpoint)]);
                // Whoever comes before the worker has asked waits in the queue.
                let mut client = connect(endpoint);
                let (_, socket) = worker.listen(endpoint).unwrap();
                let (_served, from) = TcpListener::from(socket).accept().unwrap();
                assert_eq!(from, client.local_addr().unwrap());
                assert!(cluster.remove_address(address).unwrap().verified);
                assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
                assert_eq!(census::listening(), [at("10.1.1.1:26")]);
            }
        }
        broker.await_no_more_than(&descriptors);
        assert_eq!(puppet.tell("descriptors").matches(":socket").count(), 1, "it inherits what stays");
    });
}

#[test]
fn a_listener_outlives_its_worker_for_as_long_as_its_address_is_there() {
    isolated(|host| {
        lan::join(&["far"]);
        let (stage, broker) = start(host);
        let (mut puppet, mut worker) = stage.enter();
        worker.hello();
        let mut cluster = broker.peer();
        cluster.add_address("10.1.1.7", |add| add.lease = Some(60)).unwrap();
        let (id, before) = worker.listen("10.1.1.7:25").unwrap();
        let listed = broker.peer().status().listeners;
        let row = listed.iter().find(|row| row.id == id).unwrap();
        assert_eq!((&*row.owner, row.retained), ("duravip ESMTP_Listener", false));
        assert_eq!(puppet.tell("descriptors").matches(":socket").count(), 1);
        drop(puppet);
        broker.log.wait_for(&["the worker has exited"]);
        let client = connect("10.1.1.7:25");
        let (mut puppet, mut worker) = stage.enter();
        worker.hello();
        assert_eq!(puppet.tell("descriptors").matches(":socket").count(), 1, "it asks for what moves");
        let (again, socket) = worker.listen("10.1.1.7:25").unwrap();
        assert_eq!(again, id);
        assert_eq!(socket_cookie(socket.as_fd()).unwrap(), socket_cookie(before.as_fd()).unwrap());
        let (_served, from) = TcpListener::from(socket).accept().unwrap();
        assert_eq!(from, client.local_addr().unwrap());
    });
}

#[test]
fn a_lease_that_runs_out_stops_the_listener_too() {
    isolated(|host| {
        lan::join(&["far"]);
        let (_stage, broker) = start(host);
        broker.peer().add_address("10.1.1.7", |add| add.lease = Some(3)).unwrap();
        assert_eq!(census::listening(), [at("10.1.1.1:26"), at("10.1.1.7:25")]);
        eventually("the end of the address", || lan::shown("10.1.1.7").is_none().then_some(()));
        eventually("the end of the listener", || (census::listening().len() == 1).then_some(()));
    });
}

#[test]
fn an_address_whose_listener_cannot_start_is_not_added() {
    isolated(|host| {
        lan::join(&["far"]);
        let (_stage, broker) = start(host);
        let before = lan::addresses();
        let foreign = TcpListener::bind("0.0.0.0:25").unwrap();
        let mut cluster = broker.peer();
        let mut wire = Wire::at("far");
        let refused = cluster.add_address("10.1.1.7", |add| add.announce = true).unwrap_err();
        assert_eq!((refused.code, &*refused.subject), (FaultCode::InUse, "another program"), "{refused}");
        assert_eq!(lan::addresses(), before);
        assert_eq!(cluster.renew_address("10.1.1.7").unwrap_err().code, FaultCode::NotFound);
        let announced = wire.collect(
            Duration::from_millis(300),
            |frame| frame.get(12..14) == Some(&[8, 6]) && frame.get(28..32) == Some(&[10, 1, 1, 7]),
            |_| false,
        );
        assert!(announced.is_empty(), "nobody was told of it");
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

fn told(leases: &[Lease]) -> Vec<(String, Option<String>)> {
    let row = |lease: &Lease| (lease.address.to_string(), lease.follows.map(|leader| leader.to_string()));
    leases.iter().map(row).collect()
}

/// Whether a frame of this host tells its receiver of an address.
fn announces(frame: &[u8], address: &str) -> bool {
    if frame.get(6..12) != Some(&lan::OURS) {
        return false;
    }
    match address.parse().unwrap() {
        std::net::IpAddr::V4(own) => {
            frame.get(12..14) == Some(&[8, 6]) && frame.get(28..32) == Some(&own.octets())
        }
        std::net::IpAddr::V6(own) => frame.get(54) == Some(&136) && frame.get(62..78) == Some(&own.octets()),
    }
}

fn follow(host: &Host, more: &str) -> (Stage, Broker) {
    let stage = Stage::new(host, "chroot");
    let rest = sample::addresses(&format!("{FOLLOWERS} {more}"));
    let broker = Broker::start(host, &sample::worker(&stage.chroot, "( /run/host/bin/puppet )", &rest));
    (stage, broker)
}

#[test]
fn what_follows_an_address_comes_is_renewed_is_announced_and_goes_with_it() {
    isolated(|host| {
        lan::join(&["far"]);
        let (_stage, broker) = follow(host, "");
        let before = lan::addresses();
        let mut peer = broker.peer();
        let mut wire = Wire::at("far");
        let add = AddAddress {
            addresses: one_address("10.1.1.7"),
            lease: Some(10),
            announce: true,
            ..AddAddress::default()
        };
        let expected =
            [("10.1.1.7", None), ("10.1.1.8", Some("10.1.1.7")), ("2001:db8::8", Some("10.1.1.7"))]
                .map(|(own, leader)| (own.to_owned(), leader.map(str::to_owned)));
        let leases = done(peer.ask(&add).unwrap().0.results.into_vec());
        assert_eq!(told(&leases), expected);
        let there = |address: &&str| lan::shown(address).is_some();
        assert!(TOGETHER.iter().all(there), "{:?}", lan::addresses());
        assert_eq!(census::listening(), [at("10.1.1.8:25"), at("[2001:db8::8]:25")]);
        drop(connect("[2001:db8::8]:25"));
        for _ in 0..2 {
            // First for the addition, then asked for again.
            for address in TOGETHER {
                let seen = |frame: &[u8]| announces(frame, address);
                assert!(!wire.collect(AT_ONCE, seen, |seen| !seen.is_empty()).is_empty(), "{address}");
            }
            let announce = Announce { addresses: one_address("10.1.1.7"), epoch: 0 };
            assert_eq!(told(&done(peer.ask(&announce).unwrap().0.results.into_vec())), expected);
        }
        let renew = RenewAddress { addresses: one_address("10.1.1.7"), lease: Some(60), epoch: 0 };
        let renewed = done(peer.ask(&renew).unwrap().0.results.into_vec());
        assert_eq!(told(&renewed), expected);
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
        let gone = done(peer.ask(&remove).unwrap().0.results.into_vec());
        assert!(gone.len() == 3 && gone.iter().all(|gone| gone.verified), "{gone:?}");
        assert_eq!(lan::addresses(), before);
        assert!(census::listening().is_empty());
        assert_eq!(peer.add_address("10.1.1.8", |_| {}).unwrap_err().code, FaultCode::Denied);
    });
}

#[test]
fn an_address_is_not_added_where_one_that_follows_it_cannot_be() {
    isolated(|host| {
        lan::join(&["far"]);
        let (_stage, broker) = follow(host, "");
        let before = lan::addresses();
        let mut peer = broker.peer();
        let mut refused = |probes: u8, code: FaultCode| {
            let addresses = one_address("10.1.1.7");
            let add =
                AddAddress { addresses, lease: Some(10), probes, announce: true, ..AddAddress::default() };
            let mut wire = Wire::at("far");
            for result in peer.ask(&add).unwrap().0.results.into_vec() {
                match result {
                    Outcome::Fault(fault) => assert_eq!(fault.code, code, "{fault}"),
                    Outcome::Done(lease) => panic!("{lease:?}"),
                }
            }
            assert_eq!(lan::addresses(), before);
            assert!(census::listening().iter().all(|at| at.ip().is_unspecified()));
            let any = |frame: &[u8]| TOGETHER.iter().any(|address| announces(frame, address));
            assert!(wire.collect(Duration::from_millis(200), any, |_| false).is_empty());
        };
        lan::ip("-n far addr add 10.1.1.8/32 dev eth1");
        refused(1, FaultCode::Conflict);
        lan::ip("-n far addr del 10.1.1.8/32 dev eth1");
        let foreign = TcpListener::bind("[::]:25").unwrap();
        refused(0, FaultCode::InUse);
        drop(foreign);
        // What ends by the clock ends together too.
        let add = AddAddress { addresses: one_address("10.1.1.7"), lease: Some(3), ..AddAddress::default() };
        assert_eq!(done(peer.ask(&add).unwrap().0.results.into_vec()).len(), 3);
        assert_eq!(census::listening().len(), 2);
        eventually("the end of all", || (lan::addresses() == before).then_some(()));
        eventually("the end of their listeners", || census::listening().is_empty().then_some(()));
    });
}
