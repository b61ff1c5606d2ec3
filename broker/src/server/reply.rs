//! Replies to a session's peer: sent at once, or when the peer has made room for them.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use portreeve_protocol::message::ListenerId;
use portreeve_protocol::{Fault, Kind, channel, codec};
use tokio::io::Interest;

use super::session::{Session, Step};
use super::state::Broker;

/// How long to wait while too many descriptors are in flight: no event reports the end of that state.
const DESCRIPTOR_RETRY: Duration = Duration::from_millis(5);

impl Session {
    /// Sends a reply with the sockets of these listeners, or keeps it if the peer must read first.
    pub fn send(&self, broker: &Broker, frame: &[u8], listeners: &[ListenerId]) -> Step {
        let registry = broker.registry.borrow();
        let descriptors: Option<Vec<BorrowedFd<'_>>> =
            listeners.iter().map(|id| registry.socket(*id)).collect();
        match descriptors {
            Some(descriptors) => self.send_now(frame, &descriptors),
            None => Step::Close("a listener was closed before its socket was sent".to_owned()),
        }
    }

    pub(super) fn send_now(&self, frame: &[u8], descriptors: &[BorrowedFd<'_>]) -> Step {
        match channel::send(&self.channel, frame, descriptors) {
            Ok(()) => Step::Continue,
            Err(error) if channel::is_busy(&error) => {
                let copies = descriptors.iter().map(|fd| fd.try_clone_to_owned());
                match copies.collect() {
                    Ok(descriptors) => Step::Wait { frame: frame.to_vec(), descriptors },
                    Err(error) => {
                        Step::Close(format!("cannot duplicate the descriptors of a reply: {error}"))
                    }
                }
            }
            Err(error) => Step::Close(format!("cannot send a reply: {error}")),
        }
    }

    /// Replies with a fault that does not count as a refusal.
    pub fn send_fault(&self, outbox: &mut [u8], request: u32, fault: &Fault) -> Step {
        match codec::encode(outbox, Kind::FAULT, request, 0, fault) {
            Ok(frame) => self.send_now(frame, &[]),
            Err(error) => Step::Close(format!("cannot encode a fault: {error}")),
        }
    }

    /// Replies with a fault; the session continues.
    pub fn refuse(&self, outbox: &mut [u8], request: u32, fault: &Fault) -> Step {
        self.note_refusals(1);
        self.send_fault(outbox, request, fault)
    }

    /// Replies with a fault and closes the session. Does not wait for a peer that does not read the reply.
    pub fn close_with(&self, outbox: &mut [u8], request: u32, fault: &Fault) -> Step {
        let _ = self.refuse(outbox, request, fault); // the session ends in any case
        Step::Close(fault.message.to_string())
    }

    /// Replies with a fault; closes the session if its peer has not sent hello.
    pub fn refuse_or_close(&self, outbox: &mut [u8], request: u32, fault: &Fault) -> Step {
        match self.is_greeted() {
            true => self.refuse(outbox, request, fault),
            false => self.close_with(outbox, request, fault),
        }
    }

    /// Sends a frame, and waits up to `unread_timeout` for the peer to make room.
    pub(super) async fn send_in_time(&self, frame: &[u8], descriptors: &[OwnedFd]) -> Result<(), String> {
        match tokio::time::timeout(self.unread_timeout, self.send_waiting(frame, descriptors)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(format!("cannot send a reply: {error}")),
            Err(_) => Err(format!("the peer did not read a reply for {} s", self.unread_timeout.as_secs())),
        }
    }

    /// Sends a frame, however long the peer takes to make room.
    pub(super) async fn send_waiting(&self, frame: &[u8], descriptors: &[OwnedFd]) -> io::Result<()> {
        let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(|fd| fd.as_fd()).collect();
        loop {
            let send = || channel::send(&self.channel, frame, &descriptors);
            match self.async_channel.async_io(Interest::WRITABLE, send).await {
                Err(error) if channel::is_busy(&error) => tokio::time::sleep(DESCRIPTOR_RETRY).await,
                other => return other,
            }
        }
    }
}
