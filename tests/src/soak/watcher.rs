//! A peer that does no harm and asks little: what it notices of the others is how long its answers take.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use portreeve_protocol::message::{Ping, StatusRequest};

use super::actor::Actor;
use super::ledger::Ledger;
use super::session::Session;

/// As many latencies as are kept: of an hour, each.
const MOST: usize = 200_000;

/// The peer.
pub struct Watcher<'a> {
    /// Who it is.
    pub user: u32,
    /// Its session.
    pub session: Option<Session>,
    /// How long its pings took, in microseconds.
    pub latencies: &'a Mutex<Vec<u64>>,
}

impl Actor for Watcher<'_> {
    fn act(&mut self, ledger: &Ledger) {
        let Some(mut session) = self.session.take().or_else(|| Session::open(ledger, self.user).ok()) else {
            return;
        };
        let begin = Instant::now();
        if session.request(ledger, &Ping {}).is_err() {
            return;
        }
        let took = u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX);
        let count = {
            let mut latencies = self.latencies.lock().unwrap();
            if latencies.len() < MOST {
                latencies.push(took);
            }
            latencies.len()
        };
        if count % 16 == 0 {
            match session.request(ledger, &StatusRequest { after: 0 }) {
                Ok(Ok(_)) => {}
                Ok(Err(fault)) => ledger.violation(format_args!("status: {fault}")),
                Err(_) => return,
            }
        }
        self.session = Some(session);
    }

    fn give_back(&mut self, _: &Ledger) {
        self.session = None;
    }

    fn pause(&mut self) -> Duration {
        Duration::from_millis(20)
    }
}
