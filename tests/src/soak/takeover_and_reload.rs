//! Takeovers and reloads by the supervisor.

use std::time::{Duration, Instant};

use portreeve_protocol::reload::{Reload, Reloaded};
use rustix::process::Signal;

use super::configuration::Variant;
use super::supervisor::{Supervisor, kill};
use crate::{Broker, broker, eventually};

impl Supervisor<'_> {
    /// Starts a successor that takes over from the broker. If `kill_worker` is given, the worker is killed that long after
    /// the successor's start. Sessions end, and clients of the old worker are disconnected; no client is refused.
    pub fn take_over(&mut self, kill_worker: Option<Duration>) {
        self.await_worker();
        let mut old = self.broker.take().unwrap();
        let rest = [old.worker(), old.launcher(), old.reader()];
        let (model, begin) = (self.model, Instant::now());
        model.record_takeover(begin, None);
        [&model.takeovers, &model.broker_down, &model.worker_down]
            .iter()
            .for_each(|disruption| disruption.begin());
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
            model.violation(format_args!("the broker ended with {status} when it was taken over"));
        }
        rest.iter().for_each(|pid| self.await_end(*pid));
        drop(old);
        self.broker = Some(next);
        self.await_worker();
        model.record_takeover(begin, Some(Instant::now()));
        [&model.takeovers, &model.broker_down, &model.worker_down]
            .iter()
            .for_each(|disruption| disruption.end());
        model.count("takeovers");
    }

    /// Applies another variant of the configuration. No client is refused, and no peer loses what it is still allowed.
    pub fn reload(&mut self, variant: Variant, by_signal: bool) {
        let model = self.model;
        if variant == Variant::Restricted {
            model.restricted.begin();
            model.clear_retained();
        }
        self.config = self.configuration.text(variant);
        broker::config(self.host, &self.config);
        let mut peer = self.broker().peer();
        let last = |peer: &mut crate::Peer| {
            peer.request(&Reload { last: true, ..Reload::default() }).map(|(reloaded, _)| reloaded)
        };
        let outcome = match by_signal {
            false => peer.request(&Reload::default()).map(|(reloaded, _)| reloaded),
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
            other => model.violation(format_args!("a reload ({variant:?}): {other:?}")),
        }
        if variant != Variant::Restricted {
            model.restricted.end();
        }
        self.variant = variant;
        model.count("reloads");
        model.count(match variant {
            Variant::Base => "reloads of the base configuration",
            Variant::Extended => "reloads of the extended configuration",
            Variant::Restricted => "reloads of the restricted configuration",
        });
    }
}
