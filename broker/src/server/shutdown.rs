//! The end of the broker: by SIGTERM, by SIGINT, or by a successor that has committed.

use std::rc::Rc;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::failure::Failure;
use crate::takeover::Export;

/// Waits for the end of the broker. The signals are caught from its creation on.
pub struct Shutdown {
    terminate: Signal,
    interrupt: Signal,
    export: Rc<Export>,
}

impl Shutdown {
    /// Begins to catch the signals.
    pub fn new(export: Rc<Export>) -> Result<Self, Failure> {
        let catch = |kind| signal(kind).map_err(|error| Failure::os("signals", "sigaction", error));
        let (terminate, interrupt) = (SignalKind::terminate(), SignalKind::interrupt());
        Ok(Self { terminate: catch(terminate)?, interrupt: catch(interrupt)?, export })
    }

    /// Waits for the first signal, or for the commit.
    pub async fn requested(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            () = self.export.committed() => {}
        }
    }
}
