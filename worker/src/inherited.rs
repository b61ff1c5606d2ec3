//! Descriptors that this process inherited and the environment names: the channel to the broker
//! (`PORTREEVE_CHANNEL`) and listeners passed as service managers pass them (`LISTEN_FDS`).
//!
//! It promises that each is owned once, however often it is asked for, and close-on-exec from then on. The
//! environment is only read.

use std::collections::BTreeSet;
use std::env;
use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use rustix::net::{AddressFamily, SocketType, sockopt};

/// The variable that names the channel's descriptor, in decimal.
pub const CHANNEL_VARIABLE: &str = "PORTREEVE_CHANNEL";

/// The first descriptor that is passed by `LISTEN_FDS`. See sd_listen_fds(3).
const FIRST: RawFd = 3;

/// Why an inherited descriptor cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InheritedError {
    /// The variable is not set.
    #[error("{0} is not set: start this program as the broker's worker, or name the broker's control socket")]
    Unset(&'static str),
    /// The variable is no number of a descriptor.
    #[error("{variable}={value:?} is not a number that can be right: let the broker set it")]
    Value {
        /// Its name.
        variable: &'static str,
        /// Its value.
        value: String,
    },
    /// The descriptor is not open, or was opened by this process itself.
    #[error("descriptor {0} was not inherited: start this program as the broker's worker")]
    NotInherited(RawFd),
    /// The descriptor is in use already.
    #[error("descriptor {0} was taken before: an inherited descriptor has one owner")]
    Taken(RawFd),
    /// The descriptor is no channel.
    #[error(
        "descriptor {0} is not a sequenced-packet Unix socket: start this program as the broker's worker"
    )]
    NoChannel(RawFd),
}

/// A socket that was passed by `LISTEN_FDS`.
#[derive(Debug)]
pub struct InheritedListener {
    /// Its name from `LISTEN_FDNAMES`, or `unknown` as sd_listen_fds_with_names(3) has it.
    pub name: String,
    /// The socket.
    pub socket: OwnedFd,
}

/// What was taken so far.
static TAKEN: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());

/// Takes ownership of a descriptor that came through exec(2).
fn take(number: RawFd) -> Result<OwnedFd, InheritedError> {
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    if taken.contains(&number) {
        return Err(InheritedError::Taken(number));
    }
    // SAFETY: fcntl(2) with F_GETFD only asks; a number that is not open gives EBADF.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    // What survived exec(2) cannot be close-on-exec; what the standard library opened always is.
    if number < FIRST || flags == -1 || flags & libc::FD_CLOEXEC != 0 {
        return Err(InheritedError::NotInherited(number));
    }
    // SAFETY: the descriptor is open (asked above) and setting its flag touches no memory.
    let set = unsafe { libc::fcntl(number, libc::F_SETFD, flags | libc::FD_CLOEXEC) };
    if set == -1 {
        return Err(InheritedError::NotInherited(number));
    }
    taken.insert(number);
    // SAFETY: the descriptor is open and came through exec(2), so nothing in this program has made it and
    // nothing owns it; `taken`, which is still locked, lets each number by once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn number<T: std::str::FromStr>(variable: &'static str, value: &str) -> Result<T, InheritedError> {
    value.parse().map_err(|_| InheritedError::Value { variable, value: value.to_owned() })
}

fn variable(name: &'static str) -> Result<String, InheritedError> {
    let value = env::var_os(name).ok_or(InheritedError::Unset(name))?;
    Ok(value.to_string_lossy().into_owned())
}

/// The inherited channel.
pub(crate) fn channel() -> Result<OwnedFd, InheritedError> {
    let descriptor = number(CHANNEL_VARIABLE, &variable(CHANNEL_VARIABLE)?)?;
    let channel = take(descriptor)?;
    let is_channel = || -> io::Result<bool> {
        Ok(sockopt::socket_type(&channel)? == SocketType::SEQPACKET
            && sockopt::socket_domain(&channel)? == AddressFamily::UNIX)
    };
    if is_channel().unwrap_or(false) { Ok(channel) } else { Err(InheritedError::NoChannel(descriptor)) }
}

/// The sockets that were passed to this process by `LISTEN_FDS`, `LISTEN_PID` and `LISTEN_FDNAMES`, in order;
/// none where the variables are not set or speak of another process. See sd_listen_fds(3).
///
/// Call it before anything else may open descriptors by number, and once: they are taken for good.
///
/// # Errors
/// A variable that is malformed, or a descriptor that is not there or was taken before.
pub fn listeners_from_environment() -> Result<Vec<InheritedListener>, InheritedError> {
    let (Ok(process), Ok(count)) = (variable("LISTEN_PID"), variable("LISTEN_FDS")) else {
        return Ok(Vec::new());
    };
    if number::<u32>("LISTEN_PID", &process)? != std::process::id() {
        return Ok(Vec::new());
    }
    let count: u16 = number("LISTEN_FDS", &count)?;
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    (FIRST..FIRST + RawFd::from(count))
        .map(|descriptor| {
            let name = names.next().filter(|name| !name.is_empty()).unwrap_or("unknown");
            Ok(InheritedListener { name: name.to_owned(), socket: take(descriptor)? })
        })
        .collect()
}
