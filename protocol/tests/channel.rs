//! Descriptors on a channel: whatever a peer attaches and however little room there is, none stays open that
//! nobody owns. The tests count the descriptors of this process, so one runs at a time.

#![allow(clippy::unwrap_used)] // a helper of a test may fail it

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

/// Two ends of a channel, a file to attach, and how many descriptors there were with these.
struct Bench {
    ours: UnixDatagram,
    theirs: UnixDatagram,
    file: File,
    open: usize,
    _alone: MutexGuard<'static, ()>,
}

impl Bench {
    fn new() -> Self {
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let (ours, theirs) = channel::pair().unwrap();
        let file = File::open("/dev/null").unwrap();
        Self { ours, theirs, file, open: descriptors_open(), _alone: alone }
    }

    /// Sends as the peer, with as many descriptors.
    fn attach(&self, packet: &[u8], count: usize) {
        let attached = vec![self.file.as_fd(); count];
        channel::send(&self.theirs, packet, &attached).unwrap();
    }

    fn leaks(&self) -> usize {
        descriptors_open() - self.open
    }
}

/// The descriptors of this process, with the one that this needs to look.
fn descriptors_open() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// While it lives, this process can open so many descriptors more.
struct Room(Rlimit);

impl Room {
    fn of(count: u64) -> Self {
        let before = getrlimit(Resource::Nofile);
        // The lowest free number is the next one, as nothing below it was closed.
        let current = Some(number_of(&File::open("/dev/null").unwrap()) + count);
        setrlimit(Resource::Nofile, Rlimit { current, ..before }).unwrap();
        Self(before)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        setrlimit(Resource::Nofile, self.0).unwrap();
    }
}

fn number_of(file: &File) -> u64 {
    file.as_raw_fd().try_into().unwrap()
}

