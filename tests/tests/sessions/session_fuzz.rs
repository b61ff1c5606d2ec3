//! Random sessions: valid and invalid requests, alone and pipelined, with disconnects and killed workers. At the end,
//! nothing may be left behind.
//!
//! A seed determines each run. `PORTREEVE_FUZZ_SEED` sets the first seed, `PORTREEVE_FUZZ_SECONDS` how long to continue
//! with further seeds (at most 150 in one run of the test, which has a deadline).

use std::collections::VecDeque;
use std::net::Shutdown;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use portreeve_protocol::message::{
    Hello, Listen, ListenMany, ListenOptions, ListenerId, Operation, Ping, StatusRequest, Stop,
};
use portreeve_protocol::{Kind, List, Text, channel, codec};
use portreeve_tests::broker::SOCKET;
use portreeve_tests::chroot::WORKER;
use portreeve_tests::random::Random;
use portreeve_tests::scripted_worker::{ScriptedWorker, WorkerSetup};
use portreeve_tests::{Broker, Peer, eventually, isolated, resources, sample};
use rustix::process::{Pid, Signal, kill_process};

const QUOTAS: &str = "broker { retain = 1 max_refusals = 100000 max_new_sessions = 100000 max_sessions = 8 max_listeners = 30 }
    worker { stable_after = 0 }";

/// A session, and its requests that have no reply yet.
struct Open {
    peer: Peer,
    pending: VecDeque<(u32, Kind)>,
}

impl Open {
    fn new(peer: Peer) -> Self {
        Self { peer, pending: VecDeque::new() }
    }

    fn send<O: Operation>(&mut self, request: &O) {
        let number = self.peer.send(request);
        self.pending.push_back((number, O::KIND));
    }

    /// Reads every reply. Each must match its request, decode, and carry the sockets that it declares.
    fn read_replies(&mut self) {
        while let Some((number, kind)) = self.pending.pop_front() {
            let frame = self.peer.receive().unwrap_or_else(|error| panic!("no answer to {kind:?}: {error}"));
            assert_eq!(frame.header.request, number);
            let refused = match kind {
                Hello::KIND => frame.reply::<Hello>().is_err(),
                Ping::KIND => frame.reply::<Ping>().is_err(),
                Listen::KIND => match frame.reply::<Listen>() {
                    Ok((_, sockets)) => {
                        assert_eq!(sockets.len(), 1);
                        false
                    }
                    Err(_) => true,
                },
                ListenMany::KIND => frame.reply::<ListenMany>().is_err(),
                Stop::KIND => frame.reply::<Stop>().is_err(),
                _ => frame.reply::<StatusRequest>().is_err(),
            };
            // ListenMany is refused if it names an endpoint twice.
            assert!(!refused || [Listen::KIND, ListenMany::KIND].contains(&kind), "{kind:?} was refused");
        }
    }

    /// After bytes that may not be a valid request: stops sending, and reads until the session ends.
    fn until_the_end(mut self) {
        let _ = self.peer.channel.shutdown(Shutdown::Write); // the session may have ended
        assert!(self.peer.is_disconnected(), "the session did not end");
    }
}

fn listen(random: &mut Random) -> Listen {
    let port = 2000 + random.below(40);
    let endpoint = match random.below(8) {
        0 => format!("192.0.2.1:{port}"),
        1 => format!("127.0.0.1:{port}/udp"),
        2 => format!("/run/host/{port}"),
        _ => format!("127.0.0.1:{port}"),
    };
    let mut options = ListenOptions::default();
    if random.one_in(8) {
        options.backlog = Some(random.below(5_000) as u32);
        options.reuse_port = random.one_in(2);
        options.device = Text::truncated(if random.one_in(2) { "lo" } else { "nowhere" });
    }
    Listen::new(endpoint.parse().unwrap(), options)
}

/// Never stops the first listener, which is the bystander's: root may stop listeners of others.
fn stop(random: &mut Random, last: u64) -> Stop {
    let ids = (0..random.below(6)).map(|_| ListenerId(random.below(last + 2) + 2));
    Stop { listeners: List::truncated(ids.collect::<Vec<_>>()) }
}

fn ask(open: &mut Open, random: &mut Random, last: u64) {
    match random.below(8) {
        0..3 => open.send(&listen(random)),
        3 => {
            let count = random.below(12);
            let listeners = (0..count).map(|_| listen(random)).collect::<Vec<_>>();
            open.send(&ListenMany::truncated(random.one_in(2), listeners));
        }
        4 | 5 => open.send(&stop(random, last)),
        6 => open.send(&Ping {}),
        _ => open.send(&StatusRequest { after: random.below(last + 2) }),
    }
}

/// Sends a request with bytes changed, removed or added, random bytes, or a request with descriptors.
fn send_invalid(open: &Open, random: &mut Random) {
    let mut buffer = codec::frame_buffer();
    let number = random.below(3) as u32;
    let mut packet = codec::encode(&mut buffer, Listen::KIND, number, 0, &listen(random)).unwrap().to_vec();
    match random.below(5) {
        0 => packet.truncate(random.below(packet.len() as u64) as usize + 1),
        1 => packet.extend(std::iter::repeat_n(b'x', random.below(70_000) as usize)),
        2 => packet = (0..random.below(300) + 1).map(|_| random.below(256) as u8).collect(),
        3 => {
            let file = std::fs::File::open("/dev/null").unwrap();
            let descriptors: Vec<BorrowedFd<'_>> = vec![file.as_fd(); random.below(253) as usize + 1];
            let _ = channel::send(&open.peer.channel, &packet, &descriptors); // the session may have ended
            return;
        }
        _ => {
            for _ in 0..random.below(4) + 1 {
                let at = random.below(packet.len() as u64) as usize;
                packet[at] ^= 1 << random.below(8);
            }
        }
    }
    let _ = channel::send_bytes(&open.peer.channel, &packet); // the session may have ended
}

