//! The buffer of log lines: bounded, whole lines only. Lines that do not fit are dropped and counted.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use super::sink::Sink;

/// The number of buffered bytes from which on they are written.
const WRITE_THRESHOLD: usize = 32 * 1024;
/// The maximum number of buffered bytes.
const MAX_BYTES: usize = 256 * 1024;

/// Log lines that are not written yet.
#[derive(Debug)]
pub struct Buffer {
    bytes: Vec<u8>,
    /// The number of bytes that were written.
    begin: usize,
    /// The remaining length of each line, in order.
    lengths: VecDeque<usize>,
    lost: u64,
    /// How many of the dropped lines were reported.
    reported: u64,
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
            lengths: VecDeque::new(),
            lost: 0,
            reported: 0,
            stalled: false,
            sink: None,
        }
    }

    /// Sets the destination.
    pub fn set_sink(&mut self, sink: Sink) {
        self.sink = Some(sink);
    }

    /// Appends a line, or counts it as dropped if there is no room.
    pub fn push(&mut self, line: &[u8]) {
        if self.buffered() + line.len() > WRITE_THRESHOLD && !self.stalled {
            self.write();
        }
        if self.buffered() + line.len() > MAX_BYTES {
            self.lost += 1;
            return;
        }
        if self.bytes.len() + line.len() > MAX_BYTES {
            self.bytes.drain(..self.begin);
            self.begin = 0;
        }
        self.bytes.extend_from_slice(line);
        self.lengths.push_back(line.len());
    }

    fn buffered(&self) -> usize {
        self.bytes.len() - self.begin
    }

    /// The number of dropped lines.
    pub fn dropped(&self) -> u64 {
        self.lost
    }

    /// The number of lines dropped since the last call; 0 while there is no room to log it.
    pub fn dropped_since_last(&mut self) -> u64 {
        if self.stalled {
            return 0;
        }
        let dropped = self.lost - self.reported;
        self.reported = self.lost;
        dropped
    }

    /// Whether the destination has no room.
    pub fn is_stalled(&self) -> bool {
        self.stalled
    }

    /// Writes as much as possible without blocking.
    pub fn write(&mut self) {
        self.stalled = false;
        while let (Some(first), Some(sink)) = (self.lengths.front(), &self.sink) {
            let end = if sink.writes_lines_separately() { self.begin + first } else { self.bytes.len() };
            match sink.write(self.bytes.get(self.begin..end).unwrap_or_default()) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(0) => return self.stalled = true,
                Ok(written) => self.advance(written),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return self.stalled = true,
                // The reader has closed the log, or the disk is full.
                Err(_) => {
                    self.lost += self.lengths.len() as u64;
                    self.advance(self.buffered());
                }
            }
        }
    }

    fn advance(&mut self, mut written: usize) {
        self.begin += written;
        while let Some(first) = self.lengths.front_mut() {
            if *first > written {
                *first -= written;
                return;
            }
            written -= *first;
            self.lengths.pop_front();
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
        (0..100_000).for_each(|number| buffer.push(line(number).as_bytes()));
        assert!(buffer.is_stalled() && buffer.dropped() > 0);
        assert_eq!(buffer.dropped_since_last(), 0, "there is no room to log it");
        let mut read = String::new();
        while buffer.is_stalled() {
            let mut page = [0; 4096];
            let length = reader.read(&mut page).unwrap();
            read.push_str(std::str::from_utf8(&page[..length]).unwrap());
            buffer.write();
        }
        assert_eq!(buffer.dropped_since_last(), buffer.dropped());
        assert_eq!(buffer.dropped_since_last(), 0, "it is reported once");
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
        buffer.push(b"one\n");
        buffer.push(b"two\n");
        buffer.finish(Duration::from_secs(60));
        assert_eq!((buffer.dropped(), buffer.is_stalled()), (2, false));
    }
}