/// Fills every number below the highest open one, so that what is free is counted from there.
fn without_gaps() -> Vec<File> {
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
fn descriptors_where_none_may_come_are_never_installed() {
    let bench = Bench::new();
    for count in [1, 2, MAX_DESCRIPTORS] {
        bench.attach(b"packet", count);
        let received = receive_bytes(&bench.ours, &mut frame_buffer());
        assert!(matches!(received, Err(ReceiveError::UnexpectedDescriptors { .. })), "{received:?}");
        assert_eq!(bench.leaks(), 0, "{count}");
    }
    // The packet is gone with its descriptors, and the channel still works.
    bench.attach(b"next", 0);
    assert_eq!(receive_bytes(&bench.ours, &mut frame_buffer()).unwrap(), 4);
}

#[test]
fn descriptors_beyond_those_that_are_wanted_are_closed_with_the_list() {
    let bench = Bench::new();
    for count in [0, 1, 2, MAX_DESCRIPTORS] {
        bench.attach(b"packet", count);
        let mut descriptors = Vec::new();
        let packet = receive(&bench.ours, &mut frame_buffer(), &mut descriptors).unwrap();
        let whole = Packet { bytes: 6, descriptors_lost: false };
        assert_eq!(packet, whole);
        assert_eq!((descriptors.len(), bench.leaks()), (count, count));
        let wanted = descriptors.pop();
        drop(descriptors);
        assert_eq!(bench.leaks(), count.min(1));
        drop(wanted);
        assert_eq!(bench.leaks(), 0);
    }
}

#[test]
fn every_descriptor_arrives_close_on_exec() {
    let bench = Bench::new();
    bench.attach(b"packet", 3);
    let mut descriptors = Vec::new();
    receive(&bench.ours, &mut frame_buffer(), &mut descriptors).unwrap();
    assert_eq!(descriptors.len(), 3);
    for descriptor in &descriptors {
        assert_eq!(fcntl_getfd(descriptor).unwrap(), FdFlags::CLOEXEC);
    }
}

#[test]
fn descriptors_for_which_there_is_no_room_are_reported_and_none_is_kept() {
    let bench = Bench::new();
    let fillers = without_gaps();
    for (room, count) in [(0, 1), (0, MAX_DESCRIPTORS), (1, 2), (5, MAX_DESCRIPTORS)] {
        bench.attach(b"packet", count);
        let (mut buffer, mut descriptors) = (frame_buffer(), Vec::new());
        let limited = Room::of(room);
        let packet = receive(&bench.ours, &mut buffer, &mut descriptors);
        drop(limited);
        let lost = Packet { bytes: 6, descriptors_lost: true };
        assert_eq!(packet.unwrap(), lost, "{count} with room for {room}");
        assert!(descriptors.is_empty());
        assert_eq!(bench.leaks(), fillers.len());
    }
    // As many as there is room for are no loss.
    bench.attach(b"packet", 5);
    let (mut buffer, mut descriptors) = (frame_buffer(), Vec::new());
    let limited = Room::of(5);
    let packet = receive(&bench.ours, &mut buffer, &mut descriptors);
    drop(limited);
    assert!(!packet.unwrap().descriptors_lost);
    assert_eq!(descriptors.len(), 5);
}

#[test]
fn surplus_is_seen_without_any_room_for_descriptors() {
    let bench = Bench::new();
    let _fillers = without_gaps();
    bench.attach(b"packet", 2);
    let mut buffer = frame_buffer();
    let limited = Room::of(0);
    let received = receive_bytes(&bench.ours, &mut buffer);
    drop(limited);
    assert!(matches!(received, Err(ReceiveError::UnexpectedDescriptors { .. })), "{received:?}");
}

#[test]
fn an_empty_packet_ends_the_channel_and_its_descriptors() {
    let bench = Bench::new();
    for count in [0, 1, MAX_DESCRIPTORS] {
        bench.attach(b"", count);
        bench.attach(b"", count);
        let received = receive_bytes(&bench.ours, &mut frame_buffer());
        assert!(matches!(received, Err(ReceiveError::Closed)), "{received:?}");
        let mut descriptors = Vec::new();
        let received = receive(&bench.ours, &mut frame_buffer(), &mut descriptors);
        assert!(matches!(received, Err(ReceiveError::Closed)), "{received:?}");
        assert!(descriptors.is_empty());
        assert_eq!(bench.leaks(), 0, "{count}");
    }
}

#[test]
fn an_oversized_packet_is_refused_with_its_descriptors() {
    let bench = Bench::new();
    let mut longest = vec![b'x'; MAX_FRAME];
    bench.attach(&longest, 0);
    assert_eq!(receive_bytes(&bench.ours, &mut frame_buffer()).unwrap(), MAX_FRAME);
    longest.push(b'x');
    for count in [0, 2] {
        bench.attach(&longest, count);
        bench.attach(&longest, count);
        let received = receive_bytes(&bench.ours, &mut frame_buffer());
        assert!(matches!(received, Err(ReceiveError::Oversized)), "{received:?}");
        let mut descriptors = Vec::new();
        let received = receive(&bench.ours, &mut frame_buffer(), &mut descriptors);
        assert!(matches!(received, Err(ReceiveError::Oversized)), "{received:?}");
        assert!(descriptors.is_empty());
        assert_eq!(bench.leaks(), 0, "{count}");
    }
}

#[test]
fn descriptors_that_nobody_received_end_with_the_channel() {
    let bench = Bench::new();
    // Only the kernel knows of these until they are received: the other end of this pipe sees when they go.
    let (mut reader, writer) = io::pipe().unwrap();
    channel::send(&bench.theirs, b"packet", &[writer.as_fd()]).unwrap();
    drop(writer);
    let Bench { ours, theirs, .. } = bench;
    drop((ours, theirs));
    assert_eq!(io::Read::read(&mut reader, &mut [0]).unwrap(), 0);
}

#[test]
fn more_descriptors_than_a_packet_carries_cannot_be_sent() {
    let bench = Bench::new();
    let many = vec![bench.file.as_fd(); MAX_DESCRIPTORS + 1];
    let error = channel::send(&bench.theirs, b"packet", &many).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    // Nor in two control messages, by a peer that does not use this crate.
    let mut space =
        vec![std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(200), ScmRights(200))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    for _ in 0..2 {
        assert!(control.push(SendAncillaryMessage::ScmRights(&many[..200])));
    }
    let packet = [io::IoSlice::new(b"packet")];
    let sent = rustix::net::sendmsg(&bench.theirs, &packet, &mut control, SendFlags::NOSIGNAL);
    assert_eq!(sent, Err(rustix::io::Errno::INVAL));
    assert_eq!(bench.leaks(), 0);
}
