//! WIRE.md agrees with the crate: a decoder that uses only its tables decodes every golden frame to the last byte, its
//! maximum lengths are those of the codec, and its numbers and examples are those of the crate.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // test helpers may panic

mod golden_frames;
mod wire_tables;

use std::collections::BTreeMap;

use portreeve_protocol::address::*;
use portreeve_protocol::cluster::ClusterRequest;
use portreeve_protocol::event::*;
use portreeve_protocol::frame::{HEADER_LENGTH, MAX_BODY, MAX_DESCRIPTORS, MAX_FRAME};
use portreeve_protocol::limit::SetLimit;
use portreeve_protocol::message::*;
use portreeve_protocol::metrics::MetricsRequest;
use portreeve_protocol::policy::PolicyRequest;
use portreeve_protocol::reload::*;
use portreeve_protocol::takeover::Takeover;
use portreeve_protocol::worker::{RestartWorker, SignalWorker, WorkerRequest};
use portreeve_protocol::{Fault, FaultCode, Header, Kind, codec};
use wire_tables::{Sample, WireTables};

const WIRE: &str = include_str!("../WIRE.md");

/// The maximum number of variants of a choice.
const VARIANTS: usize = 6;

type Decode = fn(&[u8]) -> Result<(), String>;

fn decodes<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<(), String> {
    codec::decode::<T>(body).map(drop).map_err(|error| error.to_string())
}

/// The codec's decoder for each message that can be the body of a frame.
fn messages() -> BTreeMap<&'static str, Decode> {
    fn pair<O: Operation>(request: &'static str, reply: &'static str) -> [(&'static str, Decode); 2] {
        [(request, decodes::<O>), (reply, decodes::<O::Reply>)]
    }
    let operations = [
        pair::<Hello>("Hello", "Welcome"),
        pair::<Ping>("Ping", "Pong"),
        pair::<Listen>("Listen", "Listening"),
        pair::<ListenMany>("ListenMany", "ListeningMany"),
        pair::<Stop>("Stop", "Stopped"),
        pair::<StatusRequest>("StatusRequest", "Status"),
        pair::<AddAddress>("AddAddress", "Leases"),
        pair::<RenewAddress>("RenewAddress", "Leases"),
        pair::<RemoveAddress>("RemoveAddress", "Removals"),
        pair::<Announce>("Announce", "Leases"),
        pair::<ListAddresses>("ListAddresses", "AddressPage"),
        pair::<SetLink>("SetLink", "Link"),
        pair::<MoveAddress>("MoveAddress", "Leases"),
        pair::<SetLimit>("SetLimit", "CurrentLimit"),
        pair::<PolicyRequest>("PolicyRequest", "PolicyPage"),
        pair::<Subscribe>("Subscribe", "Subscribed"),
        pair::<MetricsRequest>("MetricsRequest", "Metrics"),
        pair::<Reload>("Reload", "Reloaded"),
        pair::<Takeover>("Takeover", "TakeoverReply"),
        pair::<RenewAll>("RenewAll", "RenewedAll"),
        pair::<ClusterRequest>("ClusterRequest", "ClusterSettings"),
        pair::<WorkerRequest>("WorkerRequest", "WorkerStatus"),
        pair::<RestartWorker>("RestartWorker", "WorkerStatus"),
        pair::<SignalWorker>("SignalWorker", "WorkerSignaled"),
    ];
    assert_eq!(operations.len(), OPERATIONS.len(), "this list lacks an operation");
    let others: [(&str, Decode); 2] = [("Fault", decodes::<Fault>), ("Event", decodes::<Event>)];
    operations.into_iter().flatten().chain(others).collect()
}

fn row<'d>(tables: &'d WireTables, section: &str, first: &str) -> &'d [String] {
    let found = tables.rows(section).iter().find(|row| row.first().is_some_and(|cell| cell == first));
    found.unwrap_or_else(|| panic!("WIRE.md has no row {first:?} under {section:?}"))
}

#[test]
fn the_operations_table_is_complete() {
    let tables = WireTables::read(WIRE);
    for (kind, name) in OPERATIONS {
        let row = row(&tables, "Operations", &kind.0.to_string());
        assert_eq!(row[1], *name);
        assert_eq!(row[2], format!("{:#06x}", kind.reply().0));
    }
    assert_eq!(tables.rows("Operations").len(), OPERATIONS.len(), "WIRE.md has a row without an operation");
}

#[test]
fn the_faults_table_is_complete() {
    let tables = WireTables::read(WIRE);
    let known = (0..=u16::MAX).filter(|code| !matches!(FaultCode::from(*code), FaultCode::Other(_)));
    let known: Vec<u16> = known.collect();
    assert_eq!(tables.rows("Faults").len(), known.len());
    for code in known {
        assert_eq!(row(&tables, "Faults", &code.to_string())[1], FaultCode::from(code).name());
    }
}

