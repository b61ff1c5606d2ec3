//! What is on the wire at another host: every frame that arrives there, as it came and when.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, poll};

use crate::broker::timespec;
use crate::lan::{INTERFACE, in_host};

/// See socket(7), of timestamps.
const SIOCGSTAMPNS: libc::Ioctl = 0x8907;

/// A packet socket at the interface of a host.
pub struct PacketCapture {
    socket: File,
    /// A frame that was read and arrived after the end of the last collection.
    next: Option<Frame>,
}

/// A frame.
#[derive(Clone, Debug)]
pub struct Frame {
    /// When it arrived.
    pub at: Instant,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl PacketCapture {
    /// Listens at a host of the network.
    #[track_caller]
    pub fn on(host: &str) -> Self {
        in_host(host, || {
            let all = u16::try_from(libc::ETH_P_ALL).unwrap().to_be();
            // SAFETY: no pointer is given, and what is returned is checked and owned by nobody else.
            let socket = unsafe {
                let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
                let raw = libc::socket(libc::AF_PACKET, kind, i32::from(all));
                assert!(raw >= 0, "a packet socket: {}", std::io::Error::last_os_error());
                File::from_raw_fd(raw)
            };
            // SAFETY: an address of zeros is valid, and so is its length.
            let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
            address.sll_protocol = all;
            let name = std::ffi::CString::new(INTERFACE).unwrap();
            // SAFETY: the name ends with a zero byte.
            let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
            address.sll_ifindex = index.cast_signed();
            let length = u32::try_from(size_of_val(&address)).unwrap();
            // SAFETY: the address is valid for its length and only read.
            let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
            assert_eq!(bound, 0, "{}", std::io::Error::last_os_error());
            let wire = Self { socket, next: None };
            // The first question has the kernel note the time of every frame from now on.
            wire.arrived();
            wire
        })
    }

    /// When the frame that was read last arrived, by the kernel: reading may come late on a busy machine.
    fn arrived(&self) -> Instant {
        // SAFETY: a timespec of zeros is valid.
        let mut stamp: libc::timespec = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes one timespec there.
        let got = unsafe { libc::ioctl(self.socket.as_raw_fd(), SIOCGSTAMPNS, &raw mut stamp) };
        let (now, clock) = (Instant::now(), SystemTime::now());
        if got != 0 {
            return now;
        }
        let since = Duration::new(stamp.tv_sec.try_into().unwrap(), stamp.tv_nsec.try_into().unwrap());
        now - clock.duration_since(SystemTime::UNIX_EPOCH + since).unwrap_or_default()
    }

    /// Sends a frame.
    #[track_caller]
    pub fn send(&mut self, frame: &[u8]) {
        assert_eq!(self.socket.write(frame).unwrap(), frame.len());
    }

    /// The frames of `wanted` that arrive until `enough` says so, or for as long as `time` at most.
    #[track_caller]
    pub fn collect(
        &mut self,
        time: Duration,
        wanted: impl Fn(&[u8]) -> bool,
        enough: impl Fn(&[Frame]) -> bool,
    ) -> Vec<Frame> {
        let end = Instant::now() + time;
        let mut found = Vec::new();
        while !enough(&found) {
            let Some(frame) = self.next.take().or_else(|| self.read_before(end)) else { break };
            if frame.at > end {
                self.next = Some(frame);
                break;
            }
            if wanted(&frame.bytes) {
                found.push(frame);
            }
        }
        found
    }

    /// Reads a frame that comes until then, or that is here already: reading may come late on a busy machine.
    fn read_before(&mut self, end: Instant) -> Option<Frame> {
        let left = end.saturating_duration_since(Instant::now());
        let mut event = [PollFd::new(&self.socket, PollFlags::IN)];
        if poll(&mut event, Some(&timespec(left))).unwrap() == 0 {
            return None;
        }
        let mut bytes = vec![0; 2048];
        let length = self.socket.read(&mut bytes).unwrap_or_else(|error| panic!("receiving frames: {error}"));
        bytes.truncate(length);
        Some(Frame { at: self.arrived(), bytes })
    }
}

/// The bytes that hexadecimal words stand for.
pub fn hex(words: &str) -> Vec<u8> {
    words.split_whitespace().map(|word| u8::from_str_radix(word, 16).unwrap()).collect()
}

/// A request of the host at 10.1.1.201 for 10.1.1.7.
pub const ARP_QUERY: &str = "ff ff ff ff ff ff 02 00 00 00 00 02 08 06 \
    00 01 08 00 06 04 00 01 02 00 00 00 00 02 0a 01 01 c9 00 00 00 00 00 00 0a 01 01 07";

/// The kernel counts a timeout in ticks, of 10 ms where they are longest (CONFIG_HZ=100).
pub const TICK: Duration = Duration::from_millis(10);

/// Whether a frame answers it.
pub fn is_arp_reply(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&[8, 6])
        && frame.get(21) == Some(&2)
        && frame.get(28..32) == Some(&[10, 1, 1, 7])
}

/// Whether a frame announces an address by ARP, from this hardware address.
pub fn is_arp_announcement(frame: &[u8], hardware: [u8; 6], address: Ipv4Addr) -> bool {
    frame.get(12..14) == Some(&[8, 6])
        && frame.get(6..12) == Some(&hardware)
        && frame.get(28..32) == Some(&address.octets())
        && frame.get(38..42) == Some(&address.octets())
}

/// Asks every few milliseconds until nobody has answered for a second, and gives when the last answer came.
pub fn last_arp_reply(wire: &mut PacketCapture, begin: Instant) -> Option<Duration> {
    // A busy machine may leave this program no time to ask: that alone is no silence.
    const UNANSWERED: usize = 50;
    let (mut last, mut unanswered) = (None, 0);
    let end = begin + Duration::from_secs(15);
    while Instant::now() < end {
        wire.send(&hex(ARP_QUERY));
        match wire.collect(Duration::from_millis(4), is_arp_reply, |frames| !frames.is_empty()).first() {
            Some(frame) => (last, unanswered) = (Some(frame.at.duration_since(begin)), 0),
            None => unanswered += 1,
        }
        if unanswered >= UNANSWERED && last.is_none_or(|last| begin.elapsed() > last + Duration::from_secs(1))
        {
            break;
        }
    }
    last
}
