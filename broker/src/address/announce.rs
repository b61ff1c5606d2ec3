//! Announcements: the neighbours are told where an address is, in rounds that become rarer, never faster than a switch
//! bears.
//!
//! Promises: only addresses that are held and whose lease lasts are announced, from an interface that has a carrier; a
//! new series ends the one before. At most [`A_SECOND`] frames a second leave an interface, probes among them. Touches
//! the packet socket. Rounds after RFC 5227 section 2.3 and RFC 4861 section 7.2.6, with more and later ones for switches
//! that were still learning.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::lease::State;
use super::{Addresses, frame};
use crate::sys::boot_time::BootTime;

/// How many frames a second leave one interface: some switches shut a port above that.
const A_SECOND: u32 = 500;
/// How many of them may follow each other at once.
const AT_ONCE: u32 = 20;
/// When the rounds after the first one are, from the first on, in milliseconds.
const ROUNDS: [u64; 4] = [250, 1_100, 2_200, 4_400];
/// The pause between later rounds, give or take a fifth.
pub(super) const LATER: Duration = Duration::from_secs(60);

/// What is to be announced: when, in what order, which address, which of its series, which round.
#[derive(Debug, Default)]
pub struct Queue {
    due: BinaryHeap<Reverse<Due>>,
    entered: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Due {
    pub at: Instant,
    pub order: u64,
    pub address: IpAddr,
    pub series: u64,
    pub began: Instant,
    pub round: usize,
}

/// How many frames an interface may send now.
#[derive(Debug)]
pub struct Allowance {
    tokens: f64,
    at: Instant,
}

impl Allowance {
    fn new(now: Instant) -> Self {
        Self { tokens: f64::from(AT_ONCE), at: now }
    }

    fn take(&mut self, now: Instant, count: usize) -> bool {
        let rate = f64::from(A_SECOND - AT_ONCE);
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * rate;
        self.tokens = (self.tokens + gained).min(AT_ONCE.into());
        self.at = now;
        let count = f64::from(u32::try_from(count).unwrap_or(u32::MAX));
        let enough = self.tokens >= count;
        if enough {
            self.tokens -= count;
        }
        enough
    }
}

impl Queue {
    fn enter(&mut self, due: Due) {
        self.entered += 1;
        self.due.push(Reverse(Due { order: self.entered, ..due }));
    }
}

impl Addresses {
    /// Begins to announce an address, anew where it was announced before. What may be sent at once is.
    pub fn announce(&self, address: IpAddr) {
        let now = Instant::now();
        let series = self.series.get() + 1;
        self.series.set(series);
        match self.table.borrow_mut().get_mut(address) {
            Some(lease) => lease.series = series,
            None => return,
        }
        self.queue.borrow_mut().enter(Due { at: now, order: 0, address, series, began: now, round: 0 });
        self.announce_due();
        self.changed.notify_one();
    }

    /// Goes on announcing an address where another broker was: with the rounds that are far apart, each address at its
    /// own time.
    pub(super) fn go_on_announcing(&self, address: IpAddr) {
        let series = self.series.get() + 1;
        self.series.set(series);
        if let Some(lease) = self.table.borrow_mut().get_mut(address) {
            lease.series = series;
            let began = Instant::now();
            let at = began + LATER.mul_f64(f64::from(u32::try_from(series % 60).unwrap_or_default()) / 60.0);
            let due = Due { at, order: 0, address, series, began, round: ROUNDS.len() };
            self.queue.borrow_mut().enter(due);
        }
    }

    /// Sends what is due and allowed, and tells when to look again.
    pub fn announce_due(&self) -> Option<Instant> {
        let now = Instant::now();
        loop {
            let next = match self.queue.borrow_mut().due.peek_mut() {
                None => return None,
                Some(next) if next.0.at > now => return Some(next.0.at),
                Some(next) => std::collections::binary_heap::PeekMut::pop(next).0,
            };
            let Some((index, frames)) = self.frames_of(&next) else { continue };
            if !frames.is_empty() && !self.may_send(index, frames.len()) {
                let later = now + Duration::from_millis(10);
                self.queue.borrow_mut().due.push(Reverse(next));
                return Some(later);
            }
            for frame in &frames {
                self.send(index, frame);
            }
            let after = match self.settings.get().all_hosts {
                true => Due { at: following(&next), round: next.round + 1, ..next },
                false => self.after_questions(&next, now),
            };
            self.queue.borrow_mut().enter(after);
        }
    }

    /// What one round sends, and where; nothing while there is no carrier. `None` ends the series.
    fn frames_of(&self, due: &Due) -> Option<(u32, Vec<Vec<u8>>)> {
        let table = self.table.borrow();
        let lease = table.get(due.address).filter(|lease| lease.series == due.series)?;
        if lease.state != State::Held || lease.is_over(BootTime::now()) {
            return None;
        }
        let index = lease.place.index;
        let link = self.link(index).filter(|link| link.carrier);
        let hardware = link.and_then(|link| link.hardware);
        let frames = hardware.map(|own| match self.settings.get().all_hosts {
            true => frame::announcement(own, due.address),
            false => self.questions(due, index, own),
        });
        Some((index, frames.unwrap_or_default()))
    }

    /// Whether an interface may send so many frames now; if so they are counted.
    pub(super) fn may_send(&self, index: u32, count: usize) -> bool {
        let now = Instant::now();
        self.allowance.borrow_mut().entry(index).or_insert_with(|| Allowance::new(now)).take(now, count)
    }

    /// Sends a frame. One that is lost is followed by others of its series.
    pub(super) fn send(&self, index: u32, frame: &[u8]) {
        if let Some(packet) = &self.packet
            && let Err(errno) = packet.send(index, frame)
        {
            tracing::debug!(index, %errno, "a frame could not be sent");
        }
    }
}

/// When the round after this one is.
fn following(due: &Due) -> Instant {
    match ROUNDS.get(due.round) {
        Some(millis) => due.began + Duration::from_millis(*millis),
        // Spread by the order of entry, so that addresses that came together drift apart.
        None => {
            due.at + LATER.mul_f64(0.8 + 0.04 * f64::from(u32::try_from(due.order % 11).unwrap_or_default()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_second_has_more_frames_than_a_switch_bears() {
        let begin = Instant::now();
        let mut allowance = Allowance::new(begin);
        let sent: Vec<u64> =
            (0..3_000).filter(|ms| allowance.take(begin + Duration::from_millis(*ms), 1)).collect();
        for start in 0..2_000 {
            let within = sent.iter().filter(|ms| (start..start + 1_000).contains(*ms)).count();
            assert!(within <= 500, "{within} frames in the second from {start} ms on");
        }
        assert!(sent.len() > 1_400);
    }

    #[test]
    fn rounds_become_rarer() {
        let begin = Instant::now();
        let address = "192.0.2.1".parse().unwrap();
        let mut due = Due { at: begin, order: 3, address, series: 1, began: begin, round: 0 };
        let mut offsets = Vec::new();
        for _ in 0..6 {
            due = Due { at: following(&due), round: due.round + 1, ..due };
            offsets.push(due.at.duration_since(begin).as_millis());
        }
        assert_eq!(offsets[..4], [250, 1_100, 2_200, 4_400]);
        let pauses = [offsets[4] - offsets[3], offsets[5] - offsets[4]];
        assert!(pauses.iter().all(|pause| (48_000..=72_000).contains(pause)), "{pauses:?}");
    }
}
