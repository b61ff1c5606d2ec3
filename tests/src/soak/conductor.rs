//! The conductor: one thread that decides what happens next to the processes and when everything is looked at.

use std::time::Duration;

use super::audit::Auditor;
use super::configuration::Reach;
use super::figures::Snapshot;
use super::gate::{Gate, Phase};
use super::ledger::Ledger;
use super::supervisor::{End, Supervisor};
use crate::random::Random;

/// The shares of the whole time between which the same broker lives, so that what grows has time to.
const LONG_LIFE: (f64, f64) = (0.25, 0.75);
/// How many rests there are, as far as they are not too close or too far apart.
const RESTS: u32 = 8;
/// How many ends of the broker there are in either half of the rest of the time, likewise.
const ENDS: u32 = 6;

/// The conductor.
pub struct Conductor<'a> {
    ledger: &'a Ledger,
    gate: &'a Gate,
    random: Random,
    supervisor: Supervisor<'a>,
    auditor: Auditor<'a>,
}

impl<'a> Conductor<'a> {
    /// One that decides by this chance.
    pub fn new(
        ledger: &'a Ledger,
        gate: &'a Gate,
        random: Random,
        supervisor: Supervisor<'a>,
        auditor: Auditor<'a>,
    ) -> Self {
        Self { ledger, gate, random, supervisor, auditor }
    }

    /// Conducts for so long. Gives what there was at every rest.
    pub fn conduct(mut self, duration: Duration) -> Vec<Snapshot> {
        let rest_every = (duration / RESTS).clamp(Duration::from_secs(4), Duration::from_secs(60));
        let end_every = (duration / 4 / ENDS).clamp(Duration::from_secs(2), Duration::from_secs(60));
        // Even the shortest soak has these.
        self.take_over();
        self.reload();
        let (mut next_rest, mut next_end) = (self.ledger.age() + rest_every, self.ledger.age() + end_every);
        while self.ledger.age() < duration {
            std::thread::sleep(Duration::from_millis(100 + self.random.below(1_400)));
            let now = self.ledger.age();
            let share = now.as_secs_f64() / duration.as_secs_f64();
            let is_long_life = (LONG_LIFE.0..LONG_LIFE.1).contains(&share);
            if now > next_rest {
                self.rest();
                self.gate.set(Phase::Run);
                next_rest = self.ledger.age() + rest_every;
            } else if now > next_end && !is_long_life {
                self.end_broker();
                next_end = self.ledger.age() + end_every;
            } else if !is_long_life && self.random.one_in(8) {
                self.take_over();
            } else {
                self.disturb();
            }
        }
        self.rest();
        self.gate.set(Phase::Over);
        self.supervisor.stop();
        self.auditor.snapshots
    }

    fn disturb(&mut self) {
        match self.random.below(10) {
            8 | 9 => self.reload(),
            0..5 => self.supervisor.end_worker(),
            5 => self.supervisor.hold_worker(Duration::from_millis(self.random.below(500))),
            _ => {
                self.supervisor.await_worker();
                self.gate.freeze();
                self.auditor.frozen();
                self.gate.set(Phase::Run);
            }
        }
    }

    fn end_broker(&mut self) {
        let ends = [End::Killed, End::Launcher, End::All, End::Asked];
        let how = ends[self.random.below(4) as usize];
        self.supervisor.end_broker(how, Duration::from_millis(self.random.below(2_000)));
    }

    fn take_over(&mut self) {
        let kill = self.random.one_in(3).then(|| Duration::from_millis(self.random.below(60)));
        self.supervisor.take_over(kill);
        // Everyone has noticed before anything else happens.
        self.gate.round();
    }

    fn reload(&mut self) {
        let reach = [Reach::Plain, Reach::Wide, Reach::Narrow][self.random.below(3) as usize];
        self.supervisor.reload(reach, self.random.one_in(2));
        self.gate.round();
    }

    fn rest(&mut self) {
        if self.supervisor.reach != Reach::Plain {
            self.supervisor.reload(Reach::Plain, false);
        }
        // A static listener that is no longer one stays its worker's, for as long as that lives and a while after.
        self.supervisor.await_worker();
        self.supervisor.end_worker();
        self.supervisor.await_worker();
        self.gate.calm();
        self.auditor.calm(&self.supervisor);
    }
}
