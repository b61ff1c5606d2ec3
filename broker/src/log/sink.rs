//! Where the log goes, without ever waiting for whoever reads it.
//!
//! Promises: a write that finds no room says so at once. The flags of standard error stay as they are: others share it,
//! and O_NONBLOCK is for all who do. So a pipe or a terminal is opened once more, for the broker alone.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};

/// Where the journal takes entries. See systemd's Native Journal Protocol.
pub const JOURNAL: &str = "/run/systemd/journal/socket";
/// A pipe that has room at all has room for so much. See pipe(7).
const PIPE_BUF: usize = 4096;

/// See the module.
#[derive(Debug)]
pub enum Sink {
    /// A file or the like, that waits for no reader.
    File,
    /// A socket, which is asked not to wait by each call.
    Socket,
    /// A pipe or a terminal, opened by ourselves.
    Own(File),
    /// One that cannot be opened again. It is asked for room before each write; another writer that takes the room
    /// at that very instant has this one wait.
    Asked,
    /// The journal: each entry is a datagram.
    Journal(UnixDatagram),
}

/// Standard error as a file of which nothing is closed.
fn stderr() -> io::Result<File> {
    Ok(io::stderr().as_fd().try_clone_to_owned()?.into())
}

/// Whether standard error is the journal's stream, as JOURNAL_STREAM tells. See systemd.exec(5).
pub fn stderr_is_journal() -> bool {
    let Ok(told) = std::env::var("JOURNAL_STREAM") else { return false };
    let metadata = stderr().and_then(|stderr| stderr.metadata());
    metadata.is_ok_and(|metadata| told == format!("{}:{}", metadata.dev(), metadata.ino()))
}

impl Sink {
    /// Standard error, whatever it is.
    pub fn stderr() -> Self {
        let kind = stderr().and_then(|stderr| stderr.metadata()).map(|metadata| metadata.file_type());
        match kind {
            Ok(kind) if kind.is_socket() => Sink::Socket,
            Ok(kind) if kind.is_fifo() || kind.is_char_device() => {
                let mut options = File::options();
                let own = options.write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
                own.open("/proc/self/fd/2").map_or(Sink::Asked, Sink::Own)
            }
            _ => Sink::File,
        }
    }

    /// The journal.
    ///
    /// # Errors
    /// It is not there.
    pub fn journal() -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(JOURNAL)?;
        socket.set_nonblocking(true)?;
        Ok(Sink::Journal(socket))
    }

    /// Whether each line goes by itself.
    pub fn takes_one_at_a_time(&self) -> bool {
        matches!(self, Sink::Journal(_))
    }

    /// Writes as much as there is room for now.
    ///
    /// # Errors
    /// `WouldBlock` where there is none; others where nobody will ever read it.
    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Sink::File => io::stderr().write(bytes),
            Sink::Own(file) => (&*file).write(bytes),
            Sink::Socket => {
                let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                Ok(send(io::stderr().as_raw_fd(), bytes, flags)?)
            }
            Sink::Asked => match self.has_room(Duration::ZERO) {
                true => io::stderr().write(bytes.get(..PIPE_BUF).unwrap_or(bytes)),
                false => Err(io::ErrorKind::WouldBlock.into()),
            },
            Sink::Journal(socket) => socket.send(bytes),
        }
    }

    /// Waits until there is room, so long at most.
    pub fn has_room(&self, within: Duration) -> bool {
        let stderr = io::stderr();
        let fd = match self {
            Sink::Own(file) => file.as_fd(),
            Sink::Journal(socket) => socket.as_fd(),
            Sink::File | Sink::Socket | Sink::Asked => stderr.as_fd(),
        };
        let timeout = PollTimeout::try_from(within).unwrap_or(PollTimeout::MAX);
        matches!(poll(&mut [PollFd::new(fd, PollFlags::POLLOUT)], timeout), Ok(1))
    }
}
