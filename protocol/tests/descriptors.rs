//! Descriptors attached to packets: no descriptor leaks, for any number of attached descriptors and any limit of
//! open descriptors.
//! The tests count the open descriptors of this process, so they run one at a time.

#![allow(clippy::unwrap_used)] // test helpers may panic

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::net::UnixDatagram;
use std::sync::{Mutex, MutexGuard, PoisonError};

use portreeve_protocol::channel::{self, Packet, ReceiveError, receive, receive_bytes};
use portreeve_protocol::codec::frame_buffer;
use portreeve_protocol::frame::{MAX_DESCRIPTORS, MAX_FRAME};
use rustix::io::{FdFlags, fcntl_getfd};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The two ends of a channel, a file to attach, and the number of open descriptors with these.
struct Fixture {
    receiver: UnixDatagram,
    sender: UnixDatagram,
    file: File,
    open: usize,
    _alone: MutexGuard<'static, ()>,
}

impl Fixture {
    fn new() -> Self {
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let (receiver, sender) = channel::pair().unwrap();
        let file = File::open("/dev/null").unwrap();
        Self { receiver, sender, file, open: count_open_descriptors(), _alone: alone }
    }

    /// Sends a packet with `count` descriptors.
    fn send(&self, packet: &[u8], count: usize) {
        let attached = vec![self.file.as_fd(); count];
        channel::send(&self.sender, packet, &attached).unwrap();
    }

    fn leaks(&self) -> usize {
        count_open_descriptors() - self.open
    }
}

/// The number of open descriptors of this process, including the one that reads /proc/self/fd.
fn count_open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Limits how many more descriptors this process can open, until it is dropped.
struct DescriptorLimit(Rlimit);

impl DescriptorLimit {
    fn free(count: u64) -> Self {
        let before = getrlimit(Resource::Nofile);
        // A new descriptor gets the lowest free number, and no lower one is free.
        let current = Some(number_of(&File::open("/dev/null").unwrap()) + count);
        setrlimit(Resource::Nofile, Rlimit { current, ..before }).unwrap();
        Self(before)
    }
}

impl Drop for DescriptorLimit {
    fn drop(&mut self) {
        setrlimit(Resource::Nofile, self.0).unwrap();
    }
}

fn number_of(file: &File) -> u64 {
    file.as_raw_fd().try_into().unwrap()
}

/// Opens files until every descriptor number below the highest one is in use, so that new ones follow it.
fn fill_gaps() -> Vec<File> {
    let highest = std::fs::read_dir("/proc/self/fd").unwrap().map(|entry| {
        let name = entry.unwrap().file_name();
        name.to_str().unwrap().parse::<u64>().unwrap()
    });
    let highest = highest.max().unwrap();
    let mut fillers = Vec::new();
    loop {
        let file = File::open("/dev/null").unwrap();
        if number_of(&file) > highest {
            return fillers;
        }
        fillers.push(file);
    }
}

#[test]
fn unexpected_descriptors_are_never_installed() {
    let fixture = Fixture::new();
    for count in [1, 2, MAX_DESCRIPTORS] {
        fixture.send(b"packet", count);
        let received = receive_bytes(&fixture.receiver, &mut frame_buffer());
        assert!(matches!(received, Err(ReceiveError::UnexpectedDescriptors { .. })), "{received:?}");
        assert_eq!(fixture.leaks(), 0, "{count}");
    }
    // The packet was discarded, and the channel still works.
    fixture.send(b"next", 0);
    assert_eq!(receive_bytes(&fixture.receiver, &mut frame_buffer()).unwrap(), 4);
}

#[test]
fn unused_descriptors_are_closed_with_the_list() {
    let fixture = Fixture::new();
    for count in [0, 1, 2, MAX_DESCRIPTORS] {
        fixture.send(b"packet", count);
        let mut descriptors = Vec::new();
        let packet = receive(&fixture.receiver, &mut frame_buffer(), &mut descriptors).unwrap();
        let whole = Packet { bytes: 6, descriptors_lost: false };
        assert_eq!(packet, whole);
        assert_eq!((descriptors.len(), fixture.leaks()), (count, count));
        let wanted = descriptors.pop();
        drop(descriptors);
        assert_eq!(fixture.leaks(), count.min(1));
        drop(wanted);
        assert_eq!(fixture.leaks(), 0);
    }
}

#[test]
fn every_descriptor_arrives_close_on_exec() {
    let fixture = Fixture::new();
    fixture.send(b"packet", 3);
    let mut descriptors = Vec::new();
    receive(&fixture.receiver, &mut frame_buffer(), &mut descriptors).unwrap();
    assert_eq!(descriptors.len(), 3);
    for descriptor in &descriptors {
        assert_eq!(fcntl_getfd(descriptor).unwrap(), FdFlags::CLOEXEC);
    }
}

