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
use crate::sys::children::Children;
use crate::sys::wait;

/// The pause between two looks at children that are ending.
const PAUSE: Duration = Duration::from_millis(20);
/// How many pauses the task of the reader has to reap it, which then reports how the reader ended.
const READER_PAUSES: u32 = 50;

/// Reaps the broker's children.
pub struct Reaper {
    ended: Signal,
    /// The reader, which its own task reaps.
    reader: Option<Pid>,
    children: Children,
}

impl Reaper {
    /// Begins to catch SIGCHLD.
    pub fn new(reader: Option<Pid>, children: Children) -> Result<Self, Failure> {
        let ended =
            signal(SignalKind::child()).map_err(|error| Failure::os("signals", "sigaction", error))?;
        Ok(Self { ended, reader, children })
    }

    /// Reaps each child that ends.
    pub async fn run(&mut self) -> Infallible {
        loop {
            self.reap().await; // first, for those that ended before the signal was caught
            let _ = self.ended.recv().await; // the stream of a signal does not end
        }
    }

    /// Waits until the reader and the launcher, whose channels are closed, have ended.
    pub async fn await_end(&mut self, launcher: Option<Pid>) {
        let ended = async {
            for child in self.reader.into_iter().chain(launcher) {
                while wait::is_running_child(child) {
                    let _ = self.ended.recv().await; // the stream of a signal does not end
                }
                let _ = wait::wait_for_exit(child); // its own task may have reaped it
            }
        };
        let _ = timeout(EXIT_TIMEOUT, ended).await; // otherwise they are killed with the broker
    }

    async fn reap(&self) {
        let mut pauses = 0;
        while let Some(pid) = wait::ended_child() {
            if Some(pid) == self.reader && pauses < READER_PAUSES {
                pauses += 1;
                sleep(PAUSE).await;
                continue;
            }
            let _ = wait::wait_for_exit(pid); // its own task may have reaped it
            // Orphans may end faster than they can be reaped.
            tokio::task::yield_now().await;
        }
    }

    /// After the launcher was lost: waits a moment for it and for the processes of the worker to end, and logs those that do
    /// not. The kernel has killed the worker itself, unless the worker has undone that, and the broker may signal none of
    /// them. The launcher may still be ending; once it has ended, its children are those of the broker.
    pub async fn log_survivors_of_launcher(&self) {
        let end = Instant::now() + EXIT_TIMEOUT;
        loop {
            let _ = timeout(PAUSE, self.reap()).await; // the others are reaped in the next round
            let mut survivors = Vec::new();
            self.children.for_each(|pid| {
                if Some(pid) != self.reader && wait::is_running_child(pid) {
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
