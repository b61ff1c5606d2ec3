//! Exporting listeners to the successor or to the descriptor store.
//!
//! Promises: exporting changes nothing. A listener whose socket the broker does not keep is not exported. A listener that the broker forgets is neither shut down nor is its file removed.

use portreeve_protocol::Endpoint;
use portreeve_protocol::message::ListenerId;
use portreeve_protocol::takeover::{ExportedListener, SocketFile};

use super::entry::Entry;
use super::registry::Registry;
use crate::sys::unix_file::UnixFile;

impl Registry {
    /// At most `count` listeners after a number.
    pub fn export(&self, after: ListenerId, count: usize) -> Vec<ExportedListener> {
        let kept = self.iter_after(after).filter(|(_, entry)| entry.is_kept());
        kept.take(count).map(|(id, entry)| exported(id, entry)).collect()
    }

    /// One listener, unless it is floating, because a floating one starts with its address, or not kept.
    pub fn export_unless_floating(&self, id: ListenerId) -> Option<ExportedListener> {
        let entry = self.entries.get(&id).filter(|entry| !entry.floating && entry.is_kept())?;
        Some(exported(id, entry))
    }

    /// What a successor needs to recognise the file of the control socket.
    pub fn export_control_file(&self) -> Option<SocketFile> {
        self.control_file.as_ref().map(UnixFile::export)
    }

    /// Forgets every listener and the control socket's file: they belong to the successor.
    pub fn forget_all(&mut self) {
        self.entries.clear();
        self.by_endpoint.clear();
        self.overlaps.clear();
        self.counts.clear();
        self.stopped.clear();
        self.control_file = None;
    }
}

fn exported(id: ListenerId, entry: &Entry) -> ExportedListener {
    let endpoint = Endpoint::clone(&entry.endpoint);
    let options = entry.options.as_deref().cloned().unwrap_or_default();
    let file = entry.bound.file.as_deref().map(UnixFile::export);
    ExportedListener { id, endpoint, options, user: entry.user, file }
}
