//! The policy as one peer sees it, a page at a time: its own rules, the topology, and the floating addresses that it is
//! allowed.

use std::net::IpAddr;
use std::rc::Rc;

use portreeve_protocol::policy::{FloatingAddress, POLICY_PAGE, PolicyPage, PolicyRule, TopologyBlock};
use portreeve_protocol::{List, Text};

use super::{Policy, Requester};

impl Policy {
    /// The page that begins after that many rows of each list.
    pub fn page(&self, requester: &Requester, after: u32) -> PolicyPage {
        let skipped = usize::try_from(after).unwrap_or(usize::MAX);
        let rules = self.rules_for(requester);
        let topology = match self.operation(requester, "add-address") {
            Ok(_) => self.topology.topology.as_slice(),
            Err(_) => &[],
        };
        let floating = self.floating_for(requester);
        let longest = rules.len().max(topology.len()).max(floating.len());
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
        let floating = floating.iter().skip(skipped).filter_map(|address| {
            let (name, preference) = self.floating.declared.get(address)?;
            let (interface, prefix) =
                self.place(*address).map_or_else(Default::default, |place| (place.interface, place.prefix));
            Some(FloatingAddress {
                address: *address,
                name: Text::truncated(name),
                preference: Text::truncated(preference),
                follows: self.floating.leader(*address),
                interface,
                prefix,
            })
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
            floating: List::truncated(floating),
            next: if end < longest { u32::try_from(end).unwrap_or(0) } else { 0 },
        }
    }

    /// The floating addresses that a peer is allowed. Those of the last peer are kept: it reads one page after another.
    fn floating_for(&self, requester: &Requester) -> Rc<[IpAddr]> {
        let mut last = self.floating.last_allowed.borrow_mut();
        if let Some((_, addresses)) = last.as_ref().filter(|(whose, _)| whose == requester) {
            return Rc::clone(addresses);
        }
        let declared = self.floating.declared.keys().copied();
        let allowed: Rc<[IpAddr]> = declared.filter(|one| self.allows_address(requester, *one)).collect();
        *last = Some((requester.clone(), Rc::clone(&allowed)));
        allowed
    }

    /// Whether a peer is allowed an address, by itself or with the leader that it follows.
    pub fn allows_address(&self, requester: &Requester, address: IpAddr) -> bool {
        self.address(requester, self.floating.leader(address).unwrap_or(address)).is_ok()
    }
}
