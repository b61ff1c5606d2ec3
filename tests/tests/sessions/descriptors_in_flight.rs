//! Peers that request sockets and do not receive them: a bounded number is in flight, whatever they do, and nobody else
//! notices.

use std::net::Shutdown;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use portreeve_protocol::address::AddAddress;
use portreeve_protocol::channel;
use portreeve_protocol::event::Subscribe;
use portreeve_protocol::frame::MAX_DESCRIPTORS;
use portreeve_protocol::message::{Hello, ListenMany, ListenerId, Operation, Outcome};
use portreeve_protocol::{FaultCode, Text, codec};
use portreeve_tests::broker::SOCKET;
use portreeve_tests::chroot::WORKER;
use portreeve_tests::peer::{listen, one_address};
use portreeve_tests::scripted_worker::WorkerSetup;
use portreeve_tests::{Broker, Host, Peer, broker, eventually, exclusive, isolated, lan, resources, sample};
use rustix::process::{Pid, Signal, kill_process};

/// The bound of one user.
const MAX_OF_USER: usize = MAX_DESCRIPTORS + 16;
/// Users who read nothing.
const HOARDERS: [(&str, u32); 2] = [("mallory", 2001), ("trudy", 2002)];
/// A user who only wants a listener.
const VICTIM: (&str, u32) = ("victor", 2003);

/// The scopes of the users, and the users themselves.
fn users(host: &Host) -> String {
    let scope = |(name, id): (&str, u32)| {
        host.add_user(name, id);
        format!("peer {name} {{ allow = ( listen status ) permit = ( any ) }}")
    };
    let scopes: Vec<String> = HOARDERS.into_iter().chain([VICTIM]).map(scope).collect();
    format!("broker {{ {} }}", scopes.join(" "))
}

