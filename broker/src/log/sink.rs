//! The destination of the log, written without blocking.
//!
//! Promises: a write without room returns at once. The flags of standard error are not changed: other processes share it,
//! and O_NONBLOCK would affect them. So a pipe or a terminal is opened a second time, for the broker alone.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use crate::sys::{poll, socket};

/// The socket of the journal. See systemd's Native Journal Protocol.
pub const JOURNAL: &str = "/run/systemd/journal/socket";
/// A writable pipe has room for at least this many bytes. See pipe(7).
const PIPE_BUF: usize = 4096;

/// The destination.
#[derive(Debug)]
pub enum Sink {
    /// A file or similar, which never blocks.
    File,
    /// A socket, written with MSG_DONTWAIT.
    Socket,
    /// A pipe or a terminal that the broker has opened itself.
    Reopened(File),
    /// A pipe or terminal that cannot be opened again. It is polled for room before each write, which can still block if
    /// another process writes at the same moment.
    Polled,
    /// The journal: each entry is a datagram.
    Journal(UnixDatagram),
}

/// Standard error as a file that is never closed.
fn stderr() -> io::Result<File> {
    Ok(io::stderr().as_fd().try_clone_to_owned()?.into())
}

/// Whether standard error is connected to the journal, by JOURNAL_STREAM. See systemd.exec(5).
pub fn stderr_is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let metadata = stderr().and_then(|stderr| stderr.metadata());
    metadata.is_ok_and(|metadata| stream == format!("{}:{}", metadata.dev(), metadata.ino()))
}

impl Sink {
    /// Opens standard error.
    pub fn stderr() -> Self {
        let kind = stderr().and_then(|stderr| stderr.metadata()).map(|metadata| metadata.file_type());
        match kind {
            Ok(kind) if kind.is_socket() => Sink::Socket,
            Ok(kind) if kind.is_fifo() || kind.is_char_device() => {
                let mut options = File::options();
                let options = options.write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
                options.open("/proc/self/fd/2").map_or(Sink::Polled, Sink::Reopened)
            }
            _ => Sink::File,
        }
    }

    /// Connects to the journal.
    ///
    /// # Errors
    /// The journal cannot be reached.
    pub fn journal() -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(JOURNAL)?;
        socket.set_nonblocking(true)?;
        Ok(Sink::Journal(socket))
    }

    /// Whether each line is written separately.
    pub fn writes_lines_separately(&self) -> bool {
        matches!(self, Sink::Journal(_))
    }

    /// Writes as much as possible without blocking.
    ///
    /// # Errors
    /// `WouldBlock` if there is no room; other errors are permanent.
    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Sink::File => io::stderr().write(bytes),
            Sink::Reopened(file) => (&*file).write(bytes),
            Sink::Socket => Ok(socket::send_nonblocking(io::stderr(), bytes)?),
            Sink::Polled => match self.has_room(Duration::ZERO) {
                true => io::stderr().write(bytes.get(..PIPE_BUF).unwrap_or(bytes)),
                false => Err(io::ErrorKind::WouldBlock.into()),
            },
            Sink::Journal(socket) => socket.send(bytes),
        }
    }

    /// Waits until there is room, with a timeout.
    pub fn has_room(&self, timeout: Duration) -> bool {
        let stderr = io::stderr();
        let fd = match self {
            Sink::Reopened(file) => file.as_fd(),
            Sink::Journal(socket) => socket.as_fd(),
            Sink::File | Sink::Socket | Sink::Polled => stderr.as_fd(),
        };
        matches!(poll::writable(fd, timeout), Ok(true))
    }
}
