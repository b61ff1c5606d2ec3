//! The state of a connection to the broker: the requests in flight, and the assignment of replies to them. Both clients use
//! it. It depends on no runtime and no thread, and blocks only if the channel is a blocking one.
//!
//! Promises: replies can arrive in any order, and each reaches its request with exactly the descriptors that the reply
//! declares; if that is impossible, the session ends for all callers. Buffers are reused, so that a request in a
//! warmed-up session allocates nothing here.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::task::{Poll, Waker};

use portreeve_protocol::channel::{self, ReceiveError};
use portreeve_protocol::frame::FrameError;
use portreeve_protocol::{Event, Fault, Header, Kind, codec};

use crate::error::Error;
use crate::request::Request;
use crate::subscribers::{SubscriberId, Subscribers};

/// Maximum number of reply buffers that are kept for reuse, and the maximum size of each.
const MAX_SPARE_BUFFERS: usize = 64;
const MAX_SPARE_BYTES: usize = 4096;

/// The number of a request that the broker replies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RequestId(u32);

/// A reply as it was received.
#[derive(Default)]
struct ReplyBuffer {
    kind: u16,
    body: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    descriptors_lost: bool,
}

/// The state of a request in flight.
enum Slot {
    Waiting(Option<Waker>),
    /// Its caller no longer waits.
    Abandoned,
    Replied(ReplyBuffer),
}

pub(crate) struct Connection {
    last_request: u32,
    /// In the order in which they were sent, which is mostly the order of their replies.
    in_flight: VecDeque<(RequestId, Slot)>,
    outgoing: Box<[u8]>,
    incoming: Box<[u8]>,
    spare: Vec<ReplyBuffer>,
    /// The reason that the session ended, if it has.
    pub closed: Option<Error>,
    pub subscribers: Subscribers,
}

impl Connection {
    pub fn new() -> Self {
        Self {
            last_request: 0,
            in_flight: VecDeque::new(),
            outgoing: codec::frame_buffer(),
            incoming: codec::frame_buffer(),
            spare: Vec::new(),
            closed: None,
            subscribers: Subscribers::default(),
        }
    }

    /// Sends a request; `None` if the channel is full and the caller must retry.
    pub fn send<O: Request>(
        &mut self,
        channel: BorrowedFd<'_>,
        request: &O,
    ) -> Result<Option<RequestId>, Error> {
        // The broker does not reply to requests with the number 0.
        let number = self.last_request.checked_add(1).unwrap_or(1);
        if !self.send_numbered(channel, number, request)? {
            return Ok(None);
        }
        self.last_request = number;
        let id = RequestId(number);
        self.in_flight.push_back((id, Slot::Waiting(None)));
        Ok(Some(id))
    }

    /// Sends a request that the broker carries out without a reply; `false` if the channel is full.
    pub fn send_without_reply<O: Request>(
        &mut self,
        channel: BorrowedFd<'_>,
        request: &O,
    ) -> Result<bool, Error> {
        self.send_numbered(channel, 0, request)
    }

    fn send_numbered<O: Request>(
        &mut self,
        channel: BorrowedFd<'_>,
        number: u32,
        request: &O,
    ) -> Result<bool, Error> {
        if let Some(why) = &self.closed {
            return Err(why.clone());
        }
        let frame = codec::encode(&mut self.outgoing, O::KIND, number, 0, request)
            .map_err(|error| Error::Request(error.to_string().into()))?;
        loop {
            match channel::send_bytes(channel, frame) {
                Ok(()) => return Ok(true),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if channel::is_busy(&error) => return Ok(false),
                Err(error) if is_hang_up(&error) => return Err(Error::Closed),
                Err(error) => return Err(Error::io("cannot send a request to the broker")(error)),
            }
        }
    }

    /// Receives one frame and delivers it; `false` if no frame has arrived. An error ends the session.
    pub fn receive(&mut self, channel: BorrowedFd<'_>) -> Result<bool, Error> {
        let result = match &self.closed {
            Some(why) => return Err(why.clone()),
            None => self.receive_frame(channel),
        };
        result.inspect_err(|error| {
            // It fails only if the broker has closed its end already.
            let _ = rustix::net::shutdown(channel, rustix::net::Shutdown::Both);
            self.closed = Some(error.clone());
            let waiting = self.in_flight.iter_mut().filter_map(|(_, slot)| match slot {
                Slot::Waiting(waker) => waker.take(),
                _ => None,
            });
            waiting.for_each(Waker::wake);
            self.subscribers.wake_all();
        })
    }

