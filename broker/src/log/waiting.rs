//! Lines that wait to be written: as many as there is memory set aside for, whole ones only. What is more is counted.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use super::sink::Sink;

/// How many bytes are written together.
const MANY: usize = 32 * 1024;
/// How many bytes may wait for a reader.
const MOST: usize = 256 * 1024;

/// See the module.
#[derive(Debug)]
pub struct Waiting {
    bytes: Vec<u8>,
    /// How many of the bytes were written.
    begin: usize,
    /// What is left of each line, in their order.
    lengths: VecDeque<usize>,
    lost: u64,
    /// How many of those were told.
    told: u64,
    stalled: bool,
    /// Absent until the log begins.
    sink: Option<Sink>,
}

impl Waiting {
    /// Nothing waits.
    pub const fn new() -> Self {
        Self {
            bytes: Vec::new(),
            begin: 0,
            lengths: VecDeque::new(),
            lost: 0,
            told: 0,
            stalled: false,
            sink: None,
        }
    }

    /// From now on lines go there.
    pub fn go_to(&mut self, sink: Sink) {
        self.sink = Some(sink);
    }

    /// Takes a line, or counts it where there is no room.
    pub fn push(&mut self, line: &[u8]) {
        if self.held() + line.len() > MANY && !self.stalled {
            self.write();
        }
        if self.held() + line.len() > MOST {
            self.lost += 1;
            return;
        }
        if self.bytes.len() + line.len() > MOST {
            self.bytes.drain(..self.begin);
            self.begin = 0;
        }
        self.bytes.extend_from_slice(line);
        self.lengths.push_back(line.len());
    }

    fn held(&self) -> usize {
        self.bytes.len() - self.begin
    }

    /// How many lines were lost until now.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// How many were lost since this was last asked, once there is room to say so.
    pub fn missed(&mut self) -> u64 {
        if self.stalled {
            return 0;
        }
        let missed = self.lost - self.told;
        self.told = self.lost;
        missed
    }

    /// Whether a reader has to make room first.
    pub fn is_stalled(&self) -> bool {
        self.stalled
    }

    /// Writes as much as there is room for.
    pub fn write(&mut self) {
        self.stalled = false;
        while let (Some(first), Some(sink)) = (self.lengths.front(), &self.sink) {
            let end = if sink.takes_one_at_a_time() { self.begin + first } else { self.bytes.len() };
            match sink.write(self.bytes.get(self.begin..end).unwrap_or_default()) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(0) => return self.stalled = true,
                Ok(written) => self.gone(written),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return self.stalled = true,
                // Nobody reads it any more, or there is no space for it.
                Err(_) => {
                    self.lost += self.lengths.len() as u64;
                    self.gone(self.held());
                }
            }
        }
    }

    fn gone(&mut self, mut written: usize) {
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

    /// Writes everything, as long as somebody makes room for it within the time.
    pub fn finish(&mut self, within: Duration) {
        let end = Instant::now() + within;
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

    /// A pipe of one page, and a log that goes there.
    fn pipe() -> (std::io::PipeReader, Waiting) {
        use std::os::fd::AsRawFd as _;
        let (reader, writer) = std::io::pipe().unwrap();
        nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
        let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
        let own = std::fs::File::options().write(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap();
        let mut waiting = Waiting::new();
        waiting.go_to(Sink::Own(own));
        (reader, waiting)
    }

    #[test]
    fn a_reader_that_stops_loses_whole_lines_that_are_counted_and_nobody_waits_for_it() {
        let (mut reader, mut waiting) = pipe();
        let line = |number: u32| format!("{number:09}\n");
        (0..100_000).for_each(|number| waiting.push(line(number).as_bytes()));
        assert!(waiting.is_stalled() && waiting.lost() > 0);
        assert_eq!(waiting.missed(), 0, "there is no room to say so");
        let mut read = String::new();
        while waiting.is_stalled() {
            let mut page = [0; 4096];
            let length = reader.read(&mut page).unwrap();
            read.push_str(std::str::from_utf8(&page[..length]).unwrap());
            waiting.write();
        }
        assert_eq!(waiting.missed(), waiting.lost());
        assert_eq!(waiting.missed(), 0, "it is said once");
        drop(waiting);
        reader.read_to_string(&mut read).unwrap();
        let kept: Vec<&str> = read.lines().collect();
        let expected: Vec<String> = (0..).map(line).take(kept.len()).collect();
        assert_eq!(read, expected.concat());
    }

    #[test]
    fn a_reader_that_has_gone_is_no_error() {
        let (reader, mut waiting) = pipe();
        drop(reader);
        waiting.push(b"one\n");
        waiting.push(b"two\n");
        waiting.finish(Duration::from_secs(60));
        assert_eq!((waiting.lost(), waiting.is_stalled()), (2, false));
    }
}
