//! The successor's session with its predecessor: one request at a time, each with a time limit.
//!
//! Promises: the predecessor may be of another release or compromised, so each reply is checked before it is used.

use std::fmt::Display;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use portreeve_protocol::channel::{self, ReceiveError};
use portreeve_protocol::message::Operation;
use portreeve_protocol::{Fault, Header, Kind, codec};

use crate::failure::{Exit, Failure};
use crate::sys::socket::{self, AddressFamily, SockType};
use crate::sys::{poll, sockopt};

pub(super) const STEP: &str = "takeover";
/// How long one reply may take: longer than the predecessor allows for the whole takeover.
const REPLY_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a process whose sockets are closed may take to end.
const DEATH_TIMEOUT: Duration = Duration::from_secs(1);

/// A failure after which the predecessor still serves.
pub(super) fn failed(what: impl Display, remedy: impl Display) -> Failure {
    let what = format_args!("cannot take over: {what}; the running broker still serves");
    Failure::new(Exit::Unavailable, STEP, what, remedy)
}

pub(super) fn refused(fault: &Fault) -> Failure {
    let remedy = if fault.remedy.is_empty() { "see the log of the running broker" } else { &*fault.remedy };
    failed(format_args!("the running broker refuses: {}", fault.message), remedy)
}

pub(super) fn protocol_error(what: impl Display) -> Failure {
    failed(
        format_args!("the running broker violates the takeover protocol: {what}"),
        "restart the running broker instead of taking over",
    )
}

fn lost(cause: &dyn Display) -> Failure {
    let what = format!("lost the session with the running broker: {cause}");
    Failure::new(Exit::Unavailable, STEP, what, "check its log, and whether it still runs")
}

fn no_reply() -> Failure {
    lost(&format_args!("no reply within {} s", REPLY_TIMEOUT.as_secs()))
}

fn not_root(what: impl Display) -> Failure {
    let what = format_args!("cannot take over: {what}, and not root");
    let remedy = "set the socket of the broker scope to that of the running broker";
    Failure::new(Exit::NoPermission, STEP, what, remedy)
}

/// Checks the file of the control socket: root has created it, and it is no symbolic link, which another user could have
/// created. A path that does not exist is reported when connecting fails.
fn check_file(path: &Path) -> Result<(), Failure> {
    let Ok(file) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if file.is_symlink() {
        let what = format_args!("cannot take over: {path:?} is a symbolic link");
        let remedy = "set the socket of the broker scope to the path of the running broker's socket";
        return Err(Failure::new(Exit::NoPermission, STEP, what, remedy));
    }
    match file.uid() {
        0 => Ok(()),
        uid => Err(not_root(format_args!("{path:?} belongs to user {uid}"))),
    }
}

/// The session.
#[derive(Debug)]
pub(super) struct Session {
    pub channel: UnixDatagram,
    /// The broker's process; `None` if the kernel gives no handle of it.
    process: Option<OwnedFd>,
    buffer: Box<[u8]>,
    requests: u32,
}

impl Session {
    /// Connects to the broker that serves at this path. The file must be root's, and root must run the process that listens.
    pub fn connect(path: &Path) -> Result<Self, Failure> {
        check_file(path)?;
        let os = |call: &'static str| move |error: std::io::Error| Failure::os(STEP, call, error);
        let channel = socket::open(AddressFamily::Unix, SockType::SeqPacket)
            .map_err(|errno| Failure::os(STEP, "socket", errno))?;
        let channel = UnixDatagram::from(channel);
        channel.set_read_timeout(Some(REPLY_TIMEOUT)).map_err(os("setsockopt SO_RCVTIMEO"))?;
        channel.set_write_timeout(Some(REPLY_TIMEOUT)).map_err(os("setsockopt SO_SNDTIMEO"))?;
        socket::connect_unix(&channel, path).map_err(|errno| {
            let what = format!("cannot connect to a running broker at {path:?}: {}", errno.desc());
            Failure::new(Exit::Unavailable, STEP, what, "start portreeved without --takeover")
        })?;
        // For a connected socket the kernel reports the credentials of the process that called listen(2).
        let uid = sockopt::peer_credentials(&channel)
            .map(|peer| peer.uid)
            .map_err(|errno| Failure::os(STEP, "getsockopt SO_PEERCRED", errno))?;
        if uid != 0 {
            return Err(not_root(format_args!("user {uid} listens at {path:?}")));
        }
        let process = sockopt::peer_pidfd(&channel).ok();
        Ok(Self { channel, process, buffer: codec::frame_buffer(), requests: 0 })
    }

