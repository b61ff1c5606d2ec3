//! The exchange: which requests were sent, and which reply is whose. Both clients are made of it; it knows
//! neither runtime nor thread, and waits only where the channel is a blocking one.
//!
//! It promises that a reply reaches the request that it answers, in whatever order replies come, with exactly
//! the descriptors that it declares; when that cannot be kept, the session is over for everyone in it. Buffers
//! are used again, so a request in a session that has warmed up allocates nothing here.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::task::{Poll, Waker};

use portreeve_protocol::channel::{self, ReceiveError};
use portreeve_protocol::frame::FrameError;
use portreeve_protocol::{Event, Fault, Header, Kind, codec};

use crate::error::Error;
use crate::followers::{FollowerId, Followers};
use crate::request::Request;

/// How many answers' buffers are kept for the next ones, and how long each may have grown.
const SPARES: usize = 64;
const SPARE_BYTES: usize = 4096;

/// A request's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RequestId(u32);

#[derive(Default)]
struct Answer {
    kind: u16,
    body: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    descriptors_lost: bool,
}

enum Slot {
    Waiting(Option<Waker>),
    /// Whoever asked no longer waits.
    Unwanted,
    Answered(Answer),
}

pub(crate) struct Exchange {
    last: u32,
    /// In the order they were sent, which is mostly that of their replies.
    asked: VecDeque<(RequestId, Slot)>,
    outgoing: Box<[u8]>,
    incoming: Box<[u8]>,
    spare: Vec<Answer>,
    /// Why it is over, where it is.
    pub over: Option<Error>,
    pub followers: Followers,
}

impl Exchange {
    pub fn new() -> Self {
        Self {
            last: 0,
            asked: VecDeque::new(),
            outgoing: codec::frame_buffer(),
            incoming: codec::frame_buffer(),
            spare: Vec::new(),
            over: None,
            followers: Followers::default(),
        }
    }

    /// Sends a request; `None` where the channel is full and it must be tried again.
    pub fn send<O: Request>(
        &mut self,
        channel: BorrowedFd<'_>,
        request: &O,
    ) -> Result<Option<RequestId>, Error> {
        // 0 is for requests that want no answer.
        let id = self.last.checked_add(1).unwrap_or(1);
        if !self.send_numbered(channel, id, request)? {
            return Ok(None);
        }
        self.last = id;
        let id = RequestId(id);
        self.asked.push_back((id, Slot::Waiting(None)));
        Ok(Some(id))
    }

    /// Sends a request that the broker carries out and does not answer; `false` where the channel is full.
    pub fn tell<O: Request>(&mut self, channel: BorrowedFd<'_>, request: &O) -> Result<bool, Error> {
        self.send_numbered(channel, 0, request)
    }

    fn send_numbered<O: Request>(
        &mut self,
        channel: BorrowedFd<'_>,
        number: u32,
        request: &O,
    ) -> Result<bool, Error> {
        if let Some(over) = &self.over {
            return Err(over.clone());
        }
        let frame = codec::encode(&mut self.outgoing, O::KIND, number, 0, request)
            .map_err(|error| Error::Request(error.to_string().into()))?;
        loop {
            match channel::send_bytes(channel, frame) {
                Ok(()) => return Ok(true),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if channel::is_busy(&error) => return Ok(false),
                Err(error) if is_hang_up(&error) => return Err(Error::Closed),
                Err(error) => return Err(Error::io("sending a request to the broker")(error)),
            }
        }
    }

    /// Receives one frame and puts it where it belongs; `false` where none is there. An error ends the
    /// session.
    pub fn receive(&mut self, channel: BorrowedFd<'_>) -> Result<bool, Error> {
        let result = match &self.over {
            Some(over) => return Err(over.clone()),
            None => self.receive_frame(channel),
        };
        result.inspect_err(|error| {
            // The other side is to see the end too; where it is gone already there is nobody to tell.
            let _ = rustix::net::shutdown(channel, rustix::net::Shutdown::Both);
            self.over = Some(error.clone());
            let waiting = self.asked.iter_mut().filter_map(|(_, slot)| match slot {
                Slot::Waiting(waker) => waker.take(),
                _ => None,
            });
            waiting.for_each(Waker::wake);
            self.followers.wake();
        })
    }

