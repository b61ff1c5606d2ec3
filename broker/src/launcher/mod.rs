//! The broker's side of the launcher. The launcher is forked before the broker confines itself, and starts and signals
//! the worker, because a confined broker cannot.

mod command;
mod message;
mod process;
pub mod program;
mod spawn;

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixDatagram;

use nix::unistd::Pid;
use portreeve_protocol::channel::{self, ReceiveError};
use portreeve_protocol::frame::MAX_DESCRIPTORS;
use portreeve_protocol::status::Credentials;
use tokio::io::Interest;

pub use self::command::{Command, ProgramName};
pub use self::message::{Ending, Report};

use crate::child_process;
use crate::confine::descriptors;
use crate::confine::verify::ProcStatus;
use crate::confine::worker::Confinement;
use crate::failure::Failure;
use crate::inject;
use crate::sys;

const STEP: &str = "launcher";

/// The launcher's process and the channel to it.
#[derive(Debug)]
pub struct Launcher {
    /// Its process id.
    pub pid: Pid,
    /// Its credentials as read from the kernel; every worker inherits exactly these.
    pub credentials: Credentials,
    channel: UnixDatagram,
}

/// Forks the launcher, waits until it has confined itself, and verifies that with the kernel.
pub fn start(confinement: Confinement, command: Command) -> Result<Launcher, Failure> {
    let name = command.name.clone();
    inject::point("launcher.channel")?;
    let (ours, theirs) = channel::pair().map_err(|error| Failure::os(STEP, "socketpair", error))?;
    inject::point("launcher.fork")?;
    let expected = confinement.expected();
    let child = sys::process::fork(move || {
        let keep = [theirs.as_fd(), command.program.as_fd()];
        let root = confinement.root.as_ref().map(|root| root.as_fd());
        descriptors::close_all_but(keep.into_iter().chain(root));
        // The broker reports the error; the launcher only ends.
        i32::from(process::run(theirs, confinement, command).is_err())
    });
    let child = child.map_err(|error| Failure::os(STEP, "fork", error))?;
    inject::point("launcher.answer")?;
    await_confined(&ours, &name)?;
    inject::point("launcher.verify")?;
    let status = ProcStatus::open(&child.to_string())?;
    status.expect_one_thread("launcher")?;
    let credentials = status.expect("launcher", &expected)?;
    Ok(Launcher { pid: child, credentials, channel: ours })
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
}

impl Launcher {
    /// Registers the channel with the runtime.
    pub fn into_handle(self) -> io::Result<Handle> {
        Ok(Handle { channel: tokio::net::UnixDatagram::from_std(self.channel)? })
    }
}

impl Handle {
    async fn order(&self, order: &message::Order, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let packet = message::packet(order, descriptors.len())?;
        let channel = self.channel.as_fd().try_clone_to_owned()?.into();
        self.channel.async_io(Interest::WRITABLE, || channel::send(&channel, &packet, descriptors)).await
    }

    /// Orders a worker to be started with these listeners, their names, and its channel.
    pub async fn spawn(
        &self,
        names: Vec<String>,
        listeners: &[BorrowedFd<'_>],
        channel: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let mut descriptors = listeners.to_vec();
        descriptors.push(channel);
        let mut chunks = descriptors.chunks(MAX_DESCRIPTORS).peekable();
        let mut names = Some(names);
        while let Some(chunk) = chunks.next() {
            let order = match chunks.peek() {
                Some(_) => message::Order::Store,
                None => message::Order::Spawn { names: names.take().unwrap_or_default() },
            };
            self.order(&order, chunk).await?;
        }
        Ok(())
    }

    /// Orders a signal to be sent to the worker.
    pub async fn signal(&self, signal: nix::sys::signal::Signal) -> io::Result<()> {
        self.order(&message::Order::Signal(signal as i32), &[]).await
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