#[test]
fn the_events_table_is_complete() {
    let tables = WireTables::read(WIRE);
    let known = (0..=u16::MAX).filter(|code| !matches!(EventCode::from(*code), EventCode::Other(_)));
    let known: Vec<u16> = known.collect();
    assert_eq!(tables.rows("Events").len(), known.len());
    for code in known {
        assert_eq!(row(&tables, "Events", &code.to_string())[1], EventCode::from(code).name());
    }
}

#[test]
fn the_frame_table_has_the_offsets_of_the_header() {
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
    let (bytes, tables) = (header.encode(), WireTables::read(WIRE));
    let rows = tables.rows("The frame");
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
fn the_limits_table_has_the_values_of_the_crate() {
    let tables = WireTables::read(WIRE);
    for (limit, value) in [
        ("a frame", format!("{MAX_FRAME} bytes")),
        ("a header", format!("{HEADER_LENGTH} bytes")),
        ("a body", format!("{MAX_BODY} bytes")),
        ("descriptors of a frame", MAX_DESCRIPTORS.to_string()),
    ] {
        assert_eq!(row(&tables, "Limits", limit)[1], value);
    }
}

#[test]
fn the_examples_are_golden_frames() {
    let (golden, shown) = (golden_frames::golden(), golden_frames::documented());
    assert!(shown.len() >= 5, "examples are missing");
    for (name, frame) in shown {
        assert_eq!(golden_frames::hex(&frame), golden_frames::hex(&golden[&name]), "{name}");
    }
}

#[test]
fn the_tables_alone_decode_every_golden_frame() {
    let tables = WireTables::read(WIRE);
    for (name, frame) in golden_frames::golden() {
        let (header, body) = Header::decode(&frame).unwrap();
        let message = match header.kind {
            Kind::FAULT => "Fault",
            Kind::EVENT => "Event",
            kind => {
                let row = row(&tables, "Operations", &(kind.0 & !Kind::REPLY).to_string());
                &row[if kind.0 & Kind::REPLY == 0 { 3 } else { 4 }]
            }
        };
        let mut rest = body;
        tables.decode(message, &mut rest);
        assert!(rest.is_empty(), "{name}: {} bytes follow {message}", rest.len());
    }
}

#[test]
fn the_tables_have_the_field_names_of_the_crate() {
    let tables = WireTables::read(WIRE);
    // The other modules have no messages.
    let others = ["bounded.rs", "channel.rs", "codec.rs", "frame.rs", "lib.rs", "trailing.rs"];
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let files = files.filter(|file| !others.iter().any(|other| file.file_name() == *other));
    let sources: Vec<String> = files.map(|file| std::fs::read_to_string(file.path()).unwrap()).collect();
    let structures = sources.iter().flat_map(|source| source.split("\npub struct ").skip(1));
    let mut compared = 0;
    for (name, rest) in structures.filter_map(|structure| structure.split_once(" {")) {
        // A structure without named fields: the brace belongs to a later item.
        if !name.chars().all(char::is_alphanumeric) {
            continue;
        }
        let fields = rest.split('}').next().unwrap_or_default();
        let fields = fields.lines().filter_map(|line| line.trim().strip_prefix("pub "));
        let fields: Vec<&str> = fields.filter_map(|field| Some(field.split_once(':')?.0)).collect();
        let documented: Vec<&str> = tables.rows(name).iter().map(|row| row[0].as_str()).collect();
        assert_eq!(documented, fields, "{name}");
        compared += 1;
    }
    assert!(compared >= 18, "only {compared} structures were found");
}

#[test]
fn every_documented_maximum_length_is_that_of_the_codec() {
    let tables = WireTables::read(WIRE);
    let mut tried = 0;
    for variant in 0..VARIANTS {
        for (message, decode) in messages() {
            let empty = tables.encode(message, &mut Sample::empty(variant));
            assert_eq!(decode(&empty), Ok(()), "{message}");
            for at in 0.. {
                let mut sample = Sample::full(variant, at);
                let body = tables.encode(message, &mut sample);
                if !sample.reached() {
                    break;
                }
                assert_eq!(decode(&body), Ok(()), "bound {at} of {message} is documented too high");
                let error = decode(&tables.encode(message, &mut Sample::overfull(variant, at)));
                assert!(
                    error.as_ref().is_err_and(|error| error.contains("exceeds the maximum")),
                    "bound {at} of {message} is documented too low: {error:?}"
                );
                tried += 1;
            }
        }
    }
    assert!(tried >= 30 * VARIANTS, "only {tried} maximum lengths were found");
}

#[test]
fn every_longest_message_except_lists_of_faults_fits_in_a_frame() {
    let tables = WireTables::read(WIRE);
    for variant in 0..VARIANTS {
        for (message, decode) in messages() {
            let body = tables.encode(message, &mut Sample::longest(variant));
            // A full list of faults can exceed a frame, as WIRE.md says.
            if ["ListeningMany", "Leases", "Removals"].contains(&message) && variant > 0 {
                assert!(body.len() > MAX_BODY);
            } else {
                assert!(body.len() <= MAX_BODY, "{message} can have {} bytes", body.len());
                assert_eq!(decode(&body), Ok(()), "{message}");
            }
        }
    }
}
