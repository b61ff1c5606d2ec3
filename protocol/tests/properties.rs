//! Property tests of the codec: every message decodes to the value that was encoded, and any bytes are either refused or
//! decode to a value that encodes to the same bytes.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // test helpers may panic

use std::net::IpAddr;

use portreeve_protocol::bounded::TooLong;
use portreeve_protocol::frame::MAX_DESCRIPTORS;
use portreeve_protocol::message::*;
use portreeve_protocol::printable::is_printable;
use portreeve_protocol::status::{Credentials, Listener, Process, Quota, Session, Status};
use portreeve_protocol::{
    Endpoint, Fault, FaultCode, Header, InetEndpoint, Kind, List, Text, Trailing, codec,
};
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

fn text<const MAX: usize>() -> impl Strategy<Value = Text<MAX>> {
    proptest::collection::vec(any::<char>(), 0..=MAX)
        .prop_map(|chars| Text::truncated(&chars.into_iter().collect::<String>()))
}

/// Lists of a few items, so that every message fits in a frame. Other tests try the maximum lengths.
fn list<S: Strategy, const MAX: usize>(items: S) -> impl Strategy<Value = List<S::Value, MAX>> {
    proptest::collection::vec(items, 0..=MAX.min(6)).prop_map(|items| List::new(items).unwrap())
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    let inet = || {
        (any::<IpAddr>(), any::<u16>(), text()).prop_map(|(address, port, scope)| InetEndpoint {
            address,
            port,
            scope,
        })
    };
    prop_oneof![
        inet().prop_map(Endpoint::Tcp),
        inet().prop_map(Endpoint::Udp),
        text().prop_map(Endpoint::UnixStream),
        text().prop_map(Endpoint::UnixSeqpacket),
    ]
}

prop_compose! {
    fn options()(
        (backlog, receive_buffer, send_buffer, mode) in any::<(Option<u32>, Option<u32>, Option<u32>, Option<u32>)>(),
        (reuse_port, dual_stack, free_bind, no_delay) in any::<(bool, bool, bool, Option<bool>)>(),
        (defer_accept, fast_open) in any::<(u32, u32)>(),
        device in text(),
    ) -> ListenOptions {
        ListenOptions {
            backlog, reuse_port, dual_stack, free_bind, device, receive_buffer, send_buffer, no_delay,
            defer_accept, fast_open, mode,
        }
    }
}

fn listen() -> impl Strategy<Value = Listen> {
    (endpoint(), options()).prop_map(|(endpoint, options)| Listen::new(endpoint, options))
}

fn id() -> impl Strategy<Value = ListenerId> {
    any::<u64>().prop_map(ListenerId)
}

prop_compose! {
    fn fault()(
        code in any::<u16>(), errno in any::<u32>(), subject in text(), message in text(), remedy in text(),
    ) -> Fault {
        Fault { code: FaultCode::from(code), errno, subject, message, remedy }
    }
}

prop_compose! {
    fn welcome()(
        (broker, features, capabilities) in any::<(u32, u64, u64)>(),
        release in text(), peer in text(), operations in list(text()),
    ) -> Welcome {
        Welcome { broker, release, features, capabilities, peer, operations }
    }
}

prop_compose! {
    fn process()(
        role in text(), root in text(), groups in list(any::<u32>()), locks in list(text()),
        (pid, restarts, uid, gid) in any::<(u32, u32, [u32; 4], [u32; 4])>(),
        (inheritable, permitted, effective, bounding, ambient) in any::<(u64, u64, u64, u64, u64)>(),
        (no_new_privs, seccomp) in any::<(bool, u8)>(),
    ) -> Process {
        let credentials = Credentials {
            uid, gid, groups, inheritable, permitted, effective, bounding, ambient, no_new_privs, seccomp,
        };
        Process { role, pid, restarts, root, credentials, locks }
    }
}

prop_compose! {
    fn status()(
        release in text(),
        (uptime_ms, listeners_held, next) in any::<(u64, u64, u64)>(),
        processes in list(process()),
        warnings in list(text()),
        quotas in list((text(), any::<u64>()).prop_map(|(name, limit)| Quota { name, limit })),
        sessions in list((any::<(u64, u32, u32, u64)>(), text(), text()).prop_map(
            |((id, pid, listeners, refused), peer, client)| Session { id, peer, client, pid, listeners, refused },
        )),
        listeners in list((id(), text(), text(), any::<bool>()).prop_map(
            |(id, endpoint, owner, retained)| Listener { id, endpoint, owner, retained },
        )),
    ) -> Status {
        Status { release, uptime_ms, processes, warnings, quotas, listeners_held, sessions, listeners, next }
    }
}

