//! Closed, full and empty channels: packets sent before the close are still received, and a closed channel raises no
//! signal.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::AsFd as _;

use portreeve_protocol::channel::{self, ReceiveError, pair, receive, receive_bytes};
use portreeve_protocol::codec::frame_buffer;

#[test]
fn packets_sent_before_a_close_are_received_first() {
    let (ours, theirs) = pair().unwrap();
    let file = File::open("/dev/null").unwrap();
    channel::send(&theirs, b"last", &[file.as_fd()]).unwrap();
    drop(theirs);
    let mut descriptors = Vec::new();
    let packet = receive(&ours, &mut frame_buffer(), &mut descriptors).unwrap();
    assert_eq!((packet.bytes, descriptors.len()), (4, 1));
    for _ in 0..2 {
        let received = receive(&ours, &mut frame_buffer(), &mut descriptors);
        assert!(matches!(received, Err(ReceiveError::Closed)), "{received:?}");
        let received = receive_bytes(&ours, &mut frame_buffer());
        assert!(matches!(received, Err(ReceiveError::Closed)), "{received:?}");
    }
}

#[test]
fn the_last_fault_is_received_after_a_reset() {
    let (broker, peer) = pair().unwrap();
    channel::send_bytes(&peer, b"never read").unwrap();
    channel::send_bytes(&broker, b"fault").unwrap();
    drop(broker);
    assert_eq!(receive_bytes(&peer, &mut frame_buffer()).unwrap(), 5);
    let received = receive_bytes(&peer, &mut frame_buffer());
    assert!(matches!(received, Err(ReceiveError::Closed)), "{received:?}");
}

#[test]
fn a_reset_fails_a_send_with_a_broken_pipe() {
    let file = File::open("/dev/null").unwrap();
    for descriptors in [&[][..], &[file.as_fd()]] {
        let (ours, theirs) = pair().unwrap();
        channel::send_bytes(&ours, b"never read").unwrap();
        drop(theirs);
        let error = channel::send(&ours, b"packet", descriptors).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    }
}

#[test]
fn the_last_fault_is_received_after_a_failed_send() {
    let (broker, peer) = pair().unwrap();
    channel::send_bytes(&broker, b"fault").unwrap();
    drop(broker);
    let error = channel::send_bytes(&peer, b"request").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    assert_eq!(receive_bytes(&peer, &mut frame_buffer()).unwrap(), 5);
}

#[test]
fn sending_to_a_closed_channel_is_an_error_without_a_signal() {
    let (ours, theirs) = pair().unwrap();
    drop(ours);
    let error = channel::send_bytes(&theirs, b"packet").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    let file = File::open("/dev/null").unwrap();
    let error = channel::send(&theirs, b"packet", &[file.as_fd()]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
}

#[test]
fn a_full_channel_is_busy_and_an_empty_channel_would_block() {
    let (ours, theirs) = pair().unwrap();
    let received = receive_bytes(&ours, &mut frame_buffer());
    assert!(matches!(received, Err(ReceiveError::Os(error)) if error.kind() == ErrorKind::WouldBlock));
    let full = (0..100_000).find_map(|_| channel::send_bytes(&theirs, b"packet").err());
    assert!(channel::is_busy(&full.unwrap()));
}
