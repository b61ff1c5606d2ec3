//! Packet capture on another host: every frame that arrives there, with its time.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, poll};

use crate::broker::timespec;
use crate::lan::{INTERFACE, in_host};

/// See "Ioctls" in socket(7).
const SIOCGSTAMPNS: libc::Ioctl = 0x8907;

/// A packet socket on the interface of a host.
pub struct PacketCapture {
    socket: File,
    /// A frame that was read, but arrived after the end of the last collection.
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
    /// Starts capturing on a host of the network.
    #[track_caller]
    pub fn on(host: &str) -> Self {
        in_host(host, || {
            let all = u16::try_from(libc::ETH_P_ALL).unwrap().to_be();
            // SAFETY: no pointer is passed; the returned descriptor is checked and has no other owner.
            let socket = unsafe {
                let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
                let raw = libc::socket(libc::AF_PACKET, kind, i32::from(all));
                assert!(raw >= 0, "cannot open a packet socket: {}", std::io::Error::last_os_error());
                File::from_raw_fd(raw)
            };
            // SAFETY: all zeros are a valid value of this structure.
            let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
            address.sll_protocol = all;
            let name = std::ffi::CString::new(INTERFACE).unwrap();
            // SAFETY: the name ends with NUL.
            let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
            address.sll_ifindex = index.cast_signed();
            let length = u32::try_from(size_of_val(&address)).unwrap();
            // SAFETY: the address is valid for this length, and the kernel only reads it.
            let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
            assert_eq!(bound, 0, "cannot bind the packet socket: {}", std::io::Error::last_os_error());
            let wire = Self { socket, next: None };
            // The first call makes the kernel record the time of every further frame.
            wire.arrived();
            wire
        })
    }

    /// When the frame that was read last arrived, according to the kernel: on a busy machine it may be read late.
    fn arrived(&self) -> Instant {
        // SAFETY: all zeros are a valid timespec.
        let mut stamp: libc::timespec = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes one timespec to this address.
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

    /// Collects the frames that match `wanted`, until `enough` is true or `time` has passed.
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

    /// Reads a frame that has arrived or arrives before `end`.
    fn read_before(&mut self, end: Instant) -> Option<Frame> {
        let remaining = end.saturating_duration_since(Instant::now());
        let mut event = [PollFd::new(&self.socket, PollFlags::IN)];
        if poll(&mut event, Some(&timespec(remaining))).unwrap() == 0 {
            return None;
        }
        let mut bytes = vec![0; 2048];
        let length = self.socket.read(&mut bytes).unwrap_or_else(|error| panic!("cannot receive: {error}"));
        bytes.truncate(length);
        Some(Frame { at: self.arrived(), bytes })
    }
}

/// Parses hexadecimal bytes separated by white space.
pub fn hex(words: &str) -> Vec<u8> {
    words.split_whitespace().map(|word| u8::from_str_radix(word, 16).unwrap()).collect()
}

/// An ARP request for 10.1.1.7 by the host 10.1.1.201.
pub const ARP_QUERY: &str = "ff ff ff ff ff ff 02 00 00 00 00 02 08 06 \
    00 01 08 00 06 04 00 01 02 00 00 00 00 02 0a 01 01 c9 00 00 00 00 00 00 0a 01 01 07";

/// The kernel counts timeouts in ticks of at most 10 ms (CONFIG_HZ=100).
pub const TICK: Duration = Duration::from_millis(10);

/// Whether a frame is the reply to [`ARP_QUERY`].
pub fn is_arp_reply(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&[8, 6])
        && frame.get(21) == Some(&2)
        && frame.get(28..32) == Some(&[10, 1, 1, 7])
}

/// Whether a frame is a gratuitous ARP for `address` from this MAC address.
pub fn is_arp_announcement(frame: &[u8], hardware: [u8; 6], address: Ipv4Addr) -> bool {
    frame.get(12..14) == Some(&[8, 6])
        && frame.get(6..12) == Some(&hardware)
        && frame.get(28..32) == Some(&address.octets())
        && frame.get(38..42) == Some(&address.octets())
}

/// Asserts that the last ARP reply comes at the end of a lease that began at `begin`, or up to `sure` later.
#[track_caller]
pub fn assert_silence_after_lease(wire: &mut PacketCapture, begin: Instant, sure: Duration, lease: Duration) {
    let last = last_arp_reply(wire, begin).expect("an answer while the lease lasts");
    println!("the last answer arrived {} ms after the renewal", last.as_millis());
    assert!(last <= lease + sure + TICK, "answered after the lease: {last:?}");
    // The kernel counts whole seconds. Of a lease that it learns of late, it is told one second less.
    let early = if sure > ROUNDING { Duration::from_millis(1500) } else { Duration::from_millis(500) };
    assert!(last >= lease - early, "silent before the lease ended: {last:?}, renewed in {sure:?}");
}

/// What may be missing to a whole second for the kernel to be told that second too.
const ROUNDING: Duration = Duration::from_millis(50);

/// Sends ARP requests every few milliseconds until there has been no reply for a second. Returns the time of the last
/// reply.
pub fn last_arp_reply(wire: &mut PacketCapture, begin: Instant) -> Option<Duration> {
    // Also counted in requests: a busy machine may leave this program no time to send any.
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
