//! Quotas of one peer, and the effect of a greedy peer on others.

use std::path::Path;
use std::time::{Duration, Instant};

use portreeve_protocol::address::{AddAddress, RemoveAddress};
use portreeve_protocol::channel::{self, ReceiveError};
use portreeve_protocol::message::{Operation as _, Outcome, Ping};
use portreeve_protocol::{Fault, FaultCode, Kind, codec};
use portreeve_tests::broker::SOCKET;
use portreeve_tests::chroot::WORKER;
use portreeve_tests::peer::one_address;
use portreeve_tests::scripted_worker::WorkerSetup;
use portreeve_tests::{Broker, Host, Peer, eventually, exclusive, flood, isolated, lan, process, sample};

fn start(host: &Host, quotas: &str) -> Broker {
    let text = sample::control(r#"( "127.0.0.1:1-65535" )"#);
    Broker::start(host, &format!("{text}broker {{ {quotas} }}"))
}

/// A peer that is not root.
fn other() -> Peer {
    Peer::connect_as(Path::new(SOCKET), WORKER, WORKER).unwrap()
}

fn greeted(mut peer: Peer) -> Peer {
    peer.hello();
    peer
}

#[test]
fn a_peer_that_never_reads_is_disconnected_at_its_deadline_while_others_are_busy() {
    exclusive(|host| {
        let broker = start(host, "unread_timeout = 1");
        let before = broker.descriptors();
        let mut deaf = broker.peer();
        let mut busy = broker.peer();
        // Send until both buffers are full: then the broker has stopped reading.
        deaf.channel.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
        let mut buffer = codec::frame_buffer();
        let ping = codec::encode(&mut buffer, Ping::KIND, 1, 0, &Ping {}).unwrap();
        while channel::send_bytes(&deaf.channel, ping).is_ok() {}
        let start = Instant::now();
        let line = eventually("the end of the deaf session", || {
            (0..100).for_each(|_| busy.ping());
            broker.log.lines().into_iter().find(|line| line.contains("did not read a reply for 1 s"))
        });
        println!("after {:?}: {line}", start.elapsed());
        let end = std::iter::repeat_with(|| deaf.receive()).find_map(Result::err);
        assert!(matches!(end, Some(ReceiveError::Closed | ReceiveError::Os(_))), "{end:?}");
        drop((deaf, busy));
        broker.await_no_leak(&before);
    });
}

#[test]
fn a_peer_that_never_sends_hello_is_disconnected_at_its_deadline() {
    isolated(|host| {
        let broker = start(host, "unread_timeout = 1");
        let mut quiet = broker.peer();
        assert!(broker.connect().is_disconnected());
        broker.log.wait_for(&["no hello for 1 s"]);
        // A peer that has sent hello may stay idle.
        quiet.ping();
    });
}

#[test]
fn a_user_at_its_session_quota_is_refused_and_other_users_are_not() {
    isolated(|host| {
        let broker = start(host, "max_sessions = 3");
        let held: Vec<Peer> = (0..3).map(|_| greeted(other())).collect();
        let mut refused = other();
        let frame = refused.receive().unwrap();
        assert_eq!((frame.header.kind, frame.header.request), (Kind::FAULT, 0));
        let fault: Fault = codec::decode(&frame.body).unwrap();
        assert_eq!(fault.code, FaultCode::Quota, "{fault}");
        assert!(refused.is_disconnected());
        let mut bystander = broker.peer();
        let quotas = bystander.status().quotas;
        assert!(quotas.iter().any(|quota| &*quota.name == "max_sessions" && quota.limit == 3), "{quotas:?}");
        drop(held);
        eventually("the end of the sessions", || (bystander.status().sessions.len() == 1).then_some(()));
        greeted(other()).ping();
    });
}

#[test]
fn the_listener_quota_applies_to_all_sessions_of_a_user() {
    isolated(|host| {
        let broker = start(host, "max_listeners = 2");
        let (mut first, mut second) = (greeted(other()), greeted(other()));
        let (id, _) = first.listen("127.0.0.1:2001").unwrap();
        second.listen("127.0.0.1:2002").unwrap();
        for peer in [&mut first, &mut second] {
            let fault = peer.listen("127.0.0.1:2003").unwrap_err();
            assert_eq!(fault.code, FaultCode::Quota, "{fault}");
            assert!(fault.remedy.contains("max_listeners"), "{fault}");
        }
        assert_eq!(
            first.listen("127.0.0.1:2001").unwrap().0,
            id,
            "an existing listener does not count again"
        );
        broker.peer().listen("127.0.0.1:2003").unwrap();
        first.stop(&[id]);
        second.listen("127.0.0.1:2004").unwrap();
    });
}

#[test]
fn the_address_quota_applies_to_all_sessions_of_a_user() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses("broker { max_addresses = 2 }"));
        let (mut first, mut second) = (greeted(other()), greeted(other()));
        first.add_address("10.1.1.7", |_| {}).unwrap();
        second.add_address("10.1.1.8", |_| {}).unwrap();
        for peer in [&mut first, &mut second] {
            let fault = peer.add_address("10.1.1.9", |_| {}).unwrap_err();
            assert_eq!(fault.code, FaultCode::Quota, "{fault}");
            assert!(fault.remedy.contains("max_addresses"), "{fault}");
        }
        assert_eq!(lan::show_address("10.1.1.9"), None);
        second.add_address("10.1.1.7", |_| {}).unwrap();
        broker.peer().add_address("10.1.1.9", |_| {}).unwrap();
        first.remove_address("10.1.1.8").unwrap();
        second.add_address("10.1.1.10", |_| {}).unwrap();
    });
}

