//! Malformed bodies: which ones are refused, and with which message. A length that a peer declares must not make the
//! decoder allocate memory, so this test's allocator counts the bytes that each thread allocates.

#![allow(clippy::unwrap_used, clippy::panic)] // test helpers may panic

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use portreeve_protocol::address::RenewAddress;
use portreeve_protocol::message::*;
use portreeve_protocol::status::Status;
use portreeve_protocol::{Endpoint, Fault, List, Text, codec};
use serde::de::DeserializeOwned;

mod golden_frames;

thread_local! {
    static ALLOCATED: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, with a counter of allocated bytes.
struct Counting;

// SAFETY: every call is passed unchanged to the system's allocator. The counter is a thread-local cell that needs
// neither allocation nor drop.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.set(ALLOCATED.get().saturating_add(layout.size()));
        // SAFETY: the caller guarantees for `layout` what this call requires.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller guarantees for both arguments what this call requires.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATED.set(ALLOCATED.get().saturating_add(size));
        // SAFETY: the caller guarantees for all three arguments what this call requires.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Decodes a body, and returns the result and the number of allocated bytes.
fn decode<T: DeserializeOwned>(body: &[u8]) -> (Result<T, String>, usize) {
    let before = ALLOCATED.get();
    let result = codec::decode(body);
    let allocated = ALLOCATED.get() - before;
    (result.map_err(|error| error.to_string()), allocated)
}

/// The error message of an invalid body. Asserts that no more memory was allocated than the message needs.
fn refusal<T: DeserializeOwned + std::fmt::Debug>(body: &[u8]) -> String {
    let (result, allocated) = decode::<T>(body);
    assert!(allocated <= 1024, "{allocated} bytes were allocated");
    result.unwrap_err()
}

fn bytes(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

#[test]
fn the_counting_allocator_counts() {
    let before = ALLOCATED.get();
    drop(Vec::<u8>::with_capacity(12_345));
    assert_eq!(ALLOCATED.get() - before, 12_345);
}

#[test]
fn a_length_beyond_the_maximum_is_refused_before_any_allocation() {
    let wrong_lengths = [254_u64, 1 << 16, 1 << 32, u64::from(u32::MAX), u64::MAX >> 1, u64::MAX];
    for length in wrong_lengths {
        let length = length.to_le_bytes();
        // Enough bytes that only the declared length is wrong.
        let rest = vec![0; 60_000];
        for body in [length.to_vec(), bytes(&[&length, &rest])] {
            refusal::<Text<64>>(&body);
            refusal::<Hello>(&body);
            refusal::<Stop>(&body);
            refusal::<Stopped>(&body);
            refusal::<ListeningMany>(&body);
            refusal::<Status>(&body);
            refusal::<ListenMany>(&bytes(&[&[0], &body]));
            refusal::<Fault>(&bytes(&[&[0; 6], &body]));
            refusal::<Endpoint>(&bytes(&[&[2, 0, 0, 0], &body]));
        }
    }
}

#[test]
fn a_length_beyond_the_body_allocates_only_for_the_received_bytes() {
    let within = 253_u64.to_le_bytes();
    for received in [0, 1, 8] {
        let body = bytes(&[&within, &vec![0; received]]);
        refusal::<Stop>(&body);
        refusal::<ListeningMany>(&body);
        refusal::<ListenMany>(&bytes(&[&[0], &body]));
        refusal::<Text<512>>(&body);
    }
}

#[test]
fn a_stream_cannot_declare_a_message_beyond_its_maximum() {
    for length in [(33 << 20) + 1, 1 << 32, 1 << 60, u64::MAX] {
        let stream = bytes(&[&length.to_le_bytes(), b"text"]);
        let before = ALLOCATED.get();
        codec::read_from_stream::<String>(&stream).unwrap_err();
        let allocated = ALLOCATED.get() - before;
        assert!(allocated <= 1024, "{allocated} bytes were allocated for a length of {length}");
    }
}

#[test]
fn allocation_is_proportional_to_the_received_bytes() {
    // A list grows by doubling: its capacity is up to twice its length, and all allocations together are about twice
    // the final capacity. An item in memory is up to ten times as long as its shortest encoding.
    let limit = |body: &[u8]| 1024 + 40 * body.len();
    let shortest_listen = [&[2, 0, 0, 0][..], &[0; 8], &[0; 24]].concat();
    let body = bytes(&[&[0], &253_u64.to_le_bytes(), &shortest_listen.repeat(253)]);
    let (result, allocated) = decode::<ListenMany>(&body);
    assert_eq!(result.unwrap().listeners.len(), 253);
    assert!(allocated <= limit(&body), "{allocated} bytes for {}", body.len());

    let shortest_fault = [&[1, 0, 0, 0][..], &[0; 30]].concat();
    let body = bytes(&[&253_u64.to_le_bytes(), &shortest_fault.repeat(253)]);
    let (result, allocated) = decode::<ListeningMany>(&body);
    assert_eq!(result.unwrap().results.len(), 253);
    assert!(allocated <= limit(&body), "{allocated} bytes for {}", body.len());

    let golden = golden_frames::golden();
    let body = &golden["status-reply"][16..];
    let (result, allocated) = decode::<Status>(body);
    assert!(result.is_ok());
    assert!(allocated <= limit(body), "{allocated} bytes for {}", body.len());
}

#[test]
fn a_refused_length_is_reported_with_its_maximum() {
    let text = refusal::<Text<64>>(&bytes(&[&65_u64.to_le_bytes(), &[b'x'; 65]]));
    assert!(text.contains("65 exceeds the maximum of 64"), "{text}");
    let list = refusal::<List<u8, 4>>(&bytes(&[&5_u64.to_le_bytes(), &[0; 5]]));
    assert!(list.contains("5 exceeds the maximum of 4"), "{list}");
}

#[test]
fn an_unknown_variant_is_refused_with_its_number() {
    let unknown = 3_141_592_653_u32.to_le_bytes();
    let rest = [0; 64];
    for error in [
        refusal::<Endpoint>(&bytes(&[&unknown, &rest])),
        // The address inside an endpoint.
        refusal::<Endpoint>(&bytes(&[&[0; 4], &unknown, &rest])),
        refusal::<Outcome<Listening>>(&bytes(&[&unknown, &rest])),
        refusal::<ListeningMany>(&bytes(&[&1_u64.to_le_bytes(), &unknown, &rest])),
    ] {
        assert!(error.contains("3141592653"), "{error}");
    }
    for tag in 4_u32..=300 {
        let error = refusal::<Endpoint>(&bytes(&[&tag.to_le_bytes(), &rest]));
        assert!(error.contains(&tag.to_string()), "{error}");
    }
}

#[test]
fn a_bool_other_than_0_or_1_is_refused_with_its_value() {
    for wrong in 2..=u8::MAX {
        // The tag of the optional backlog, and the bool reuse_port.
        for at in [0, 1] {
            let mut options = [0; 24];
            options[at] = wrong;
            let error = refusal::<ListenOptions>(&options);
            assert!(error.contains(&wrong.to_string()), "{error}");
        }
        refusal::<ListenMany>(&bytes(&[&[wrong], &[0; 8]]));
    }
}

#[test]
fn text_that_is_not_utf_8_is_refused() {
    for wrong in [&b"\xff"[..], b"\xc3", b"\x80", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"] {
        let length = (wrong.len() as u64).to_le_bytes();
        refusal::<Text<64>>(&bytes(&[&length, wrong]));
    }
}

#[test]
fn a_body_has_exactly_the_length_of_its_message() {
    let error = refusal::<Ping>(&[0]);
    assert!(error.contains("1 unexpected bytes after"), "{error}");
    let error = refusal::<Listening>(&[0; 20]);
    assert!(error.contains("12 unexpected bytes after"), "{error}");
    refusal::<Listening>(&[0; 7]);
    refusal::<Listening>(&[]);
}

#[test]
fn text_from_a_peer_cannot_forge_a_line() {
    let hostile = "a\0b\nc\rd\te\u{1b}[2Jf\u{7f}g\u{85}h\u{9b}i";
    let body = bytes(&[&(hostile.len() as u64).to_le_bytes(), hostile.as_bytes()]);
    let text: Text<64> = codec::decode(&body).unwrap();
    assert_eq!(text.as_str(), hostile);
    let escaped = r"a\u{0}b\nc\rd\te\u{1b}[2Jf\u{7f}g\u{85}h\u{9b}i";
    assert_eq!(text.to_string(), escaped);
    assert_eq!(format!("{text:?}"), format!("{hostile:?}"));
    let fault = Fault::new(portreeve_protocol::FaultCode::Os, hostile).remedy(hostile);
    assert_eq!(fault.to_string(), format!("{escaped}: {escaped}"));
    assert_eq!(Endpoint::UnixStream(Text::truncated(hostile)).to_string(), format!("stream:{escaped}"));
}

#[test]
fn a_message_beyond_the_maximum_frame_is_not_encoded() {
    let long = Fault::new(portreeve_protocol::FaultCode::Os, &"x".repeat(512)).remedy(&"x".repeat(512));
    let results = vec![Outcome::<Listening>::Fault(long); 253];
    let reply = ListeningMany { results: List::new(results).unwrap() };
    // For a buffer of any length.
    for length in [0, 15, 16, 17, 1 << 16, 1 << 20] {
        let mut buffer = vec![0; length];
        assert!(codec::encode(&mut buffer, ListenMany::KIND.reply(), 1, 0, &reply).is_err());
    }
    // The length field can express a body of 65521 to 65535 bytes, but a frame cannot hold it.
    let fault = |length: usize| {
        let (message, remedy) = ("x".repeat(length.min(512)), "x".repeat(length.saturating_sub(512)));
        let fault = Fault::new(portreeve_protocol::FaultCode::Os, &message).remedy(&remedy);
        Outcome::<Listening>::Fault(fault)
    };
    let encoded = |last: usize| {
        let mut results = vec![fault(512); 119];
        results.push(fault(last));
        let reply = ListeningMany { results: List::new(results).unwrap() };
        let mut buffer = vec![0; 1 << 20];
        codec::encode(&mut buffer, ListenMany::KIND.reply(), 1, 0, &reply).map(<[u8]>::len)
    };
    // 8 bytes for the count, and 34 bytes and the text for each result.
    let longest = 65_520 - 8 - 119 * (34 + 512) - 34;
    assert_eq!(encoded(longest).unwrap(), 65_536);
    for more in 1..=16 {
        assert!(encoded(longest + more).is_err(), "{more} more");
    }
}

#[test]
fn a_trailing_field_is_absent_or_whole() {
    let renew = |trailing: &[u8]| {
        // No address, no lease, and the epoch.
        codec::decode::<RenewAddress>(&bytes(&[&[0; 17], trailing])).map(|renew| renew.until.0)
    };
    assert_eq!(renew(&[]).unwrap(), None);
    assert_eq!(renew(&bytes(&[&[1], &7_u64.to_le_bytes()])).unwrap(), Some(7));
    for invalid in [&[0][..], &[2], &[1], &[1, 0, 0], &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0]] {
        renew(invalid).unwrap_err();
    }
    assert!(renew(&[2]).unwrap_err().to_string().contains("the end of the message"));
}
