//! Netlink requests: batches of changes, batches of queries, and dumps.
//!
//! Promises: every exchange ends before its function returns, because the kernel replies within send(2); no function
//! blocks. Only the last change of a batch asks for an acknowledgement: the kernel reports every failure unasked, and
//! before that acknowledgement. A reply that does not fit in the receive buffer fails the whole exchange. A dump that a
//! change interrupted is repeated. Uses only the socket that [`Netlink::open`] opened. See netlink(7).

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use netlink_packet_core::{Emitable, NLM_F_DUMP, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, getsockname, recv, send,
    socket,
};

use super::netlink_batch::{Batch, HEADER};
use super::sockopt;

/// The largest number of messages in one send(2): the acknowledgements of a thousand overran the receive buffer.
pub const MAX_BATCH: usize = 256;
/// The receive buffer of one datagram: the kernel fills the datagrams of a dump up to 32 KiB.
const DATAGRAM: usize = 64 * 1024;
/// SO_RCVBUF, for queued replies and notifications.
const RECEIVE_BUFFER: u32 = 8 * 1024 * 1024;
/// How often an interrupted dump is repeated before it fails.
const MAX_DUMPS: u32 = 8;

/// A netlink socket for requests.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: Cell<u32>,
    buffer: RefCell<Box<[u8]>>,
}

/// A list of objects that is being received.
#[derive(Debug)]
pub struct Dump {
    batch: Batch,
    interrupted: bool,
}

impl Dump {
    /// Whether a change interrupted it, so that objects may be missing.
    pub fn was_interrupted(&self) -> bool {
        self.interrupted
    }
}

/// One received message.
struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

/// Opens a nonblocking netlink socket that receives the notifications of `groups`, a mask of RTMGRP_ bits. See
/// netlink(7); Linux 2.2.
///
/// # Capabilities
/// None. With CAP_NET_ADMIN in the initial user namespace the receive buffer may exceed net.core.rmem_max
/// (SO_RCVBUFFORCE); without it the buffer is as large as that limit allows, and a dump replaces lost notifications.
///
/// # Errors
/// Those of socket(2), setsockopt(2) and bind(2); EPROTONOSUPPORT if the kernel lacks the protocol.
pub fn open(protocol: SockProtocol, groups: u32) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let opened = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
    sockopt::force_receive_buffer(&opened, RECEIVE_BUFFER)
        .or_else(|_| sockopt::set_receive_buffer(&opened, RECEIVE_BUFFER))?;
    bind(opened.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(opened)
}

/// Receives one datagram of notifications, and returns its length. See recv(2); Linux 2.2.
///
/// # Capabilities
/// None.
///
/// # Errors
/// EAGAIN when none is queued; ENOBUFS when notifications were lost.
pub fn receive_notifications(socket: &impl AsFd, buffer: &mut [u8]) -> nix::Result<usize> {
    recv(socket.as_fd().as_raw_fd(), buffer, MsgFlags::empty())
}

impl Netlink {
    /// Opens a socket for requests of one protocol. See netlink(7); Linux 2.2.
    ///
    /// # Capabilities
    /// As [`open`]. Which requests need one depends on the protocol and the request.
    ///
    /// # Errors
    /// As [`open`].
    pub fn open(protocol: SockProtocol) -> nix::Result<Self> {
        let buffer = RefCell::new(vec![0; DATAGRAM].into());
        Ok(Self { socket: open(protocol, 0)?, sequence: Cell::new(1), buffer })
    }

    /// The number by which the kernel names this socket as the origin of a change: nl_pid of netlink(7).
    ///
    /// # Capabilities
    /// None.
    ///
    /// # Errors
    /// Those of getsockname(2).
    pub fn port(&self) -> nix::Result<u32> {
        Ok(getsockname::<NetlinkAddr>(self.socket.as_raw_fd())?.pid())
    }

    /// Creates an empty batch with the next sequence number.
    pub fn batch(&self) -> Batch {
        Batch::starting_at(self.sequence.get())
    }

