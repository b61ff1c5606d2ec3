//! The broker's side of the launcher. The launcher is forked before the broker confines itself, and starts and signals
//! the worker, because a confined broker cannot.

mod command;
mod former;
mod message;
mod process;
pub mod program;
mod spawn;
mod supervisor;

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::rc::Rc;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use portreeve_protocol::channel::{self, ReceiveError};
use portreeve_protocol::frame::MAX_DESCRIPTORS;
use portreeve_protocol::status::Credentials;
use tokio::io::Interest;

pub use self::command::{Command, ProgramName};
pub use self::former::FormerLaunchers;
pub use self::message::{MAX_NAMED, Report};

use std::time::Duration;

use crate::child_process;
use crate::confine::verify::ProcStatus;
use crate::confine::worker::Confinement;
use crate::confine::{descriptors, user_namespace};
use crate::failure::Failure;
use crate::in_flight_limit::{InFlightLimit, Pauses};
use crate::inject;
use crate::sys;

const STEP: &str = "launcher";
/// The name of the launcher's process, and that of the worker's until its program runs.
const PROCESS_NAME: &CStr = c"(pr-launcher)";
const WORKER_NAME: &CStr = c"(pr-worker)";
/// The name of the supervisor of a worker's bind(2).
const SUPERVISOR_NAME: &CStr = c"(pr-supervisor)";

/// What the launcher does with the worker and its descendants when the broker ends.
#[derive(Clone, Copy, Debug)]
pub struct Orphans {
    /// worker.orphan_timeout
    pub orphan_timeout: Duration,
    /// worker.stop_signal
    pub stop_signal: Signal,
    /// worker.stop_timeout
    pub stop_timeout: Duration,
}

/// The launcher's process and the channel to it.
#[derive(Debug)]
pub struct Launcher {
    /// Its process id.
    pub pid: Pid,
    /// Its credentials as read from the kernel; every worker inherits exactly these.
    pub credentials: Credentials,
    /// Its other restrictions, which every worker inherits too.
    pub locks: Vec<String>,
    channel: UnixDatagram,
}

/// Forks the launcher, waits until it has confined itself, and verifies that with the kernel.
pub fn start(confinement: Confinement, command: Command, orphans: Orphans) -> Result<Launcher, Failure> {
    let name = command.name.clone();
    inject::point("launcher.channel")?;
    let (ours, theirs) = channel::pair().map_err(|error| Failure::os(STEP, "socketpair", error))?;
    inject::point("launcher.fork")?;
    let (expected, locks, namespace) =
        (confinement.expected(), confinement.locks(), confinement.identity.namespace);
    let child = sys::process::fork(move || {
        sys::process::set_name(PROCESS_NAME);
        let keep = [theirs.as_fd(), command.program.as_fd()];
        let root = confinement.root.as_ref().map(|root| root.as_fd());
        descriptors::close_all_but(keep.into_iter().chain(root));
        // The broker reports the error; the launcher only ends.
        i32::from(process::run(theirs, confinement, command, orphans).is_err())
    });
    let child = child.map_err(|error| Failure::os(STEP, "fork", error))?;
    inject::point("launcher.answer")?;
    await_confined(&ours, &name)?;
    inject::point("launcher.verify")?;
    let status = ProcStatus::open(&child.to_string())?;
    status.expect_one_thread("launcher")?;
    let credentials = status.expect("launcher", &expected)?;
    namespace.map_or(Ok(()), |range| user_namespace::verify(&child.to_string(), range))?;
    Ok(Launcher { pid: child, credentials, locks, channel: ours })
}

fn await_confined(channel: &UnixDatagram, program: &ProgramName) -> Result<(), Failure> {
    child_process::await_first_message(STEP, channel)?;
    match message::receive_report(channel) {
        Ok(Report::Confined) => Ok(()),
        Ok(Report::NotSpawned { errno }) => Err(program.not_executable(errno)),
        Ok(Report::NotConfined(failure)) => Err(Failure::of_child(STEP, &failure)),
        Ok(other) => Err(Failure::os(STEP, "confining itself", format_args!("it reported {other:?}"))),
        Err(error) => Err(Failure::os(STEP, "confining itself", error)),
    }
}

/// The launcher of a serving broker: orders and reports are sent and received without blocking.
#[derive(Debug)]
pub struct Handle {
    channel: tokio::net::UnixDatagram,
    in_flight_limit: Rc<InFlightLimit>,
}

impl Launcher {
    /// Registers the channel with the runtime.
    pub fn into_handle(self, in_flight_limit: Rc<InFlightLimit>) -> io::Result<Handle> {
        Ok(Handle { channel: tokio::net::UnixDatagram::from_std(self.channel)?, in_flight_limit })
    }
}

impl Handle {
    /// Sends an order, however long the kernel refuses to send its descriptors. Nothing was sent if the call is cancelled.
    async fn order(&self, order: &message::Order, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let packet = message::packet(order, descriptors.len())?;
        let mut pauses = Pauses::default();
        loop {
            // Not `channel::send`, which needs a copy of the channel's descriptor: there may be no room for one.
            let send = || Ok(sys::socket::send_with_descriptors(&self.channel, &packet, descriptors)?);
            match self.channel.async_io(Interest::WRITABLE, send).await {
                Err(error) if channel::exceeds_in_flight_limit(&error) => {
                    self.in_flight_limit.refused();
                    pauses.next().await;
                }
                result => {
                    if result.is_ok() && !descriptors.is_empty() {
                        self.in_flight_limit.sent();
                    }
                    return result;
                }
            }
        }
    }

    /// Whether the launcher has ended, or is about to: its end of the channel is closed.
    pub fn is_lost(&self) -> bool {
        // A channel that cannot be polled is as lost.
        sys::poll::hung_up(&self.channel).unwrap_or(true)
    }

    /// Orders a worker to be started with these listeners, their names and backlogs, the one of them that is its standard input,
    /// and its channel.
    pub async fn spawn(
        &self,
        names: Vec<String>,
        backlogs: Vec<Option<u32>>,
        stdin: Option<u32>,
        listeners: &[BorrowedFd<'_>],
        channel: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let mut descriptors = listeners.to_vec();
        descriptors.push(channel);
        let mut chunks = descriptors.chunks(MAX_DESCRIPTORS).peekable();
        let mut attributes = Some((names, backlogs));
        while let Some(chunk) = chunks.next() {
            let order = match chunks.peek() {
                Some(_) => message::Order::Store,
                None => {
                    let (names, backlogs) = attributes.take().unwrap_or_default();
                    message::Order::Spawn { names, backlogs, stdin }
                }
            };
            self.order(&order, chunk).await?;
        }
        Ok(())
    }

    /// Orders a signal to be sent to the worker.
    pub async fn signal(&self, signal: i32) -> io::Result<()> {
        self.order(&message::Order::Signal { signal }, &[]).await
    }

    /// Orders the worker, and the processes that workers have left, to be ended; by SIGKILL after the timeout.
    pub async fn end_all(&self, timeout: Duration) -> io::Result<()> {
        let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        self.order(&message::Order::EndAll { timeout_ms }, &[]).await
    }

    /// The next report; [`ReceiveError::Closed`] when the launcher has ended.
    pub async fn report(&self) -> Result<Report, ReceiveError> {
        let received = self
            .channel
            .async_io(Interest::READABLE, || match message::receive_report(&self.channel) {
                Err(ReceiveError::Os(error)) => Err(error),
                other => Ok(other),
            })
            .await;
        received.unwrap_or_else(|error| Err(ReceiveError::Os(error)))
    }
}
