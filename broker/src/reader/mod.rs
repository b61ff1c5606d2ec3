//! The broker's side of the reader. The reader is forked before the broker confines itself, and reads the configuration
//! for a reload, because a confined broker cannot.
//!
//! The order has no arguments: the configuration alone determines which files are read, so a compromised broker cannot
//! read other files through it. The broker itself parses and checks the result, confined.

mod accounts;
mod message;
mod process;

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;
use portreeve_protocol::channel::{self, ReceiveError, receive_bytes};
use portreeve_protocol::codec;
use portreeve_protocol::status::Credentials;
use tokio::io::Interest;

use crate::child_process;
use crate::config::{Bundle, Config};
use crate::confine::descriptors;
use crate::confine::reader::Confinement;
use crate::confine::verify::ProcStatus;
use crate::failure::Failure;
use crate::inject;
use crate::sys;

pub use accounts::DIRECTORY as ACCOUNTS;
pub use message::{Collector, Garbled};

const STEP: &str = "reader";

/// The reader's process and the channel to it.
#[derive(Debug)]
pub struct Reader {
    /// Its process id.
    pub pid: Pid,
    /// Its credentials as read from the kernel.
    pub credentials: Credentials,
    /// Its other restrictions, one line each.
    pub locks: Vec<String>,
    channel: UnixDatagram,
}

/// The directories below which the reader can read: those of the configuration's files, both as written and with links
/// resolved, and the directory of the account files.
pub fn directories(bundle: &Bundle) -> Vec<PathBuf> {
    let directory = |path: PathBuf| match path.is_dir() {
        true => Some(path),
        false => path.parent().map(Path::to_owned),
    };
    let named = bundle.paths().into_iter();
    let mut all: Vec<PathBuf> = named
        .flat_map(|path| [path.canonicalize().ok(), Some(path)])
        .flatten()
        .filter_map(directory)
        .chain(accounts::directories())
        .collect();
    all.sort();
    all.dedup();
    all
}

/// Forks the reader, waits until it has confined itself, and verifies that with the kernel.
pub fn start(path: &Path, config: &Config, confinement: Confinement) -> Result<Reader, Failure> {
    let known = accounts::by_name_services(config);
    let expected = confinement.expected()?;
    inject::point("reader.channel")?;
    let (ours, theirs) = channel::pair().map_err(|error| Failure::os(STEP, "socketpair", error))?;
    inject::point("reader.fork")?;
    let child = sys::process::fork(|| {
        sys::process::set_name(c"(pr-reader)");
        descriptors::close_all_but([theirs.as_fd()].into_iter());
        // The broker reports the error; the reader only ends.
        i32::from(process::run(&theirs, path, &confinement, &known).is_err())
    });
    let child = child.map_err(|error| Failure::os(STEP, "fork", error))?;
    drop(theirs);
    inject::point("reader.answer")?;
    let locks = await_confined(&ours)?;
    inject::point("reader.verify")?;
    let status = ProcStatus::open(&child.to_string())?;
    status.expect_one_thread(STEP)?;
    let credentials = status.expect(STEP, &expected)?;
    Ok(Reader { pid: child, credentials, locks, channel: ours })
}

fn await_confined(channel: &UnixDatagram) -> Result<Vec<String>, Failure> {
    child_process::await_first_message(STEP, channel)?;
    match message::receive_confined(channel) {
        Ok(Ok(locks)) => Ok(locks),
        Ok(Err(failure)) => Err(Failure::of_child(STEP, &failure)),
        Err(error) => Err(Failure::os(STEP, "confining itself", error)),
    }
}

/// The reader of a serving broker.
#[derive(Debug)]
pub struct Handle {
    pid: Pid,
    channel: tokio::net::UnixDatagram,
    /// The number of the last order.
    last_order: u32,
}

/// Why reading failed.
#[derive(Debug, thiserror::Error)]
pub enum ReaderError {
    /// The reader has ended.
    #[error("the reader process has ended: it {0}")]
    Ended(String),
    /// The reader sent an invalid message.
    #[error("the reader process sent an invalid message: {0}")]
    Garbled(#[from] Garbled),
    /// The channel failed.
    #[error("cannot communicate with the reader process: {0}")]
    Channel(#[from] io::Error),
}

impl Reader {
    /// Registers the channel with the runtime.
    pub fn into_handle(self) -> io::Result<Handle> {
        Ok(Handle {
            pid: self.pid,
            channel: tokio::net::UnixDatagram::from_std(self.channel)?,
            last_order: 0,
        })
    }
}

impl Handle {
    /// Orders the configuration to be read and waits without blocking. Messages of an earlier, abandoned call are ignored.
    pub async fn read(&mut self) -> Result<Bundle, ReaderError> {
        self.last_order = self.last_order.wrapping_add(1);
        let order = message::order(self.last_order)?;
        let sent =
            self.channel.async_io(Interest::WRITABLE, || channel::send_bytes(&self.channel, &order)).await;
        match sent {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Err(self.reap()),
            other => other?,
        }
        let mut collector = Collector::new(self.last_order);
        let mut buffer = codec::frame_buffer();
        loop {
            let bytes = self.receive(|| receive_bytes(&self.channel, &mut buffer)).await?;
            if let Some(bundle) = collector.take(buffer.get(..bytes).unwrap_or_default())? {
                return Ok(bundle);
            }
            // Ten megabytes arrive in hundreds of packets.
            tokio::task::yield_now().await;
        }
    }

    /// Waits until the reader has ended. Messages of an abandoned call are ignored.
    pub async fn wait_until_ended(&self) -> ReaderError {
        loop {
            // As long as nothing arrives, there is no buffer.
            let receive = || receive_bytes(&self.channel, &mut codec::frame_buffer());
            if let Err(error) = self.receive(receive).await {
                return error;
            }
        }
    }

    async fn receive(
        &self,
        mut receive: impl FnMut() -> Result<usize, ReceiveError>,
    ) -> Result<usize, ReaderError> {
        loop {
            let received = self.channel.async_io(Interest::READABLE, || match receive() {
                Err(ReceiveError::Os(error)) => Err(error),
                other => Ok(other),
            });
            match received.await {
                Ok(Ok(bytes)) => return Ok(bytes),
                Ok(Err(ReceiveError::Closed)) => return Err(self.reap()),
                Ok(Err(error)) => return Err(Garbled(error.to_string()).into()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Reaps it and returns how it ended. Its channel closes shortly before it can be reaped.
    fn reap(&self) -> ReaderError {
        let ending = sys::wait::wait_for_exit(self.pid);
        ReaderError::Ended(ending.map_or_else(|_| "hung up".to_owned(), |ending| ending.to_string()))
    }
}
