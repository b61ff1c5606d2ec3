//! What ends the broker: SIGTERM, SIGINT, and another broker that has taken over.

use tokio::signal::unix::{Signal, SignalKind, signal};

use std::rc::Rc;

use super::handover::Handover;
use crate::failure::Failure;

/// The signals, caught from now on, and the successor.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    handover: Rc<Handover>,
}

impl Signals {
    /// Catches them.
    pub fn new(handover: Rc<Handover>) -> Result<Self, Failure> {
        let catch = |kind| signal(kind).map_err(|error| Failure::os("signals", "sigaction", error));
        let (terminate, interrupt) = (SignalKind::terminate(), SignalKind::interrupt());
        Ok(Self { terminate: catch(terminate)?, interrupt: catch(interrupt)?, handover })
    }

    /// Waits for the first of all that.
    pub async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            () = self.handover.over() => {}
        }
    }
}
