//! Evicting the nodes that have shown no life for long enough.

use std::sync::Arc;

use super::{Node, Purpose};
use crate::core::record::{Beat, Entry, Key, Name, NodeRecord, NodeState, Value};
use crate::core::time::BootTime;
use crate::core::txn;

impl Node {
    /// Evicts the monitored nodes that have shown no life for long enough.
    pub(super) fn evict(&mut self) {
        if !self.is_loaded {
            return;
        }
        for name in self.monitored.clone() {
            let Some(entry) = self.state.get(&Key::Beat(Arc::clone(&name))).cloned() else { continue };
            let Some(Value::Beat(beat)) = &entry.value else { continue };
            if !self.may_evict(beat) {
                continue;
            }
            let at = self.evict_at(&name, &entry, beat);
            if at.is_some_and(|at| self.is_due(at)) {
                self.send_evict(name, &entry);
            }
        }
    }

    pub(super) fn evict_at(&self, name: &Name, entry: &Entry, beat: &Beat) -> Option<BootTime> {
        let at = self.patience.evict_at(self.now, (name, entry, beat), self.config.heartbeat, &self.rules)?;
        Some(self.promised_until(name).map_or(at, |until| until.max(at)))
    }

    pub(super) fn send_evict(&mut self, name: Name, entry: &Entry) {
        let purpose = Purpose::Evict(Arc::clone(&name));
        if !self.is_sent(&purpose) {
            let record = self.gone(&name);
            self.promises.evicts(&name, &entry.text);
            self.send(purpose, txn::evict(&name, &entry.text, record));
        }
    }

    pub(super) fn gone(&self, name: &Name) -> NodeRecord {
        let known = self.state.node(name).cloned();
        let record = known.unwrap_or_else(|| NodeRecord {
            nonce: 0,
            created: None,
            version: String::new(),
            state: NodeState::Gone,
            why: String::new(),
            declares: "".into(),
            is_auto: None,
            joins: 0,
            peer: String::new(),
            down: Vec::new(),
            refused: Vec::new(),
        });
        NodeRecord { state: NodeState::Gone, why: String::new(), ..record }
    }
}
