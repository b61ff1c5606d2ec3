//! The addresses at the broker: they follow the claims of this session.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::{Action, BrokerCall, BrokerReply, Lease, LeaseStep, Node, Refusal, SHORTEST_LEASE};
use crate::core::news::{Kind, News};
use crate::core::patience;
use crate::core::record::{Phase, Value};

/// How long before E the node removes its addresses at most, so that connections are reset and not left hanging. Less with a
/// short lease, of which it would be too large a part.
const WITHDRAW: Duration = Duration::from_secs(1);
/// A lease that ends earlier than this from now is not requested with probes, which take 0.6 s: the broker would refuse it when
/// they have ended. The next beat makes the lease longer.
const SHORTEST_PROBED_LEASE: Duration = Duration::from_secs(2);
/// How many addresses one call adds.
const BATCH: usize = 64;
/// How many addresses the broker adds at once. It sends 500 frames a second on an interface, probes among them, so of many
/// addresses the last would wait until the lease is over that the first beat allowed. The next ones are requested when these are
/// there, with the end that the newest beat allows then.
const AT_ONCE: usize = 3 * BATCH;
/// How often the broker probes for an address that no owner has granted: if few are to be added, and if more than [`AT_ONCE`]. RFC
/// 5227 section 2.1.1 demands three probes, of a host that knows nothing of the others; here the patience with the former owner has
/// ended before.
const PROBES: [u8; 2] = [3, 1];
/// How long an address that the broker refused is not tried again, at first and at most.
const BACK_OFF: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(300)];

impl Node {
    /// Calls the broker, and returns the number of the call.
    pub(super) fn call(&mut self, call: BrokerCall) -> u64 {
        self.last_id += 1;
        if self.broker_is_up {
            self.broker_asked.get_or_insert(self.now);
            self.out.push(Action::Broker(self.last_id, call));
        }
        self.last_id
    }

    /// A call to which a broker that works replies.
    pub(super) fn ping(&mut self) {
        let at = self.broker_ping_at;
        if self.broker_is_up && self.is_due(at) {
            self.broker_ping_at = self.now.after(self.config.heartbeat);
            self.call(BrokerCall::List);
        }
    }

    pub(super) fn broker_replied(&mut self, id: u64, reply: BrokerReply) {
        (self.broker_answered, self.broker_asked) = (true, None);
        self.promises.broker_answered = true;
        match reply {
            BrokerReply::Added(results) => {
                let has_added = results.iter().any(|(.., result)| result.is_ok());
                // A call that hung until its leases were over is not the newest one for its addresses.
                for (address, epoch, result) in results {
                    let lease = self.leases.get(&address).copied();
                    let is_newest = lease.is_some_and(|lease| lease.step == LeaseStep::Adding(id));
                    match result {
                        Ok(()) if is_newest || lease.is_none() => {
                            self.leases.insert(address, Lease { epoch, step: LeaseStep::Held });
                            self.refused.remove(&address);
                        }
                        Err(refusal) if is_newest => {
                            self.leases.remove(&address);
                            self.add_refused(address, epoch, refusal);
                        }
                        _ => {}
                    }
                }
                // A renewal during the probes did not reach them.
                let end = self.end().filter(|end| *end > self.now.after(SHORTEST_LEASE));
                if let (true, Some(until)) = (has_added, end) {
                    self.call(BrokerCall::RenewAll { until });
                }
            }
            BrokerReply::Renewed(count) => {
                let held = self.leases.values().filter(|lease| lease.step == LeaseStep::Held).count();
                if count != held {
                    self.call(BrokerCall::List);
                }
            }
            BrokerReply::Removed(results) => {
                let mut has_failed = false;
                for (address, is_verified) in results {
                    let removing = LeaseStep::Removing(id);
                    match self.leases.get_mut(&address).filter(|lease| lease.step == removing) {
                        Some(_) if is_verified => drop(self.leases.remove(&address)),
                        // A lease that has expired cannot be removed. If the list has it, another attempt follows.
                        Some(lease) => (lease.step, has_failed) = (LeaseStep::Unknown, true),
                        None => {}
                    }
                }
                if has_failed {
                    self.remove_at = self.now.after(self.config.heartbeat / 4);
                    self.call(BrokerCall::List);
                }
            }
            BrokerReply::Listed(leases) => {
                self.is_listed = true;
                let listed: BTreeMap<IpAddr, u64> = leases.into_iter().collect();
                self.leases.retain(|address, lease| {
                    let is_changing = matches!(lease.step, LeaseStep::Adding(_) | LeaseStep::Removing(_));
                    is_changing || listed.contains_key(address)
                });
                for (address, epoch) in listed {
                    let held = Lease { epoch, step: LeaseStep::Held };
                    let lease = self.leases.entry(address).or_insert(held);
                    if lease.step == LeaseStep::Unknown {
                        *lease = held;
                    }
                }
            }
        }
    }

