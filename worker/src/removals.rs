//! Removals of dropped leases: sent without a caller that waits, few at once, and again if the broker has no room for them.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::task::{Context, Poll};

use portreeve_protocol::address::RemoveAddress;
use portreeve_protocol::{FaultCode, List};

use crate::connection::{Connection, RequestId};
use crate::error::Error;

/// Maximum number of addresses in one request.
const MAX_BATCH: usize = 256;

/// An address and the epoch of its lease.
type Removal = (IpAddr, u64);

#[derive(Default)]
pub(crate) struct Removals {
    queued: Vec<Removal>,
    /// The requests that have no reply yet.
    sent: Vec<(RequestId, Vec<Removal>)>,
    /// Whether a task waits for the replies.
    pub awaited: bool,
}

impl Removals {
    pub fn queue(&mut self, address: IpAddr, epoch: u64) {
        self.queued.push((address, epoch));
    }

    /// Sends one request, if none is in flight; the replies let more follow, so that few are in flight at once.
    pub fn send_one(&mut self, connection: &mut Connection, channel: BorrowedFd<'_>) {
        if self.sent.is_empty() {
            self.send_next(connection, channel);
        }
    }

    /// Sends all; `false` if the channel is full and some remain queued.
    pub fn send_all(&mut self, connection: &mut Connection, channel: BorrowedFd<'_>) -> bool {
        while !self.queued.is_empty() {
            match self.send_next(connection, channel) {
                Some(true) => {}
                Some(false) => return false,
                // They remain queued for the next broker. If no broker follows, the leases end.
                None => break,
            }
        }
        true
    }

    /// Sends a request for addresses of the same epoch; `false` if the channel is full, and `None` if it has ended.
    fn send_next(&mut self, connection: &mut Connection, channel: BorrowedFd<'_>) -> Option<bool> {
        let &(_, epoch) = self.queued.first()?;
        let is_next = |(_, other): &&Removal| *other == epoch;
        let batch: Vec<Removal> = self.queued.iter().filter(is_next).take(MAX_BATCH).copied().collect();
        let addresses = List::truncated(batch.iter().map(|(address, _)| *address));
        // With a number: without one, the broker would answer a refusal by a fault that ends the session.
        match connection.send(channel, &RemoveAddress { addresses, epoch }) {
            Ok(Some(id)) => {
                let mut remaining = batch.len();
                self.queued.retain(|(_, other)| {
                    let is_sent = *other == epoch && remaining > 0;
                    remaining -= usize::from(is_sent);
                    !is_sent
                });
                self.sent.push((id, batch));
                Some(true)
            }
            Ok(None) => Some(false),
            Err(_) => None,
        }
    }

    /// Takes the replies that have arrived. Ready with whether there was no room for a request, whose removals are queued again;
    /// pending if no reply has arrived.
    pub fn poll(&mut self, connection: &mut Connection, context: &mut Context<'_>) -> Poll<bool> {
        if self.sent.is_empty() {
            return Poll::Ready(!self.queued.is_empty());
        }
        let (mut arrived, mut refused) = (false, false);
        let queued = &mut self.queued;
        self.sent.retain(|(id, batch)| {
            let reply = connection.poll_reply::<RemoveAddress>(*id, context.waker());
            let Poll::Ready(reply) = reply else { return true };
            arrived = true;
            // Other faults are those of leases that have ended.
            if let Err(Error::Fault(fault)) = reply
                && matches!(fault.code, FaultCode::Quota | FaultCode::Busy)
            {
                refused = true;
                queued.extend(batch);
            }
            false
        });
        if arrived { Poll::Ready(refused) } else { Poll::Pending }
    }

    /// Whether no request is in flight.
    pub fn is_none_sent(&self) -> bool {
        self.sent.is_empty()
    }

    /// Whether every removal has its reply.
    pub fn is_done(&self) -> bool {
        self.queued.is_empty() && self.sent.is_empty()
    }
}
