//! Answers on their way to a session's peer: sent at once, or when the peer has made room for them.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use portreeve_protocol::message::ListenerId;
use portreeve_protocol::{Fault, Kind, channel, codec};
use tokio::io::Interest;

use super::session::{Session, Turn};
use super::state::Broker;

/// How long to wait while too many descriptors are in flight: no event tells when that is over.
const IN_FLIGHT: Duration = Duration::from_millis(5);

impl Session {
    /// Answers with a frame and the sockets of these listeners, or keeps it where the peer must read first.
    pub fn send(&self, broker: &Broker, frame: &[u8], listeners: &[ListenerId]) -> Turn {
        let registry = broker.registry.borrow();
        let descriptors: Option<Vec<BorrowedFd<'_>>> =
            listeners.iter().map(|id| registry.socket(*id)).collect();
        match descriptors {
            Some(descriptors) => self.send_now(frame, &descriptors),
            None => Turn::Over("a listener was gone before its socket was sent".to_owned()),
        }
    }

    pub(super) fn send_now(&self, frame: &[u8], descriptors: &[BorrowedFd<'_>]) -> Turn {
        match channel::send(&self.channel, frame, descriptors) {
            Ok(()) => Turn::Answered,
            Err(error) if channel::is_busy(&error) => {
                let copies = descriptors.iter().map(|fd| fd.try_clone_to_owned());
                match copies.collect() {
                    Ok(descriptors) => Turn::Waiting { frame: frame.to_vec(), descriptors },
                    Err(error) => Turn::Over(format!("a reply could not be kept: {error}")),
                }
            }
            Err(error) => Turn::Over(format!("sending failed: {error}")),
        }
    }

    /// Answers with a fault; the session goes on.
    pub fn refuse(&self, outbox: &mut [u8], request: u32, fault: &Fault) -> Turn {
        self.note_refusals(1);
        match codec::encode(outbox, Kind::FAULT, request, 0, fault) {
            Ok(frame) => self.send_now(frame, &[]),
            Err(error) => Turn::Over(format!("a fault could not be encoded: {error}")),
        }
    }

    /// Tells the peer why its session ends; a peer that does not read is not waited for.
    pub fn last_fault(&self, outbox: &mut [u8], request: u32, fault: &Fault) -> Turn {
        let _a_peer_that_does_not_read_misses_it = self.refuse(outbox, request, fault);
        Turn::Over(fault.message.to_string())
    }

    /// Sends a frame, waiting for the peer to make room for as long as it may.
    pub(super) async fn send_in_time(&self, frame: &[u8], descriptors: &[OwnedFd]) -> Result<(), String> {
        match tokio::time::timeout(self.unread, self.send_waiting(frame, descriptors)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(format!("sending failed: {error}")),
            Err(_) => Err(format!("a reply was left unread for {} s", self.unread.as_secs())),
        }
    }

    /// Sends a frame, however long the peer takes to make room.
    pub(super) async fn send_waiting(&self, frame: &[u8], descriptors: &[OwnedFd]) -> io::Result<()> {
        let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(|fd| fd.as_fd()).collect();
        loop {
            let send = || channel::send(&self.channel, frame, &descriptors);
            match self.watched.async_io(Interest::WRITABLE, send).await {
                Err(error) if channel::is_busy(&error) => tokio::time::sleep(IN_FLIGHT).await,
                other => return other,
            }
        }
    }
}
