//! The launchers of brokers that have ended: their workers may still run for worker.orphan_timeout and worker.stop_timeout,
//! and hold the endpoints of the configuration meanwhile. The next broker waits for them: there is one worker at a time.
//!
//! Promises: only processes of the worker's user with the launcher's name are waited for, and only for a
//! limited time: a worker that imitates a launcher delays the next start by that time at most.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::unistd::Uid;

use super::PROCESS_NAME;
use crate::sys::{poll, process};

/// The pause between two attempts to bind an endpoint that a former worker holds, and between two looks at its launcher.
const PAUSE: Duration = Duration::from_millis(20);
/// How long the sockets of processes that were killed together with a broker may take to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Launchers whose broker has ended.
#[derive(Debug, Default)]
pub struct FormerLaunchers {
    /// Their process ids and handles.
    running: Vec<(u32, OwnedFd)>,
    /// The user of their workers; `None` if nothing is to be waited for.
    user: Option<Uid>,
    /// How long to wait for them.
    timeout: Duration,
    /// The end of the wait for them, from its beginning on.
    end: Option<Instant>,
    /// The end of the wait for sockets of processes that have ended, from its beginning on.
    closed_by: Option<Instant>,
}

impl FormerLaunchers {
    /// Finds the launchers of workers of this user whose parent is not a broker. `timeout` limits the later wait for them. The
    /// launcher of a worker of root cannot be told from a broker, so there is no wait for it.
    pub fn find(user: Uid, timeout: Duration) -> Self {
        if user.is_root() {
            return Self::default();
        }
        Self { running: find_all(user), user: Some(user), timeout, ..Self::default() }
    }

    /// After a failure to bind an endpoint that is in use: whether to try again. Waits a moment, if so.
    pub fn may_release(&mut self, endpoint: &str) -> bool {
        let now = Instant::now();
        self.running.retain(|(_, handle)| is_running(handle));
        if self.running.is_empty() && self.end.is_none() {
            // A broker that was killed a moment ago may still have been the launcher's parent.
            self.running = self.user.map(find_all).unwrap_or_default();
        }
        let end = if self.running.is_empty() {
            *self.closed_by.get_or_insert(now + CLOSE_TIMEOUT)
        } else {
            let timeout = self.timeout;
            let launchers = self.pids();
            *self.end.get_or_insert_with(|| {
                tracing::warn!(
                    endpoint,
                    launchers,
                    ?timeout,
                    "waiting for an endpoint: the worker of a broker that has ended may hold it until it ends, too"
                );
                now + timeout
            })
        };
        let wait = now < end;
        if wait {
            std::thread::sleep(PAUSE);
        }
        wait
    }

    /// What to add to the failure to bind an endpoint after the wait for them; empty if none runs.
    pub fn remark(&self) -> String {
        if self.running.is_empty() {
            return String::new();
        }
        format!(
            "; the worker of a broker that has ended still runs after {:?} (its launcher is process {})",
            self.timeout,
            self.pids()
        )
    }

    /// Waits until they have ended, for a limited time.
    pub async fn ended(mut self) {
        if self.running.is_empty() {
            return;
        }
        tracing::info!(launchers = self.pids(), "waiting for the worker of a broker that has ended");
        let end = self.end.unwrap_or_else(|| Instant::now() + self.timeout);
        loop {
            self.running.retain(|(_, handle)| is_running(handle));
            if self.running.is_empty() {
                tracing::info!("the worker of the ended broker has ended");
                return;
            }
            if Instant::now() >= end {
                tracing::warn!(
                    launchers = self.pids(),
                    "the worker of a broker that has ended does not end in time; it runs beside the new one until it does"
                );
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn pids(&self) -> String {
        let pids: Vec<String> = self.running.iter().map(|(pid, _)| pid.to_string()).collect();
        pids.join(" ")
    }
}

fn find_all(user: Uid) -> Vec<(u32, OwnedFd)> {
    let broker = process::Description::of(std::process::id()).map(|own| own.name).unwrap_or_default();
    process::ids().filter_map(|pid| Some((pid, find(pid, user, &broker)?))).collect()
}

/// The handle of this process, if it is a launcher of a worker of this user and its parent is not a broker, which has the name of
/// the broker's program.
fn find(pid: u32, user: Uid, broker: &str) -> Option<OwnedFd> {
    let is_launcher = || {
        let process = process::Description::of(pid)?;
        let is = Some(process.name.as_str()) == PROCESS_NAME.to_str().ok();
        let of_user = process.users == [user.as_raw(); 3];
        let parent = process::Description::of(process.parent);
        (is && of_user && parent.is_none_or(|parent| parent.name != broker)).then_some(())
    };
    is_launcher()?;
    let handle = process::handle(pid).ok()?;
    // The number may have been used again before the handle was opened.
    is_launcher().map(|()| handle)
}

fn is_running(handle: &OwnedFd) -> bool {
    !poll::readable(handle, Duration::ZERO).unwrap_or(true)
}
