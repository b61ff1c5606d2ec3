//! The policy as a peer is told it: its own rules, and what the configuration says of addresses that it may have.

use std::net::IpAddr;

use portreeve_protocol::policy::{FloatingAddress, POLICY_PAGE, PolicyPage, PolicyRule, TopologyBlock};
use portreeve_protocol::{List, Text};

use super::{Policy, Requester};

impl Policy {
    /// The page that begins after so many rows of each list.
    pub fn told(&self, who: &Requester, after: u32) -> PolicyPage {
        let skipped = usize::try_from(after).unwrap_or(usize::MAX);
        let rules = self.rules_for(who);
        let topology = match self.operation(who, "add-address") {
            Ok(()) => self.topology.topology.as_slice(),
            Err(_) => &[],
        };
        let moving: Vec<_> =
            self.moving.declared.iter().filter(|(own, _)| self.may_come(who, **own)).collect();
        let longest = rules.len().max(topology.len()).max(moving.len());
        let end = skipped.saturating_add(POLICY_PAGE);
        let rule = |rule: &&super::Rule| PolicyRule {
            place: Text::truncated(&rule.place),
            text: Text::truncated(&rule.text),
        };
        let block = |row: &crate::config::Topology| TopologyBlock {
            block: row.block.value.address(),
            prefix: row.block.value.prefix(),
            interface: Text::truncated(&row.interface.value),
            mask: row.mask,
        };
        let moving = moving.into_iter().skip(skipped).map(|(address, (name, preference))| {
            let place = self.place(*address);
            FloatingAddress {
                address: *address,
                name: Text::truncated(name),
                preference: Text::truncated(preference),
                follows: self.moving.leader(*address),
                interface: Text::truncated(place.map_or("", |place| place.0)),
                prefix: place.map_or(0, |place| place.1),
            }
        });
        PolicyPage {
            nodename: self
                .topology
                .nodename
                .as_ref()
                .map_or_else(Text::default, |name| Text::truncated(&name.value)),
            lease: 0,
            rules: List::truncated(rules.iter().skip(skipped).map(rule)),
            topology: List::truncated(topology.iter().skip(skipped).map(block)),
            floating: List::truncated(moving),
            next: if end < longest { u32::try_from(end).unwrap_or(0) } else { 0 },
        }
    }

    /// Whether somebody may have an address, by itself or with the one that it follows.
    pub fn may_come(&self, who: &Requester, address: IpAddr) -> bool {
        self.address(who, self.moving.leader(address).unwrap_or(address)).is_ok()
    }
}
