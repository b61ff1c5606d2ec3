//! The buffer of log lines: bounded, whole lines only. Lines that do not fit are dropped and counted.
//!
//! Promises: however many lines one peer causes, it uses at most half of the buffer, and some room for the lines of every
//! other peer stays free. Parts of the buffer are reserved for the worker and root, and for the broker itself.

use std::collections::{BTreeMap, VecDeque};
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use super::origin::Origin;
use super::sink::Sink;
use crate::share::Share;

/// The number of buffered bytes from which on they are written.
const WRITE_THRESHOLD: usize = 32 * 1024;
/// The maximum number of buffered bytes.
const MAX_BYTES: usize = 512 * 1024;
/// The bytes that only the lines of the broker itself can use.
const BROKER_RESERVE: usize = 32 * 1024;
/// The bytes that only the lines of the broker, the worker and root can use.
const TRUSTED_RESERVE: usize = 32 * 1024;
/// How the peers share the rest: enough for a few lines is kept for each of more than a hundred peers.
const SHARE: Share = Share { guaranteed: 2048, set_aside: 256 * 1024 };
/// The same for the worker and root: half of their reserve for each.
const TRUSTED_SHARE: Share = Share { guaranteed: TRUSTED_RESERVE / 2, ..SHARE };
/// The largest number of peers whose dropped lines are counted separately; those of others count as the broker's own.
const MAX_COUNTED: usize = 256;

/// How much a line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// It records a change of state.
    Record,
    /// It records a refusal, or what changed nothing.
    Notice,
}

/// A line's origin, and how many of its bytes are not written yet.
#[derive(Debug)]
struct Line {
    origin: Origin,
    remaining: usize,
}

fn share_of(origin: Origin) -> Share {
    if origin.is_trusted() { TRUSTED_SHARE } else { SHARE }
}

/// Log lines that are not written yet.
#[derive(Debug)]
pub struct Buffer {
    bytes: Vec<u8>,
    /// The number of bytes that were written.
    begin: usize,
    /// The lines, in order.
    lines: VecDeque<Line>,
    /// The buffered bytes of each origin.
    used: BTreeMap<Origin, usize>,
    lost: u64,
    /// The dropped lines that were not reported yet.
    unreported: BTreeMap<Origin, u64>,
    /// How many bytes were written since the start.
    written: u64,
    stalled: bool,
    /// `None` until the log is initialized.
    sink: Option<Sink>,
}

impl Buffer {
    /// An empty buffer.
    pub const fn new() -> Self {
        Self {
            bytes: Vec::new(),
            begin: 0,
            lines: VecDeque::new(),
            used: BTreeMap::new(),
            lost: 0,
            unreported: BTreeMap::new(),
            written: 0,
            stalled: false,
            sink: None,
        }
    }

    /// Sets the destination.
    pub fn set_sink(&mut self, sink: Sink) {
        self.sink = Some(sink);
    }

    /// Appends a line, or counts it as dropped if its origin has no room.
    pub fn push(&mut self, origin: Origin, weight: Weight, line: &[u8]) {
        if self.buffered() + line.len() > WRITE_THRESHOLD && !self.stalled {
            self.write();
        }
        if !self.has_room(origin, weight, line.len()) {
            self.drop_line(origin);
            return;
        }
        if self.bytes.len() + line.len() > MAX_BYTES {
            self.bytes.drain(..self.begin);
            self.begin = 0;
        }
        self.bytes.extend_from_slice(line);
        self.lines.push_back(Line { origin, remaining: line.len() });
        *self.used.entry(origin).or_default() += line.len();
    }

    fn buffered(&self) -> usize {
        self.bytes.len() - self.begin
    }

    fn used_by(&self, origin: Origin) -> usize {
        self.used.get(&origin).copied().unwrap_or_default()
    }

    /// The free bytes that lines of this origin can use.
    fn free_for(&self, origin: Origin) -> usize {
        let capacity = match origin {
            Origin::Broker => MAX_BYTES,
            _ if origin.is_trusted() => MAX_BYTES - BROKER_RESERVE,
            _ => MAX_BYTES - BROKER_RESERVE - TRUSTED_RESERVE,
        };
        capacity.saturating_sub(self.buffered())
    }

    /// A peer's notices use at most half of what its records can use: so its records fit when its notices do not.
    fn has_room(&self, origin: Origin, weight: Weight, length: usize) -> bool {
        let free = self.free_for(origin);
        let used = self.used_by(origin) + length;
        match (origin, weight) {
            (Origin::Broker, _) => length <= free,
            (_, Weight::Record) => share_of(origin).allows(used, length, free),
            (_, Weight::Notice) => share_of(origin).allows(used * 2, length, free),
        }
    }

    /// Whether the destination has no room, and lines of this origin use so much of its share that a flood of further
    /// ones would be dropped.
    pub fn is_crowded_by(&self, origin: Origin) -> bool {
        self.stalled && !share_of(origin).allows(self.used_by(origin) * 2, 0, self.free_for(origin))
    }

    fn drop_line(&mut self, origin: Origin) {
        self.lost += 1;
        let counted = self.unreported.len() < MAX_COUNTED || self.unreported.contains_key(&origin);
        *self.unreported.entry(if counted { origin } else { Origin::Broker }).or_default() += 1;
    }

    /// The number of dropped lines.
    pub fn dropped(&self) -> u64 {
        self.lost
    }

    /// The number of lines dropped since the last call, by origin; empty while there is no room to log it.
    pub fn dropped_since_last(&mut self) -> BTreeMap<Origin, u64> {
        match self.stalled {
            true => BTreeMap::new(),
            false => std::mem::take(&mut self.unreported),
        }
    }

    /// The number of bytes that were written.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Whether the destination has no room.
    pub fn is_stalled(&self) -> bool {
        self.stalled
    }

