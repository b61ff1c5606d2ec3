//! When each address is announced next: in rounds that become less frequent. Data only.
//!
//! The rounds follow RFC 5227 section 2.3 and RFC 4861 section 7.2.6. Additional later rounds reach switches that were
//! still learning during the first ones.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// The rounds after the first one, in milliseconds after it.
const ROUNDS: [u64; 4] = [250, 1_100, 2_200, 4_400];
/// The time between later rounds, ±20 %.
pub(super) const PERIOD: Duration = Duration::from_secs(60);

/// One round of announcements of an address. Ordered by time, and then by entry: the rounds of many addresses
/// alternate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Round {
    /// When it is due.
    pub at: Instant,
    /// Its position among rounds that are due at the same time; the queue assigns it.
    pub order: u64,
    pub address: IpAddr,
    /// The series that it belongs to. A newer series of the address ends an older one.
    pub series: u64,
    /// When that series began.
    pub began: Instant,
    /// Its number in that series, from 0.
    pub number: usize,
}

impl Round {
    /// The first round of a series.
    pub fn first(address: IpAddr, series: u64, now: Instant) -> Self {
        Self { at: now, order: 0, address, series, began: now, number: 0 }
    }

    /// The first round of a series that continues the predecessor's: a later round, at a time that depends on `series`, so
    /// that the addresses are spread over a period.
    pub fn continued(address: IpAddr, series: u64, now: Instant) -> Self {
        let at = now + PERIOD.mul_f64(f64::from(u32::try_from(series % 60).unwrap_or_default()) / 60.0);
        Self { at, order: 0, address, series, began: now, number: ROUNDS.len() }
    }

    /// The round after this one.
    pub fn next(&self) -> Self {
        Self { at: self.next_time(), number: self.number + 1, ..*self }
    }

    fn next_time(&self) -> Instant {
        match ROUNDS.get(self.number) {
            Some(millis) => self.began + Duration::from_millis(*millis),
            // Vary the period with the order of entry, so that addresses that were added together drift apart.
            None => {
                self.at
                    + PERIOD
                        .mul_f64(0.8 + 0.04 * f64::from(u32::try_from(self.order % 11).unwrap_or_default()))
            }
        }
    }
}

/// The rounds that are still to be sent.
#[derive(Debug, Default)]
pub(super) struct AnnouncementQueue {
    rounds: BinaryHeap<Reverse<Round>>,
    entered: u64,
}

/// The state of the head of the queue.
pub(super) enum Next {
    /// A round that is due.
    Due(Round),
    /// No round is due before this time.
    At(Instant),
    /// The queue has no round.
    Empty,
}

impl AnnouncementQueue {
    /// Enters a round, behind those that are due at the same time.
    pub fn push(&mut self, round: Round) {
        self.entered += 1;
        self.rounds.push(Reverse(Round { order: self.entered, ..round }));
    }

    /// Returns a round to its former position.
    pub fn put_back(&mut self, round: Round) {
        self.rounds.push(Reverse(round));
    }

    /// Takes the next round that is due.
    pub fn pop_due(&mut self, now: Instant) -> Next {
        match self.rounds.peek_mut() {
            None => Next::Empty,
            Some(next) if next.0.at > now => Next::At(next.0.at),
            Some(next) => Next::Due(PeekMut::pop(next).0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announcement_rounds_become_less_frequent() {
        let begin = Instant::now();
        let address = "192.0.2.1".parse().unwrap();
        let mut round = Round { order: 3, ..Round::first(address, 1, begin) };
        let mut offsets = Vec::new();
        for _ in 0..6 {
            round = round.next();
            offsets.push(round.at.duration_since(begin).as_millis());
        }
        assert_eq!(offsets[..4], [250, 1_100, 2_200, 4_400]);
        let pauses = [offsets[4] - offsets[3], offsets[5] - offsets[4]];
        assert!(pauses.iter().all(|pause| (48_000..=72_000).contains(pause)), "{pauses:?}");
    }
}
