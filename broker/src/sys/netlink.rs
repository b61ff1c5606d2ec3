//! One netlink socket for requests: batches of changes, batches of questions, and dumps.
//!
//! Promises: every exchange is over when its function returns, for the kernel answers within the send; nothing ever
//! waits. Of a batch of changes only the last is acknowledged: the kernel tells of every failure unasked and before
//! that, and an answer that found no room makes the exchange fail as a whole. A dump that a change interrupted is taken
//! anew. Touches the socket that [`Netlink::open`] opened and no other. Source: netlink(7).

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use netlink_packet_core::{Emitable, NLM_F_DUMP, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt,
    socket, sockopt,
};

use super::netlink_batch::{Batch, HEADER};

/// The most messages that one send carries: the acknowledgements of a thousand overran the socket.
pub const BATCH: usize = 256;
/// Room for one datagram: the kernel fills a dump's datagrams up to 32 KiB.
const DATAGRAM: usize = 64 * 1024;
/// Room for what waits to be received.
const RECEIVE_BUFFER: usize = 8 * 1024 * 1024;
/// How often a dump is taken anew before it is a failure.
const RETRIES: u32 = 8;

/// A socket for requests.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: Cell<u32>,
    inbox: RefCell<Box<[u8]>>,
}

/// One message as it was received.
struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

/// Opens a netlink socket that never blocks and receives what these groups tell, as a mask of RTMGRP_ bits.
///
/// # Errors
/// As socket(2), setsockopt(2) and bind(2) have them.
pub fn open(protocol: SockProtocol, groups: u32) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let opened = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
    // In a user namespace nobody may force it: as much as net.core.rmem_max allows has to do, and what does not fit
    // is read again by a dump.
    setsockopt(&opened, sockopt::RcvBufForce, &RECEIVE_BUFFER)
        .or_else(|_| setsockopt(&opened, sockopt::RcvBuf, &RECEIVE_BUFFER))?;
    bind(opened.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(opened)
}

impl Netlink {
    /// Opens one for requests of a protocol.
    ///
    /// # Errors
    /// As [`open`].
    pub fn open(protocol: SockProtocol) -> nix::Result<Self> {
        let inbox = RefCell::new(vec![0; DATAGRAM].into());
        Ok(Self { socket: open(protocol, 0)?, sequence: Cell::new(1), inbox })
    }

    /// An empty batch.
    pub fn batch(&self) -> Batch {
        Batch::beginning_with(self.sequence.get())
    }