    pub(super) fn add_refused(&mut self, address: IpAddr, epoch: u64, refusal: Refusal) {
        match refusal {
            // The next beat makes the lease longer.
            Refusal::TooLate => {}
            // The engine has lost epochs that the broker remembers. Doubling soon gets above them.
            Refusal::OldEpoch => {
                self.epoch_floor.insert(address, epoch.saturating_mul(2));
                if let Some(entry) = self.owned.get(&address) {
                    self.granted.insert(address, entry.modified);
                }
            }
            Refusal::Other(why) => {
                let [first, most] = BACK_OFF;
                let last = self.refused.get(&address).map(|(_, back_off, _)| *back_off * 2);
                let back_off = last.unwrap_or(first).min(most);
                let node = Some(Arc::clone(&self.config.name));
                self.add_news(|| News {
                    node,
                    epoch: Some(epoch),
                    ..News::of_address(Kind::AddRefused, address, &why)
                });
                self.refused.insert(address, (self.now.after(back_off), back_off, why));
            }
        }
        self.is_dirty = true;
    }

    /// Every address has ended by the kernel when the last lease is over, whatever a broker that hangs did or did not do.
    pub(super) fn drop_dead_leases(&mut self) {
        let hangs_at = self.broker_asked.map(|asked| asked.after(self.config.lease / 2));
        let hangs = !self.broker_is_up || hangs_at.is_some_and(|at| self.is_due(at));
        let over = self.until.after(patience::over(self.config.late));
        self.broker_hangs = hangs && self.is_due(over);
        if self.broker_hangs && !self.leases.is_empty() {
            self.leases.clear();
            self.is_dirty = true;
        }
    }

    /// Brings the addresses at the broker in line with the claims of this session.
    pub(super) fn hold(&mut self) {
        let end = self.end();
        let before = WITHDRAW.min(self.config.lease / 6);
        let withdraw = match end {
            Some(end) => self.is_due(end.before(before)),
            // What the previous process left stays until it is clear whether its session lives.
            None => !self.may_resume,
        };
        let mut remove = Vec::new();
        for (address, lease) in &self.leases {
            let moves = self.rules.remove_first && self.moves.contains_key(address);
            let must_go = withdraw || moves || (end.is_some() && !self.owned.contains_key(address));
            if self.broker_is_up && lease.step == LeaseStep::Held && must_go {
                remove.push((*address, lease.epoch));
            }
        }
        let at = self.remove_at;
        if !remove.is_empty() && self.is_due(at) {
            if withdraw && end.is_some() {
                let count = remove.len();
                let name = Arc::clone(&self.config.name);
                self.add_news(|| News::of_node(Kind::Withdrawn, &name, format!("{count} addresses")));
            }
            let id = self.call(BrokerCall::Remove { leases: remove.clone() });
            for (address, epoch) in remove {
                self.leases.insert(address, Lease { epoch, step: LeaseStep::Removing(id) });
            }
        }

        if self.is_stopping && self.rules.nothing_new_when_stopping {
            return;
        }
        let Some(membership) = &self.membership else { return };
        let Some(until) = end.filter(|end| *end > self.now.after(SHORTEST_LEASE) && self.is_listed) else {
            return;
        };
        let (quarantine_until, joined_revision) = (membership.quarantine_until, membership.joined_revision);
        let (mut granted, mut probed) = (Vec::new(), Vec::new());
        let mut waits = false;
        for (address, entry) in &self.owned {
            let Some(Value::Claim(claim)) = &entry.value else { continue };
            let is_spent = self.rules.claim_again && self.granted.get(address) == Some(&entry.modified);
            if self.leases.contains_key(address)
                || self.moves.contains_key(address)
                || self.refused.get(address).is_some_and(|(until, ..)| *until > self.now)
                || is_spent
            {
                continue;
            }
            // A resumed session in a restored engine may find claims that others have taken since.
            if entry.modified <= joined_revision && self.now < quarantine_until {
                waits = true;
                continue;
            }
            let is_granted = claim.phase == Phase::Granted;
            if !is_granted && until <= self.now.after(SHORTEST_PROBED_LEASE) {
                continue;
            }
            let list = if is_granted { &mut granted } else { &mut probed };
            list.push((*address, claim.epoch));
        }
        if waits {
            self.is_due(quarantine_until);
        }
        let [few, many] = PROBES;
        let probes = if probed.len() > AT_ONCE { many } else { few };
        let adding = self.leases.values().filter(|lease| matches!(lease.step, LeaseStep::Adding(_))).count();
        let mut room = AT_ONCE.saturating_sub(adding);
        for (mut leases, probes) in [(granted, 0), (probed, probes)] {
            leases.truncate(room);
            room -= leases.len();
            for leases in leases.chunks(BATCH) {
                self.until = self.until.max(until);
                let id = self.call(BrokerCall::Add { leases: leases.to_vec(), until, probes });
                let adding = |(address, epoch): &(_, _)| {
                    let lease = Lease { epoch: *epoch, step: LeaseStep::Adding(id) };
                    (*address, lease)
                };
                self.leases.extend(leases.iter().map(adding));
            }
        }
    }
}
