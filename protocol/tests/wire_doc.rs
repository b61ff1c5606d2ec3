//! WIRE.md is true: a decoder that knows nothing but its tables reads every golden frame to the last byte, its
//! bounds are the codec's, and what it numbers and shows is what the crate numbers and sends.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // a helper of a test may fail it

mod doc;
mod vectors;

use std::collections::BTreeMap;

use doc::{Doc, Sample};
use portreeve_protocol::address::*;
use portreeve_protocol::event::*;
use portreeve_protocol::frame::{HEADER_LENGTH, MAX_BODY, MAX_DESCRIPTORS, MAX_FRAME};
use portreeve_protocol::limit::SetLimit;
use portreeve_protocol::message::*;
use portreeve_protocol::metrics::MetricsRequest;
use portreeve_protocol::policy::PolicyRequest;
use portreeve_protocol::reload::*;
use portreeve_protocol::takeover::Takeover;
use portreeve_protocol::{Fault, FaultCode, Header, Kind, codec};

const WIRE: &str = include_str!("../WIRE.md");

/// The most variants that a choice has.
const VARIANTS: usize = 6;

type Decode = fn(&[u8]) -> Result<(), String>;

fn decodes<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<(), String> {
    codec::decode::<T>(body).map(drop).map_err(|error| error.to_string())
}

/// What the codec has for each message that can be a frame's body.
fn messages() -> BTreeMap<&'static str, Decode> {
    fn both<O: Operation>(request: &'static str, reply: &'static str) -> [(&'static str, Decode); 2] {
        [(request, decodes::<O>), (reply, decodes::<O::Reply>)]
    }
    let operations = [
        both::<Hello>("Hello", "Welcome"),
        both::<Ping>("Ping", "Pong"),
        both::<Listen>("Listen", "Listening"),
        both::<ListenMany>("ListenMany", "ListeningMany"),
        both::<Stop>("Stop", "Stopped"),
        both::<StatusRequest>("StatusRequest", "Status"),
        both::<AddAddress>("AddAddress", "Leases"),
        both::<RenewAddress>("RenewAddress", "Leases"),
        both::<RemoveAddress>("RemoveAddress", "Removals"),
        both::<Announce>("Announce", "Leases"),
        both::<ListAddresses>("ListAddresses", "AddressPage"),
        both::<SetLink>("SetLink", "Link"),
        both::<MoveAddress>("MoveAddress", "Leases"),
        both::<SetLimit>("SetLimit", "CurrentLimit"),
        both::<PolicyRequest>("PolicyRequest", "PolicyPage"),
        both::<Subscribe>("Subscribe", "Subscribed"),
        both::<MetricsRequest>("MetricsRequest", "Metrics"),
        both::<Reload>("Reload", "Reloaded"),
        both::<Takeover>("Takeover", "TakeoverReply"),
    ];
    assert_eq!(operations.len(), OPERATIONS.len(), "an operation is missing here");
    let others: [(&str, Decode); 2] = [("Fault", decodes::<Fault>), ("Event", decodes::<Event>)];
    operations.into_iter().flatten().chain(others).collect()
}

fn row<'d>(doc: &'d Doc, section: &str, first: &str) -> &'d [String] {
    let found = doc.rows(section).iter().find(|row| row.first().is_some_and(|cell| cell == first));
    found.unwrap_or_else(|| panic!("WIRE.md has no row {first:?} under {section:?}"))
}

#[test]
fn every_operation_is_listed_with_its_numbers() {
    let doc = Doc::read(WIRE);
    assert_eq!(doc.rows("Operations").len(), OPERATIONS.len());
    for (kind, name) in OPERATIONS {
        let row = row(&doc, "Operations", &kind.0.to_string());
        assert_eq!(row[1], *name);
        assert_eq!(row[2], format!("{:#06x}", kind.reply().0));
    }
}

#[test]
fn every_fault_is_listed_with_its_word() {
    let doc = Doc::read(WIRE);
    let known = (0..=u16::MAX).filter(|code| !matches!(FaultCode::from(*code), FaultCode::Other(_)));
    let known: Vec<u16> = known.collect();
    assert_eq!(doc.rows("Faults").len(), known.len());
    for code in known {
        assert_eq!(row(&doc, "Faults", &code.to_string())[1], FaultCode::from(code).name());
    }
}

#[test]
fn every_event_is_listed_with_its_word() {
    let doc = Doc::read(WIRE);
    let known = (0..=u16::MAX).filter(|code| !matches!(EventCode::from(*code), EventCode::Other(_)));
    let known: Vec<u16> = known.collect();
    assert_eq!(doc.rows("Events").len(), known.len());
    for code in known {
        assert_eq!(row(&doc, "Events", &code.to_string())[1], EventCode::from(code).name());
    }
}

