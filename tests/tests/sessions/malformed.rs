//! Packets that are not valid requests: each ends at most its own session, and never the broker.

use portreeve_protocol::channel;
use portreeve_protocol::frame::{HEADER_LENGTH, MAX_FRAME};
use portreeve_protocol::message::{Hello, Listen, ListenMany, Operation as _, Ping};
use portreeve_protocol::{Fault, FaultCode, Header, Kind, codec};
use portreeve_tests::{Broker, isolated, sample};

const ANYWHERE: &str = r#"( "127.0.0.1:1-65535" )"#;

/// A valid header of a Ping, which tests corrupt.
fn header() -> Header {
    Header { kind: Ping::KIND, request: 7, descriptors: 0, body: 0 }
}

fn corrupted(index: usize, value: u8) -> Vec<u8> {
    let mut bytes = header().encode().to_vec();
    bytes[index] = value;
    bytes
}

fn with_body(kind: Kind, body: &[u8]) -> Vec<u8> {
    let declared = u16::try_from(body.len()).unwrap();
    [&Header { kind, body: declared, ..header() }.encode(), body].concat()
}

#[test]
fn malformed_frames_end_only_their_session() {
    isolated(|host| {
        let broker = Broker::start(host, &sample::control(ANYWHERE));
        let mut bystander = broker.peer();
        let before = broker.descriptors();
        let hello = |client: &[u8]| {
            let length = u64::try_from(client.len()).unwrap().to_le_bytes();
            with_body(Hello::KIND, &[&length, client, &[0; 8]].concat())
        };
        let cases: Vec<(&str, Vec<u8>)> = vec![
            ("one byte", vec![0]),
            ("a short header", header().encode()[..HEADER_LENGTH - 1].to_vec()),
            ("wrong magic bytes", corrupted(0, b'X')),
            ("an unknown version", corrupted(4, 99)),
            ("a reserved byte set", corrupted(15, 1)),
            ("a declared body that is missing", corrupted(12, 1)),
            ("a body that is not declared", [&header().encode()[..], b"x"].concat()),
            ("a declared descriptor that is missing", corrupted(14, 1)),
            ("a truncated body", with_body(Listen::KIND, &[0, 0, 0, 0, 0, 0])),
            ("an empty body of a request with fields", with_body(Listen::KIND, &[])),
            ("bytes after the message", with_body(Ping::KIND, &[0])),
            ("text that is not UTF-8", hello(&[0xff, 0xfe])),
            ("a text beyond its maximum length", hello(&[b'a'; 65])),
            ("an unknown variant", with_body(Listen::KIND, &[0xff; 64])),
            (
                "a length that no packet has",
                with_body(ListenMany::KIND, &[0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]),
            ),
        ];
        for (what, packet) in cases {
            let mut peer = broker.peer();
            channel::send_bytes(&peer.channel, &packet).unwrap();
            let answer = peer.receive();
            if let Ok(frame) = answer {
                assert_eq!(frame.header.kind, Kind::FAULT, "{what}");
                let request = if packet.len() < 12 { 0 } else { 7 };
                assert_eq!(frame.header.request, request, "{what}");
                let fault: Fault = codec::decode(&frame.body).unwrap();
                let codes = [FaultCode::Malformed, FaultCode::Unsupported];
                assert!(codes.contains(&fault.code), "{what}: {fault}");
                assert!(peer.is_disconnected(), "{what}");
            }
            bystander.ping();
        }
        broker.await_no_leak(&before);
    });
}

#[test]
fn packets_longer_than_a_frame_end_only_their_session() {
    isolated(|host| {
        let broker = Broker::start(host, &sample::control(ANYWHERE));
        let mut bystander = broker.peer();
        let before = broker.descriptors();
        for length in [MAX_FRAME + 1, 2 * MAX_FRAME] {
            let mut peer = broker.peer();
            channel::send_bytes(&peer.channel, &vec![0x50; length]).unwrap();
            assert!(peer.is_disconnected(), "{length} bytes");
            bystander.ping();
        }
        broker.await_no_leak(&before);
    });
}

#[test]
fn an_unknown_operation_is_a_fault_and_the_session_continues() {
    isolated(|host| {
        let broker = Broker::start(host, &sample::control(ANYWHERE));
        let mut peer = broker.peer();
        for kind in [0, 999, 0x7fff, Ping::KIND.reply().0, Kind::FAULT.0] {
            channel::send_bytes(&peer.channel, &with_body(Kind(kind), b"whatever")).unwrap();
            let frame = peer.receive().unwrap();
            assert_eq!((frame.header.kind, frame.header.request), (Kind::FAULT, 7));
            let fault: Fault = codec::decode(&frame.body).unwrap();
            assert_eq!(fault.code, FaultCode::Unsupported, "{fault}");
            peer.ping();
        }
    });
}
