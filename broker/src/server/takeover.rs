//! The state of the whole broker in a takeover: the target of an import, the source of the descriptor store, and the end of
//! a broker that was taken over.

use std::net::Shutdown;
use std::os::fd::{AsFd as _, BorrowedFd};

use portreeve_protocol::message::ListenerId;
use portreeve_protocol::{Kind, channel, codec};

use super::session::Session;
use super::state::Broker;
use crate::takeover::{FdstoreName, FdstoreSource, Party, StoredListener, Target, taken_over};

impl Broker {
    /// The parts that an import fills.
    pub(super) fn import_target(&self) -> Target<'_> {
        Target {
            policy: &self.policy,
            registry: &self.registry,
            addresses: self.addresses.as_ref(),
            control: self.export.control.as_ref().map(|socket| socket.as_fd()),
            floating: self,
        }
    }

    /// Ends service after the successor's commit: forgets the listeners and addresses, which belong to it now, and ends
    /// every session that is neither the successor's nor the worker's.
    pub(super) fn commit_export(&self, successor: &Session) {
        self.registry.borrow_mut().forget_all();
        self.addresses.iter().for_each(|addresses| addresses.drop_exported());
        let pid = self.sessions.borrow().get(&successor.number).map_or(0, |info| info.pid);
        self.export.commit(successor.number, pid);
        let mut buffer = codec::frame_buffer();
        let frame = codec::encode(&mut buffer, Kind::FAULT, 0, 0, &taken_over());
        let sessions = self.sessions.borrow();
        let sessions = sessions.values().filter_map(|info| info.session.upgrade());
        for session in sessions.filter(|session| session.must_close()) {
            if let Ok(frame) = &frame {
                let _ = channel::send_bytes(&session.channel, frame); // a peer that does not read misses the fault
            }
            let _ = session.channel.shutdown(Shutdown::Both); // it fails only if the peer has hung up
        }
    }
}

impl Session {
    /// Whether a successor has committed, so that this session must end.
    pub(super) fn must_close(&self) -> bool {
        self.export.must_close(self.number, self.is_worker())
    }
}

impl FdstoreSource for Broker {
    fn to_store(&self, id: ListenerId) -> Option<StoredListener> {
        let registry = self.registry.borrow();
        let exported = registry.export_unless_floating(id)?;
        let is_static = registry.entry(id).is_some_and(|entry| entry.name.is_some());
        let party = match exported.user {
            _ if is_static => Party::Static,
            None => Party::Worker,
            Some(user) => Party::User(user),
        };
        Some(StoredListener { party, name: FdstoreName::from(exported).encode()? })
    }

    fn with_socket(
        &self,
        id: ListenerId,
        send: &mut dyn FnMut(BorrowedFd<'_>) -> nix::Result<()>,
    ) -> Option<nix::Result<()>> {
        self.registry.borrow().socket(id).map(send)
    }

    fn with_allowlist(
        &self,
        send: &mut dyn FnMut(BorrowedFd<'_>) -> nix::Result<()>,
    ) -> Option<nix::Result<()>> {
        self.registry.borrow().allowlist().map(send)
    }

    fn is_taken_over(&self) -> bool {
        self.export.is_committed()
    }
}