    /// Writes as much as possible without blocking.
    pub fn write(&mut self) {
        self.stalled = false;
        while let (Some(first), Some(sink)) = (self.lines.front(), &self.sink) {
            let end =
                if sink.writes_lines_separately() { self.begin + first.remaining } else { self.bytes.len() };
            match sink.write(self.bytes.get(self.begin..end).unwrap_or_default()) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(0) => return self.stalled = true,
                Ok(written) => {
                    self.written += written as u64;
                    self.advance(written);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return self.stalled = true,
                // The reader has closed the log, or the disk is full.
                Err(_) => {
                    let origins: Vec<Origin> = self.lines.iter().map(|line| line.origin).collect();
                    origins.into_iter().for_each(|origin| self.drop_line(origin));
                    self.advance(self.buffered());
                }
            }
        }
    }

    fn advance(&mut self, mut written: usize) {
        self.begin += written;
        while let Some(first) = self.lines.front_mut() {
            let part = first.remaining.min(written);
            first.remaining -= part;
            written -= part;
            if let Some(used) = self.used.get_mut(&first.origin) {
                *used -= part;
                if *used == 0 {
                    self.used.remove(&first.origin);
                }
            }
            if first.remaining > 0 {
                return;
            }
            self.lines.pop_front();
        }
        self.bytes.clear();
        self.begin = 0;
    }

    /// Writes everything, and waits for room up to a timeout.
    pub fn finish(&mut self, timeout: Duration) {
        let end = Instant::now() + timeout;
        self.write();
        while self.stalled
            && self.sink.as_ref().is_some_and(|sink| sink.has_room(end - Instant::now().min(end)))
        {
            self.write();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::os::unix::fs::OpenOptionsExt as _;

    const PEER: Origin = Origin::User(7);

    /// A pipe of one page and a buffer that writes to it.
    fn pipe() -> (std::io::PipeReader, Buffer) {
        use std::os::fd::AsRawFd as _;
        let (reader, writer) = std::io::pipe().unwrap();
        nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
        let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
        let pipe = std::fs::File::options().write(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap();
        let mut buffer = Buffer::new();
        buffer.set_sink(Sink::Reopened(pipe));
        (reader, buffer)
    }

    #[test]
    fn a_stalled_reader_loses_whole_lines_that_are_counted() {
        let (mut reader, mut buffer) = pipe();
        let line = |number: u32| format!("{number:09}\n");
        (0..100_000).for_each(|number| buffer.push(PEER, Weight::Notice, line(number).as_bytes()));
        assert!(buffer.is_stalled() && buffer.dropped() > 0);
        assert!(buffer.dropped_since_last().is_empty(), "there is no room to log it");
        let mut read = String::new();
        while buffer.is_stalled() {
            let mut page = [0; 4096];
            let length = reader.read(&mut page).unwrap();
            read.push_str(std::str::from_utf8(&page[..length]).unwrap());
            buffer.write();
        }
        assert_eq!(buffer.dropped_since_last(), BTreeMap::from([(PEER, buffer.dropped())]));
        assert!(buffer.dropped_since_last().is_empty(), "it is reported once");
        assert!(buffer.used.is_empty());
        drop(buffer);
        reader.read_to_string(&mut read).unwrap();
        let kept: Vec<&str> = read.lines().collect();
        let expected: Vec<String> = (0..).map(line).take(kept.len()).collect();
        assert_eq!(read, expected.concat());
    }

    #[test]
    fn a_closed_reader_is_no_error() {
        let (reader, mut buffer) = pipe();
        drop(reader);
        buffer.push(PEER, Weight::Record, b"one\n");
        buffer.push(PEER, Weight::Record, b"two\n");
        buffer.finish(Duration::from_secs(60));
        assert_eq!((buffer.dropped(), buffer.is_stalled()), (2, false));
    }

    /// Pushes lines of 100 bytes until one is dropped, and returns how many were stored.
    fn fill(buffer: &mut Buffer, origin: Origin, weight: Weight) -> usize {
        let dropped = buffer.dropped();
        let pushed = std::iter::repeat_with(|| buffer.push(origin, weight, &[b'x'; 100]));
        let stored = pushed.take(100_000).count();
        let dropped = usize::try_from(buffer.dropped() - dropped).unwrap();
        assert!(dropped > 0);
        stored - dropped
    }

    #[test]
    fn each_peer_has_a_share_however_many_fill_theirs() {
        let mut buffer = Buffer::new();
        let notices = fill(&mut buffer, PEER, Weight::Notice);
        let records = fill(&mut buffer, PEER, Weight::Record);
        assert!(records > 100, "{notices} notices leave room for {records} records");
        assert!(!buffer.is_crowded_by(PEER), "there is a reader");
        buffer.stalled = true;
        assert!(buffer.is_crowded_by(PEER) && !buffer.is_crowded_by(Origin::User(8)));
        for uid in 100..150 {
            fill(&mut buffer, Origin::User(uid), Weight::Record);
        }
        for victim in [Origin::User(8), Origin::Strangers, Origin::Worker, Origin::User(0), Origin::Broker] {
            let dropped = buffer.dropped();
            (0..5).for_each(|_| buffer.push(victim, Weight::Notice, &[b'x'; 200]));
            assert_eq!(buffer.dropped(), dropped, "{victim}");
            assert!(!buffer.is_crowded_by(victim), "{victim}");
        }
        assert!(fill(&mut buffer, Origin::User(0), Weight::Record) > 100, "root has a reserve");
        assert!(fill(&mut buffer, Origin::Broker, Weight::Record) >= BROKER_RESERVE / 100);
        assert!(buffer.buffered() <= MAX_BYTES);
    }
}