/// Connects as root or as another user.
fn connect(random: &mut Random) -> Peer {
    let path = Path::new(SOCKET);
    if random.one_in(2) { Peer::connect(path) } else { Peer::connect_as(path, WORKER, WORKER) }.unwrap()
}

/// The worker's session, and the connection of its process.
struct Worker {
    scripted: ScriptedWorker,
    open: Open,
}

impl Worker {
    fn enter(setup: &WorkerSetup) -> Self {
        let (scripted, mut peer) = setup.accept();
        peer.hello();
        Self { scripted, open: Open::new(peer) }
    }

    fn replace(self, broker: &Broker, setup: &WorkerSetup) -> Self {
        kill_process(Pid::from_raw(broker.worker().cast_signed()).unwrap(), Signal::KILL).unwrap();
        drop((self.scripted, self.open));
        Self::enter(setup)
    }
}

/// One run of this many steps. Returns the worker and the number of requests.
fn run(broker: &Broker, setup: &WorkerSetup, mut worker: Worker, seed: u64, steps: u64) -> (Worker, u64) {
    let mut random = Random::new(seed);
    let mut sessions: Vec<Open> = Vec::new();
    let mut requests = 0;
    for step in 0..steps {
        let chosen = random.below(sessions.len() as u64 + 1) as usize;
        let at_worker = chosen == sessions.len();
        let room = sessions.len() < 6;
        let open = sessions.get_mut(chosen).unwrap_or(&mut worker.open);
        match random.below(20) {
            0..12 => {
                // One request, or several before their replies are read.
                for _ in 0..if random.one_in(4) { random.below(20) + 1 } else { 1 } {
                    ask(open, &mut random, step);
                    requests += 1;
                }
                if !random.one_in(4) || open.pending.len() > 40 {
                    open.read_replies();
                }
            }
            12 => {
                let mut buffer = codec::frame_buffer();
                let silent = codec::encode(&mut buffer, Listen::KIND, 0, 0, &listen(&mut random)).unwrap();
                channel::send_bytes(&open.peer.channel, silent).unwrap();
                requests += 1;
            }
            13..16 if room => {
                let mut open = Open::new(connect(&mut random));
                match random.one_in(6) {
                    true => {
                        send_invalid(&open, &mut random);
                        open.until_the_end();
                    }
                    false => {
                        open.send(&Hello { client: Text::truncated("fuzz\n\u{1b}[2J"), features: u64::MAX });
                        open.read_replies();
                        sessions.push(open);
                    }
                }
                requests += 1;
            }
            16 | 17 if !at_worker => drop(sessions.swap_remove(chosen)),
            18 if !at_worker => {
                let open = sessions.swap_remove(chosen);
                send_invalid(&open, &mut random);
                open.until_the_end();
                requests += 1;
            }
            19 if random.one_in(4) => worker = worker.replace(broker, setup),
            _ => open.read_replies(),
        }
    }
    sessions.iter_mut().for_each(Open::read_replies);
    worker.open.read_replies();
    (worker, requests)
}

#[test]
fn random_sessions_leave_nothing_behind_and_harm_no_other_peer() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    isolated(|host| {
        let setup = WorkerSetup::new(host, "chroot");
        let rest = format!(
            "{}{QUOTAS}",
            sample::socket(r#"( "127.0.0.1:1-65535" "127.0.0.1:1-65535/udp" "/run/host/*" )"#)
        );
        let broker =
            Broker::start(host, &sample::worker(&setup.chroot, "( /run/host/bin/scripted_worker )", &rest));
        let mut worker = Worker::enter(&setup);
        let mut bystander = broker.peer();
        let (kept, listener) = bystander.listen("127.0.0.1:25").unwrap();
        assert_eq!(kept, ListenerId(1));
        let before = broker.descriptors();
        let mut seed = number("PORTREEVE_FUZZ_SEED").unwrap_or(1);
        let end =
            Instant::now() + Duration::from_secs(number("PORTREEVE_FUZZ_SECONDS").unwrap_or(5).min(150));
        let (mut requests, mut runs) = (0, 0);
        while runs == 0 || Instant::now() < end {
            println!("seed {seed}");
            let (next, made) = run(&broker, &setup, worker, seed, 2000);
            bystander.ping();
            // The worker's listeners end with their retention, the others with their sessions.
            worker = next.replace(&broker, &setup);
            eventually("the end of all listeners", || (bystander.status().listeners_held == 1).then_some(()));
            assert_eq!(resources::tcp_listeners().len(), 1);
            eventually("the end of all sessions", || (bystander.status().sessions.len() == 2).then_some(()));
            broker.await_no_leak(&before);
            (requests, runs, seed) = (requests + made, runs + 1, seed + 1);
        }
        println!("{runs} runs, {requests} requests");
        let client = std::net::TcpStream::connect("127.0.0.1:25").unwrap();
        std::net::TcpListener::from(listener).accept().unwrap();
        drop(client);
        assert!(bystander.stop(&[kept]).unknown.is_empty());
    });
}
