//! Messages to the service manager: READY=1, RELOADING=1, STOPPING=1, STATUS=, WATCHDOG=1 while the broker serves, MAINPID= after a
//! takeover, and descriptors to store. See sd_notify(3) and sd_watchdog_enabled(3).
//!
//! Promises: no call waits for a service manager that does not read. Messages for which it has no room wait in a queue, in
//! order, and nothing is sent past them. Only the messages that are still true wait: at most one WATCHDOG=1 and one
//! STATUS=, and of several reloads the last one. So the queue is short, however long the service manager does not read.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use nix::errno::Errno;
use tokio::sync::Notify;

use crate::failure::Failure;
use crate::log;
use crate::sys::{clock, socket, sockopt};

/// The pause before another attempt to send a message for which the service manager had no room.
pub const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// How long the end of the broker waits for the service manager to read.
pub const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

const READY: &str = "READY=1";
const RELOADING: &str = "RELOADING=1\n";
const STATUS: &str = "STATUS=";
const WATCHDOG: &str = "WATCHDOG=1";

/// The service manager's socket, connected before the broker enters its empty root. Without NOTIFY_SOCKET nothing is
/// sent.
#[derive(Debug)]
pub struct Notifier {
    socket: Option<UnixDatagram>,
    /// The service manager ends this process after this time without WATCHDOG=1.
    watchdog: Option<Duration>,
    /// The successor's process is the service now.
    replaced: Cell<bool>,
    /// How many descriptors the service manager stores.
    fdstore: u32,
    /// READY=1 was sent.
    ready: Cell<bool>,
    /// Gets a newline when the broker serves: the readiness notification of s6.
    ready_descriptor: RefCell<Option<OwnedFd>>,
    /// The last STATUS=.
    shown: RefCell<String>,
    /// The messages for which the service manager had no room.
    waiting: RefCell<VecDeque<String>>,
    added: Notify,
    /// A line in the log says that the service manager does not read.
    warned: Cell<bool>,
}

impl Notifier {
    fn new(
        socket: Option<UnixDatagram>,
        watchdog: Option<Duration>,
        fdstore: u32,
        ready_descriptor: Option<OwnedFd>,
    ) -> Self {
        Self {
            socket,
            watchdog,
            replaced: Cell::new(false),
            fdstore,
            ready: Cell::new(false),
            ready_descriptor: RefCell::new(ready_descriptor),
            shown: RefCell::default(),
            waiting: RefCell::default(),
            added: Notify::new(),
            warned: Cell::new(false),
        }
    }

