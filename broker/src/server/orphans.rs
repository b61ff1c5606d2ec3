//! The broker as the parent of orphans: of descendants whose own parent has ended, if a worker is configured, and of every
//! orphan of a container in which the broker is process 1.
//!
//! Promises: no ended child stays a zombie.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{sleep, timeout};

use super::EXIT_TIMEOUT;
use crate::failure::Failure;
use crate::sys::process::{self, PidRange};

/// The pause between two looks at children that are ending.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a lost launcher may take to end before the processes of the worker are no longer looked for.
const LAUNCHER_END_TIMEOUT: Duration = Duration::from_millis(300);
/// How many pauses the task of the reader has to reap it, which then reports how the reader ended.
const READER_PAUSES: u32 = 50;

/// Reaps the broker's children.
pub struct Reaper {
    ended: Signal,
    /// The reader, which its own task reaps.
    reader: Option<Pid>,
    launcher: Option<Pid>,
    pids: PidRange,
}

impl Reaper {
    /// Begins to catch SIGCHLD.
    pub fn new(reader: Option<Pid>, launcher: Option<Pid>, pids: PidRange) -> Result<Self, Failure> {
        let ended =
            signal(SignalKind::child()).map_err(|error| Failure::os("signals", "sigaction", error))?;
        Ok(Self { ended, reader, launcher, pids })
    }

    /// Reaps each child that ends.
    pub async fn run(&mut self) -> Infallible {
        loop {
            self.reap().await; // first, for those that ended before the signal was caught
            let _ = self.ended.recv().await; // the stream of a signal does not end
        }
    }

    async fn reap(&self) {
        let mut pauses = 0;
        while let Some(pid) = process::ended_child() {
            if Some(pid) == self.reader && pauses < READER_PAUSES {
                pauses += 1;
                sleep(PAUSE).await;
                continue;
            }
            let _ = process::wait_for_exit(pid); // its own task may have reaped it
            // Orphans may end faster than they can be reaped.
            tokio::task::yield_now().await;
        }
    }

    /// After the launcher was lost: waits a moment for the processes of the worker to end, and logs those that do not. The
    /// kernel has killed the worker itself, unless the worker has undone that, and the broker may signal none of them.
    /// `failed`: the broker ends because of an error, which may be the loss of the launcher.
    pub async fn log_survivors_of_launcher(&self, failed: bool) {
        let Some(launcher) = self.launcher else { return };
        // A launcher that was killed closes its channel before it has ended, and only then are its children those of the broker.
        let lost = Instant::now() + LAUNCHER_END_TIMEOUT;
        while process::is_running_child(launcher) {
            if !failed || Instant::now() >= lost {
                return;
            }
            sleep(PAUSE).await;
        }
        let end = Instant::now() + EXIT_TIMEOUT;
        loop {
            let _ = timeout(PAUSE, self.reap()).await; // the others are reaped in the next round
            let mut survivors = Vec::new();
            self.pids.for_each_child(|pid| {
                if pid != launcher && Some(pid) != self.reader && process::is_running_child(pid) {
                    survivors.push(pid.as_raw());
                }
            });
            if survivors.is_empty() {
                return;
            }
            if Instant::now() >= end {
                let count = survivors.len();
                survivors.truncate(crate::launcher::MAX_NAMED);
                tracing::error!(
                    count,
                    pids = ?survivors,
                    "processes of the worker outlive the launcher and the broker, and may hold listeners: the broker has \
                     no permission to end them. End them before portreeved is started again"
                );
                return;
            }
            sleep(PAUSE).await;
        }
    }
}
