//! Frames and messages: any packet is rejected, or decodes to a value that encodes to the same bytes.
#![no_main]

use std::mem::discriminant;

use libfuzzer_sys::fuzz_target;
use portreeve_protocol::frame::{HEADER_LENGTH, MAX_FRAME};
use portreeve_protocol::message::{Hello, Listen, ListenMany, Operation, Ping, StatusRequest, Stop};
use portreeve_protocol::takeover::Takeover;
use portreeve_protocol::{Endpoint, Fault, Header, Kind, codec};
use serde::{Serialize, de::DeserializeOwned};

fuzz_target!(|packet: &[u8]| {
    let Ok((header, body)) = Header::decode(packet) else {
        return;
    };
    assert!(packet.len() <= MAX_FRAME);
    assert_eq!(header.encode(), packet[..HEADER_LENGTH]);
    operation::<Hello>(header, body);
    operation::<Ping>(header, body);
    operation::<Listen>(header, body);
    operation::<ListenMany>(header, body);
    operation::<Stop>(header, body);
    operation::<StatusRequest>(header, body);
    operation::<Takeover>(header, body);
    exact::<Fault>(header, body);
    if let Ok(listen) = codec::decode::<Listen>(body) {
        reread(&listen.endpoint);
    }
});

fn operation<O: Operation>(header: Header, body: &[u8]) {
    exact::<O>(header, body);
    exact::<O::Reply>(header, body);
}

fn exact<T: Serialize + DeserializeOwned>(header: Header, body: &[u8]) {
    if let Ok(message) = codec::decode::<T>(body) {
        let mut buffer = codec::frame_buffer();
        let Header { kind: Kind(kind), request, descriptors, .. } = header;
        let again = codec::encode(&mut buffer, Kind(kind), request, descriptors, &message).unwrap();
        assert_eq!(&again[HEADER_LENGTH..], body);
    }
}

/// Printed endpoints contain no control characters, and those that parse are of the same kind and printed as the same text
/// again.
fn reread(endpoint: &Endpoint) {
    let printed = endpoint.to_string();
    assert!(!printed.contains(|c: char| c.is_control()), "{printed:?}");
    if let Ok(again) = printed.parse::<Endpoint>() {
        assert_eq!(again.to_string(), printed);
        assert_eq!(discriminant(&again), discriminant(endpoint));
    }
}
