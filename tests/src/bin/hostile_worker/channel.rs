//! Attacks on the broker through what it offers: the channel and the control socket.

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
    Attack { name: "beyond-the-policy", attempt: beyond_the_policy },
    Attack { name: "descriptors-with-a-request", attempt: descriptors_with_a_request },
    Attack { name: "malformed-frames", attempt: malformed_frames },
    Attack { name: "listen-again", attempt: listen_again },
    Attack { name: "stop-another's-listener", attempt: stop_anothers_listener },
    Attack { name: "no-descriptor-left", attempt: no_descriptor_left },
    Attack { name: "sessions-without-a-word", attempt: sessions_without_a_word },
];

fn session() -> Peer {
    let mut peer = silent();
    peer.hello();
    peer
}

fn silent() -> Peer {
    Peer::connect(Path::new("/run/broker.sock")).unwrap()
}

fn held_if(is_so: bool, what: &str) -> Outcome {
    if is_so { Outcome::Held(what.to_owned()) } else { Outcome::Escaped(format!("not so: {what}")) }
}

fn beyond_the_policy() -> Outcome {
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
            Ok(_) => return Outcome::Escaped(format!("{endpoint} was given")),
            Err(fault) if fault.code == FaultCode::Denied => {}
            Err(fault) => return Outcome::Escaped(format!("{endpoint} was not denied but: {fault}")),
        }
    }
    Outcome::Held("each is denied".to_owned())
}

fn descriptors_with_a_request() -> Outcome {
    let mut peer = session();
    let mut buffer = codec::frame_buffer();
    let packet = codec::encode(&mut buffer, Ping::KIND, 7, 0, &Ping {}).unwrap();
    let standard = std::io::stdin();
    channel::send(&peer.channel, packet, &[standard.as_fd(); 200]).unwrap();
    held_if(peer.is_disconnected(), "the session ends")
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
        if channel::send_bare(&peer.channel, &bytes).is_ok() && !peer.is_disconnected() {
            return Outcome::Escaped(format!("{length} bytes of nothing did not end the session"));
        }
    }
    Outcome::Held("each ends its session".to_owned())
}

/// Keeps its copy of a socket, has the broker stop the listener, and listens on the copy again.
fn listen_again() -> Outcome {
    let mut peer = session();
    let (id, copy) = peer.listen("127.0.0.1:2525").unwrap();
    peer.stop(&[id]);
    let again = rustix::net::listen(&copy, 16);
    let address: SocketAddr = "127.0.0.1:2525".parse().unwrap();
    let reached = TcpStream::connect_timeout(&address, Duration::from_millis(300));
    held_if(reached.is_err(), &format!("listening again was {again:?}, connecting is {:?}", reached.err()))
}

fn stop_anothers_listener() -> Outcome {
    let mut owner = session();
    let (id, _socket) = owner.listen("127.0.0.1:2526").unwrap();
    let stopped = session().stop(&[id]);
    let reached = TcpStream::connect(("127.0.0.1", 2526)).is_ok();
    held_if(reached, &format!("the owner still serves: {stopped:?}"))
}

fn no_descriptor_left() -> Outcome {
    let mut peer = session();
    let used = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    let before = getrlimit(Resource::Nofile);
    // The count has the descriptor of the directory itself in it, which is closed by now.
    setrlimit(Resource::Nofile, Rlimit { current: Some(used - 1), ..before }).unwrap();
    peer.send(&portreeve_tests::peer::listen("127.0.0.1:2527"));
    let lost = peer.receive().unwrap();
    setrlimit(Resource::Nofile, before).unwrap();
    let again = peer.listen("127.0.0.1:2527");
    held_if(lost.descriptors_lost && again.is_ok(), "the socket is lost, told, and given when asked again")
}

/// As many as its quota is, and one more: that one is told why not, and another user's are none the worse.
fn sessions_without_a_word() -> Outcome {
    let silent: Vec<Peer> = (0..64).map(|_| silent()).collect();
    // The broker says it unasked, and hangs up.
    let mut one_more = self::silent();
    let answer = one_more.receive().map(|frame| frame.reply::<Hello>().map(|_| ()));
    drop((silent, one_more));
    match answer {
        Ok(Err(fault)) => Outcome::Held(format!("there is a bound, which is told: {}", fault.message)),
        Ok(Ok(())) => Outcome::Escaped("there is no bound to its sessions".to_owned()),
        Err(error) => Outcome::Escaped(format!("it is not told why it has no session: {error}")),
    }
}
