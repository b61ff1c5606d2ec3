//! A well-behaved peer that measures how long its pings take while the others make load.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use portreeve_protocol::message::{Ping, StatusRequest};

use super::actor::Actor;
use super::model::Model;
use super::session::Session;

/// How many latencies are recorded: enough for an hour.
const MAX_SAMPLES: usize = 200_000;

/// See the module.
pub struct LatencyProbe<'a> {
    /// Its user id.
    pub user: u32,
    /// Its session.
    pub session: Option<Session>,
    /// The round-trip times of its pings, in microseconds.
    pub latencies: &'a Mutex<Vec<u64>>,
}

impl Actor for LatencyProbe<'_> {
    fn step(&mut self, model: &Model) {
        let Some(mut session) = self.session.take().or_else(|| Session::open(model, self.user).ok()) else {
            return;
        };
        let begin = Instant::now();
        if session.request(model, &Ping {}).is_err() {
            return;
        }
        let took = u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX);
        let count = {
            let mut latencies = self.latencies.lock().unwrap();
            if latencies.len() < MAX_SAMPLES {
                latencies.push(took);
            }
            latencies.len()
        };
        if count % 16 == 0 {
            match session.request(model, &StatusRequest { after: 0 }) {
                Ok(Ok(_)) => {}
                Ok(Err(fault)) => model.violation(format_args!("status: {fault}")),
                Err(_) => return,
            }
        }
        self.session = Some(session);
    }

    fn release(&mut self, _: &Model) {
        self.session = None;
    }

    fn pause(&mut self) -> Duration {
        Duration::from_millis(20)
    }
}
