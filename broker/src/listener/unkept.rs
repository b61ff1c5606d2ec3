//! Listeners whose socket the broker does not keep, for programs that close and open their listeners themselves: once the
//! socket is sent, the peer has the only copy.
//!
//! Promises: such a listener is revoked like any other, because its cookie stays in the allowlist until it ends; see
//! [`Revocation`](super::revocation::Revocation). It counts and occupies its endpoint until the broker has found out that its
//! socket is closed, and once the broker has found that out, the socket is revoked. The kernel answers whether it is: it lets
//! another socket be bound exclusively.

use portreeve_protocol::message::{ListenOptions, ListenerId};
use portreeve_protocol::{Endpoint, Fault, FaultCode};

use super::bind::is_free;
use super::entry::Entry;
use super::registry::Registry;
use crate::holder::Holder;

/// How many sockets are probed when a peer has reached its quota.
const MAX_PROBED: usize = 64;

impl Entry {
    /// Whether the peer has the only copies of the socket.
    fn is_released(&self) -> bool {
        self.bound.socket.is_none()
    }
}

impl Registry {
    /// Refuses to open a listener whose socket the broker does not keep, if it could not be revoked.
    pub(super) fn check_unkept(&self, endpoint: &Endpoint) -> Result<(), Fault> {
        let (cause, remedy) = if endpoint.inet().is_none() {
            ("that is possible for TCP and UDP only", "request it with kept = true")
        } else if !self.revocation.needs_no_socket() {
            (
                "the kernel refused the broker an allowlist of sockets, so such a listener could not be revoked",
                "request it with kept = true, or start portreeved with cap_bpf on Linux 5.5 or later",
            )
        } else {
            return Ok(());
        };
        let message =
            format!("cannot listen on {endpoint} without a copy of the socket in the broker: {cause}");
        Err(Fault::new(FaultCode::Unsupported, &message).subject("kept").remedy(remedy))
    }

    /// Closes the broker's copies of those of these listeners that it does not keep: their sockets were sent.
    pub fn release(&mut self, ids: &[ListenerId]) {
        for id in ids {
            let entry = self.entries.get_mut(id).filter(|entry| !entry.is_kept());
            entry.into_iter().for_each(|entry| entry.bound.socket = None);
        }
    }

    /// Ends the listeners that overlap with an endpoint and whose sockets are closed.
    pub fn end_closed_at(&mut self, endpoint: &Endpoint, options: &ListenOptions) {
        let others = self.overlapping(endpoint, options).map(|(id, _)| id);
        let ids: Vec<_> = others.filter(|id| self.is_released(*id)).collect();
        // Of very many, one that is open is enough to refuse the request.
        ids.into_iter().all(|id| self.end_if_closed(id));
    }

    /// Ends listeners of a holder whose sockets are closed. Each call probes further ones.
    pub fn end_closed_of(&mut self, holder: Holder) {
        let is_his = |entry: &Entry| entry.is_released() && entry.holder() == holder;
        let before = self.entries.range(..=self.last_probed);
        let all = self.iter_after(self.last_probed).chain(before.map(|(id, entry)| (*id, &**entry)));
        let ids: Vec<_> = all.filter(|(_, entry)| is_his(entry)).map(|(id, _)| id).take(MAX_PROBED).collect();
        self.last_probed = ids.last().copied().unwrap_or(self.last_probed);
        for id in ids {
            self.end_if_closed(id);
        }
    }

    /// Ends those of the first `count` listeners after a number whose sockets are closed.
    pub fn end_closed_after(&mut self, id: ListenerId, count: usize) {
        let page = self.iter_after(id).take(count);
        let ids: Vec<_> = page.filter(|(_, entry)| entry.is_released()).map(|(id, _)| id).collect();
        for id in ids {
            self.end_if_closed(id);
        }
    }

    fn is_released(&self, id: ListenerId) -> bool {
        self.entry(id).is_some_and(Entry::is_released)
    }

    /// Ends a listener if its socket is closed; whether it did.
    fn end_if_closed(&mut self, id: ListenerId) -> bool {
        let options = |entry: &Entry| entry.unkept.as_deref().cloned().unwrap_or_default();
        let is_closed = self.entry(id).is_some_and(|entry| is_free(&entry.endpoint, &options(entry)));
        let Some(entry) = is_closed.then(|| self.remove_entry(id)).flatten() else { return false };
        let _ = self.revoke(&entry); // it cannot fail: such a socket is in the allowlist
        if matches!(*entry.endpoint, Endpoint::Tcp(_)) {
            // Its holder may have shut it down, and can listen on it again.
            self.keep_stopped(*entry);
        }
        true
    }
}

/// The fault of a request for an endpoint where the peer has the only copies of the socket.
pub(super) fn in_use_by_own_copy(endpoint: &Endpoint) -> Fault {
    let message = format!(
        "cannot listen on {endpoint}: this peer has the socket of its listener there, and the broker keeps no copy"
    );
    Fault::new(FaultCode::InUse, &message)
        .subject("this peer")
        .remedy("close every copy of that socket, then request it again")
}
