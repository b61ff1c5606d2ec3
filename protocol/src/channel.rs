//! Sending and receiving packets, and the file descriptors attached to them, on a SOCK_SEQPACKET Unix socket.
//!
//! Each function is one system call and blocks only if the socket is blocking. The broker receives with
//! [`receive_bytes`], which gives the kernel no buffer for descriptors; peers receive with [`receive`]. Every received
//! descriptor is owned and close-on-exec from the moment it exists (MSG_CMSG_CLOEXEC).
//!
//! Packets that the other end sent before it closed the channel are received before the end of the channel is
//! reported. If the other end closed with unread packets, the kernel reports ECONNRESET once before that data
//! (unix(7)); the functions here repeat the call after that error.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, SocketFlags,
    SocketType,
};
use sendfd::SendWithFd as _;

use crate::frame::MAX_DESCRIPTORS;

/// Creates two connected sockets, both close-on-exec and non-blocking. See socketpair(2).
///
/// The standard library has no type for a SOCK_SEQPACKET socket. `UnixDatagram` serves, because a connected socket of
/// either kind sends and receives whole packets.
///
/// # Errors
/// The error of socketpair(2).
pub fn pair() -> io::Result<(UnixDatagram, UnixDatagram)> {
    let (first, second) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    Ok((first.into(), second.into()))
}

/// The reason that no packet was received.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiveError {
    /// recvmsg(2) failed. [`io::ErrorKind::WouldBlock`] on a non-blocking socket: no packet has arrived yet.
    #[error("cannot receive from the channel: {0}")]
    Os(#[from] io::Error),
    /// The other end closed the channel.
    #[error("the other end closed the channel")]
    Closed,
    /// The packet is longer than the buffer (MSG_TRUNC). A buffer of [`MAX_FRAME`](crate::frame::MAX_FRAME) bytes
    /// holds every valid frame.
    #[error("the packet is longer than the maximum frame")]
    Oversized,
    /// The peer attached descriptors, and [`receive_bytes`] accepts none. The kernel installed none.
    #[error("the packet carries file descriptors, which are not accepted here")]
    UnexpectedDescriptors {
        /// The length of the packet in the buffer. Its header still names the request.
        bytes: usize,
    },
}

/// One received packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The length of the packet in the buffer.
    pub bytes: usize,
    /// Some attached descriptors could not be received (MSG_CTRUNC), and all others were closed. This process reached
    /// RLIMIT_NOFILE (getrlimit(2)), or the packet carried more than [`MAX_DESCRIPTORS`].
    pub descriptors_lost: bool,
}

fn check_packet(bytes: usize, flags: ReturnFlags) -> Result<Packet, ReceiveError> {
    if flags.contains(ReturnFlags::TRUNC) {
        return Err(ReceiveError::Oversized);
    }
    if bytes == 0 {
        return Err(ReceiveError::Closed);
    }
    Ok(Packet { bytes, descriptors_lost: flags.contains(ReturnFlags::CTRUNC) })
}

/// Makes a call, and repeats it once after ECONNRESET. A repeated receive returns the data that is still queued; a
/// repeated send fails with EPIPE, as after any close.
fn retry_after_reset<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    match call() {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => call(),
        done => done,
    }
}

/// Receives one packet that must not carry descriptors.
///
/// # Errors
/// [`ReceiveError::UnexpectedDescriptors`] if the peer attached any; the kernel installs none of them. A packet of 0
/// bytes looks the same as a closed channel (recv(2)), so it is [`ReceiveError::Closed`] too.
pub fn receive_bytes(channel: impl AsFd, buffer: &mut [u8]) -> Result<usize, ReceiveError> {
    let message = retry_after_reset(|| {
        let mut no_buffer = RecvAncillaryBuffer::default();
        Ok(rustix::net::recvmsg(
            &channel,
            &mut [IoSliceMut::new(buffer)],
            &mut no_buffer,
            RecvFlags::CMSG_CLOEXEC,
        )?)
    })?;
    match check_packet(message.bytes, message.flags)? {
        Packet { descriptors_lost: true, bytes } => Err(ReceiveError::UnexpectedDescriptors { bytes }),
        Packet { bytes, .. } => Ok(bytes),
    }
}

/// Receives one packet and appends its descriptors to `descriptors`: all of them, or none if the call fails or
/// [`Packet::descriptors_lost`] is set.
///
/// # Errors
/// As the variants of [`ReceiveError`] say. A packet of 0 bytes is [`ReceiveError::Closed`].
pub fn receive(
    channel: impl AsFd,
    buffer: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> Result<Packet, ReceiveError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = retry_after_reset(|| {
        Ok(rustix::net::recvmsg(
            &channel,
            &mut [IoSliceMut::new(buffer)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )?)
    })?;
    let packet = check_packet(message.bytes, message.flags)?;
    if !packet.descriptors_lost {
        // Dropping the control buffer closes the descriptors that are not drained.
        let rights = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(rights) => Some(rights),
            _ => None,
        });
        descriptors.extend(rights.flatten());
    }
    Ok(packet)
}

/// Sends one packet without descriptors.
///
/// # Errors
/// The error of send(2). A closed channel is EPIPE and raises no SIGPIPE.
pub fn send_bytes(channel: impl AsFd, packet: &[u8]) -> io::Result<()> {
    retry_after_reset(|| Ok(rustix::net::send(&channel, packet, SendFlags::NOSIGNAL)?))?;
    Ok(())
}

/// Sends one packet with up to [`MAX_DESCRIPTORS`] descriptors.
///
/// The process must ignore SIGPIPE, which is the default of Rust programs.
///
/// # Errors
/// The error of sendmsg(2). [`is_busy`] reports whether an error is temporary. More than [`MAX_DESCRIPTORS`] are
/// [`io::ErrorKind::InvalidInput`].
pub fn send(channel: &UnixDatagram, packet: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    if descriptors.is_empty() {
        return send_bytes(channel, packet);
    }
    let mut raw: [RawFd; MAX_DESCRIPTORS] = [-1; MAX_DESCRIPTORS];
    let raw = raw.get_mut(..descriptors.len()).ok_or(io::ErrorKind::InvalidInput)?;
    raw.iter_mut().zip(descriptors).for_each(|(to, from)| *to = from.as_raw_fd());
    retry_after_reset(|| channel.send_with_fd(packet, raw))?;
    Ok(())
}

/// Whether a failed send can succeed later: the socket's buffer is full (EAGAIN), or this user has too many
/// descriptors in flight (ETOOMANYREFS, see unix(7)).
pub fn is_busy(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || exceeds_in_flight_limit(error)
}

/// Whether a send failed because this user has too many descriptors in flight on this host (ETOOMANYREFS, see unix(7)).
/// Any process of the user can cause that, so a peer that reads may not end it.
pub fn exceeds_in_flight_limit(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::TOOMANYREFS.raw_os_error())
}
