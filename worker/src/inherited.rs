//! Inherited descriptors that the environment names: the channel to the broker (`PORTREEVE_CHANNEL`), and listeners passed as
//! service managers pass them (`LISTEN_FDS`).
//!
//! Promises: each descriptor is taken at most once, and is close-on-exec from then on. The environment
//! is only read.

use std::collections::BTreeSet;
use std::env;
use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use portreeve_protocol::socket_activation::FIRST_DESCRIPTOR as FIRST;
use rustix::net::{AddressFamily, SocketType, sockopt};

/// The variable with the number of the channel's descriptor, in decimal.
pub const CHANNEL_VARIABLE: &str = "PORTREEVE_CHANNEL";

/// The reason that an inherited descriptor cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InheritedError {
    /// The variable is not set.
    #[error(
        "cannot find the channel to the broker: {0} is not set. Start this program as the broker's worker, or connect to the \
         control socket"
    )]
    Unset(&'static str),
    /// The value of the variable is not a number in its range.
    #[error(
        "{variable}={value:?} is not a number in its range. The broker or the service manager sets this variable"
    )]
    Value {
        /// Its name.
        variable: &'static str,
        /// Its value.
        value: String,
    },
    /// The descriptor is not open, or this process opened it itself.
    #[error("descriptor {0} was not inherited. The broker or the service manager has to start this program")]
    NotInherited(RawFd),
    /// The descriptor was taken before.
    #[error("descriptor {0} was taken before. Take each inherited descriptor once")]
    Taken(RawFd),
    /// The descriptor is not a channel.
    #[error(
        "descriptor {0} is not a sequenced-packet Unix socket. Start this program as the broker's worker"
    )]
    NoChannel(RawFd),
}

/// A socket passed by `LISTEN_FDS`.
#[derive(Debug)]
#[non_exhaustive]
pub struct InheritedListener {
    /// Its name in `LISTEN_FDNAMES`; `unknown` if it has none, as in sd_listen_fds_with_names(3).
    pub name: String,
    /// The socket.
    pub socket: OwnedFd,
}

/// The descriptors that already have an owner.
static TAKEN: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());

/// Takes ownership of a descriptor that survived exec(2).
fn take(number: RawFd) -> Result<OwnedFd, InheritedError> {
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    if taken.contains(&number) {
        return Err(InheritedError::Taken(number));
    }
    // SAFETY: fcntl(2) with F_GETFD changes nothing; for a number that is not open it fails with EBADF.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    // A descriptor that survived exec(2) is not close-on-exec; one that the standard library opened always is.
    if number < FIRST || flags == -1 || flags & libc::FD_CLOEXEC != 0 {
        return Err(InheritedError::NotInherited(number));
    }
    // SAFETY: the descriptor is open (checked above), and setting its flag accesses no memory.
    let set = unsafe { libc::fcntl(number, libc::F_SETFD, flags | libc::FD_CLOEXEC) };
    if set == -1 {
        return Err(InheritedError::NotInherited(number));
    }
    taken.insert(number);
    // SAFETY: the descriptor is open and survived exec(2), so this program has not opened it and nothing owns it;
    // `taken`, which is still locked, admits each number once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn parse<T: std::str::FromStr>(variable: &'static str, value: &str) -> Result<T, InheritedError> {
    value.parse().map_err(|_| InheritedError::Value { variable, value: value.to_owned() })
}

fn variable(name: &'static str) -> Result<String, InheritedError> {
    let value = env::var_os(name).ok_or(InheritedError::Unset(name))?;
    Ok(value.to_string_lossy().into_owned())
}

/// The inherited channel.
pub(crate) fn channel() -> Result<OwnedFd, InheritedError> {
    let descriptor = parse(CHANNEL_VARIABLE, &variable(CHANNEL_VARIABLE)?)?;
    let channel = take(descriptor)?;
    let is_channel = || -> io::Result<bool> {
        Ok(sockopt::socket_type(&channel)? == SocketType::SEQPACKET
            && sockopt::socket_domain(&channel)? == AddressFamily::UNIX)
    };
    if is_channel().unwrap_or(false) { Ok(channel) } else { Err(InheritedError::NoChannel(descriptor)) }
}

/// Takes the sockets that `LISTEN_FDS`, `LISTEN_PID` and `LISTEN_FDNAMES` pass to this process, in order; none if the variables
/// are not set or name another process. See sd_listen_fds(3).
///
/// Call it once, before other code opens descriptors by number.
///
/// # Errors
/// A variable has an invalid value, or a descriptor is not open or was taken before.
pub fn listeners_from_environment() -> Result<Vec<InheritedListener>, InheritedError> {
    let (Ok(process), Ok(count)) = (variable("LISTEN_PID"), variable("LISTEN_FDS")) else {
        return Ok(Vec::new());
    };
    if parse::<u32>("LISTEN_PID", &process)? != std::process::id() {
        return Ok(Vec::new());
    }
    let count: u16 = parse("LISTEN_FDS", &count)?;
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    (FIRST..FIRST + RawFd::from(count))
        .map(|descriptor| {
            let name = names.next().filter(|name| !name.is_empty()).unwrap_or("unknown");
            Ok(InheritedListener { name: name.to_owned(), socket: take(descriptor)? })
        })
        .collect()
}
