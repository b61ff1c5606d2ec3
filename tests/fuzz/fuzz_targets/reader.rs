//! The reader's messages: the broker handles any packets, and receives a complete bundle as it was sent.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use portreeve_broker::config::{Bundle, Report, Snapshot, Style, replay, without_pauses};
use portreeve_broker::reader::Collector;
use portreeve_protocol::{Header, Kind};

/// The number of the request to the reader.
const ORDER: u32 = 7;
const PIECE: Kind = Kind(3);
const END: Kind = Kind(4);

// An odd first byte: raw packets, each preceded by its length. An even one: a bundle in pieces of that length plus one.
fuzz_target!(|bytes: &[u8]| {
    let Some((how, rest)) = bytes.split_first() else { return };
    let bundle = match how % 2 {
        0 => Some(in_pieces(rest, usize::from(*how) + 1)),
        _ => as_they_are(rest),
    };
    bundle.iter().for_each(read);
});

fn in_pieces(bytes: &[u8], length: usize) -> Bundle {
    let mut collector = Collector::new(ORDER);
    for piece in bytes.chunks(length) {
        // A packet that belongs to an earlier request is ignored.
        assert!(collector.take(&packet(END, ORDER - 1, piece)).unwrap().is_none());
        assert!(collector.take(&packet(PIECE, ORDER, piece)).unwrap().is_none());
    }
    let bundle = collector.take(&packet(END, ORDER, &[])).unwrap().unwrap();
    assert_eq!(bundle.bytes(), bytes);
    bundle
}

fn packet(kind: Kind, request: u32, body: &[u8]) -> Vec<u8> {
    let header = Header { kind, request, descriptors: 0, body: u16::try_from(body.len()).unwrap() };
    [&header.encode()[..], body].concat()
}

fn as_they_are(mut rest: &[u8]) -> Option<Bundle> {
    let mut collector = Collector::new(ORDER);
    while let Some((length, after)) = rest.split_first() {
        let (packet, after) = after.split_at(usize::from(*length).min(after.len()));
        match collector.take(packet) {
            Ok(None) => rest = after,
            Ok(bundle) => return bundle,
            Err(garbled) => {
                assert!(!garbled.to_string().is_empty());
                return None;
            }
        }
    }
    None
}

/// Reads a bundle as a reload does.
fn read(bundle: &Bundle) {
    let replay = || without_pauses(async |pace| replay(Path::new("fuzz.conf"), bundle, pace).await);
    bundle.paths();
    bundle.accounts().for_each(drop);
    match replay() {
        Ok((config, warnings)) => {
            Snapshot::of(&config);
            warnings.into_iter().map(Report::from).for_each(|report| printable(&report));
        }
        Err(report) => {
            printable(&report);
            assert_eq!(replay().map(drop), Err(report));
        }
    }
}

fn printable(report: &Report) {
    for line in report.one_lines().chain(report.render(Style::Plain).lines().map(str::to_owned)) {
        assert!(!line.contains(|c: char| c.is_control()), "{line:?}");
    }
}
