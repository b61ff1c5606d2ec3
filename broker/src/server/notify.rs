//! What the service manager is told: READY=1, RELOADING=1, STOPPING=1, and WATCHDOG=1 as long as the broker serves;
//! descriptors to store; MAINPID= when another process is the service. See sd_notify(3) and sd_watchdog_enabled(3).

use std::cell::Cell;
use std::convert::Infallible;
use std::io::IoSlice;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, RawFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, send, sendmsg};
use nix::time::{ClockId, clock_gettime};

use crate::failure::Failure;

/// The service manager's socket, connected before there is an empty root; none where nobody asked.
#[derive(Debug)]
pub struct Notifier {
    socket: Option<UnixDatagram>,
    /// After so long without a sign of life the service manager ends this process.
    watchdog: Option<Duration>,
    /// Another process is the service now.
    handed_over: Cell<bool>,
    /// How many descriptors it stores.
    store: u32,
    /// It was told that the broker serves.
    ready: Cell<bool>,
}

impl Notifier {
    /// Connects to the socket that NOTIFY_SOCKET names, and forgets the name.
    pub fn connect() -> Result<Self, Failure> {
        let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
            return Ok(Self {
                socket: None,
                watchdog: None,
                handed_over: Cell::new(false),
                ready: Cell::new(false),
                store: 0,
            });
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
            Failure::os("notify", &format!("connecting to NOTIFY_SOCKET {path:?}"), error)
        })?;
        let store = std::env::var("FDSTORE").ok().and_then(|most| most.parse().ok()).unwrap_or(0);
        Ok(Self {
            socket: Some(socket),
            watchdog: watchdog(),
            handed_over: Cell::new(false),
            ready: Cell::new(false),
            store,
        })
    }

    /// The broker serves.
    pub fn ready(&self) {
        self.tell("READY=1");
        self.ready.set(true);
        tracing::info!("ready");
    }

    /// The configuration is being read again, for Type=notify-reload of systemd.service(5).
    pub fn reloading(&self) {
        if self.ready.get() {
            let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
            self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={}", now.as_micros()));
        }
    }

    /// It was read, and is in force or refused: either way the broker serves.
    pub fn reloaded(&self) {
        if self.ready.get() {
            self.tell("READY=1");
        }
    }

    /// The broker is about to end.
    pub fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    /// Gives signs of life, twice as often as they are wanted, for as long as it is polled: a loop that hangs gives
    /// none. A service manager that does not read them is not waited for.
    pub async fn keep_alive(&self) -> Infallible {
        let (Some(socket), Some(watchdog)) = (&self.socket, self.watchdog) else {
            return std::future::pending().await;
        };
        let mut ticks = tokio::time::interval(watchdog / 2);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if self.handed_over.get() {
                return std::future::pending().await;
            }
            if let Err(error) = send(socket.as_raw_fd(), b"WATCHDOG=1", MsgFlags::MSG_DONTWAIT) {
                tracing::warn!(%error, "the service manager could not be given a sign of life");
            }
        }
    }

    /// Takes the service manager's socket from the broker before, unless there is one of this broker's own.
    pub fn succeed(&mut self, socket: UnixDatagram, watchdog: Duration, store: u32) {
        if self.socket.is_none() {
            self.store = store;
            self.socket = Some(socket);
            self.watchdog = Some(watchdog).filter(|watchdog| !watchdog.is_zero());
        }
    }

    /// The service is another process from now on; nothing more is told by this one.
    pub fn hand_over(&self, pid: u32) {
        if pid != 0 {
            self.tell(&format!("MAINPID={pid}"));
        }
        self.handed_over.set(true);
    }

    /// How many descriptors the service manager stores for this service. See FileDescriptorStoreMax= in
    /// systemd.service(5); a service manager that does not set FDSTORE is not asked to.
    pub fn store(&self) -> usize {
        usize::try_from(self.store).unwrap_or(usize::MAX)
    }

    /// The service manager's socket.
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(|socket| socket.as_fd())
    }

    /// Within how many microseconds it wants a sign of life; 0 where it wants none.
    pub fn watchdog_us(&self) -> u64 {
        self.watchdog.map_or(0, |watchdog| u64::try_from(watchdog.as_micros()).unwrap_or(u64::MAX))
    }

    /// Tells something with descriptors, now or not at all.
    ///
    /// # Errors
    /// As sendmsg(2); EAGAIN while the service manager does not read.
    pub fn send(&self, state: &str, descriptors: &[BorrowedFd<'_>]) -> nix::Result<()> {
        let Some(socket) = self.socket.as_ref().filter(|_| !self.handed_over.get()) else {
            return Ok(());
        };
        let raw: Vec<RawFd> = descriptors.iter().map(|descriptor| descriptor.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(state.as_bytes())], control, flags, None).map(drop)
    }

    fn tell(&self, state: &str) {
        if self.handed_over.get() {
            return;
        }
        if let Some(Err(error)) = self.socket.as_ref().map(|socket| socket.send(state.as_bytes())) {
            tracing::warn!(%error, state, "the service manager could not be told");
        }
    }
}

/// WATCHDOG_USEC, in microseconds, unless WATCHDOG_PID says that it is meant for another process.
fn watchdog() -> Option<Duration> {
    let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
    let meant = std::env::var_os("WATCHDOG_PID").is_none()
        || number("WATCHDOG_PID") == Some(u64::from(std::process::id()));
    number("WATCHDOG_USEC").filter(|length| meant && *length > 1).map(Duration::from_micros)
}
