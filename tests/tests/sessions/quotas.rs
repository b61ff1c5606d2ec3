//! Quotas of one peer, and the effect of a greedy peer on others.

use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use portreeve_protocol::address::{AddAddress, RemoveAddress};
use portreeve_protocol::channel::{self, ReceiveError};
use portreeve_protocol::message::{Hello, Operation as _, Outcome, Ping, StatusRequest};
use portreeve_protocol::{Fault, FaultCode, Kind, List, Text, codec};
use portreeve_tests::broker::SOCKET;
use portreeve_tests::chroot::WORKER;
use portreeve_tests::peer::one_address;
use portreeve_tests::reload::reload;
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
fn one_user_cannot_take_all_addresses_whatever_its_quota() {
    isolated(|host| {
        lan::create(&[]);
        let peers = "peer 1002 { allow = ( address ) permit = ( any ) }";
        let text = sample::addresses(&format!("broker {{ {peers} }}"));
        let broker = Broker::start(host, &text);
        let mut greedy = greeted(other());
        // Adds addresses from number `from` on until one is refused, and returns how many were added, and the fault.
        let fill = |peer: &mut Peer, from: u32| {
            let mut added = 0;
            loop {
                let numbers = from + added..from + added + 256;
                let addresses = numbers.map(|number| IpAddr::V4((0x0a02_0001 + number).into()));
                let lease = Some(600);
                let add =
                    AddAddress { addresses: List::truncated(addresses), lease, ..AddAddress::default() };
                let results = peer.request(&add).unwrap().0.results.into_vec();
                added += results.iter().filter(|result| result.fault().is_none()).count() as u32;
                if results.iter().any(|result| result.fault().is_some()) {
                    // Only the fault of a small request has its remedy.
                    let fault = peer.add_address("10.2.200.1", |_| {}).unwrap_err();
                    assert_eq!(fault.code, FaultCode::Quota, "{fault}");
                    return (added, fault);
                }
            }
        };
        let (added, fault) = fill(&mut greedy, 0);
        assert_eq!(added, 4096, "the default");
        assert!(fault.remedy.contains("max_addresses"), "{fault}");
        reload(host, &broker, &format!("{text} broker {{ max_addresses = 10240 }}"));
        let (added, fault) = fill(&mut greedy, added);
        assert_eq!(added, 4480 - 4096, "half of what is not for the worker and root");
        assert!(fault.remedy.contains("other users"), "{fault}");
        // The coordinator of a cluster may have more, without a number of its own.
        reload(host, &broker, &text.replace("allow = ( address )", "allow = ( address cluster )"));
        greedy.add_address("10.2.200.1", |_| {}).unwrap();
        let mut second = Peer::of_user(1002, 1002);
        second.add_address("10.1.1.7", |_| {}).unwrap();
        broker.peer().add_address("10.1.1.8", |_| {}).unwrap();
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

#[test]
fn the_in_flight_quota_applies_to_all_sessions_of_a_user_and_to_unread_replies() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(
            host,
            &sample::addresses("broker { max_in_flight = 1 max_refusals = 100000 max_requests = 100000 }"),
        );
        let (mut first, mut second) = (greeted(other()), greeted(other()));
        let busy = |peer: &mut Peer| {
            let fault = peer.request(&RemoveAddress { addresses: one_address("10.1.1.8"), epoch: 0 }).err();
            fault.is_some_and(|fault| fault.code == FaultCode::Busy)
        };
        let add = AddAddress { addresses: one_address("10.1.1.7"), probes: 3, ..AddAddress::default() };
        let number = first.send(&add);
        first.ping();
        assert!(busy(&mut second), "the quota of the same user");
        assert!(!busy(&mut broker.peer()), "the quota of another user");
        let frame = first.receive().unwrap();
        assert_eq!(frame.header.request, number);
        frame.reply::<AddAddress>().unwrap();
        eventually("the end of the request", || (!busy(&mut second)).then_some(()));
        // Until the channel is full, then further replies wait.
        first.channel.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
        let mut buffer = codec::frame_buffer();
        let remove = RemoveAddress { addresses: one_address("10.1.1.7"), epoch: 0 };
        let remove = codec::encode(&mut buffer, RemoveAddress::KIND, 1, 0, &remove).unwrap();
        while channel::send_bytes(&first.channel, remove).is_ok() {}
        eventually("the unread replies", || busy(&mut second).then_some(()));
    });
}

