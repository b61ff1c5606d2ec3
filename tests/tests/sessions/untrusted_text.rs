//! Text from peers, where people read it: its length is limited, and it can neither control a terminal, nor begin a line or
//! a field, nor look like other text.

use std::process::Command;

use portreeve_protocol::frame::MAX_FRAME;
use portreeve_protocol::message::{Hello, Listen, ListenMany, ListenOptions, Operation as _};
use portreeve_protocol::printable::is_printable;
use portreeve_protocol::{Endpoint, InetEndpoint, Kind, Text, channel, codec};
use portreeve_tests::broker::SOCKET;
use portreeve_tests::namespaces::run;
use portreeve_tests::{Broker, binaries, eventually, isolated, sample};

/// A newline, a carriage return, ESC, NUL, DEL, a C1 control sequence introducer; separators of lines, a reversed text, a
/// character without a shape, one that combines with the one before it; fields and the end of a value.
const EVIL: &str = "\nWARN forged line\r\u{1b}[2J\0\u{7f}\u{9b}31m\u{85}\u{2028}\u{202e}\u{2066}\u{200b}\u{301}\" peer=root \\";

fn evil<const MAX: usize>() -> Text<MAX> {
    Text::truncated(&EVIL.repeat(MAX / EVIL.len() + 1))
}

/// Requests for endpoints that no other number has.
fn requests(number: u16) -> Vec<Listen> {
    let inet = InetEndpoint { address: "fe80::1".parse().unwrap(), port: 25 + number, scope: evil() };
    let path = Endpoint::UnixStream(Text::truncated(&format!("/run/{number}{EVIL}{EVIL}{EVIL}{EVIL}")));
    let long = Endpoint::UnixSeqpacket(Text::truncated(&format!("{number}{}", EVIL.repeat(20))));
    [Endpoint::Tcp(inet), path, long, format!("127.0.0.1:{}", 25 + number).parse().unwrap()]
        .map(|endpoint| Listen::new(endpoint, ListenOptions { device: evil(), ..ListenOptions::default() }))
        .to_vec()
}

#[test]
fn peer_text_is_bounded_and_escaped_everywhere() {
    isolated(|host| {
        let permits = r#"( "127.0.0.1:1-65535" "/run/*" )"#;
        let text = format!("{}broker {{ max_log_lines = 1000 log_level = debug }}", sample::control(permits));
        let broker = Broker::start(host, &text);
        let mut peer = broker.connect();
        peer.request(&Hello { client: evil(), features: 0 }).unwrap();
        let mut frame = codec::frame_buffer();
        for request in requests(0) {
            if let Err(fault) = peer.request(&request) {
                assert!(fault.to_string().chars().all(is_printable), "{fault}");
            }
        }
        let listeners = (0..64).flat_map(requests).take(253);
        peer.request(&ListenMany::truncated(false, listeners)).unwrap();
        let listeners = requests(0).into_iter().cycle().take(253);
        let fault = peer.request(&ListenMany::truncated(false, listeners)).unwrap_err();
        assert!(!fault.to_string().contains(|c: char| c.is_control()), "{fault}");
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
            assert!(line.chars().all(is_printable), "{line:?}");
        }
        drop(peer);
        let lines = eventually("the last line", || {
            let lines = broker.log.lines();
            (lines.iter().filter(|line| line.contains("session ended")).count() >= 4).then_some(lines)
        });
        for line in &lines {
            assert!(line.chars().all(is_printable), "{line:?}");
            assert!(!line.starts_with("WARN"), "{line:?}");
            let names = fields(line);
            assert!(names.iter().filter(|name| *name == "peer").count() <= 1, "{names:?} in {line}");
            assert!(names.iter().all(|name| FIELDS.contains(&name.as_str())), "{names:?} in {line}");
            println!("{} bytes: {:.60}", line.len(), line);
            assert!(line.len() < 16 * 1024, "{} bytes", line.len());
        }
    });
}

/// The fields that the broker writes in the lines of this file's tests.
const FIELDS: [&str; 20] = [
    "arguments",
    "done",
    "client",
    "code",
    "duration_us",
    "errno",
    "limit",
    "operation",
    "peer",
    "pid",
    "reason",
    "restarts",
    "rules",
    "session",
    "subject",
    "suppressed",
    "refused",
    "lines",
    "error",
    "program",
];

/// The names of the fields of a line, as a program reads it: a value is a word, or text in quotes with escapes.
fn fields(line: &str) -> Vec<String> {
    let (mut names, mut word, mut quoted, mut escaped) = (Vec::new(), String::new(), false, false);
    for c in line.chars() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ if quoted => {}
            ' ' => word.clear(),
            '=' => names.push(std::mem::take(&mut word)),
            c => word.push(c),
        }
    }
    assert!(!quoted, "{line}");
    names
}

#[test]
fn a_path_with_spaces_adds_no_field_to_a_log_line() {
    isolated(|host| {
        let permits = r#"( "127.0.0.1:1-65535" "/run/host/*" )"#;
        let broker = Broker::start(host, &sample::control(permits));
        let mut peer = broker.peer();
        let path = "/run/host/a session=9 peer=root \u{202e}b\u{2028}\" rules=x \\";
        peer.request(&Listen::new(Endpoint::UnixStream(Text::new(path).unwrap()), ListenOptions::default()))
            .unwrap();
        let line = broker.log.wait_for(&["done", "listen", "/run/host/a"]);
        assert_eq!(
            fields(&line),
            ["session", "peer", "operation", "arguments", "rules", "duration_us"],
            "{line}"
        );
        assert!(line.chars().all(is_printable), "{line}");
    });
}

/// A message for a packet of unknown kind.
fn peer_like() -> Hello {
    Hello { client: evil(), features: 0 }
}
