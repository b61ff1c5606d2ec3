//! Handing over what belongs elsewhere, after the broker has removed it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::{CLAIMS, Node, Purpose};
use crate::core::record::{Entry, Key, Name, Phase, Value};
use crate::core::txn::{self, Change};

impl Node {
    /// Grants or releases the addresses that the broker has removed.
    pub(super) fn hand_over(&mut self) {
        let Some(mine) = self.membership.as_ref().map(|membership| membership.session) else { return };
        let mut groups: BTreeMap<Option<Name>, Vec<Change>> = BTreeMap::new();
        let ready = self.moves.iter().filter(|(address, step)| {
            let is_removed = !self.rules.remove_first || !self.leases.contains_key(*address);
            is_removed && !step.is_sent
        });
        for (address, step) in ready {
            let to = step.to.as_ref().and_then(|to| Some((Arc::clone(to), self.state.session(to)?)));
            let change = match &to {
                Some((node, session)) => self.change_to(*address, Arc::clone(node), *session, Phase::Granted),
                None => self.change_to(*address, Arc::clone(&self.config.name), mine, Phase::Free),
            };
            groups.entry(to.map(|(node, _)| node)).or_default().push(change);
        }
        for (to, changes) in groups {
            for changes in changes.chunks(CLAIMS) {
                for change in changes {
                    if let Some(step) = self.moves.get_mut(&change.address) {
                        step.is_sent = true;
                    }
                    if let Some(known) = &change.known {
                        self.granted.insert(change.address, known.modified);
                    }
                }
                let session = changes.first().map(|change| change.claim.session);
                let txn = txn::grant(to.as_ref().zip(session), changes);
                let addresses = changes.iter().map(|change| change.address).collect();
                self.send(Purpose::Grant(addresses), txn);
            }
        }
    }

    /// Removes pins that are over.
    pub(super) fn unpin(&mut self) {
        let wants: Vec<(IpAddr, Arc<Entry>, Duration)> = self
            .state
            .wants()
            .filter_map(|(address, entry, want)| {
                Some((address, Arc::clone(entry), Duration::from_millis(want.for_ms?)))
            })
            .collect();
        for (address, entry, lasts) in wants {
            let (_, since) = *self.pins.entry(address).or_insert((entry.modified, self.now));
            let claim = self.state.get(&Key::Claim(address));
            let is_others = claim.is_some_and(
                |entry| matches!(&entry.value, Some(Value::Claim(claim)) if self.state.is_held(claim)),
            ) && !self.owned.contains_key(&address);
            let purpose = Purpose::Unpin(address);
            if !is_others && self.is_due(since.after(lasts)) && !self.is_sent(&purpose) {
                self.send(purpose, txn::delete(&entry));
            }
        }
    }
}