#[test]
fn a_session_at_its_in_flight_quota_gets_a_busy_fault() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses("broker { max_in_flight = 2 }"));
        let mut peer = broker.peer();
        let quotas = peer.status().quotas;
        assert!(quotas.iter().any(|quota| &*quota.name == "max_in_flight" && quota.limit == 2), "{quotas:?}");
        // Each probe takes longer than sending all requests.
        let add = |last: u8| AddAddress {
            addresses: one_address(&format!("10.1.1.{last}")),
            probes: 3,
            ..AddAddress::default()
        };
        let numbers = [7, 8, 9].map(|last| peer.send(&add(last)));
        let frames = [(); 3].map(|()| peer.receive().unwrap());
        assert_eq!(frames[0].header.request, numbers[2], "the others are still in flight");
        let [refused, rest @ ..] = frames;
        let fault = refused.reply::<AddAddress>().unwrap_err();
        assert_eq!(fault.code, FaultCode::Busy, "{fault}");
        assert!(fault.remedy.contains("max_in_flight"), "{fault}");
        for frame in rest {
            let (leases, _) = frame.reply::<AddAddress>().unwrap();
            assert!(matches!(&leases.results[..], [Outcome::Done(_)]), "{leases:?}");
        }
    });
}

#[test]
fn a_request_without_a_number_that_exceeds_the_in_flight_quota_gets_no_reply() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses("broker { max_in_flight = 1 }"));
        let mut peer = broker.peer();
        let add = AddAddress { addresses: one_address("10.1.1.7"), probes: 3, ..AddAddress::default() };
        let number = peer.send(&add);
        peer.send_without_reply(&RemoveAddress { addresses: one_address("10.1.1.8"), epoch: 0 });
        broker.log.wait_for(&["refused", "remove-address", "busy"]);
        let frame = peer.receive().unwrap();
        assert_eq!(frame.header.request, number, "the session continues with the reply to the first request");
        frame.reply::<AddAddress>().unwrap();
        peer.ping();
    });
}

/// Prints the median time of a ping during each flood.
#[test]
fn a_flood_by_one_peer_starves_no_other_and_uses_bounded_memory_and_log() {
    exclusive(|host| {
        let broker = start(host, "");
        let mut bystander = broker.peer();
        let resident = || -> u64 {
            let field = process::status_field(broker.pid(), "VmRSS");
            field.split_whitespace().next().unwrap().parse().unwrap()
        };
        flood::latency(&mut bystander, Duration::from_millis(500));
        let memory = resident();
        for (what, flood) in flood::ALL {
            let lines = broker.log.lines().len();
            let median = flood::during(flood, || flood::latency(&mut bystander, Duration::from_secs(2)));
            let counted = eventually("the line that counts", || {
                let new = broker.log.lines().split_off(lines);
                new.into_iter().find(|line| line.contains("suppressed="))
            });
            let lines = broker.log.lines().len() - lines;
            let (now, word) = (resident(), counted.split("suppressed=").nth(1).unwrap());
            let suppressed = word.split_whitespace().next().unwrap();
            println!(
                "{what}: median {median:?}, VmRSS {memory}, then {now} kB, {lines} lines, {suppressed} suppressed"
            );
            assert!(now < memory + 16 * 1024, "{what}: {now} kB where idle is {memory} kB");
            assert!(lines < 500, "{what}: {lines} lines");
        }
    });
}

#[test]
fn refused_requests_slow_down_their_user_but_never_the_worker() {
    isolated(|host| {
        let setup = WorkerSetup::new(host, "chroot");
        let socket = sample::socket(r#"( "127.0.0.1:25" )"#);
        let rest = format!("{socket} broker {{ max_refusals = 10 }}");
        let _broker =
            Broker::start(host, &sample::worker(&setup.chroot, "( /run/host/bin/scripted_worker )", &rest));
        let (_scripted, mut worker) = setup.accept();
        worker.hello();
        let took = |peer: &mut Peer| {
            let start = Instant::now();
            (0..30).for_each(|_| drop(peer.listen("127.0.0.1:26").unwrap_err()));
            peer.ping();
            start.elapsed()
        };
        let (worker, other) = (took(&mut worker), took(&mut greeted(other())));
        println!("30 refusals and a ping: the worker {worker:?}, another {other:?}");
        assert!(worker < other, "{worker:?}");
        // Ten at once, then ten a second.
        assert!(other > Duration::from_millis(1500), "{other:?}");
    });
}