/// A frame, and whether it decodes to the encoded value.
type Encoded = (Vec<u8>, bool);

fn encoded<T>(kind: Kind, values: impl Strategy<Value = T> + 'static) -> BoxedStrategy<Encoded>
where
    T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug,
{
    (values, any::<(u32, u8)>())
        .prop_map(move |(value, (request, descriptors))| {
            let mut buffer = codec::frame_buffer();
            let frame = codec::encode(&mut buffer, kind, request, descriptors, &value).unwrap();
            let (header, body) = Header::decode(frame).unwrap();
            let same = (header.kind, header.request, header.descriptors) == (kind, request, descriptors)
                && codec::decode::<T>(body).unwrap() == value;
            (frame.to_vec(), same)
        })
        .boxed()
}

fn request<O: Operation + PartialEq + std::fmt::Debug>(
    values: impl Strategy<Value = O> + 'static,
) -> BoxedStrategy<Encoded> {
    encoded(O::KIND, values)
}

fn reply<O: Operation>(values: impl Strategy<Value = O::Reply> + 'static) -> BoxedStrategy<Encoded>
where
    O::Reply: PartialEq + std::fmt::Debug,
{
    encoded(O::KIND.reply(), values)
}

fn any_frame() -> impl Strategy<Value = Encoded> {
    let listening = || id().prop_map(|id| Listening { id });
    let outcome = prop_oneof![listening().prop_map(Outcome::Done), fault().prop_map(Outcome::Fault)];
    prop_oneof![
        request((text(), any::<u64>()).prop_map(|(client, features)| Hello { client, features })),
        reply::<Hello>(welcome()),
        request(Just(Ping {})),
        reply::<Ping>(Just(Pong {})),
        request(listen()),
        reply::<Listen>(listening()),
        request((any::<bool>(), list::<_, MAX_DESCRIPTORS>(listen())).prop_map(
            |(all_or_nothing, listeners)| ListenMany::truncated(all_or_nothing, listeners.into_vec())
        )),
        reply::<ListenMany>(list(outcome).prop_map(|results| ListeningMany { results })),
        request(list(id()).prop_map(|listeners| Stop { listeners })),
        reply::<Stop>(
            (list(id()), list(id())).prop_map(|(unknown, not_revoked)| Stopped { unknown, not_revoked })
        ),
        request(any::<u64>().prop_map(|after| StatusRequest { after })),
        reply::<StatusRequest>(status()),
        encoded(Kind::FAULT, fault()),
    ]
}

/// Requests with a trailing field: they are valid without its last bytes.
fn frame_with_mode() -> impl Strategy<Value = Encoded> {
    let mode = || {
        any::<(bool, bool)>().prop_map(|(kept, intercepted)| Trailing(Some(ListenMode { kept, intercepted })))
    };
    let many = (any::<bool>(), list::<_, MAX_DESCRIPTORS>(listen()))
        .prop_map(|(all, listeners)| ListenMany::truncated(all, listeners.into_vec()));
    prop_oneof![
        request((listen(), mode()).prop_map(|(listen, mode)| Listen { mode, ..listen })),
        request((many, mode()).prop_map(|(many, mode)| ListenMany { mode, ..many })),
    ]
}

/// Decodes a packet according to its kind and encodes the value again; `None` if the packet is refused.
fn reencode(packet: &[u8]) -> Option<Vec<u8>> {
    fn body<T: Serialize + DeserializeOwned>(header: Header, body: &[u8]) -> Option<Vec<u8>> {
        let message: T = codec::decode(body).ok()?;
        let mut buffer = codec::frame_buffer();
        let frame = codec::encode(&mut buffer, header.kind, header.request, header.descriptors, &message);
        Some(frame.unwrap().to_vec())
    }
    fn operation<O: Operation>(header: Header, bytes: &[u8]) -> Option<Vec<u8>> {
        match header.kind == O::KIND {
            true => body::<O>(header, bytes),
            false => body::<O::Reply>(header, bytes),
        }
    }
    let (header, bytes) = Header::decode(packet).ok()?;
    match header.kind.0 & !Kind::REPLY {
        1 => operation::<Hello>(header, bytes),
        2 => operation::<Ping>(header, bytes),
        3 => operation::<Listen>(header, bytes),
        4 => operation::<ListenMany>(header, bytes),
        5 => operation::<Stop>(header, bytes),
        6 => operation::<StatusRequest>(header, bytes),
        0x7fff => body::<Fault>(header, bytes),
        _ => None,
    }
}

/// Sets the header's length field to the length of the packet, so that the body's decoder runs.
fn with_matching_length(mut packet: Vec<u8>) -> Vec<u8> {
    if let Some(body) = packet.len().checked_sub(16).and_then(|length| u16::try_from(length).ok()) {
        packet[12..14].copy_from_slice(&body.to_le_bytes());
    }
    packet
}

fn check_refused_or_exact(packet: &[u8]) -> Result<(), TestCaseError> {
    if let Some(reencoded) = reencode(packet) {
        prop_assert_eq!(reencoded, packet, "two encodings of one message were accepted");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_message_decodes_to_the_encoded_value((frame, same) in prop_oneof![9 => any_frame(), 1 => frame_with_mode()]) {
        prop_assert!(same);
        prop_assert_eq!(reencode(&frame), Some(frame));
    }

    #[test]
    fn a_truncated_frame_is_refused((frame, _) in any_frame(), at in any::<prop::sample::Index>()) {
        let cut = frame[..at.index(frame.len())].to_vec();
        prop_assert_eq!(reencode(&cut), None);
        prop_assert_eq!(reencode(&with_matching_length(cut)), None);
    }

    #[test]
    fn a_frame_with_trailing_bytes_is_refused((frame, _) in any_frame(), more in proptest::collection::vec(any::<u8>(), 1..64)) {
        let longer = [frame, more].concat();
        prop_assert_eq!(reencode(&longer), None);
        prop_assert_eq!(reencode(&with_matching_length(longer)), None);
    }

    #[test]
    fn a_frame_with_flipped_bits_is_refused_or_decodes_exactly(
        (frame, _) in any_frame(),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), 0_u8..8), 1..4),
    ) {
        let mut flipped = frame;
        for (at, bit) in flips {
            let at = at.index(flipped.len());
            flipped[at] ^= 1 << bit;
        }
        check_refused_or_exact(&flipped)?;
    }

    #[test]
    fn a_frame_with_a_random_body_is_refused_or_decodes_exactly(
        kind in prop_oneof![0_u16..8, 0x8000_u16..0x8008, Just(0xffff)],
        // Mostly small numbers, which are plausible tags, flags and lengths.
        body in proptest::collection::vec(prop_oneof![4 => Just(0), 2 => 0_u8..4, 1 => any::<u8>()], 0..400),
    ) {
        let header = Header { kind: Kind(kind), request: 1, descriptors: 0, body: u16::try_from(body.len()).unwrap() };
        check_refused_or_exact(&[&header.encode()[..], &body].concat())?;
    }

    #[test]
    fn a_packet_of_random_bytes_is_refused(packet in proptest::collection::vec(any::<u8>(), 0..400)) {
        prop_assert_eq!(reencode(&packet), None);
    }

    #[test]
    fn printed_text_has_printable_characters_only(text in text::<64>()) {
        for shown in [text.to_string(), format!("{text:?}")] {
            prop_assert!(shown.chars().all(is_printable), "{shown:?}");
        }
    }

    #[test]
    fn a_maximum_length_is_exact(bytes in 0_usize..20, items in 0_usize..20) {
        let text = Text::<10>::new(&"x".repeat(bytes));
        prop_assert_eq!(text.map(|text| text.len()), if bytes <= 10 { Ok(bytes) } else { Err(TooLong { found: bytes, max: 10 }) });
        let list = List::<u8, 10>::new(vec![0; items]);
        prop_assert_eq!(list.map(|list| list.len()), if items <= 10 { Ok(items) } else { Err(TooLong { found: items, max: 10 }) });
        prop_assert_eq!(List::<usize, 10>::truncated(0..items).len(), items.min(10));
        prop_assert_eq!(Text::<10>::truncated(&"x".repeat(bytes)).len(), bytes.min(10));
    }
}
