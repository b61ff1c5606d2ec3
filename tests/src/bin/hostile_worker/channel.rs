//! Attacks on the broker through its interfaces: the channel and the control socket.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::Duration;

use portreeve_protocol::channel;
use portreeve_protocol::message::{Hello, Operation as _, Ping};
use portreeve_protocol::{FaultCode, codec};
use portreeve_tests::Peer;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::attack::{Attack, Outcome};

pub const ATTACKS: &[Attack] = &[
    Attack { name: "denied-endpoints", attempt: denied_endpoints },
    Attack { name: "descriptors-with-a-request", attempt: descriptors_with_a_request },
    Attack { name: "malformed-frames", attempt: malformed_frames },
    Attack { name: "listen-after-stop", attempt: listen_after_stop },
    Attack { name: "stop-foreign-listener", attempt: stop_foreign_listener },
    Attack { name: "descriptor-limit", attempt: descriptor_limit },
    Attack { name: "sessions-without-hello", attempt: sessions_without_hello },
];

fn session() -> Peer {
    let mut peer = connect();
    peer.hello();
    peer
}

fn connect() -> Peer {
    Peer::connect(Path::new("/run/broker.sock")).unwrap()
}

fn blocked_if(is_so: bool, what: &str) -> Outcome {
    if is_so { Outcome::Blocked(what.to_owned()) } else { Outcome::Escaped(format!("not true: {what}")) }
}

fn denied_endpoints() -> Outcome {
    let mut peer = session();
    let endpoints = [
        "127.0.0.1:26",
        "127.0.0.2:25",
        "*:25",
        "[::1]:25",
        "[::ffff:127.0.0.1]:25",
        "udp:127.0.0.1:25",
        "127.0.0.1:0",
        "/etc/cron.d/job",
        "/run/../etc/job",
        "/run/other.sock",
    ];
    for endpoint in endpoints {
        if endpoint.parse::<portreeve_protocol::Endpoint>().is_err() {
            continue;
        }
        match peer.listen(endpoint) {
            Ok(_) => return Outcome::Escaped(format!("{endpoint} was allowed")),
            Err(fault) if fault.code == FaultCode::Denied => {}
            Err(fault) => {
                return Outcome::Escaped(format!("{endpoint} failed otherwise than by policy: {fault}"));
            }
        }
    }
    Outcome::Blocked("all are denied".to_owned())
}

fn descriptors_with_a_request() -> Outcome {
    let mut peer = session();
    let mut buffer = codec::frame_buffer();
    let packet = codec::encode(&mut buffer, Ping::KIND, 7, 0, &Ping {}).unwrap();
    let standard = std::io::stdin();
    channel::send(&peer.channel, packet, &[standard.as_fd(); 200]).unwrap();
    blocked_if(peer.is_disconnected(), "the session ends")
}

fn malformed_frames() -> Outcome {
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    for length in [0, 1, 15, 16, 17, 64, 4096, 60_000] {
        let mut peer = session();
        let bytes: Vec<u8> = (0..length)
            .map(|_| {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                seed.to_le_bytes()[0]
            })
            .collect();
        if channel::send_bytes(&peer.channel, &bytes).is_ok() && !peer.is_disconnected() {
            return Outcome::Escaped(format!("{length} random bytes did not end the session"));
        }
    }
    Outcome::Blocked("each ends its session".to_owned())
}

/// Keeps a copy of a socket, stops the listener, and calls listen(2) on the copy.
fn listen_after_stop() -> Outcome {
    let mut peer = session();
    let (id, copy) = peer.listen("127.0.0.1:2525").unwrap();
    peer.stop(&[id]);
    let again = rustix::net::listen(&copy, 16);
    let address: SocketAddr = "127.0.0.1:2525".parse().unwrap();
    let reached = TcpStream::connect_timeout(&address, Duration::from_millis(300));
    blocked_if(reached.is_err(), &format!("listen(2) gave {again:?}, connecting gave {:?}", reached.err()))
}

fn stop_foreign_listener() -> Outcome {
    let mut owner = session();
    let (id, _socket) = owner.listen("127.0.0.1:2526").unwrap();
    let stopped = session().stop(&[id]);
    let reached = TcpStream::connect(("127.0.0.1", 2526)).is_ok();
    blocked_if(reached, &format!("the owner still serves: {stopped:?}"))
}

/// Receives a reply when it cannot open any more descriptors.
fn descriptor_limit() -> Outcome {
    let mut peer = session();
    let used = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    let before = getrlimit(Resource::Nofile);
    // The count includes the descriptor of the directory itself, which is closed by now.
    setrlimit(Resource::Nofile, Rlimit { current: Some(used - 1), ..before }).unwrap();
    peer.send(&portreeve_tests::peer::listen("127.0.0.1:2527"));
    let lost = peer.receive().unwrap();
    setrlimit(Resource::Nofile, before).unwrap();
    let again = peer.listen("127.0.0.1:2527");
    blocked_if(lost.descriptors_lost && again.is_ok(), "the loss is reported, and a second request succeeds")
}

/// Opens one session more than its quota. The broker must report the reason, and other users must not be affected.
fn sessions_without_hello() -> Outcome {
    let peers: Vec<Peer> = (0..64).map(|_| connect()).collect();
    // The broker sends the fault without a request, and disconnects.
    let mut one_more = connect();
    let reply = one_more.receive().map(|frame| frame.reply::<Hello>().map(|_| ()));
    drop((peers, one_more));
    match reply {
        Ok(Err(fault)) => Outcome::Blocked(format!("the limit is reported: {}", fault.message)),
        Ok(Ok(())) => Outcome::Escaped("its sessions are not limited".to_owned()),
        Err(error) => Outcome::Escaped(format!("the limit is not reported: {error}")),
    }
}