    /// Sends a batch, of messages about as many as [`BATCH`], and gives what became of each, in their order.
    ///
    /// # Errors
    /// The batch could not be sent, or its acknowledgement is missing.
    pub fn act(&self, batch: &Batch) -> io::Result<Vec<Result<(), Errno>>> {
        self.send(batch)?;
        let mut results = vec![Ok(()); batch.len()];
        let mut over = false;
        while !over {
            let received = self.receive(|message| {
                let Some(outcome) = error_of(&message) else { return };
                let place = batch.place_of(message.sequence).and_then(|at| results.get_mut(at));
                if let (Some(result), Err(_)) = (place, outcome) {
                    *result = outcome;
                }
                over |= message.sequence == batch.awaited();
            });
            match received {
                Ok(()) => {}
                // The kernel has said all that it will: what it refused as a whole it tells of by another message.
                Err(Errno::EAGAIN) => {
                    let why = results.into_iter().find_map(Result::err);
                    return Err(why.unwrap_or(Errno::EPROTO).into());
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(results)
    }

    /// Sends messages in batches, and gives what became of each.
    ///
    /// # Errors
    /// As [`Netlink::act`].
    pub fn act_all<M: Emitable>(
        &self,
        kind: u16,
        flags: u16,
        messages: &[M],
    ) -> io::Result<Vec<Result<(), Errno>>> {
        let mut results = Vec::with_capacity(messages.len());
        for some in messages.chunks(BATCH) {
            let mut batch = self.batch();
            some.iter().for_each(|message| batch.push(kind, flags, message));
            batch.acknowledge();
            results.extend(self.act(&batch)?);
        }
        Ok(results)
    }

    /// Asks one thing and gives the body of the answer.
    ///
    /// # Errors
    /// What the kernel refused it with.
    pub fn ask<M: Emitable>(&self, kind: u16, message: &M) -> Result<Vec<u8>, Errno> {
        let answers = self.ask_all(kind, std::slice::from_ref(message), |body| Some(body.to_vec()))?;
        answers.into_iter().next().unwrap_or(Err(Errno::EPROTO))
    }

    /// Asks many things, each of which has one answer, in batches; `take` sees the body of each, and what it makes no
    /// sense of is EPROTO.
    ///
    /// # Errors
    /// The questions could not be sent, or an answer is missing.
    pub fn ask_all<M: Emitable, T>(
        &self,
        kind: u16,
        messages: &[M],
        take: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<Result<T, Errno>>, Errno> {
        let mut answers = Vec::with_capacity(messages.len());
        for some in messages.chunks(BATCH) {
            let mut batch = self.batch();
            some.iter().for_each(|message| batch.push(kind, 0, message));
            self.send(&batch)?;
            let mut found: Vec<Option<Result<T, Errno>>> = some.iter().map(|_| None).collect();
            let mut left = found.len();
            while left > 0 {
                self.receive(|message| {
                    let place = batch.place_of(message.sequence).and_then(|at| found.get_mut(at));
                    let Some(place) = place.filter(|place| place.is_none()) else { return };
                    left -= 1;
                    *place = Some(match error_of(&message) {
                        Some(Err(errno)) => Err(errno),
                        _ => take(message.body).ok_or(Errno::EPROTO),
                    });
                })?;
            }
            answers.extend(found.into_iter().flatten());
        }
        Ok(answers)
    }

    /// Asks for everything of a kind; `take` sees each body of the answer.
    ///
    /// # Errors
    /// What the kernel refused it with, or EINTR where changes interrupted it again and again.
    pub fn dump<M: Emitable, T>(
        &self,
        kind: u16,
        message: &M,
        take: impl Fn(u16, &[u8]) -> Option<T>,
    ) -> Result<Vec<T>, Errno> {
        for _ in 0..RETRIES {
            let mut batch = self.batch();
            batch.push(kind, NLM_F_DUMP, message);
            self.send(&batch)?;
            let (mut found, mut interrupted, mut over) = (Vec::new(), false, None);
            while over.is_none() {
                self.receive(|message| {
                    if batch.place_of(message.sequence) != Some(0) {
                        return;
                    }
                    interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                    match error_of(&message) {
                        Some(result) => over = Some(result),
                        None if message.kind == NLMSG_DONE => over = Some(done(message.body)),
                        None => found.extend(take(message.kind, message.body)),
                    }
                })?;
            }
            match over {
                Some(Err(errno)) if errno != Errno::EINTR => return Err(errno),
                Some(Ok(())) if !interrupted => return Ok(found),
                _ => {}
            }
        }
        Err(Errno::EINTR)
    }

    fn send(&self, batch: &Batch) -> Result<(), Errno> {
        self.sequence.set(batch.next());
        let bytes = batch.bytes();
        // What an exchange that failed has left unread answers nothing of this one.
        while let Ok(1..) = recv(self.socket.as_raw_fd(), &mut self.inbox.borrow_mut(), MsgFlags::empty()) {}
        match send(self.socket.as_raw_fd(), bytes, MsgFlags::empty()) {
            Ok(sent) if sent == bytes.len() => Ok(()),
            Ok(_) => Err(Errno::EMSGSIZE),
            Err(errno) => Err(errno),
        }
    }

    fn receive(&self, take: impl FnMut(Message<'_>)) -> Result<(), Errno> {
        let mut inbox = self.inbox.borrow_mut();
        let length = recv(self.socket.as_raw_fd(), &mut inbox, MsgFlags::empty())?;
        messages(inbox.get(..length).unwrap_or_default()).for_each(take);
        Ok(())
    }
}

/// The outcome that a message tells, where it is one.
fn error_of(message: &Message<'_>) -> Option<Result<(), Errno>> {
    (message.kind == NLMSG_ERROR).then(|| done(message.body))
}

/// The outcome at the start of a body: 0, or an errno below it.
fn done(body: &[u8]) -> Result<(), Errno> {
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