    fn receive_frame(&mut self, channel: BorrowedFd<'_>) -> Result<bool, Error> {
        let mut reply = self.spare.pop().unwrap_or_default();
        let packet = loop {
            match channel::receive(channel, &mut self.incoming, &mut reply.descriptors) {
                Ok(packet) => break packet,
                Err(ReceiveError::Os(error)) if error.kind() == ErrorKind::Interrupted => {}
                Err(ReceiveError::Os(error)) if error.kind() == ErrorKind::WouldBlock => {
                    self.spare.push(reply);
                    return Ok(false);
                }
                Err(ReceiveError::Closed) => return Err(Error::Closed),
                Err(ReceiveError::Os(error)) if is_hang_up(&error) => return Err(Error::Closed),
                Err(ReceiveError::Os(error)) => {
                    return Err(Error::io("cannot receive from the broker")(error));
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
        let (declared, received) = (usize::from(header.descriptors), reply.descriptors.len());
        let agree = if packet.descriptors_lost { declared > 0 } else { declared == received };
        if !agree {
            return Err(Error::protocol(format_args!(
                "a frame declares {declared} descriptors and {received} were received"
            )));
        }
        if header.request == 0 {
            match header.kind {
                Kind::FAULT => {
                    return Err(codec::decode::<Fault>(body).map_or_else(Error::protocol, Error::Ended));
                }
                Kind::EVENT => {
                    self.subscribers.deliver(&codec::decode::<Event>(body).map_err(Error::protocol)?);
                }
                // A later version may send other frames without a request.
                _ => {}
            }
            self.recycle(reply);
            return Ok(true);
        }
        reply.kind = header.kind.0;
        reply.descriptors_lost = packet.descriptors_lost;
        reply.body.extend_from_slice(body);
        self.deliver(RequestId(header.request), reply)
    }

    fn deliver(&mut self, id: RequestId, reply: ReplyBuffer) -> Result<bool, Error> {
        let found = self.position(id).and_then(|at| Some((at, self.in_flight.get_mut(at)?)));
        match found {
            Some((_, (_, slot @ Slot::Waiting(_)))) => {
                if let Slot::Waiting(Some(waker)) = std::mem::replace(slot, Slot::Replied(reply)) {
                    waker.wake();
                }
            }
            Some((at, (_, Slot::Abandoned))) => {
                self.in_flight.remove(at);
                self.recycle(reply);
            }
            Some((_, (_, Slot::Replied(_)))) | None => {
                return Err(Error::protocol(format_args!(
                    "it sent a reply to request {}, which is not in flight",
                    id.0
                )));
            }
        }
        Ok(true)
    }

    /// Returns the reply to a request, once; wakes the waker when it has arrived.
    pub fn poll_reply<O: Request>(&mut self, id: RequestId, waker: &Waker) -> Poll<Result<O::Output, Error>> {
        let Some(at) = self.position(id) else {
            return Poll::Ready(Err(Error::Closed));
        };
        if let Some((_, Slot::Waiting(waiting))) = self.in_flight.get_mut(at) {
            let Some(why) = &self.closed else {
                match waiting {
                    Some(known) => known.clone_from(waker),
                    None => *waiting = Some(waker.clone()),
                }
                return Poll::Pending;
            };
            let why = why.clone();
            self.in_flight.remove(at);
            return Poll::Ready(Err(why));
        }
        match self.in_flight.remove(at) {
            Some((_, Slot::Replied(mut reply))) => {
                let output = decode_reply::<O>(&mut reply);
                self.recycle(reply);
                Poll::Ready(output)
            }
            _ => Poll::Ready(Err(Error::Closed)),
        }
    }

    /// Whether the broker has no reason to send anything except the end of the session.
    #[cfg(feature = "tokio")]
    pub fn expects_nothing(&self) -> bool {
        let replied = |(_, slot): &(RequestId, Slot)| matches!(slot, Slot::Replied(_));
        self.in_flight.iter().all(replied) && self.subscribers.expect_nothing()
    }

    /// Records that no caller waits for this reply. The reply and its descriptors are dropped when it arrives.
    pub fn abandon(&mut self, id: RequestId) {
        let Some(at) = self.position(id) else { return };
        match self.in_flight.get_mut(at) {
            Some((_, slot @ Slot::Waiting(_))) => *slot = Slot::Abandoned,
            _ => {
                self.in_flight.remove(at);
            }
        }
    }

    /// Resets the state for a new channel. Requests in flight on the previous channel get no reply.
    #[cfg(feature = "tokio")]
    pub fn reset(&mut self) {
        self.closed = None;
        self.in_flight.clear();
    }

    /// Returns the next event of a subscriber, or wakes the waker when one arrives.
    pub fn poll_event(&mut self, id: SubscriberId, waker: &Waker) -> Poll<Result<Event, Error>> {
        match (self.subscribers.next_event(id, waker), &self.closed) {
            (Some(event), _) => Poll::Ready(Ok(event)),
            (None, Some(why)) => Poll::Ready(Err(why.clone())),
            (None, None) => Poll::Pending,
        }
    }

    fn position(&self, id: RequestId) -> Option<usize> {
        self.in_flight.iter().position(|(sent, _)| *sent == id)
    }

    fn recycle(&mut self, mut reply: ReplyBuffer) {
        reply.body.clear();
        reply.descriptors.clear();
        if self.spare.len() < MAX_SPARE_BUFFERS && reply.body.capacity() <= MAX_SPARE_BYTES {
            self.spare.push(reply);
        }
    }
}

fn decode_reply<O: Request>(reply: &mut ReplyBuffer) -> Result<O::Output, Error> {
    if reply.descriptors_lost {
        return Err(Error::DescriptorsLost);
    }
    let (kind, expected) = (Kind(reply.kind), O::KIND.reply());
    let output = match kind {
        Kind::FAULT => Err(codec::decode::<Fault>(&reply.body).map_or_else(Error::protocol, Error::Fault)),
        _ if kind == expected => {
            let message = codec::decode(&reply.body).map_err(Error::protocol)?;
            O::join(message, &mut reply.descriptors).ok_or_else(|| wrong_socket_count(O::NAME))
        }
        _ => Err(Error::protocol(format_args!("the reply to {} is a frame of kind {kind:?}", O::NAME))),
    };
    if reply.descriptors.is_empty() { output } else { Err(wrong_socket_count(O::NAME)) }
}

fn wrong_socket_count(operation: &str) -> Error {
    Error::protocol(format_args!("the reply to {operation} has the wrong number of sockets"))
}

fn is_hang_up(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::NotConnected)
}
