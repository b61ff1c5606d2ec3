//! When each address is announced next: in rounds that become less frequent. Data only.
//!
//! The rounds follow RFC 5227 section 2.3 and RFC 4861 section 7.2.6. Additional later rounds reach switches that were
//! still learning during the first ones.
//!
//! Promises: while more rounds are due than the rate limit allows, the holders of the addresses take turns.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::IpAddr;
use std::ops::Bound::{Excluded, Unbounded};
use std::time::{Duration, Instant};

use crate::holder::Holder;

/// The rounds after the first one, in milliseconds after it.
const ROUNDS: [u64; 4] = [250, 1_100, 2_200, 4_400];
/// How long answers to a probe are waited for before an address is announced.
const PROBE_TIME: Duration = Duration::from_millis(200);
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
    /// Who holds the address.
    pub holder: Holder,
    /// The series that it belongs to. A newer series of the address ends an older one.
    pub series: u64,
    /// When that series began.
    pub began: Instant,
    /// Its number in that series, from 0.
    pub number: usize,
    /// Whether it is a probe, before the first round.
    pub is_probe: bool,
}

impl Round {
    /// The first round of a series.
    pub fn first(address: IpAddr, holder: Holder, series: u64, now: Instant) -> Self {
        Self { at: now, order: 0, address, holder, series, began: now, number: 0, is_probe: false }
    }

    /// A probe, and then the rounds of a series.
    pub fn probe(address: IpAddr, holder: Holder, series: u64, now: Instant) -> Self {
        Self { is_probe: true, ..Self::first(address, holder, series, now) }
    }

    /// The first round of a series that continues the predecessor's: a later round, at a time that depends on `series`, so
    /// that the addresses are spread over a period.
    pub fn continued(address: IpAddr, holder: Holder, series: u64, now: Instant) -> Self {
        let at = now + PERIOD.mul_f64(f64::from(u32::try_from(series % 60).unwrap_or_default()) / 60.0);
        Self { at, number: ROUNDS.len(), ..Self::first(address, holder, series, now) }
    }

    /// The first round of the series, after this probe was sent.
    pub fn after_probe(&self, now: Instant) -> Self {
        Self::first(self.address, self.holder, self.series, now + PROBE_TIME)
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
    /// Those of each holder that has any.
    rounds: BTreeMap<Holder, BinaryHeap<Reverse<Round>>>,
    entered: u64,
    /// The holders of the last round that was taken, and of the one before.
    last: Option<Holder>,
    before: Option<Holder>,
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
        self.insert(Round { order: self.entered, ..round });
    }

    /// Returns the round that was taken last to its former position.
    pub fn put_back(&mut self, round: Round) {
        self.insert(round);
        self.last = self.before;
    }

    fn insert(&mut self, round: Round) {
        self.rounds.entry(round.holder).or_default().push(Reverse(round));
    }

    /// Takes the next round that is due, of the next holder that has one.
    pub fn pop_due(&mut self, now: Instant) -> Next {
        let time = |rounds: &BinaryHeap<Reverse<Round>>| rounds.peek().map(|next| next.0.at);
        let after = self.rounds.range((self.last.map_or(Unbounded, Excluded), Unbounded));
        let mut in_turn = after.chain(&self.rounds);
        let due = in_turn.find(|(_, rounds)| time(rounds).is_some_and(|at| at <= now));
        let Some(holder) = due.map(|(holder, _)| *holder) else {
            return self.rounds.values().filter_map(time).min().map_or(Next::Empty, Next::At);
        };
        let rounds = self.rounds.get_mut(&holder);
        let Some(Reverse(round)) = rounds.and_then(BinaryHeap::pop) else { return Next::Empty };
        if self.rounds.get(&holder).is_some_and(BinaryHeap::is_empty) {
            self.rounds.remove(&holder);
        }
        self.before = self.last.replace(holder);
        Next::Due(round)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announcement_rounds_become_less_frequent() {
        let begin = Instant::now();
        let address = "192.0.2.1".parse().unwrap();
        let mut round = Round { order: 3, ..Round::first(address, Holder::Worker, 1, begin) };
        let mut offsets = Vec::new();
        for _ in 0..6 {
            round = round.next();
            offsets.push(round.at.duration_since(begin).as_millis());
        }
        assert_eq!(offsets[..4], [250, 1_100, 2_200, 4_400]);
        let pauses = [offsets[4] - offsets[3], offsets[5] - offsets[4]];
        assert!(pauses.iter().all(|pause| (48_000..=72_000).contains(pause)), "{pauses:?}");
    }

    #[test]
    fn a_holder_with_very_many_rounds_does_not_delay_those_of_others() {
        let (begin, mut queue) = (Instant::now(), AnnouncementQueue::default());
        let address = |number: u32| IpAddr::from(std::net::Ipv4Addr::from(number));
        let round = |holder, number| Round::first(address(number), holder, 1, begin);
        (0..1000).for_each(|number| queue.push(round(Holder::User(1), number)));
        (0..2).for_each(|number| queue.push(round(Holder::User(2), 5000 + number)));
        let mut next = || match queue.pop_due(begin) {
            Next::Due(round) => round,
            Next::At(_) | Next::Empty => panic!("no round is due"),
        };
        let holders: Vec<Holder> = (0..6).map(|_| next().holder).collect();
        let user = Holder::User;
        assert_eq!(holders, [user(1), user(2), user(1), user(2), user(1), user(1)]);
        // The rate limit allowed none.
        let returned = next();
        queue.push(round(Holder::User(2), 6000));
        queue.put_back(returned);
        assert!(matches!(queue.pop_due(begin), Next::Due(round) if round.holder == user(2)));
        assert!(matches!(queue.pop_due(begin), Next::Due(round) if round == returned));
    }
}