#[test]
fn descriptors_beyond_the_limit_are_reported_and_none_is_kept() {
    let fixture = Fixture::new();
    let fillers = fill_gaps();
    for (free, count) in [(0, 1), (0, MAX_DESCRIPTORS), (1, 2), (5, MAX_DESCRIPTORS)] {
        fixture.send(b"packet", count);
        let (mut buffer, mut descriptors) = (frame_buffer(), Vec::new());
        let limited = DescriptorLimit::free(free);
        let packet = receive(&fixture.receiver, &mut buffer, &mut descriptors);
        drop(limited);
        let lost = Packet { bytes: 6, descriptors_lost: true };
        assert_eq!(packet.unwrap(), lost, "{count} with a limit of {free}");
        assert!(descriptors.is_empty());
        assert_eq!(fixture.leaks(), fillers.len());
    }
    // If the limit allows exactly this number, all are received.
    fixture.send(b"packet", 5);
    let (mut buffer, mut descriptors) = (frame_buffer(), Vec::new());
    let limited = DescriptorLimit::free(5);
    let packet = receive(&fixture.receiver, &mut buffer, &mut descriptors);
    drop(limited);
    assert!(!packet.unwrap().descriptors_lost);
    assert_eq!(descriptors.len(), 5);
}

#[test]
fn unexpected_descriptors_are_reported_at_the_limit() {
    let fixture = Fixture::new();
    let _fillers = fill_gaps();
    fixture.send(b"packet", 2);
    let mut buffer = frame_buffer();
    let limited = DescriptorLimit::free(0);
    let received = receive_bytes(&fixture.receiver, &mut buffer);
    drop(limited);
    assert!(matches!(received, Err(ReceiveError::UnexpectedDescriptors { .. })), "{received:?}");
}

#[test]
fn an_empty_packet_ends_the_channel_and_closes_its_descriptors() {
    let fixture = Fixture::new();
    for count in [0, 1, MAX_DESCRIPTORS] {
        fixture.send(b"", count);
        fixture.send(b"", count);
        let received = receive_bytes(&fixture.receiver, &mut frame_buffer());
        assert!(matches!(received, Err(ReceiveError::Closed)), "{received:?}");
        let mut descriptors = Vec::new();
        let received = receive(&fixture.receiver, &mut frame_buffer(), &mut descriptors);
        assert!(matches!(received, Err(ReceiveError::Closed)), "{received:?}");
        assert!(descriptors.is_empty());
        assert_eq!(fixture.leaks(), 0, "{count}");
    }
}

#[test]
fn an_oversized_packet_is_refused_and_its_descriptors_closed() {
    let fixture = Fixture::new();
    let mut longest = vec![b'x'; MAX_FRAME];
    fixture.send(&longest, 0);
    assert_eq!(receive_bytes(&fixture.receiver, &mut frame_buffer()).unwrap(), MAX_FRAME);
    longest.push(b'x');
    for count in [0, 2] {
        fixture.send(&longest, count);
        fixture.send(&longest, count);
        let received = receive_bytes(&fixture.receiver, &mut frame_buffer());
        assert!(matches!(received, Err(ReceiveError::Oversized)), "{received:?}");
        let mut descriptors = Vec::new();
        let received = receive(&fixture.receiver, &mut frame_buffer(), &mut descriptors);
        assert!(matches!(received, Err(ReceiveError::Oversized)), "{received:?}");
        assert!(descriptors.is_empty());
        assert_eq!(fixture.leaks(), 0, "{count}");
    }
}

#[test]
fn unreceived_descriptors_are_closed_with_the_channel() {
    let fixture = Fixture::new();
    // The kernel holds the attached write end until the packet is received; the read end sees when it is closed.
    let (mut reader, writer) = io::pipe().unwrap();
    channel::send(&fixture.sender, b"packet", &[writer.as_fd()]).unwrap();
    drop(writer);
    let Fixture { receiver, sender, .. } = fixture;
    drop((receiver, sender));
    assert_eq!(io::Read::read(&mut reader, &mut [0]).unwrap(), 0);
}

#[test]
fn more_descriptors_than_the_maximum_cannot_be_sent() {
    let fixture = Fixture::new();
    let many = vec![fixture.file.as_fd(); MAX_DESCRIPTORS + 1];
    let error = channel::send(&fixture.sender, b"packet", &many).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    // Two control messages, from a peer that does not use this crate, fail as well.
    let mut space =
        vec![std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(200), ScmRights(200))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    for _ in 0..2 {
        assert!(control.push(SendAncillaryMessage::ScmRights(&many[..200])));
    }
    let packet = [io::IoSlice::new(b"packet")];
    let sent = rustix::net::sendmsg(&fixture.sender, &packet, &mut control, SendFlags::NOSIGNAL);
    assert_eq!(sent, Err(rustix::io::Errno::INVAL));
    assert_eq!(fixture.leaks(), 0);
}