    fn receive_frame(&mut self, channel: BorrowedFd<'_>) -> Result<bool, Error> {
        let mut answer = self.spare.pop().unwrap_or_default();
        let packet = loop {
            match channel::receive(channel, &mut self.incoming, &mut answer.descriptors) {
                Ok(packet) => break packet,
                Err(ReceiveError::Os(error)) if error.kind() == ErrorKind::Interrupted => {}
                Err(ReceiveError::Os(error)) if error.kind() == ErrorKind::WouldBlock => {
                    self.spare.push(answer);
                    return Ok(false);
                }
                Err(ReceiveError::Closed) => return Err(Error::Closed),
                Err(ReceiveError::Os(error)) if is_hang_up(&error) => return Err(Error::Closed),
                Err(ReceiveError::Os(error)) => {
                    return Err(Error::io("receiving from the broker")(error));
                }
                Err(error) => return Err(Error::protocol(error)),
            }
        };
        let (header, body) = Header::decode(self.incoming.get(..packet.bytes).unwrap_or_default()).map_err(
            |error| match error {
                FrameError::Version { found, .. } => Error::Version { found },
                other => Error::protocol(other),
            },
        )?;
        let (declared, received) = (usize::from(header.descriptors), answer.descriptors.len());
        let agree = if packet.descriptors_lost { declared > 0 } else { declared == received };
        if !agree {
            return Err(Error::protocol(format_args!(
                "a frame declares {declared} descriptors and {received} came"
            )));
        }
        if header.request == 0 {
            match header.kind {
                Kind::FAULT => {
                    return Err(codec::decode::<Fault>(body).map_or_else(Error::protocol, Error::Ended));
                }
                Kind::EVENT => {
                    self.followers.tell(&codec::decode::<Event>(body).map_err(Error::protocol)?);
                }
                // What a later version may tell unasked.
                _ => {}
            }
            self.keep(answer);
            return Ok(true);
        }
        answer.kind = header.kind.0;
        answer.descriptors_lost = packet.descriptors_lost;
        answer.body.extend_from_slice(body);
        self.put(RequestId(header.request), answer)
    }

    fn put(&mut self, id: RequestId, answer: Answer) -> Result<bool, Error> {
        let at = self.find(id).and_then(|at| Some((at, self.asked.get_mut(at)?)));
        match at {
            Some((_, (_, slot @ Slot::Waiting(_)))) => {
                if let Slot::Waiting(Some(waker)) = std::mem::replace(slot, Slot::Answered(answer)) {
                    waker.wake();
                }
            }
            Some((at, (_, Slot::Unwanted))) => {
                self.asked.remove(at);
                self.keep(answer);
            }
            Some((_, (_, Slot::Answered(_)))) | None => {
                return Err(Error::protocol(format_args!(
                    "it answered request {}, which does not wait for an answer",
                    id.0
                )));
            }
        }
        Ok(true)
    }

    /// Gives the reply to a request, once; the waker is woken when there is one.
    pub fn poll_reply<O: Request>(&mut self, id: RequestId, waker: &Waker) -> Poll<Result<O::Output, Error>> {
        let Some(at) = self.find(id) else {
            return Poll::Ready(Err(Error::Closed));
        };
        if let Some((_, Slot::Waiting(waiting))) = self.asked.get_mut(at) {
            let Some(over) = &self.over else {
                match waiting {
                    Some(known) => known.clone_from(waker),
                    None => *waiting = Some(waker.clone()),
                }
                return Poll::Pending;
            };
            let over = over.clone();
            self.asked.remove(at);
            return Poll::Ready(Err(over));
        }
        match self.asked.remove(at) {
            Some((_, Slot::Answered(mut answer))) => {
                let output = read::<O>(&mut answer);
                self.keep(answer);
                Poll::Ready(output)
            }
            _ => Poll::Ready(Err(Error::Closed)),
        }
    }

    /// Nobody waits for this reply any more: it is dropped when it comes, with its descriptors.
    pub fn forget(&mut self, id: RequestId) {
        let Some(at) = self.find(id) else { return };
        match self.asked.get_mut(at) {
            Some((_, slot @ Slot::Waiting(_))) => *slot = Slot::Unwanted,
            _ => {
                self.asked.remove(at);
            }
        }
    }

    /// Begins again on another channel: whoever still waits for a reply of the last one has none.
    #[cfg(feature = "tokio")]
    pub fn begin_again(&mut self) {
        self.over = None;
        self.asked.clear();
    }

    /// Gives a follower its next event; the waker is woken when there is one.
    pub fn poll_event(&mut self, id: FollowerId, waker: &Waker) -> Poll<Result<Event, Error>> {
        match (self.followers.take(id, waker), &self.over) {
            (Some(event), _) => Poll::Ready(Ok(event)),
            (None, Some(over)) => Poll::Ready(Err(over.clone())),
            (None, None) => Poll::Pending,
        }
    }

    fn find(&self, id: RequestId) -> Option<usize> {
        self.asked.iter().position(|(asked, _)| *asked == id)
    }

    fn keep(&mut self, mut answer: Answer) {
        answer.body.clear();
        answer.descriptors.clear();
        if self.spare.len() < SPARES && answer.body.capacity() <= SPARE_BYTES {
            self.spare.push(answer);
        }
    }
}

fn read<O: Request>(answer: &mut Answer) -> Result<O::Output, Error> {
    if answer.descriptors_lost {
        return Err(Error::DescriptorsLost);
    }
    let (kind, wanted) = (Kind(answer.kind), O::KIND.reply());
    let output = match kind {
        Kind::FAULT => Err(codec::decode::<Fault>(&answer.body).map_or_else(Error::protocol, Error::Fault)),
        _ if kind == wanted => {
            let reply = codec::decode(&answer.body).map_err(Error::protocol)?;
            O::join(reply, &mut answer.descriptors).ok_or_else(|| wrong_sockets(O::NAME))
        }
        _ => Err(Error::protocol(format_args!("{} was answered with a frame of kind {kind:?}", O::NAME))),
    };
    if answer.descriptors.is_empty() { output } else { Err(wrong_sockets(O::NAME)) }
}

fn wrong_sockets(operation: &str) -> Error {
    Error::protocol(format_args!("{operation} was answered with a wrong number of sockets"))
}

fn is_hang_up(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::NotConnected)
}
