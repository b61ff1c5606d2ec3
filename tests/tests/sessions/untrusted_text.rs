//! Text from peers, where people read it: its length is limited, and it can neither control a terminal nor begin a
//! line.

use std::process::Command;

use portreeve_protocol::frame::MAX_FRAME;
use portreeve_protocol::message::{Hello, Listen, ListenMany, ListenOptions, Operation as _};
use portreeve_protocol::{Endpoint, InetEndpoint, Kind, List, Text, channel, codec};
use portreeve_tests::broker::SOCKET;
use portreeve_tests::namespaces::run;
use portreeve_tests::{Broker, binaries, eventually, isolated, sample};

/// A newline, a carriage return, ESC, NUL, DEL and a C1 control sequence introducer.
const EVIL: &str = "\nWARN forged line\r\u{1b}[2J\0\u{7f}\u{9b}31m";

fn evil<const MAX: usize>() -> Text<MAX> {
    Text::truncated(&EVIL.repeat(MAX / EVIL.len() + 1))
}

fn requests() -> Vec<Listen> {
    let inet = InetEndpoint { address: "fe80::1".parse().unwrap(), port: 25, scope: evil() };
    let path = Endpoint::UnixStream(Text::truncated(&format!("/run/{EVIL}{EVIL}{EVIL}{EVIL}")));
    [Endpoint::Tcp(inet), path, Endpoint::UnixSeqpacket(evil()), "127.0.0.1:25".parse().unwrap()]
        .map(|endpoint| Listen {
            endpoint,
            options: ListenOptions { device: evil(), ..ListenOptions::default() },
        })
        .to_vec()
}

#[test]
fn peer_text_is_bounded_and_escaped_everywhere() {
    isolated(|host| {
        let permits = r#"( "127.0.0.1:1-65535" "/run/*" )"#;
        let text = format!("{}broker {{ max_log_lines = 1000 }}", sample::control(permits));
        let broker = Broker::start(host, &text);
        let mut peer = broker.connect();
        peer.request(&Hello { client: evil(), features: 0 }).unwrap();
        let mut frame = codec::frame_buffer();
        for request in requests() {
            if let Err(fault) = peer.request(&request) {
                assert!(!fault.to_string().contains(|c: char| c.is_control()), "{fault}");
            }
        }
        let listeners = List::truncated(requests().into_iter().cycle().take(253));
        peer.request(&ListenMany { all_or_nothing: false, listeners }).unwrap();
        // Text beyond the maximum length in an otherwise valid packet; then a packet beyond the maximum length.
        let mut long = broker.peer();
        let body = [&60_000_u64.to_le_bytes()[..], &[0x1b; 60_000], &[0; 8]].concat();
        let header = portreeve_protocol::Header {
            kind: Hello::KIND,
            request: 9,
            descriptors: 0,
            body: u16::try_from(body.len()).unwrap(),
        };
        channel::send_bytes(&long.channel, &[&header.encode()[..], &body].concat()).unwrap();
        assert!(long.is_disconnected());
        let mut longer = broker.peer();
        channel::send_bytes(&longer.channel, &EVIL.repeat(2 * MAX_FRAME / EVIL.len()).into_bytes()).unwrap();
        assert!(longer.is_disconnected());
        let odd = codec::encode(&mut frame, Kind(0x1b5b), 1, 0, &peer_like()).unwrap();
        channel::send_bytes(&peer.channel, odd).unwrap();
        peer.receive().unwrap();

        let mut client = Command::new(host.binary(binaries::CLIENT));
        let shown = run(client.args(["--socket", SOCKET, "status"]), "none: it is built here");
        assert!(shown.contains("forged"), "{shown}");
        let mut client = Command::new(host.binary(binaries::CLIENT));
        let json = run(client.args(["--socket", SOCKET, "status", "--json"]), "none: it is built here");
        for line in shown.lines().chain(json.lines()) {
            assert!(!line.contains(|c: char| c.is_control()), "{line:?}");
        }
        drop(peer);
        let lines = eventually("the last line", || {
            let lines = broker.log.lines();
            (lines.iter().filter(|line| line.contains("session ended")).count() >= 4).then_some(lines)
        });
        for line in &lines {
            assert!(!line.contains(|c: char| c.is_control()), "{line:?}");
            assert!(!line.starts_with("WARN"), "{line:?}");
            println!("{} bytes: {:.60}", line.len(), line);
            assert!(line.len() < 16 * 1024, "{} bytes", line.len());
        }
    });
}

/// A message for a packet of unknown kind.
fn peer_like() -> Hello {
    Hello { client: evil(), features: 0 }
}
