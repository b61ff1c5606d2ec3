//! The packet socket that announcements and probes share, with its limit on frames per second.
//!
//! Promises: at most [`MAX_PER_SECOND`] frames per second leave an interface, if callers use [`FrameSocket::may_send`].

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::time::Instant;

use crate::sys::packet::{PacketSocket, ReceivedFrame};

/// The largest number of frames per second on one interface: some switches shut a port down above that.
const MAX_PER_SECOND: u32 = 500;
/// The largest number of frames without a pause.
const MAX_BURST: u32 = 20;

/// The socket and the limits.
pub(super) struct FrameSocket {
    /// Absent without CAP_NET_RAW.
    socket: Option<PacketSocket>,
    /// By interface index.
    limits: RefCell<HashMap<u32, RateLimit>>,
}

impl FrameSocket {
    pub fn new(socket: Option<PacketSocket>) -> Self {
        Self { socket, limits: RefCell::default() }
    }

    /// The socket, unless CAP_NET_RAW is missing.
    pub fn socket(&self) -> Option<&PacketSocket> {
        self.socket.as_ref()
    }

    /// Whether an interface may send `count` frames now. If so, counts them.
    pub fn may_send(&self, index: u32, count: usize) -> bool {
        let now = Instant::now();
        self.limits.borrow_mut().entry(index).or_insert_with(|| RateLimit::new(now)).take(now, count)
    }

    /// Sends a frame. A failure is only logged: later frames of the same series replace a lost one.
    pub fn send(&self, index: u32, frame: &[u8]) {
        if let Some(socket) = &self.socket
            && let Err(errno) = socket.send(index, frame)
        {
            tracing::debug!(index, error = %errno, "cannot send a frame");
        }
    }

    /// Receives one frame.
    ///
    /// # Errors
    /// `WouldBlock` when none is queued.
    pub fn receive(&self) -> io::Result<ReceivedFrame> {
        self.socket.as_ref().ok_or(io::ErrorKind::WouldBlock)?.receive()
    }
}

/// A token bucket.
#[derive(Debug)]
struct RateLimit {
    tokens: f64,
    at: Instant,
}

impl RateLimit {
    fn new(now: Instant) -> Self {
        Self { tokens: f64::from(MAX_BURST), at: now }
    }

    fn take(&mut self, now: Instant, count: usize) -> bool {
        let rate = f64::from(MAX_PER_SECOND - MAX_BURST);
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * rate;
        self.tokens = (self.tokens + gained).min(MAX_BURST.into());
        self.at = now;
        let count = f64::from(u32::try_from(count).unwrap_or(u32::MAX));
        let enough = self.tokens >= count;
        if enough {
            self.tokens -= count;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_frame_rate_never_exceeds_the_limit() {
        let begin = Instant::now();
        let mut limit = RateLimit::new(begin);
        let sent: Vec<u64> =
            (0..3_000).filter(|ms| limit.take(begin + Duration::from_millis(*ms), 1)).collect();
        for start in 0..2_000 {
            let within = sent.iter().filter(|ms| (start..start + 1_000).contains(*ms)).count();
            assert!(within <= 500, "{within} frames in the second from {start} ms on");
        }
        assert!(sent.len() > 1_400);
    }
}
