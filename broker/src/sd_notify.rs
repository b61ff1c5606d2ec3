//! Messages to the service manager: READY=1, RELOADING=1, STOPPING=1, WATCHDOG=1 while the broker serves, MAINPID= after a
//! takeover, and descriptors to store. See sd_notify(3) and sd_watchdog_enabled(3).

use std::cell::Cell;
use std::convert::Infallible;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use crate::failure::Failure;
use crate::sys::{clock, socket};

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
}

impl Notifier {
    fn new(socket: Option<UnixDatagram>, watchdog: Option<Duration>, fdstore: u32) -> Self {
        Self { socket, watchdog, replaced: Cell::new(false), fdstore, ready: Cell::new(false) }
    }

    /// Connects to the socket that NOTIFY_SOCKET names.
    ///
    /// # Errors
    /// No process receives on that socket.
    pub fn connect() -> Result<Self, Failure> {
        let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
            return Ok(Self::new(None, None, 0));
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
        Ok(Self::new(Some(socket), watchdog(), fdstore))
    }

    /// Reports that the broker serves.
    pub fn ready(&self) {
        self.notify("READY=1");
        self.ready.set(true);
        tracing::info!("ready");
    }

    /// Reports that a reload of the configuration begins, for Type=notify-reload of systemd.service(5).
    pub fn reloading(&self) {
        if self.ready.get() {
            let now = clock::monotonic().as_micros();
            self.notify(&format!("RELOADING=1\nMONOTONIC_USEC={now}"));
        }
    }

    /// Reports that a reload has ended, whether the new configuration was accepted or not.
    pub fn reloaded(&self) {
        if self.ready.get() {
            self.notify("READY=1");
        }
    }

    /// Reports that the broker begins to stop.
    pub fn stopping(&self) {
        self.notify("STOPPING=1");
    }

    /// Sends WATCHDOG=1 twice in each watchdog interval for as long as it is polled, so a main loop that hangs sends none. It
    /// does not wait for a service manager that does not read.
    pub async fn keep_alive(&self) -> Infallible {
        let (Some(manager), Some(watchdog)) = (&self.socket, self.watchdog) else {
            return std::future::pending().await;
        };
        let mut ticks = tokio::time::interval(watchdog / 2);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if self.replaced.get() {
                return std::future::pending().await;
            }
            if let Err(error) = socket::send_with_descriptors(manager, b"WATCHDOG=1", &[]) {
                tracing::warn!(%error, "cannot send WATCHDOG=1 to the service manager");
            }
        }
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
            self.notify(&format!("MAINPID={pid}"));
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
    /// EAGAIN while the service manager does not read; others as sendmsg(2).
    pub fn send(&self, message: &str, descriptors: &[BorrowedFd<'_>]) -> nix::Result<()> {
        match self.socket.as_ref().filter(|_| !self.replaced.get()) {
            Some(manager) => socket::send_with_descriptors(manager, message.as_bytes(), descriptors),
            None => Ok(()),
        }
    }

    fn notify(&self, message: &str) {
        if self.replaced.get() {
            return;
        }
        if let Some(Err(error)) = self.socket.as_ref().map(|socket| socket.send(message.as_bytes())) {
            tracing::warn!(%error, message, "cannot notify the service manager");
        }
    }
}

/// The interval of WATCHDOG_USEC, unless WATCHDOG_PID names another process.
fn watchdog() -> Option<Duration> {
    let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
    let is_for_this_process = std::env::var_os("WATCHDOG_PID").is_none()
        || number("WATCHDOG_PID") == Some(u64::from(std::process::id()));
    number("WATCHDOG_USEC").filter(|length| is_for_this_process && *length > 1).map(Duration::from_micros)
}
