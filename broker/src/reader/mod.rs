//! The reader, seen from the broker: forked before the broker confines itself, asked afterwards to read the
//! configuration again, because the broker no longer can.
//!
//! It is asked nothing but that: which files are read is the configuration's to say, so a broker that was taken over
//! learns no other file by it. What it sends is judged by the broker itself, in its own confinement.

mod accounts;
mod message;
mod process;

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{ForkResult, Pid, fork};
use portreeve_protocol::channel::{self, ReceiveError, receive_bare};
use portreeve_protocol::codec;
use portreeve_protocol::status::Credentials;
use tokio::io::Interest;

use crate::config::{Bundle, Config};
use crate::confine::descriptors;
use crate::confine::reader::Confinement;
use crate::confine::verify::ProcStatus;
use crate::failure::{Exit, Failure};
use crate::forked;
use crate::inject;

pub use accounts::DIRECTORY as ACCOUNTS;
pub use message::{Collector, Garbled};

const STEP: &str = "reader";

/// The reader's process and the channel to it.
#[derive(Debug)]
pub struct Reader {
    /// Its process id.
    pub pid: Pid,
    /// What the kernel says it holds.
    pub credentials: Credentials,
    /// Its other locks, a line each.
    pub locks: Vec<String>,
    channel: UnixDatagram,
}

/// The directories beneath which the reader of a configuration may read: those in which it has files, by the name that
/// it uses and by where that leads, and the one of the accounts.
pub fn directories(bundle: &Bundle) -> Vec<PathBuf> {
    let directory = |path: PathBuf| match path.is_dir() {
        true => Some(path),
        false => path.parent().map(Path::to_owned),
    };
    // A relative name begins where the broker was started.
    let named = bundle.paths().into_iter().filter_map(|path| std::path::absolute(path).ok());
    let mut all: Vec<PathBuf> = named
        .flat_map(|path| [path.canonicalize().ok(), Some(path)])
        .flatten()
        .filter_map(directory)
        .chain([ACCOUNTS.into()])
        .collect();
    all.sort();
    all.dedup();
    all
}

/// Forks the reader and waits until it has confined itself and the kernel says so.
pub fn start(path: &Path, config: &Config, confinement: Confinement) -> Result<Reader, Failure> {
    let known = accounts::by_name_services(config);
    let expected = confinement.expected();
    inject::point("reader.channel")?;
    let (ours, theirs) = channel::pair().map_err(|error| Failure::os(STEP, "socketpair", error))?;
    inject::point("reader.fork")?;
    // SAFETY: the broker has one thread this early, so the child may run on as a process of its own.
    match unsafe { fork() }.map_err(|error| Failure::os(STEP, "fork", error))? {
        ForkResult::Child => {
            descriptors::close_all_but([theirs.as_fd()].into_iter());
            // Closed above already, by number.
            std::mem::forget(ours);
            // The broker tells what went wrong; the reader only ends.
            let code = i32::from(process::run(&theirs, path, &confinement, &known).is_err());
            // SAFETY: _exit runs nothing of the broker's in this copy of it.
            unsafe { libc::_exit(code) }
        }
        ForkResult::Parent { child } => {
            drop(theirs);
            inject::point("reader.answer")?;
            let locks = await_confined(&ours)?;
            inject::point("reader.verify")?;
            let status = ProcStatus::open(&child.to_string())?;
            status.expect_one_thread(STEP)?;
            let credentials = status.expect(STEP, &expected)?;
            Ok(Reader { pid: child, credentials, locks, channel: ours })
        }
    }
}

fn await_confined(channel: &UnixDatagram) -> Result<Vec<String>, Failure> {
    forked::await_word(STEP, channel)?;
    match message::take_confined(channel) {
        Ok(Ok(locks)) => Ok(locks),
        Ok(Err(why)) => Err(Failure::new(Exit::OsError, STEP, why, "nothing was started")),
        Err(error) => Err(Failure::os(STEP, "confining itself", error)),
    }
}

/// The reader once the broker serves.
#[derive(Debug)]
pub struct Handle {
    pid: Pid,
    channel: tokio::net::UnixDatagram,
    /// How often it was asked.
    asked: u32,
}

/// Why there is nothing to read.
#[derive(Debug, thiserror::Error)]
pub enum ReaderError {
    /// It is gone, and how it ended.
    #[error("the process that reads the configuration is gone: it {0}")]
    Gone(String),
    /// What it sent makes no sense.
    #[error("the process that reads the configuration sent what nobody asked for: {0}")]
    Garbled(#[from] Garbled),
    /// The channel to it fails.
    #[error("the process that reads the configuration cannot be asked: {0}")]
    Channel(#[from] io::Error),
}

impl Reader {
    /// Hands the channel to the runtime.
    pub fn into_handle(self) -> io::Result<Handle> {
        Ok(Handle { pid: self.pid, channel: tokio::net::UnixDatagram::from_std(self.channel)?, asked: 0 })
    }
}

impl Handle {
    /// Has the configuration read, and waits for it beside whatever else there is to do. What an earlier call that was
    /// given up left on the way is passed over.
    pub async fn read(&mut self) -> Result<Bundle, ReaderError> {
        self.asked = self.asked.wrapping_add(1);
        let order = message::order(self.asked)?;
        let sent =
            self.channel.async_io(Interest::WRITABLE, || channel::send_bare(&self.channel, &order)).await;
        match sent {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Err(self.gone()),
            other => other?,
        }
        let mut collector = Collector::new(self.asked);
        let mut buffer = codec::frame_buffer();
        loop {
            let bytes = self.receive(&mut buffer).await?;
            if let Some(bundle) = collector.take(buffer.get(..bytes).unwrap_or_default())? {
                return Ok(bundle);
            }
            // Ten megabytes come in hundreds of packets.
            tokio::task::yield_now().await;
        }
    }

    /// Waits until the reader is gone, and tells how it ended.
    pub async fn lost(&self) -> ReaderError {
        let mut buffer = codec::frame_buffer();
        loop {
            if let Err(error) = self.receive(&mut buffer).await {
                return error;
            }
        }
    }

    async fn receive(&self, buffer: &mut [u8]) -> Result<usize, ReaderError> {
        loop {
            let mut receive = || match receive_bare(&self.channel, buffer) {
                Err(ReceiveError::Os(error)) => Err(error),
                other => Ok(other),
            };
            match self.channel.async_io(Interest::READABLE, &mut receive).await {
                Ok(Ok(bytes)) => return Ok(bytes),
                Ok(Err(ReceiveError::Closed)) => return Err(self.gone()),
                Ok(Err(error)) => return Err(Garbled(error.to_string()).into()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Reaps it and tells how it ended. It hangs up in the act of ending, a moment before it can be reaped.
    fn gone(&self) -> ReaderError {
        use nix::sys::wait::WaitStatus;
        ReaderError::Gone(match waitid(Id::Pid(self.pid), WaitPidFlag::WEXITED) {
            Ok(WaitStatus::Exited(_, code)) => format!("exited with code {code}"),
            Ok(WaitStatus::Signaled(_, signal, _)) => format!("was ended by {signal}"),
            _ => "hung up".to_owned(),
        })
    }
}
