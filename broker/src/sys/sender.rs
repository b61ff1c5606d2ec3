//! Messages together with the process that sent each: on a channel that several processes of a worker share, the kernel
//! tells which one it was. See SO_PASSCRED and SO_PASSPIDFD in unix(7), Linux 6.5.
//!
//! Promises: a message with other descriptors is refused, and none of them stays open.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};

use nix::errno::Errno;
use portreeve_protocol::channel::ReceiveError;

use super::sockopt;

/// The process that sent a message.
#[derive(Debug)]
pub struct Sender {
    /// Its number; 0 if it is in no PID namespace that the broker sees.
    pub pid: u32,
    /// Its effective user.
    pub uid: u32,
    /// The process itself.
    pub pidfd: OwnedFd,
}

/// Makes the kernel attach the sender to each message that is sent on this channel from now on.
///
/// # Capabilities
/// None.
///
/// # Errors
/// ENOPROTOOPT if the kernel is older than Linux 6.5.
pub fn identify(channel: impl AsFd) -> nix::Result<()> {
    sockopt::set_pass_pidfd(&channel, true)?;
    sockopt::set_pass_credentials(&channel, true)
}

/// Receives one message, whose length it returns, and its sender; `None` if the kernel could not attach it, for example
/// because this process has too many files open.
///
/// # Capabilities
/// None.
///
/// # Errors
/// As [`portreeve_protocol::channel::receive_bytes`].
pub fn receive(channel: impl AsFd, buffer: &mut [u8]) -> Result<(usize, Option<Sender>), ReceiveError> {
    let capacity = buffer.len();
    let received = receive_once(&channel, buffer).or_else(|error| match error {
        // As in `receive_bytes`: data that the peer sent before it closed the channel is still queued.
        Errno::ECONNRESET => receive_once(&channel, buffer),
        error => Err(error),
    });
    let (bytes, flags, attached) = received.map_err(io::Error::from)?;
    match attached {
        Attached { rights: 1.., .. } => {
            Err(ReceiveError::UnexpectedDescriptors { bytes: bytes.min(capacity) })
        }
        _ if flags & libc::MSG_TRUNC != 0 => Err(ReceiveError::Oversized),
        _ if bytes == 0 => Err(ReceiveError::Closed),
        Attached { credentials: Some(from), pidfd: Some(pidfd), .. } => {
            Ok((bytes, Some(Sender { pid: from.pid.cast_unsigned(), uid: from.uid, pidfd })))
        }
        _ => Ok((bytes, None)),
    }
}

/// What the kernel attached to a message.
#[derive(Default)]
struct Attached {
    /// How many descriptors the sender attached, which are closed.
    rights: usize,
    credentials: Option<libc::ucred>,
    pidfd: Option<OwnedFd>,
}

/// Room for the credentials and the pidfd.
const SPACE: usize = {
    // SAFETY: CMSG_SPACE only computes a length.
    unsafe { (libc::CMSG_SPACE(12) + libc::CMSG_SPACE(4)) as usize }
};
const _: () = assert!(size_of::<libc::ucred>() == 12 && size_of::<RawFd>() == 4);

/// The buffer of control messages, aligned as a `cmsghdr`.
#[repr(C)]
union Control {
    _alignment: libc::cmsghdr,
    bytes: [u8; SPACE],
}

