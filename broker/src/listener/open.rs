//! Opening a listener: bind, if necessary beside sockets that are about to close or that a former holder keeps, and make
//! it revocable.

use std::rc::Weak;

use nix::errno::Errno;
use portreeve_protocol::Endpoint;
use portreeve_protocol::message::ListenOptions;

use super::bind::{self, Bound, Share};
use super::fault::BindError;
use super::registry::Registry;
use super::stopped_sockets::{disarm, same_port};
use crate::config::SocketOptions;

/// How often a socket is opened again because the allowlist has no slot for it: each socket has slots of its own.
const MAX_REOPENED: usize = 8;

impl Registry {
    /// Opens a socket at an endpoint. The caller has checked that no listener of the registry is there, except those in
    /// `closing`, which are about to close.
    pub(super) fn open(
        &self,
        endpoint: &Endpoint,
        options: &ListenOptions,
        settings: &SocketOptions,
        closing: &[&Bound],
    ) -> Result<Bound, BindError> {
        let mut reopened = 0;
        loop {
            let mut bound = self.bind_free(endpoint, options, settings, closing)?;
            let protected = match &bound.socket {
                Some(socket) => self.revocation.protect(endpoint, socket),
                None => Err(Errno::EBADF),
            };
            match protected {
                Ok(revocability) => {
                    bound.revocability = revocability;
                    return Ok(bound);
                }
                Err(Errno::ENOSPC) if reopened < MAX_REOPENED => reopened += 1,
                Err(errno) => {
                    let file = bound.file.iter();
                    file.for_each(|file| file.remove(&self.directories));
                    return Err(BindError { call: "setsockopt SO_ATTACH_BPF", errno });
                }
            }
        }
    }

    /// Binds a socket. An endpoint that is in use only by sockets that are closing, or of listeners that were stopped, is
    /// free.
    fn bind_free(
        &self,
        endpoint: &Endpoint,
        options: &ListenOptions,
        settings: &SocketOptions,
        closing: &[&Bound],
    ) -> Result<Bound, BindError> {
        let bind = |share| bind::bind(&self.directories, endpoint, options, settings, share);
        let is_in_use = |error: &BindError| error.errno == Errno::EADDRINUSE && endpoint.inet().is_some();
        let in_use = match bind(Share::No) {
            Err(error) if is_in_use(&error) => error,
            other => return other,
        };
        let draining = self.draining.iter().filter_map(Weak::upgrade);
        // Nothing can be done about a socket that the broker does not keep.
        let draining = draining.filter(|one| one.entry.bound.socket.is_some());
        let draining: Vec<_> = draining.filter(|one| same_port(&one.entry.endpoint, endpoint)).collect();
        let closing = closing.iter().copied().chain(draining.iter().map(|one| &one.entry.bound));
        let closing: Vec<&Bound> = closing.collect();
        if !closing.is_empty() {
            closing.iter().try_for_each(|bound| bound.share(endpoint))?;
            match bind(Share::WithClosing) {
                Err(error) if is_in_use(&error) => {}
                other => return other,
            }
        }
        // A holder that prevents the sharing loses its listener at once.
        draining.iter().for_each(|one| drop(self.revoke_drained(one)));
        let take_back = || {
            let sockets = draining.iter().filter_map(|one| one.entry.bound.socket.as_ref());
            sockets.for_each(|socket| disarm(endpoint, socket));
            self.stopped.disarm_at(endpoint) || !draining.is_empty()
        };
        // The former holder of a UDP socket of which the broker has no copy any more may not have closed its own yet.
        let was_closed = matches!(endpoint, Endpoint::Udp(_)) && self.stopped.was_closed_at(endpoint);
        if take_back() || was_closed {
            match bind(Share::WithStopped(&take_back)) {
                Err(error) if is_in_use(&error) => {}
                other => return other,
            }
        }
        Err(in_use)
    }
}