#[test]
fn the_header_is_where_the_table_says() {
    let header = Header { kind: Kind(0x1234), request: 0x5678_9abc, descriptors: 0xde, body: 0xf012 };
    let fields = BTreeMap::from([
        ("magic", u64::from(u32::from_le_bytes(*b"PRTV"))),
        ("version", u64::from(portreeve_protocol::VERSION)),
        ("kind", header.kind.0.into()),
        ("request", header.request.into()),
        ("body", header.body.into()),
        ("descriptors", header.descriptors.into()),
        ("reserved", 0),
    ]);
    let (bytes, doc) = (header.encode(), Doc::read(WIRE));
    let rows = doc.rows("The frame");
    assert_eq!(rows.len(), fields.len());
    let mut end = 0;
    for row in rows {
        let (offset, length): (usize, usize) = (row[0].parse().unwrap(), row[1].parse().unwrap());
        assert_eq!(offset, end, "a gap before {}", row[2]);
        end = offset + length;
        let value = bytes[offset..end].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        assert_eq!(value, fields[row[2].as_str()], "{}", row[2]);
    }
    assert_eq!(end, HEADER_LENGTH);
}

#[test]
fn the_limits_are_the_crates() {
    let doc = Doc::read(WIRE);
    for (limit, value) in [
        ("a frame", format!("{MAX_FRAME} bytes")),
        ("a header", format!("{HEADER_LENGTH} bytes")),
        ("a body", format!("{MAX_BODY} bytes")),
        ("descriptors of a frame", MAX_DESCRIPTORS.to_string()),
    ] {
        assert_eq!(row(&doc, "Limits", limit)[1], value);
    }
}

#[test]
fn the_frames_that_are_shown_are_the_golden_ones() {
    let (golden, shown) = (vectors::golden(), vectors::documented());
    assert!(shown.len() >= 5, "examples are missing");
    for (name, frame) in shown {
        assert_eq!(vectors::hex(&frame), vectors::hex(&golden[&name]), "{name}");
    }
}

#[test]
fn the_tables_alone_decode_every_golden_frame() {
    let doc = Doc::read(WIRE);
    for (name, frame) in vectors::golden() {
        let (header, body) = Header::decode(&frame).unwrap();
        let message = match header.kind {
            Kind::FAULT => "Fault",
            Kind::EVENT => "Event",
            kind => {
                let row = row(&doc, "Operations", &(kind.0 & !Kind::REPLY).to_string());
                &row[if kind.0 & Kind::REPLY == 0 { 3 } else { 4 }]
            }
        };
        let mut rest = body;
        doc.decode(message, &mut rest);
        assert!(rest.is_empty(), "{name}: {} bytes follow {message}", rest.len());
    }
}

#[test]
fn the_tables_name_the_fields_as_the_crate_does() {
    let doc = Doc::read(WIRE);
    let sources = [
        include_str!("../src/message.rs"),
        include_str!("../src/address.rs"),
        include_str!("../src/status.rs"),
        include_str!("../src/metrics.rs"),
        include_str!("../src/fault.rs"),
        include_str!("../src/endpoint.rs"),
        include_str!("../src/event.rs"),
        include_str!("../src/policy.rs"),
        include_str!("../src/limit.rs"),
        include_str!("../src/takeover.rs"),
    ];
    let structures = sources.iter().flat_map(|source| source.split("\npub struct ").skip(1));
    let mut compared = 0;
    for (name, rest) in structures.filter_map(|structure| structure.split_once(" {")) {
        // What is no name stands before a brace of something else: a structure without named fields.
        if !name.chars().all(char::is_alphanumeric) {
            continue;
        }
        let fields = rest.split('}').next().unwrap_or_default();
        let fields = fields.lines().filter_map(|line| line.trim().strip_prefix("pub "));
        let fields: Vec<&str> = fields.filter_map(|field| Some(field.split_once(':')?.0)).collect();
        let documented: Vec<&str> = doc.rows(name).iter().map(|row| row[0].as_str()).collect();
        assert_eq!(documented, fields, "{name}");
        compared += 1;
    }
    assert!(compared >= 18, "only {compared} structures were found");
}

#[test]
fn every_bound_that_is_documented_is_the_codecs() {
    let doc = Doc::read(WIRE);
    let mut tried = 0;
    for variant in 0..VARIANTS {
        for (message, decode) in messages() {
            let empty = doc.encode(message, &mut Sample::empty(variant));
            assert_eq!(decode(&empty), Ok(()), "{message}");
            for at in 0.. {
                let mut sample = Sample::full(variant, at);
                let body = doc.encode(message, &mut sample);
                if !sample.reached() {
                    break;
                }
                assert_eq!(decode(&body), Ok(()), "bound {at} of {message} is too wide");
                let error = decode(&doc.encode(message, &mut Sample::overfull(variant, at)));
                assert!(
                    error.as_ref().is_err_and(|error| error.contains("that fit")),
                    "bound {at} of {message} is too narrow: {error:?}"
                );
                tried += 1;
            }
        }
    }
    assert!(tried >= 30 * VARIANTS, "only {tried} bounds were found");
}

#[test]
fn the_longest_of_every_message_but_many_faults_fits_in_a_frame() {
    let doc = Doc::read(WIRE);
    for variant in 0..VARIANTS {
        for (message, decode) in messages() {
            let body = doc.encode(message, &mut Sample::longest(variant));
            // The faults of a whole list may be too many words at once, as the document says.
            if ["ListeningMany", "Leases", "Removals"].contains(&message) && variant > 0 {
                assert!(body.len() > MAX_BODY);
            } else {
                assert!(body.len() <= MAX_BODY, "{message} can have {} bytes", body.len());
                assert_eq!(decode(&body), Ok(()), "{message}");
            }
        }
    }
}
