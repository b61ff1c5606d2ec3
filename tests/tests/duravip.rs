//! Listeners of addresses that move: they start when their address is added and stop before it goes.

use std::io::{ErrorKind, Read as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::time::Duration;

use portreeve_protocol::FaultCode;
use portreeve_tests::puppet::Stage;
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
        broker.log.wait_for(&["the worker is gone"]);
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
        let mut wire = portreeve_tests::wire::Wire::at("far");
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