/// One call of recvmsg(2): the length, the flags and what was attached.
fn receive_once(channel: impl AsFd, buffer: &mut [u8]) -> nix::Result<(usize, i32, Attached)> {
    let mut control = Control { bytes: [0; SPACE] };
    let mut parts = [IoSliceMut::new(buffer)];
    // SAFETY: all fields of msghdr may be 0.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    // IoSliceMut has the layout of iovec.
    message.msg_iov = parts.as_mut_ptr().cast();
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = SPACE as _;
    let socket = channel.as_fd().as_raw_fd();
    // SAFETY: the message refers to the buffers above, with their lengths, and they outlive the call.
    let bytes = unsafe { libc::recvmsg(socket, &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    let bytes = usize::try_from(Errno::result(bytes)?).unwrap_or(0);
    let mut attached = Attached::default();
    // SAFETY: the kernel has written whole control messages to the buffer, and their total length to `message`.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    // SAFETY: it is null or points to a control message in the buffer.
    while let Some(header) = unsafe { next.as_ref() } {
        // SAFETY: the data of a control message follows its header.
        let data = unsafe { libc::CMSG_DATA(next) };
        match (header.cmsg_level, header.cmsg_type) {
            (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) => {
                // SAFETY: the kernel has written a ucred there, whose place may be unaligned.
                attached.credentials = Some(unsafe { data.cast::<libc::ucred>().read_unaligned() });
            }
            (libc::SOL_SOCKET, SCM_PIDFD) => {
                // SAFETY: the kernel has written a number there.
                attached.pidfd = own(unsafe { data.cast::<RawFd>().read_unaligned() });
            }
            (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                #[allow(clippy::unnecessary_cast)] // with musl it has 32 bits
                let length = header.cmsg_len as usize;
                // SAFETY: CMSG_LEN only computes a length.
                let length = length.saturating_sub(unsafe { libc::CMSG_LEN(0) } as usize);
                for index in 0..length / size_of::<RawFd>() {
                    // SAFETY: the kernel has written that many numbers there.
                    drop(own(unsafe { data.cast::<RawFd>().add(index).read_unaligned() }));
                    attached.rights += 1;
                }
            }
            _ => {}
        }
        // SAFETY: as for the first.
        next = unsafe { libc::CMSG_NXTHDR(&raw const message, next) };
    }
    // There is room for everything but descriptors of the sender.
    if message.msg_flags & libc::MSG_CTRUNC != 0 {
        attached.rights += 1;
    }
    Ok((bytes, message.msg_flags, attached))
}

/// Takes ownership of a descriptor that the kernel has just installed; `None` for an error number in its place.
fn own(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: nothing else owns it.
    (number >= 0).then(|| unsafe { OwnedFd::from_raw_fd(number) })
}

/// include/linux/socket.h, Linux 6.5.
const SCM_PIDFD: i32 = 4;

#[cfg(test)]
mod tests {
    use std::os::fd::BorrowedFd;

    use portreeve_protocol::channel;

    use super::*;

    #[test]
    fn a_message_comes_with_its_sender_and_without_descriptors_of_it() {
        let (ours, theirs) = channel::pair().unwrap();
        match identify(&ours) {
            Err(Errno::ENOPROTOOPT) => return, // before Linux 6.5
            other => other.unwrap(),
        }
        let mut buffer = [0; 16];
        channel::send_bytes(&theirs, b"one").unwrap();
        let (bytes, sender) = receive(&ours, &mut buffer).unwrap();
        let sender = sender.unwrap();
        let uid = super::super::process::effective_uid();
        assert_eq!((bytes, sender.pid, sender.uid), (3, std::process::id(), uid));
        for count in [1, 2, 7] {
            let (mut reader, writer) = io::pipe().unwrap();
            let rights: Vec<BorrowedFd<'_>> = (0..count).map(|_| writer.as_fd()).collect();
            channel::send(&theirs, b"two", &rights).unwrap();
            drop(writer);
            let refused = receive(&ours, &mut buffer);
            assert!(matches!(refused, Err(ReceiveError::UnexpectedDescriptors { bytes: 3 })), "{refused:?}");
            // Every copy is closed.
            assert_eq!(io::Read::read(&mut reader, &mut [0]).unwrap(), 0);
        }
        channel::send_bytes(&theirs, &[0; 17]).unwrap();
        assert!(matches!(receive(&ours, &mut buffer), Err(ReceiveError::Oversized)));
        drop(theirs);
        assert!(matches!(receive(&ours, &mut buffer), Err(ReceiveError::Closed)));
    }
}
