//! The channel: one SOCK_SEQPACKET Unix socket, frames, and the descriptors that ride with them.
//!
//! These are the bare calls, which wait only where the socket is a blocking one. The broker receives with
//! [`receive_bytes`], which gives the kernel no room for a descriptor; peers receive with [`receive`]. Every
//! descriptor received is owned and close-on-exec from the instant it exists.
//!
//! What the other end sent before it hung up is received before the hang-up is told, also where it left packets
//! unread, for which the kernel puts a reset in front (once, ECONNRESET in unix(7)).

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

/// A pair of connected channels, both close-on-exec and not blocking. See unix(7).
///
/// The standard library has no type for a sequenced-packet socket; its datagram type fits, because on a
/// connected socket both send and receive whole packets.
pub fn pair() -> io::Result<(UnixDatagram, UnixDatagram)> {
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    Ok((ours.into(), theirs.into()))
}

/// A packet that could not be taken as one message.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The call failed. [`io::ErrorKind::WouldBlock`]: nothing is there yet.
    #[error("receiving failed: {0}")]
    Os(#[from] io::Error),
    /// The other end is gone.
    #[error("the other end has closed the channel")]
    Closed,
    /// The packet was longer than a frame can be.
    #[error("a packet was longer than a frame can be")]
    Oversized,
    /// Descriptors came where none may.
    #[error("a packet carried descriptors where none may come")]
    UnexpectedDescriptors {
        /// How many bytes of the buffer the packet fills: its header still tells which request it was.
        bytes: usize,
    },
}

/// One packet, as it was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// How many bytes of the buffer it fills.
    pub bytes: usize,
    /// Some of its descriptors could not be received, so none was kept: this process has no room for them
    /// (RLIMIT_NOFILE, see getrlimit(2)), or there were more than [`MAX_DESCRIPTORS`].
    pub descriptors_lost: bool,
}

fn whole(bytes: usize, flags: ReturnFlags) -> Result<Packet, ReceiveError> {
    if flags.contains(ReturnFlags::TRUNC) {
        return Err(ReceiveError::Oversized);
    }
    if bytes == 0 {
        return Err(ReceiveError::Closed);
    }
    Ok(Packet { bytes, descriptors_lost: flags.contains(ReturnFlags::CTRUNC) })
}

/// Makes the call again where it was told of a reset: what is still to be received stands behind it, and a send
/// then fails with EPIPE as after any hang-up.
fn past_reset<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    match call() {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => call(),
        done => done,
    }
}

/// Receives one packet without its descriptors: the kernel installs none, and says so with
/// [`ReceiveError::UnexpectedDescriptors`] when the peer attached any.
///
/// A packet of no bytes cannot be told from a hang-up (recv(2)), so it ends the channel too.
pub fn receive_bytes(channel: impl AsFd, buffer: &mut [u8]) -> Result<usize, ReceiveError> {
    let message = past_reset(|| {
        let mut none = RecvAncillaryBuffer::default();
        Ok(rustix::net::recvmsg(
            &channel,
            &mut [IoSliceMut::new(buffer)],
            &mut none,
            RecvFlags::CMSG_CLOEXEC,
        )?)
    })?;
    match whole(message.bytes, message.flags)? {
        Packet { descriptors_lost: true, bytes } => Err(ReceiveError::UnexpectedDescriptors { bytes }),
        Packet { bytes, .. } => Ok(bytes),
    }
}

/// Receives one packet and its descriptors, which are added to `descriptors`: all of them or, where
/// [`Packet::descriptors_lost`] says so or the call fails, none.
pub fn receive(
    channel: impl AsFd,
    buffer: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> Result<Packet, ReceiveError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = past_reset(|| {
        Ok(rustix::net::recvmsg(
            &channel,
            &mut [IoSliceMut::new(buffer)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )?)
    })?;
    let packet = whole(message.bytes, message.flags)?;
    if !packet.descriptors_lost {
        // What is not drained is closed when the control buffer is dropped.
        let rights = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(rights) => Some(rights),
            _ => None,
        });
        descriptors.extend(rights.flatten());
    }
    Ok(packet)
}

/// Sends one packet. A closed other end is an error, never a signal.
pub fn send_bytes(channel: impl AsFd, packet: &[u8]) -> io::Result<()> {
    past_reset(|| Ok(rustix::net::send(&channel, packet, SendFlags::NOSIGNAL)?))?;
    Ok(())
}

/// Sends one packet with descriptors, at most [`MAX_DESCRIPTORS`].
///
/// [`io::ErrorKind::WouldBlock`] and ETOOMANYREFS (see [`is_busy`]) are to be waited for. The caller ignores
/// SIGPIPE, as every Rust program does unless it asks otherwise.
pub fn send(channel: &UnixDatagram, packet: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    if descriptors.is_empty() {
        return send_bytes(channel, packet);
    }
    let mut raw: [RawFd; MAX_DESCRIPTORS] = [-1; MAX_DESCRIPTORS];
    let raw = raw.get_mut(..descriptors.len()).ok_or(io::ErrorKind::InvalidInput)?;
    raw.iter_mut().zip(descriptors).for_each(|(to, from)| *to = from.as_raw_fd());
    past_reset(|| channel.send_with_fd(packet, raw))?;
    Ok(())
}

/// Whether a send failed only for now: the socket's buffer is full, or too many descriptors are in flight
/// for this user (ETOOMANYREFS, see unix(7)).
pub fn is_busy(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
        || error.raw_os_error() == Some(rustix::io::Errno::TOOMANYREFS.raw_os_error())
}