    /// Sends a batch of at most about [`MAX_BATCH`] changes, and returns the outcome of each, in their order.
    /// See netlink(7), send(2) and recv(2); Linux 2.2.
    ///
    /// # Capabilities
    /// Those of its messages.
    ///
    /// # Errors
    /// The batch could not be sent, or its acknowledgement is missing; then the outcome of each change is unknown.
    pub fn change_batch(&self, batch: &Batch) -> Result<Vec<Result<(), Errno>>, Errno> {
        self.send(batch)?;
        let mut outcomes = vec![Ok(()); batch.len()];
        let mut acknowledged = false;
        while !acknowledged {
            let received = self.receive(|message| {
                let Some(outcome) = outcome_of(&message) else { return };
                let slot = batch.position(message.sequence).and_then(|at| outcomes.get_mut(at));
                if let (Some(slot), Err(_)) = (slot, outcome) {
                    *slot = outcome;
                }
                acknowledged |= message.sequence == batch.acknowledged();
            });
            match received {
                Ok(()) => {}
                // Nothing more arrives. When the kernel refuses a batch as a whole, the error is another message's.
                Err(Errno::EAGAIN) => {
                    return Err(outcomes.into_iter().find_map(Result::err).unwrap_or(Errno::EPROTO));
                }
                Err(errno) => return Err(errno),
            }
        }
        Ok(outcomes)
    }

    /// Sends changes in batches, and returns the outcome of each, in their order. As [`Netlink::change_batch`].
    ///
    /// # Capabilities
    /// Those of the messages.
    ///
    /// # Errors
    /// As [`Netlink::change_batch`]. Earlier batches may have taken effect.
    pub fn change_all<M: Emitable>(
        &self,
        kind: u16,
        flags: u16,
        messages: &[M],
    ) -> Result<Vec<Result<(), Errno>>, Errno> {
        let mut outcomes = Vec::with_capacity(messages.len());
        for chunk in messages.chunks(MAX_BATCH) {
            let mut batch = self.batch();
            chunk.iter().for_each(|message| batch.push(kind, flags, message));
            batch.acknowledge_last();
            outcomes.extend(self.change_batch(&batch)?);
        }
        Ok(outcomes)
    }

    /// As [`Netlink::change_all`]; an exchange that fails as a whole is the outcome of every change.
    ///
    /// # Capabilities
    /// Those of the messages.
    ///
    /// # Errors
    /// Each: the kernel's refusal, or that of [`Netlink::change_all`].
    pub fn change_each<M: Emitable>(&self, kind: u16, flags: u16, messages: &[M]) -> Vec<Result<(), Errno>> {
        self.change_all(kind, flags, messages).unwrap_or_else(|errno| vec![Err(errno); messages.len()])
    }

