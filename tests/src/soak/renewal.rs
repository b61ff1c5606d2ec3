//! What changes while the broker serves: its configuration, and the broker itself by another that takes its place.

use std::time::{Duration, Instant};

use portreeve_protocol::reload::{Reload, Reloaded};
use rustix::process::Signal;

use super::configuration::Reach;
use super::supervisor::{Supervisor, kill};
use crate::{Broker, broker, eventually};

impl Supervisor<'_> {
    /// Has another broker take this one's place, and the worker killed so long after its start, where that is said.
    /// Sessions end, and with the worker whoever it was serving; nobody is refused.
    pub fn take_over(&mut self, kill_worker: Option<Duration>) {
        self.await_worker();
        let mut old = self.broker.take().unwrap();
        let rest = [old.worker(), old.launcher(), old.reader()];
        let (ledger, begin) = (self.ledger, Instant::now());
        ledger.taken_over(begin, None);
        [&ledger.takeovers, &ledger.broker_ends, &ledger.worker_ends]
            .iter()
            .for_each(|trouble| trouble.begin());
        let next = std::thread::scope(|scope| {
            if let Some(after) = kill_worker {
                scope.spawn(move || {
                    std::thread::sleep(after);
                    kill(rest[0], Signal::KILL);
                });
            }
            Broker::start_successor_with_log_file(self.host, &self.config)
        });
        let status = old.wait_for_exit();
        if !status.success() {
            ledger.violation(format_args!("the broker ended with {status} when it was taken over"));
        }
        rest.iter().for_each(|pid| self.await_end(*pid));
        drop(old);
        self.broker = Some(next);
        self.await_worker();
        ledger.taken_over(begin, Some(Instant::now()));
        [&ledger.takeovers, &ledger.broker_ends, &ledger.worker_ends]
            .iter()
            .for_each(|trouble| trouble.end());
        ledger.count("takeovers");
    }

    /// Puts another configuration in force. Nobody is refused, and nobody loses what goes on being permitted.
    pub fn reload(&mut self, reach: Reach, by_signal: bool) {
        let ledger = self.ledger;
        if reach == Reach::Narrow {
            ledger.narrow.begin();
            ledger.release_kept();
        }
        self.config = self.configuration.text(reach);
        broker::config(self.host, &self.config);
        let mut peer = self.broker().peer();
        let last =
            |peer: &mut crate::Peer| peer.request(&Reload { last: true }).map(|(reloaded, _)| reloaded);
        let outcome = match by_signal {
            false => peer.request(&Reload { last: false }).map(|(reloaded, _)| reloaded),
            true => {
                let before = last(&mut peer).map_or(0, |reloaded| reloaded.number);
                self.broker().signal(Signal::HUP);
                let after = |reloaded: &Reloaded| reloaded.number > before;
                Ok(eventually("a reload", || last(&mut peer).ok().filter(after)))
            }
        };
        match outcome {
            Ok(reloaded)
                if reloaded.accepted && !reloaded.changes.iter().any(|row| &*row.outcome == "failed") => {}
            other => ledger.violation(format_args!("a reload ({reach:?}): {other:?}")),
        }
        if reach != Reach::Narrow {
            ledger.narrow.end();
        }
        self.reach = reach;
        ledger.count("reloads");
        ledger.count(match reach {
            Reach::Plain => "reloads of as much as at the start",
            Reach::Wide => "reloads of more",
            Reach::Narrow => "reloads of less",
        });
    }
}