#[test]
fn requests_beyond_the_rate_of_a_user_wait_and_root_and_the_worker_are_not_concerned() {
    isolated(|host| {
        let setup = WorkerSetup::new(host, "chroot");
        let socket = sample::socket(r#"( "127.0.0.1:25" )"#);
        let rest = format!("{socket} broker {{ max_requests = 50 }}");
        let broker =
            Broker::start(host, &sample::worker(&setup.chroot, "( /run/host/bin/scripted_worker )", &rest));
        let (_scripted, mut worker) = setup.accept();
        worker.hello();
        let took = |peers: &mut [Peer]| {
            let start = Instant::now();
            (0..200).for_each(|number| peers[number % 2].ping());
            start.elapsed()
        };
        let trusted = [took(&mut [broker.peer(), broker.peer()]), {
            let start = Instant::now();
            (0..200).for_each(|_| worker.ping());
            start.elapsed()
        }];
        let user = took(&mut [greeted(other()), greeted(other())]);
        println!("200 pings: root and the worker {trusted:?}, another user {user:?}");
        // Fifty at once, then fifty a second, however many sessions.
        assert!(user > Duration::from_millis(2500), "{user:?}");
        assert!(trusted.iter().all(|trusted| *trusted < user / 2), "{trusted:?}");
    });
}

/// A configuration with a `peer` scope for each of these users.
fn with_users(users: std::ops::Range<u32>, more: &str) -> String {
    let scopes =
        users.map(|uid| format!(r#"peer "{uid}" {{ allow = ( status listen ) permit = ( any ) }} "#));
    format!(
        "{} broker {{ {} {more} }}",
        sample::control(r#"( "127.0.0.1:1-65535" )"#),
        scopes.collect::<String>()
    )
}

fn user(uid: u32) -> Peer {
    Peer::connect_as(Path::new(SOCKET), uid, uid).unwrap()
}

/// Sends hello in a session that the broker may have refused.
fn send_hello(peer: &Peer) {
    let mut buffer = codec::frame_buffer();
    let hello = Hello { client: Text::new("test").unwrap(), features: 0 };
    let hello = codec::encode(&mut buffer, Hello::KIND, 1, 0, &hello).unwrap();
    let _ = channel::send_bytes(&peer.channel, hello); // it is closed then
}

/// The fault with which the broker refuses a session.
fn refusal(peer: &mut Peer) -> Fault {
    let frame = peer.receive().unwrap();
    assert_eq!((frame.header.kind, frame.header.request), (Kind::FAULT, 0));
    codec::decode(&frame.body).unwrap()
}

/// How long a new session with one request takes.
fn time_of_session(connect: impl FnOnce() -> Peer) -> (Duration, Peer) {
    let start = Instant::now();
    let mut peer = greeted(connect());
    peer.ping();
    (start.elapsed(), peer)
}

#[test]
fn users_that_fill_the_session_table_lock_out_neither_root_nor_another_user() {
    isolated(|host| {
        let broker = Broker::start(host, &with_users(3001..3010, "max_new_sessions = 1000"));
        let before = broker.descriptors();
        let mut held = Vec::new();
        // Four users, and one more that no scope names.
        for (uid, greets) in [(3001, false), (3002, true), (3003, true), (3004, true), (4000, false)] {
            let mut peers: Vec<Peer> = (0..65).map(|_| user(uid)).collect();
            let fault = refusal(peers.last_mut().unwrap());
            assert_eq!(fault.code, FaultCode::Quota, "{fault}");
            if greets {
                peers.iter().for_each(send_hello);
            }
            held.push(peers);
        }
        let (root_took, mut root) = time_of_session(|| broker.connect());
        let (took, _victim) = time_of_session(|| user(3009));
        println!("a new session takes root {root_took:?}, another user {took:?}");
        assert!(root_took < Duration::from_millis(500) && took < Duration::from_millis(500));
        let roots: Vec<Peer> = (0..14).map(|_| broker.peer()).collect();
        let sessions = root.status().sessions;
        assert!(sessions.iter().any(|session| &*session.peer == "user 3009"), "status hides the victim");
        drop((held, roots, _victim, root));
        broker.await_no_leak(&before);
    });
}

#[test]
fn sessions_without_hello_end_first_and_others_never_when_none_is_free() {
    isolated(|host| {
        let broker = Broker::start(host, &with_users(3001..3200, "max_new_sessions = 1000"));
        let mut greeted_sessions = Vec::new();
        let mut users = 3001..3199;
        // All but one of the sessions that every user can use.
        while greeted_sessions.len() < 239 {
            let uid = users.next().unwrap();
            let more = std::iter::repeat_with(|| user(uid)).map_while(|mut peer| {
                send_hello(&peer);
                (peer.receive().unwrap().header.kind != Kind::FAULT).then_some(peer)
            });
            greeted_sessions.extend(more.take(239 - greeted_sessions.len()));
        }
        let mut silent = user(users.next().unwrap());
        let (took, _victim) = time_of_session(|| user(users.next().unwrap()));
        println!("a new session takes {took:?}");
        broker.log.wait_for(&["session ended", "another peer needs the session"]);
        assert!(silent.is_disconnected());
        let fault = refusal(&mut user(users.next().unwrap()));
        assert!(fault.code == FaultCode::Quota && fault.message.contains("all 240 sessions"), "{fault}");
        greeted_sessions.iter_mut().for_each(Peer::ping);
        broker.peer().ping();
    });
}

#[test]
fn one_user_with_many_busy_sessions_delays_no_other() {
    exclusive(|host| {
        let _broker = Broker::start(host, &with_users(3001..3003, "max_requests = 1000000"));
        let mut victim = greeted(user(3001));
        let mut hostile: Vec<Peer> = (0..64).map(|_| greeted(other())).collect();
        // Each status lists them, which takes a while.
        (2000..2128).for_each(|port| drop(hostile[0].listen(&format!("127.0.0.1:{port}")).unwrap()));
        let idle = flood::latency(&mut victim, Duration::from_millis(500));
        let stop = AtomicBool::new(false);
        let busy = std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut buffer = codec::frame_buffer();
                let request =
                    codec::encode(&mut buffer, StatusRequest::KIND, 1, 0, &StatusRequest { after: 0 });
                let request = request.unwrap();
                hostile.iter().for_each(|peer| peer.channel.set_nonblocking(true).unwrap());
                while !stop.load(Ordering::Relaxed) {
                    for peer in &mut hostile {
                        (0..8).for_each(|_| drop(channel::send_bytes(&peer.channel, request)));
                        while peer.receive().is_ok() {}
                    }
                }
            });
            let busy = flood::latency(&mut victim, Duration::from_secs(2));
            stop.store(true, Ordering::Relaxed);
            busy
        });
        println!("the victim's ping: {idle:?} if idle, {busy:?} with 64 busy sessions");
        assert!(busy < idle * 2 + Duration::from_millis(100), "{busy:?}");
    });
}

#[test]
fn a_flood_of_connections_does_not_delay_a_new_session_of_root() {
    exclusive(|host| {
        let broker = start(host, "");
        let (_, flood) = flood::ALL.into_iter().find(|(name, _)| *name == "connections").unwrap();
        let mut times: Vec<Duration> = flood::during(flood, || {
            let times = (0..50).map(|_| {
                std::thread::sleep(Duration::from_millis(10));
                time_of_session(|| broker.connect()).0
            });
            times.collect()
        });
        times.sort_unstable();
        println!("a new session takes {:?}, {:?} at most", times[25], times[49]);
        assert!(times[25] < Duration::from_millis(100), "{times:?}");
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