    /// Sends one query and returns the body of the reply. As [`Netlink::query_all`].
    ///
    /// # Capabilities
    /// Those of the message.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn query<M: Emitable>(&self, kind: u16, message: &M) -> Result<Vec<u8>, Errno> {
        let replies = self.query_all(kind, std::slice::from_ref(message), |body| Some(body.to_vec()))?;
        replies.into_iter().next().unwrap_or(Err(Errno::EPROTO))
    }

    /// Sends queries with one reply each, in batches. `parse` reads the body of each reply; a body that it cannot read
    /// is EPROTO. See netlink(7), send(2) and recv(2); Linux 2.2.
    ///
    /// # Capabilities
    /// Those of the messages.
    ///
    /// # Errors
    /// The queries could not be sent, or a reply is missing.
    pub fn query_all<M: Emitable, T>(
        &self,
        kind: u16,
        messages: &[M],
        parse: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<Result<T, Errno>>, Errno> {
        let mut replies = Vec::with_capacity(messages.len());
        for chunk in messages.chunks(MAX_BATCH) {
            let mut batch = self.batch();
            chunk.iter().for_each(|message| batch.push(kind, 0, message));
            self.send(&batch)?;
            let mut slots: Vec<Option<Result<T, Errno>>> = chunk.iter().map(|_| None).collect();
            let mut remaining = slots.len();
            while remaining > 0 {
                self.receive(|message| {
                    let slot = batch.position(message.sequence).and_then(|at| slots.get_mut(at));
                    let Some(slot) = slot.filter(|slot| slot.is_none()) else { return };
                    remaining -= 1;
                    *slot = Some(match outcome_of(&message) {
                        Some(Err(errno)) => Err(errno),
                        _ => parse(message.body).ok_or(Errno::EPROTO),
                    });
                })?;
            }
            replies.extend(slots.into_iter().flatten());
        }
        Ok(replies)
    }

    /// Begins to request every object of a kind, to be received in pieces. Until its end, no other exchange may use this socket.
    /// See netlink(7), NLM_F_DUMP; Linux 2.2, NLM_F_DUMP_INTR since 3.1.
    ///
    /// # Capabilities
    /// Those of the message.
    ///
    /// # Errors
    /// The request could not be sent.
    pub fn begin_dump<M: Emitable>(&self, kind: u16, message: &M) -> Result<Dump, Errno> {
        let mut batch = self.batch();
        batch.push(kind, NLM_F_DUMP, message);
        self.send(&batch)?;
        Ok(Dump { batch, interrupted: false })
    }

    /// Receives the next piece, which the kernel makes during this call, and passes the kind and body of each object to `found`.
    /// Returns whether more follow.
    ///
    /// # Capabilities
    /// None.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn continue_dump(&self, dump: &mut Dump, mut found: impl FnMut(u16, &[u8])) -> Result<bool, Errno> {
        let mut end = None;
        self.receive(|message| {
            if dump.batch.position(message.sequence) != Some(0) {
                return;
            }
            dump.interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
            match outcome_of(&message) {
                Some(outcome) => end = Some(outcome),
                None if message.kind == NLMSG_DONE => end = Some(status(message.body)),
                None => found(message.kind, message.body),
            }
        })?;
        end.map_or(Ok(true), |outcome| outcome.map(|()| false))
    }

    /// Requests every object of a kind; `parse` reads the kind and body of each message of the reply. See
    /// netlink(7), NLM_F_DUMP; Linux 2.2, NLM_F_DUMP_INTR since 3.1.
    ///
    /// # Capabilities
    /// Those of the message.
    ///
    /// # Errors
    /// The kernel's refusal, or EINTR when changes interrupted every attempt.
    pub fn dump<M: Emitable, T>(
        &self,
        kind: u16,
        message: &M,
        parse: impl Fn(u16, &[u8]) -> Option<T>,
    ) -> Result<Vec<T>, Errno> {
        for _ in 0..MAX_DUMPS {
            let (mut dump, mut objects) = (self.begin_dump(kind, message)?, Vec::new());
            let end = loop {
                match self.continue_dump(&mut dump, |kind, body| objects.extend(parse(kind, body))) {
                    Ok(true) => {}
                    Ok(false) => break Ok(()),
                    Err(errno) => break Err(errno),
                }
            };
            match end {
                Err(errno) if errno != Errno::EINTR => return Err(errno),
                Ok(()) if !dump.interrupted => return Ok(objects),
                _ => {}
            }
        }
        Err(Errno::EINTR)
    }

    fn send(&self, batch: &Batch) -> Result<(), Errno> {
        self.sequence.set(batch.next());
        let bytes = batch.bytes();
        // A failed exchange may have left messages unread; a later exchange must not read them.
        while let Ok(1..) = recv(self.socket.as_raw_fd(), &mut self.buffer.borrow_mut(), MsgFlags::empty()) {}
        match send(self.socket.as_raw_fd(), bytes, MsgFlags::empty()) {
            Ok(sent) if sent == bytes.len() => Ok(()),
            Ok(_) => Err(Errno::EMSGSIZE),
            Err(errno) => Err(errno),
        }
    }

    fn receive(&self, handle: impl FnMut(Message<'_>)) -> Result<(), Errno> {
        let mut buffer = self.buffer.borrow_mut();
        let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        messages(buffer.get(..length).unwrap_or_default()).for_each(handle);
        Ok(())
    }
}

/// The outcome that a message reports; `None` for a message that is not NLMSG_ERROR.
fn outcome_of(message: &Message<'_>) -> Option<Result<(), Errno>> {
    (message.kind == NLMSG_ERROR).then(|| status(message.body))
}

/// The status at the start of a body: 0, or a negative errno.
fn status(body: &[u8]) -> Result<(), Errno> {
    match body.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes)) {
        Some(0) | None => Ok(()),
        Some(negative) => Err(Errno::from_raw(negative.wrapping_neg())),
    }
}

/// The kinds and bodies of the messages of one datagram.
pub fn bodies(datagram: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    messages(datagram).map(|message| (message.kind, message.body))
}

fn messages(mut rest: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let word = |at: usize| rest.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
        let half = |at: usize| rest.get(at..)?.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes));
        let length = usize::try_from(word(0)?).ok()?;
        let (kind, flags, sequence) = (half(4)?, half(6)?, word(8)?);
        let body = rest.get(HEADER..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message { kind, flags, sequence, body })
    })
}