    /// Connects to the socket that NOTIFY_SOCKET names. A newline will be written to `ready_descriptor`.
    ///
    /// # Errors
    /// No process receives on that socket.
    pub fn connect(ready_descriptor: Option<OwnedFd>) -> Result<Self, Failure> {
        let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
            return Ok(Self::new(None, None, 0, ready_descriptor));
        };
        let connect = || {
            let text = path.as_encoded_bytes();
            let address = match text.strip_prefix(b"@") {
                Some(name) => SocketAddr::from_abstract_name(name)?,
                None => SocketAddr::from_pathname(&path)?,
            };
            let socket = UnixDatagram::unbound()?;
            socket.connect_addr(&address)?;
            Ok(socket)
        };
        let socket = connect().map_err(|error: std::io::Error| {
            Failure::os("notify", &format!("connect to NOTIFY_SOCKET {path:?}"), error)
        })?;
        let fdstore = std::env::var("FDSTORE").ok().and_then(|count| count.parse().ok()).unwrap_or(0);
        Ok(Self::new(Some(socket), watchdog(), fdstore, ready_descriptor))
    }

    /// Reports that the broker serves, and its state.
    pub fn ready(&self, state: String) {
        self.notify(READY.to_owned());
        self.ready.set(true);
        self.show(state);
        if let Some(descriptor) = self.ready_descriptor.take()
            && let Err(errno) = nix::unistd::write(&descriptor, b"\n")
        {
            tracing::warn!(%errno, "cannot write to the descriptor of --notify-fd");
        }
        log::started();
        tracing::info!("ready");
    }

    /// Reports the state of the broker in one line, which systemctl status shows, if it has changed.
    pub fn show(&self, state: String) {
        if self.ready.get() && *self.shown.borrow() != state {
            self.notify(format!("{STATUS}{state}"));
            self.shown.replace(state);
        }
    }

    /// Reports that a reload of the configuration begins, for Type=notify-reload of systemd.service(5).
    pub fn reloading(&self) {
        if self.ready.get() {
            let now = clock::monotonic().as_micros();
            self.notify(format!("{RELOADING}MONOTONIC_USEC={now}"));
        }
    }

    /// Reports that a reload has ended, whether the new configuration was accepted or not.
    pub fn reloaded(&self, state: String) {
        if self.ready.get() {
            self.notify(READY.to_owned());
            self.show(state);
        }
    }

    /// Reports that the broker begins to stop.
    pub fn stopping(&self) {
        self.notify("STOPPING=1".to_owned());
        self.show("stopping".to_owned());
    }

    /// Sends WATCHDOG=1 twice in each watchdog interval for as long as it is polled, so a main loop that hangs sends none. It
    /// does not wait for a service manager that does not read.
    pub async fn keep_alive(&self) -> Infallible {
        let Some(watchdog) = self.watchdog.filter(|_| self.socket.is_some()) else {
            return std::future::pending().await;
        };
        let mut ticks = tokio::time::interval(watchdog / 2);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if self.replaced.get() {
                return std::future::pending().await;
            }
            self.notify(WATCHDOG.to_owned());
        }
    }

    /// Sends the waiting messages as soon as the service manager has room, for as long as it is polled.
    pub async fn send_waiting(&self) -> Infallible {
        loop {
            self.flushed().await;
            self.added.notified().await;
        }
    }

    /// Sends the waiting messages, and waits for the service manager at most [`FLUSH_TIMEOUT`].
    pub async fn flush_at_end(&self) {
        if tokio::time::timeout(FLUSH_TIMEOUT, self.flushed()).await.is_err() {
            let lost: Vec<String> = self.waiting.take().into();
            tracing::warn!(
                messages = lost.join(" "),
                "the service manager does not read its notification socket: messages are lost"
            );
        }
    }

    async fn flushed(&self) {
        while !self.try_flush() {
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// Sends waiting messages; returns whether none remains.
    fn try_flush(&self) -> bool {
        let mut waiting = self.waiting.borrow_mut();
        let Some(manager) = &self.socket else { return true };
        while let Some(message) = waiting.front() {
            match socket::send_with_descriptors(manager, message.as_bytes(), &[]) {
                Ok(()) => self.warned.set(false),
                Err(errno) if is_full(errno) => return false,
                Err(error) if message.starts_with(STATUS) => {
                    tracing::debug!(%error, "cannot show the state to the service manager");
                }
                Err(error) => {
                    tracing::warn!(%error, messages = message, "cannot notify the service manager");
                }
            }
            waiting.pop_front();
        }
        true
    }

    /// Adopts the predecessor's connection to the service manager, unless this broker has its own.
    pub fn adopt(&mut self, socket: UnixDatagram, watchdog: Duration, fdstore: u32) {
        if self.socket.is_none() {
            self.fdstore = fdstore;
            self.socket = Some(socket);
            self.watchdog = Some(watchdog).filter(|watchdog| !watchdog.is_zero());
        }
    }

    /// Tells the service manager that the successor's process is the service, and sends nothing more.
    pub fn set_main_process(&self, pid: u32) {
        if pid != 0 {
            self.notify(format!("MAINPID={pid}"));
        }
        self.replaced.set(true);
    }

    /// How many descriptors the service manager stores for this service: FileDescriptorStoreMax= of systemd.service(5),
    /// from the environment variable FDSTORE.
    pub fn fdstore_capacity(&self) -> usize {
        usize::try_from(self.fdstore).unwrap_or(usize::MAX)
    }

    /// The service manager's socket.
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(|socket| socket.as_fd())
    }

    /// The watchdog interval in microseconds; 0 without a watchdog.
    pub fn watchdog_us(&self) -> u64 {
        self.watchdog.map_or(0, |watchdog| u64::try_from(watchdog.as_micros()).unwrap_or(u64::MAX))
    }

    /// Sends a message with descriptors, and does not wait.
    ///
    /// # Errors
    /// EAGAIN while the service manager does not read, or other messages wait for it; others as sendmsg(2).
    pub fn send(&self, message: &str, descriptors: &[BorrowedFd<'_>]) -> nix::Result<()> {
        let Some(manager) = self.socket.as_ref().filter(|_| !self.replaced.get()) else { return Ok(()) };
        match self.try_flush() {
            true => socket::send_with_descriptors(manager, message.as_bytes(), descriptors),
            false => Err(Errno::EAGAIN),
        }
    }

    /// Whether messages wait for the service manager to read them.
    pub fn has_unread_messages(&self) -> bool {
        self.socket.as_ref().is_some_and(|manager| sockopt::has_unread_packets(manager).unwrap_or(false))
    }

    /// Sends a message after those that wait, at once if there is room.
    fn notify(&self, message: String) {
        if self.socket.is_none() || self.replaced.get() {
            return;
        }
        enqueue(&mut self.waiting.borrow_mut(), message);
        if !self.try_flush() {
            if !self.warned.replace(true) {
                tracing::warn!(
                    "the service manager does not read its notification socket: messages wait until it does"
                );
            }
            self.added.notify_one();
        }
    }
}

/// Whether the error means that the service manager has no room for another message.
pub fn is_full(errno: Errno) -> bool {
    matches!(errno, Errno::EAGAIN | Errno::ENOBUFS | Errno::ETOOMANYREFS)
}

/// Adds a message to those that wait. An earlier reload that has ended need not be reported after a later one.
fn enqueue(waiting: &mut VecDeque<String>, message: String) {
    if message == WATCHDOG && waiting.contains(&message) {
        return;
    }
    if message.starts_with(STATUS) {
        waiting.retain(|other| !other.starts_with(STATUS));
    }
    if message.starts_with(RELOADING)
        && let Some(at) = waiting.iter().position(|other| other.starts_with(RELOADING))
    {
        waiting.remove(at);
        if let Some(end) = waiting.iter().skip(at).position(|other| other == READY) {
            waiting.remove(at + end);
        }
    }
    waiting.push_back(message);
}

/// The interval of WATCHDOG_USEC, unless WATCHDOG_PID names another process.
fn watchdog() -> Option<Duration> {
    let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
    let is_for_this_process = std::env::var_os("WATCHDOG_PID").is_none()
        || number("WATCHDOG_PID") == Some(u64::from(std::process::id()));
    number("WATCHDOG_USEC").filter(|length| is_for_this_process && *length > 1).map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_keeps_the_order_and_only_what_is_still_true() {
        let mut waiting = VecDeque::new();
        let reload = |time: u32| format!("{RELOADING}MONOTONIC_USEC={time}");
        enqueue(&mut waiting, READY.to_owned());
        for time in 1..1000 {
            enqueue(&mut waiting, WATCHDOG.to_owned());
            enqueue(&mut waiting, reload(time));
            enqueue(&mut waiting, READY.to_owned());
            enqueue(&mut waiting, format!("{STATUS}{time}"));
        }
        enqueue(&mut waiting, "STOPPING=1".to_owned());
        assert_eq!(waiting, [READY, WATCHDOG, &reload(999), READY, "STATUS=999", "STOPPING=1"]);
    }
}