fn config(host: &Host, quotas: &str) -> String {
    let listen = sample::control(r#"( "127.0.0.1:1-65535" )"#);
    format!("{listen}{}broker {{ {quotas} }}", users(host))
}

fn connect((_, id): (&str, u32)) -> Peer {
    Peer::of_user(id, id)
}

/// A request for the largest possible number of listeners, at ports from this one on.
fn largest(first_port: u16) -> ListenMany {
    let ports = first_port..first_port + u16::try_from(MAX_DESCRIPTORS).unwrap();
    ListenMany::truncated(true, ports.map(|port| listen(&format!("127.0.0.1:{port}"))))
}

/// Sends a request again and again, until there is no room or a reply waits that will not be sent.
fn flood<T: Operation>(peer: &Peer, request: &T, most: usize) -> usize {
    peer.channel.set_nonblocking(true).unwrap();
    let mut buffer = codec::frame_buffer();
    let frame = codec::encode(&mut buffer, T::KIND, 77, 0, request).unwrap();
    let sent = (0..most).take_while(|_| {
        // The broker takes what it serves; wait a moment for the rest.
        (0..20).any(|_| {
            let sent = channel::send_bytes(&peer.channel, frame).is_ok();
            if !sent {
                std::thread::sleep(Duration::from_millis(2));
            }
            sent
        })
    });
    let sent = sent.count();
    peer.channel.set_nonblocking(false).unwrap();
    sent
}

/// Waits until the broker has served everything that it can: a bystander gets its replies between those of others.
fn settle(bystander: &mut Peer) {
    (0..200).for_each(|_| bystander.ping());
}

/// Requests the largest reply, and waits until the broker has sent it. Nothing is received.
fn hoard(broker: &Broker, peer: &mut Peer, first_port: u16) -> u32 {
    let number = peer.send(&largest(first_port));
    broker.log.wait_for(&["done", &format!("arguments=\"127.0.0.1:{first_port}, ")]);
    number
}

/// Receives everything that was sent to these peers while the broker is suspended, and returns the number of descriptors.
fn receive_in_flight(broker: &Broker, peers: &mut [Peer]) -> Vec<usize> {
    broker.suspend();
    let count = |peer: &mut Peer| {
        peer.channel.set_nonblocking(true).unwrap();
        let frames = std::iter::from_fn(|| peer.receive().ok());
        let count = frames.map(|frame| frame.descriptors.len()).sum();
        peer.channel.set_nonblocking(false).unwrap();
        count
    };
    let counts = peers.iter_mut().map(count).collect();
    broker.signal(Signal::CONT);
    counts
}

#[test]
fn one_session_has_at_most_one_largest_reply_in_flight_and_gets_the_rest_when_it_reads() {
    isolated(|host| {
        let broker = Broker::start(host, &config(host, ""));
        let mut bystander = broker.peer();
        for (request, descriptors) in [(Some(largest(3000)), 253), (None, 1)] {
            let before = broker.descriptors();
            let mut peers = [connect(HOARDERS[0])];
            let sent = match &request {
                Some(many) => flood(&peers[0], many, 20),
                None => flood(&peers[0], &listen("127.0.0.1:3000"), 500),
            };
            settle(&mut bystander);
            assert!(sent * descriptors > 4 * MAX_DESCRIPTORS / 3, "{sent} requests were sent");
            assert!(
                broker.descriptors().not_in(&before).len() <= 2 + descriptors,
                "a reply that waits holds no copies"
            );
            let mut received = receive_in_flight(&broker, &mut peers)[0];
            assert_eq!(received, MAX_DESCRIPTORS);
            let [mut peer] = peers;
            while received < sent * descriptors {
                let frame = peer.receive().unwrap();
                assert_eq!((frame.header.request, frame.descriptors.len()), (77, descriptors));
                received += descriptors;
            }
            drop(peer);
            broker.await_no_leak(&before);
        }
    });
}

#[test]
fn all_sessions_of_a_user_share_one_bound_over_hang_ups() {
    isolated(|host| {
        let broker = Broker::start(host, &config(host, "max_sessions = 24"));
        let mut bystander = broker.peer();
        let before = broker.descriptors();
        let mut peers: Vec<Peer> = Vec::new();
        for session in 0..24 {
            let peer = connect(HOARDERS[0]);
            flood(&peer, &largest(3000), 3);
            if session % 2 == 0 {
                settle(&mut bystander);
                // The broker's session ends, and what it sent remains in the peer's queue.
                peer.channel.shutdown(Shutdown::Write).unwrap();
            }
            peers.push(peer);
        }
        for peer in &peers {
            flood(peer, &listen("127.0.0.1:3000"), 3);
        }
        settle(&mut bystander);
        let open = broker.descriptors().not_in(&before).len();
        assert!(open <= 2 * peers.len() + MAX_DESCRIPTORS, "{open} descriptors more");
        let mut refused = Peer::connect_as(Path::new(SOCKET), HOARDERS[0].1, HOARDERS[0].1).unwrap();
        assert!(refused.is_disconnected(), "a session that ended with unread sockets keeps its place");
        let victim = connect(VICTIM).listen("127.0.0.1:25").unwrap();
        let received: usize = receive_in_flight(&broker, &mut peers).iter().sum();
        assert!((MAX_DESCRIPTORS..=MAX_OF_USER).contains(&received), "{received} descriptors in flight");
        drop((peers, victim));
        let (reply, sockets) = eventually("room for the user", || connect_if_admitted(HOARDERS[0]))
            .request(&largest(4000))
            .unwrap();
        assert_eq!((reply.results.len(), sockets.len()), (253, 253));
        broker.await_no_leak(&before);
    });
}

/// Connects and sends Hello; `None` if the broker refuses the session.
fn connect_if_admitted((_, id): (&str, u32)) -> Option<Peer> {
    let mut peer = Peer::connect_as(Path::new(SOCKET), id, id).unwrap();
    let mut buffer = codec::frame_buffer();
    let hello = Hello { client: Text::default(), features: 0 };
    let frame = codec::encode(&mut buffer, Hello::KIND, 1, 0, &hello).unwrap();
    let _ = channel::send_bytes(&peer.channel, frame); // a refused channel may be closed already
    peer.receive().is_ok_and(|frame| frame.header.request == 1).then_some(peer)
}

#[test]
fn users_who_read_nothing_harm_neither_users_nor_root_nor_the_worker_nor_another_broker() {
    exclusive(|host| {
        let setup = WorkerSetup::new(host, "chroot");
        let rest = format!(
            r#"{}{}worker {{ stable_after = 0 }}"#,
            sample::socket(r#"( "127.0.0.1:1-65535" )"#),
            users(host)
        );
        let text = sample::worker(&setup.chroot, "( /run/host/bin/scripted_worker )", &rest);
        let broker = Broker::start(host, &text);
        let (scripted, worker) = setup.accept();
        let idle = median(&mut connect(VICTIM));
        let mut hoarders: Vec<Peer> = Vec::new();
        for (index, user) in (0..).zip(HOARDERS) {
            for session in 0..20 {
                let peer = connect(user);
                flood(&peer, &largest(10_000 + 300 * index), 4);
                flood(&peer, &listen(&format!("127.0.0.1:{}", 10_000 + 300 * index)), 4);
                if session % 4 == 0 {
                    peer.channel.shutdown(Shutdown::Write).unwrap();
                }
                hoarders.push(peer);
            }
        }
        let mut victim = connect(VICTIM);
        let busy = median(&mut victim);
        println!("a listener takes {idle:?}, and {busy:?} beside users who read nothing");
        assert!(busy <= idle * 2 + Duration::from_millis(100), "{busy:?}, idle {idle:?}");
        for mut peer in [victim, broker.peer()] {
            let (_, sockets) = peer.request(&largest(20_000)).unwrap();
            assert_eq!(sockets.len(), MAX_DESCRIPTORS);
        }

        kill_process(Pid::from_raw(broker.worker().cast_signed()).unwrap(), Signal::KILL).unwrap();
        drop((scripted, worker));
        let (_scripted, mut worker) = setup.accept();
        worker.hello();
        worker.listen("127.0.0.1:26").unwrap();

        // Its limit of open files is that of many services. The kernel counts for both brokers together.
        let other = sample::control(r#"( "127.0.0.1:1-65535" )"#).replace(SOCKET, "/run/host/other.sock");
        let mut command = Command::new("prlimit");
        command.arg("--nofile=1024:1030").arg(host.binary(portreeve_tests::binaries::BROKER));
        let other = Broker::start_command(host, {
            command.arg("--config").arg(broker::config(host, &other));
            command
        });
        let mut peer = Peer::connect(Path::new("/run/host/other.sock")).unwrap();
        peer.hello();
        peer.listen("127.0.0.1:27").unwrap();
        assert!(other.is_running() && broker.is_running());
        let counts = receive_in_flight(&broker, &mut hoarders);
        let sum: usize = counts.iter().sum();
        assert!(sum > MAX_DESCRIPTORS && sum <= 2 * MAX_OF_USER, "{sum} descriptors in flight: {counts:?}");
    });
}

/// The median time of a request for a listener.
fn median(peer: &mut Peer) -> Duration {
    let mut times: Vec<Duration> = (0..101)
        .map(|_| {
            let start = Instant::now();
            let (id, _socket) = peer.listen("127.0.0.1:25").unwrap();
            let time = start.elapsed();
            peer.stop(&[id]);
            time
        })
        .collect();
    times.sort_unstable();
    times[50]
}

#[test]
fn a_worker_that_reads_nothing_delays_only_itself() {
    isolated(|host| {
        let setup = WorkerSetup::new(host, "chroot");
        let rest = format!("{} worker {{ stable_after = 0 }}", sample::socket(r#"( "127.0.0.1:1-65535" )"#));
        let broker =
            Broker::start(host, &sample::worker(&setup.chroot, "( /run/host/bin/scripted_worker )", &rest));
        let mut bystander = broker.peer();
        let mut hoards = Vec::new();
        for _ in 0..2 {
            let (scripted, mut worker) = setup.accept();
            worker.hello();
            flood(&worker, &largest(3000), 4);
            settle(&mut bystander);
            kill_process(Pid::from_raw(broker.worker().cast_signed()).unwrap(), Signal::KILL).unwrap();
            // The test keeps the channel, as a descendant of the worker could.
            hoards.push(worker);
            drop(scripted);
        }
        let (_scripted, mut worker) = setup.accept();
        worker.hello();
        let (_, sockets) = bystander.request(&largest(20_000)).unwrap();
        assert_eq!(sockets.len(), MAX_DESCRIPTORS);
        worker.listen("127.0.0.1:3000").unwrap();
        let counts = receive_in_flight(&broker, &mut hoards);
        assert_eq!(counts, [MAX_DESCRIPTORS; 2]);
        assert_eq!(worker.request(&largest(3000)).unwrap().1.len(), MAX_DESCRIPTORS);
    });
}

#[test]
fn a_socket_that_cannot_be_sent_because_of_other_sessions_is_a_fault_and_the_session_continues() {
    isolated(|host| {
        let broker = Broker::start(host, &config(host, "unread_timeout = 2"));
        let mut first = connect(HOARDERS[0]);
        let mut second = connect(HOARDERS[0]);
        let number = hoard(&broker, &mut first, 3000);
        let fault = second.request(&largest(4000)).unwrap_err();
        assert_eq!(fault.code, FaultCode::Busy, "{fault}");
        assert!(fault.message.contains("other sessions of user 2001"), "{fault}");
        broker.log.wait_for(&["refused", "listen-many", "left too many sockets unread"]);
        second.listen("127.0.0.1:4000").unwrap();
        assert_eq!(first.receive().unwrap().header.request, number);
        assert_eq!(second.request(&largest(4000)).unwrap().1.len(), MAX_DESCRIPTORS);
        second.ping();
    });
}

#[test]
fn a_listener_that_is_stopped_before_its_socket_is_sent_is_a_fault_and_the_session_continues() {
    isolated(|host| {
        let broker = Broker::start(host, &config(host, ""));
        let mut first = connect(HOARDERS[0]);
        let mut second = connect(HOARDERS[0]);
        hoard(&broker, &mut first, 3000);
        let number = second.send(&largest(4000));
        let mut root = broker.peer();
        let address = "127.0.0.1:4252".parse().unwrap();
        eventually("the listeners", || resources::tcp_listeners().contains(&address).then_some(()));
        let last = ListenerId(2 * MAX_DESCRIPTORS as u64);
        assert!(root.stop(&[last]).unknown.is_empty());
        let frame = second.receive().unwrap();
        assert_eq!(frame.header.request, number);
        let fault = frame.reply::<ListenMany>().unwrap_err();
        assert_eq!(fault.code, FaultCode::NotFound, "{fault}");
        second.listen("127.0.0.1:4000").unwrap();
    });
}

#[test]
fn the_audit_line_says_that_a_reply_was_not_sent() {
    isolated(|host| {
        let broker = Broker::start(host, &config(host, "unread_timeout = 1"));
        let mut peer = connect(HOARDERS[0]);
        peer.send(&largest(3000));
        peer.send(&listen("127.0.0.1:4000"));
        let line = broker.log.wait_for(&["127.0.0.1:4000", "done, but the reply was not sent"]);
        assert!(line.contains("did not read a reply for 1 s"), "{line}");
        broker.log.wait_for(&["session ended", "did not read a reply for 1 s"]);
        let lines = broker.log.lines();
        let done = lines.iter().filter(|line| line.contains("127.0.0.1:4000") && line.contains("done"));
        assert_eq!(done.count(), 1, "{lines:#?}");
        eventually("the end of the listeners", || resources::tcp_listeners().is_empty().then_some(()));
    });
}

#[test]
fn a_peer_that_closes_before_its_reply_is_sent_ends_its_session_at_once() {
    isolated(|host| {
        let broker = Broker::start(host, &config(host, ""));
        let before = broker.descriptors();
        let mut first = connect(HOARDERS[0]);
        let mut second = connect(HOARDERS[0]);
        hoard(&broker, &mut first, 3000);
        second.send(&largest(4000));
        settle(&mut broker.peer());
        drop(second);
        broker.log.wait_for(&["127.0.0.1:4000", "done, but the reply was not sent"]);
        drop(first);
        broker.await_no_leak(&before);
    });
}

#[test]
fn a_peer_that_shuts_its_channel_down_while_a_reply_waits_ends_its_session_at_once() {
    isolated(|host| {
        let broker = Broker::start(host, &config(host, ""));
        let before = broker.descriptors();
        let mut peer = connect(HOARDERS[0]);
        hoard(&broker, &mut peer, 3000);
        peer.send(&listen("127.0.0.1:4000"));
        settle(&mut broker.peer());
        peer.channel.shutdown(Shutdown::Both).unwrap();
        broker.log.wait_for(&["127.0.0.1:4000", "done, but the reply was not sent"]);
        eventually("the end of the listeners", || resources::tcp_listeners().is_empty().then_some(()));
        drop(peer);
        broker.await_no_leak(&before);
    });
}

#[test]
fn a_request_that_names_an_endpoint_twice_is_refused_before_anything_is_bound() {
    isolated(|host| {
        let broker = Broker::start(host, &config(host, ""));
        let mut peer = connect(VICTIM);
        let mut other = listen("127.0.0.1:25");
        other.options.backlog = Some(7);
        for repeated in [listen("127.0.0.1:25"), other] {
            for all_or_nothing in [true, false] {
                let listeners = [
                    listen("127.0.0.1:24"),
                    listen("127.0.0.1:25"),
                    listen("127.0.0.1:26"),
                    repeated.clone(),
                ];
                let many = ListenMany::truncated(all_or_nothing, listeners);
                let fault = peer.request(&many).unwrap_err();
                assert_eq!(
                    (fault.code, &*fault.subject),
                    (FaultCode::Unsupported, "127.0.0.1:25"),
                    "{fault}"
                );
                assert!(resources::tcp_listeners().is_empty());
            }
        }
        broker.log.wait_for(&["refused", "listen-many", "more than once"]);
        // Another protocol is another endpoint, and a repeated request returns the same listener.
        let many = ["127.0.0.1:24", "127.0.0.1:25", "127.0.0.1:26"].map(listen);
        let many = ListenMany::truncated(true, many);
        for _ in 0..2 {
            let (reply, _) = peer.request(&many).unwrap();
            assert!(reply.results.iter().all(|result| matches!(result, Outcome::Done(_))), "{reply:?}");
        }
    });
}

#[test]
fn a_peer_that_reads_no_reply_cannot_have_any_number_of_requests_in_flight() {
    isolated(|host| {
        let broker = Broker::start(host, &config(host, ""));
        let mut bystander = broker.peer();
        let deaf = connect(HOARDERS[0]);
        let sent = flood(&deaf, &Subscribe { follow: false, all: false }, 20_000);
        settle(&mut bystander);
        // A few hundred fill each of the two buffers.
        println!("{sent} requests were sent");
        assert!(sent < 2_000, "{sent} requests were accepted");
    });
}

#[test]
fn a_reply_that_waits_is_not_overtaken_by_events_without_end() {
    isolated(|host| {
        let broker = Broker::start(host, &config(host, ""));
        let mut peer = broker.peer();
        peer.subscribe(true);
        let requests = [peer.send(&largest(3000)), peer.send(&largest(4000))];
        settle(&mut broker.peer());
        for number in requests {
            let frame = peer.receive().unwrap();
            assert_eq!((frame.header.request, frame.descriptors.len()), (number, MAX_DESCRIPTORS));
        }
        peer.ping();
    });
}

#[test]
fn a_session_that_ends_with_a_request_in_flight_keeps_its_place_until_it_ends() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses("broker { max_sessions = 1 log_level = debug }"));
        let nobody = ("nobody", WORKER);
        let mut peer = connect(nobody);
        let addresses = one_address("10.1.1.7");
        // The probes take a second or more.
        peer.send(&AddAddress { addresses, probes: 3, ..AddAddress::default() });
        settle(&mut broker.peer());
        drop(peer);
        broker.log.wait_for(&["session ended", "user 65534"]);
        assert!(connect_if_admitted(nobody).is_none(), "the request holds the channel of its session");
        eventually("room for the user", || connect_if_admitted(nobody));
    });
}
