//! Claiming what belongs here and has no holder.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::{CLAIMS, Membership, Move, Node, Purpose};
use crate::core::placement;
use crate::core::record::{Claim, Key, Name, Phase, Session, Value};
use crate::core::txn::{self, Change};

impl Node {
    /// Claims what belongs here and has no holder, and begins to hand over what belongs elsewhere.
    pub(super) fn plan(&mut self) {
        let Some(membership) = self.membership.clone() else { return };
        if self.has_voluntary {
            let at = self.balance_at;
            self.is_dirty |= self.is_due(at);
        }
        self.is_dirty |= self.review_at.is_some_and(|at| self.is_due(at));
        let at = self.plan_at.max(membership.quarantine_until);
        // While its own record or declaration is not in the engine, the placement would move the addresses away.
        let is_known = self.is_declared && self.state.node(&self.config.name).is_some();
        if !self.is_dirty || !self.is_loaded || !is_known || !self.is_due(at) {
            return;
        }
        (self.is_dirty, self.review_at) = (false, None);
        self.placement = placement::place(&self.state, self.config.is_auto);
        let may_balance = self.is_due(self.balance_at);
        let mut room = self.config.balance_set;
        self.has_voluntary = false;
        let in_flight: BTreeSet<IpAddr> = self
            .requests
            .values()
            .flat_map(|request| match &request.purpose {
                Purpose::Claim(addresses) | Purpose::Grant(addresses) => addresses.as_slice(),
                _ => &[],
            })
            .copied()
            .collect();
        let mut changes = Vec::new();
        for (target, node) in self.placement.targets() {
            let address = target.address;
            if in_flight.contains(&address) || target.why == placement::Why::Unreadable {
                continue;
            }
            // Whoever leaves keeps nothing, even if nobody else can hold it.
            let node = node.filter(|_| !(self.is_stopping && target.why == placement::Why::NobodyElse));
            let is_here = node == Some(&self.config.name);
            match self.owned.get(&address) {
                Some(entry) if is_here => {
                    self.moves.remove(&address);
                    if self.granted.get(&address) == Some(&entry.modified)
                        && !self.leases.contains_key(&address)
                    {
                        changes.push(self.change(address, &membership));
                    }
                }
                Some(_) if self.moves.contains_key(&address) => {}
                Some(_) => {
                    if !target.is_urgent {
                        if !may_balance || room == 0 {
                            self.has_voluntary = true;
                            continue;
                        }
                        room -= 1;
                        self.balance_at = self.now.after(self.config.balance_interval);
                    }
                    self.moves.insert(address, Move { to: node.cloned(), is_sent: false });
                }
                None if is_here => {
                    let claim = self.state.get(&Key::Claim(address));
                    let is_held = claim.is_some_and(|entry| {
                        matches!(&entry.value, Some(Value::Claim(claim)) if self.state.is_held(claim))
                    });
                    if !is_held {
                        changes.push(self.change(address, &membership));
                    }
                }
                None => {}
            }
        }
        if self.has_voluntary {
            let at = self.balance_at;
            self.is_due(at);
        }
        for changes in changes.chunks(CLAIMS) {
            let addresses = changes.iter().map(|change| change.address).collect();
            let txn = txn::claim(&self.config.name, membership.session, changes);
            self.send(Purpose::Claim(addresses), txn);
        }
    }

    /// A transaction that failed is not repeated at once: what made it fail may last.
    pub(super) fn plan_again(&mut self, has_failed: bool) {
        self.is_dirty = true;
        if has_failed {
            self.plan_at = self.now.after(self.config.heartbeat / 4);
        }
    }

    pub(super) fn change(&self, address: IpAddr, membership: &Membership) -> Change {
        self.change_to(address, Arc::clone(&self.config.name), membership.session, Phase::Held)
    }

    pub(super) fn change_to(&self, address: IpAddr, node: Name, session: Session, phase: Phase) -> Change {
        let known = self.state.get(&Key::Claim(address)).cloned();
        let last = match known.as_ref().and_then(|entry| entry.value.as_ref()) {
            Some(Value::Claim(claim)) => claim.epoch,
            _ => 0,
        };
        let floor = self.epoch_floor.get(&address).copied().unwrap_or_default();
        let epoch = last.max(floor).saturating_add(1);
        Change { address, known, claim: Claim { epoch, node, session, phase } }
    }
}
