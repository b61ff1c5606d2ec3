//! The scheduler: one thread that decides when to kill, replace and reload processes, and when to audit.

use std::time::Duration;

use super::audit::Auditor;
use super::configuration::Variant;
use super::model::Model;
use super::phase_barrier::{Phase, PhaseBarrier};
use super::report::Snapshot;
use super::supervisor::{Supervisor, Termination};
use crate::random::Random;

/// The part of the whole time in which no broker ends, as fractions: leaks need time to show.
const UNDISTURBED: (f64, f64) = (0.25, 0.75);
/// How many idle audits there are, unless their distance would be below or above its limits.
const IDLE_AUDITS: u32 = 8;
/// How many brokers end before and after [`UNDISTURBED`], each with the same restriction.
const BROKER_ENDS: u32 = 6;

/// See the module.
pub struct Scheduler<'a> {
    model: &'a Model,
    barrier: &'a PhaseBarrier,
    random: Random,
    supervisor: Supervisor<'a>,
    auditor: Auditor<'a>,
}

impl<'a> Scheduler<'a> {
    /// A scheduler that draws its decisions from `random`.
    pub fn new(
        model: &'a Model,
        barrier: &'a PhaseBarrier,
        random: Random,
        supervisor: Supervisor<'a>,
        auditor: Auditor<'a>,
    ) -> Self {
        Self { model, barrier, random, supervisor, auditor }
    }

    /// Runs for `duration`. Returns a snapshot of every idle audit.
    pub fn run(mut self, duration: Duration) -> Vec<Snapshot> {
        let audit_interval = (duration / IDLE_AUDITS).clamp(Duration::from_secs(4), Duration::from_secs(60));
        let end_interval =
            (duration / 4 / BROKER_ENDS).clamp(Duration::from_secs(2), Duration::from_secs(60));
        // The shortest run has one of each as well.
        self.take_over();
        self.reload();
        let (mut next_audit, mut next_end) =
            (self.model.age() + audit_interval, self.model.age() + end_interval);
        while self.model.age() < duration {
            std::thread::sleep(Duration::from_millis(100 + self.random.below(1_400)));
            let now = self.model.age();
            let share = now.as_secs_f64() / duration.as_secs_f64();
            let is_undisturbed = (UNDISTURBED.0..UNDISTURBED.1).contains(&share);
            if now > next_audit {
                self.audit_idle();
                self.barrier.set(Phase::Run);
                next_audit = self.model.age() + audit_interval;
            } else if now > next_end && !is_undisturbed {
                self.end_broker();
                next_end = self.model.age() + end_interval;
            } else if !is_undisturbed && self.random.one_in(8) {
                self.take_over();
            } else {
                self.disturb();
            }
        }
        self.audit_idle();
        self.barrier.set(Phase::Finished);
        self.supervisor.stop();
        self.auditor.snapshots
    }

    fn disturb(&mut self) {
        match self.random.below(10) {
            8 | 9 => self.reload(),
            0..5 => self.supervisor.kill_worker(),
            5 => self.supervisor.suspend_worker(Duration::from_millis(self.random.below(500))),
            _ => {
                self.supervisor.await_worker();
                self.barrier.pause();
                self.auditor.audit_paused();
                self.barrier.set(Phase::Run);
            }
        }
    }

    fn end_broker(&mut self) {
        let ends =
            [Termination::KillBroker, Termination::KillLauncher, Termination::KillAll, Termination::Graceful];
        let how = ends[self.random.below(4) as usize];
        self.supervisor.end_broker(how, Duration::from_millis(self.random.below(2_000)));
    }

    fn take_over(&mut self) {
        let kill = self.random.one_in(3).then(|| Duration::from_millis(self.random.below(60)));
        self.supervisor.take_over(kill);
        // Every actor notices the takeover before the next event.
        self.barrier.wait_for_round();
    }

    fn reload(&mut self) {
        let variant = [Variant::Base, Variant::Extended, Variant::Restricted][self.random.below(3) as usize];
        self.supervisor.reload(variant, self.random.one_in(2));
        self.barrier.wait_for_round();
    }

    fn audit_idle(&mut self) {
        if self.supervisor.variant != Variant::Base {
            self.supervisor.reload(Variant::Base, false);
        }
        // The worker keeps a removed static listener until the worker ends, so it is killed.
        self.supervisor.await_worker();
        self.supervisor.kill_worker();
        self.supervisor.await_worker();
        self.barrier.make_idle();
        self.auditor.audit_idle(&self.supervisor);
    }
}