    /// Sends a request and waits for its reply, which a process of root must send: the process that serves can be another
    /// one than the one that called listen(2), for example if the service manager did that. It is confirmed before the reply
    /// is read.
    pub fn request_from_root<O: Operation>(&mut self, request: &O) -> Result<Reply<O>, Failure> {
        let os = |errno| Failure::os(STEP, "setsockopt SO_PASSCRED", errno);
        sockopt::set_pass_credentials(&self.channel, true).map_err(os)?;
        let number = self.send(request)?;
        let sender = socket::sender_of_next_message(&self.channel).map_err(|errno| match errno {
            Errno::EAGAIN => no_reply(),
            errno => lost(&errno.desc()),
        })?;
        if let Some(uid) = sender.filter(|uid| *uid != 0) {
            return Err(not_root(format_args!("user {uid} serves there")));
        }
        // The buffer of later replies, which carry descriptors, has no room for credentials.
        sockopt::set_pass_credentials(&self.channel, false).map_err(os)?;
        self.receive::<O>(number)?.map_err(|fault| refused(&fault))
    }

    /// Whether the broker's process has ended, or ends within a moment. False if that is not known.
    pub fn peer_has_died(&self) -> bool {
        self.process.as_ref().is_some_and(|process| poll::readable(process, DEATH_TIMEOUT).unwrap_or(false))
    }

    /// Sends a request; a fault is a failure.
    pub fn request<O: Operation>(&mut self, request: &O) -> Result<Reply<O>, Failure> {
        self.try_request(request)?.map_err(|fault| refused(&fault))
    }

    /// Sends a request and waits for its reply or fault.
    pub fn try_request<O: Operation>(&mut self, request: &O) -> Result<Result<Reply<O>, Fault>, Failure> {
        let number = self.send(request)?;
        self.receive::<O>(number)
    }

    /// Sends a request, and returns its number.
    fn send<O: Operation>(&mut self, request: &O) -> Result<u32, Failure> {
        self.requests += 1;
        let frame =
            codec::encode(&mut self.buffer, O::KIND, self.requests, 0, request).map_err(protocol_error)?;
        channel::send_bytes(&self.channel, frame).map_err(|error| lost(&error))?;
        Ok(self.requests)
    }

    /// Waits for the reply to a request.
    fn receive<O: Operation>(&mut self, number: u32) -> Result<Result<Reply<O>, Fault>, Failure> {
        let mut descriptors = Vec::new();
        let packet = loop {
            match channel::receive(&self.channel, &mut self.buffer, &mut descriptors) {
                Ok(packet) => break packet,
                Err(ReceiveError::Os(error)) if error.kind() == ErrorKind::Interrupted => {}
                Err(ReceiveError::Os(error)) if error.kind() == ErrorKind::WouldBlock => {
                    return Err(no_reply());
                }
                Err(error) => return Err(lost(&error)),
            }
        };
        if packet.descriptors_lost {
            let what = "the limit of open files leaves no room for the sockets that it sent";
            return Err(failed(what, "raise the limit of open files (LimitNOFILE=, ulimit -n)"));
        }
        let (header, body) =
            Header::decode(self.buffer.get(..packet.bytes).unwrap_or_default()).map_err(protocol_error)?;
        let is_reply = header.request == number || header.request == 0;
        match header.kind {
            Kind::FAULT if is_reply => Ok(Err(codec::decode(body).map_err(protocol_error)?)),
            kind if header.request == number && kind == O::KIND.reply() => {
                if usize::from(header.descriptors) != descriptors.len() {
                    return Err(protocol_error("the number of sockets differs from the declared number"));
                }
                Ok(Ok((codec::decode(body).map_err(protocol_error)?, descriptors)))
            }
            kind => Err(protocol_error(format_args!(
                "unexpected frame of kind {kind:?} with request number {}",
                header.request
            ))),
        }
    }
}

/// A reply and the sockets that came with it.
pub(super) type Reply<O> = (<O as Operation>::Reply, Vec<OwnedFd>);
