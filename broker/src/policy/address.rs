//! Whether somebody may put an address on an interface, set an interface, or raise a limit.

use std::net::IpAddr;

use super::rule::RuleId;
use super::{Denied, Policy, Requester, Rule};
use crate::config::{Limit, not_manageable};

/// Leave to have an address on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressPermit<'p> {
    /// The rule that gives it.
    pub rule: &'p Rule,
    /// As [`Policy::place`] has it.
    pub place: Option<(&'p str, u8)>,
}

impl Policy {
    /// Whether an address may be put on an interface, and on which.
    pub fn address(&self, who: &Requester, address: IpAddr) -> Result<AddressPermit<'_>, Denied> {
        if let Some(why) = not_manageable(address) {
            return Err(Denied {
                message: format!("{who} may not have {address}"),
                nearest: None,
                remedy: why.to_owned(),
            });
        }
        if let Some(leader) = self.moving.leader(address) {
            return Err(Denied {
                message: format!("{address} follows {leader} and does not move by itself"),
                nearest: None,
                remedy: format!("ask for {leader}: what follows it comes along"),
            });
        }
        let found = self.find(
            who,
            |peer| match peer.allows_any("address") {
                true => peer.grant.find_address(address),
                false => None,
            },
            |all| all.find_address(address),
        );
        let Some(rule) = found.and_then(|id| self.rule(id)) else {
            return Err(denied(who, &format!("have {address}"), "address", &address.to_string()));
        };
        Ok(AddressPermit { rule, place: self.place(address) })
    }

    /// Whether an address may stay for ever, where it may be put on an interface at all.
    pub fn permanent(&self, who: &Requester, address: IpAddr) -> Result<&Rule, Denied> {
        let found = self.find(
            who,
            |peer| match peer.allows_any("address") {
                true => peer.grant.find_permanent(address),
                false => None,
            },
            |all| all.find_permanent(address),
        );
        self.ruled(found).ok_or_else(|| Denied {
            message: format!("nothing permits {who} to have {address} for ever, with a lease of 0"),
            nearest: None,
            remedy: "write permanent = true in a permit of that address, or ask for a lease and renew it"
                .to_owned(),
        })
    }

    /// The interface that the topology puts an address on and the prefix length that it has there; `None` where no block
    /// of it holds the address.
    pub fn place(&self, address: IpAddr) -> Option<(&str, u8)> {
        let block = self.topology.block_of(address)?;
        Some((&block.interface.value, block.mask))
    }

    /// Whether an address that somebody may have may be put on an interface of its choice, and with which prefix length:
    /// one that a block of the topology names that holds it, or one that the requester may change.
    pub fn place_on(&self, who: &Requester, address: IpAddr, interface: &str) -> Option<u8> {
        let blocks = self
            .topology
            .topology
            .iter()
            .filter(|block| block.interface.value == interface && block.block.value.contains(address));
        let nearest = blocks.max_by_key(|block| block.block.value.prefix()).map(|block| block.mask);
        let own = || self.interface(who, interface).ok().and_then(|_| self.place(address));
        nearest.or_else(|| own().map(|(_, mask)| mask))
    }

    /// Whether an interface may be set up, down or to another MTU.
    pub fn interface(&self, who: &Requester, name: &str) -> Result<&Rule, Denied> {
        let found = self.find(
            who,
            |peer| match peer.allows_any("link") {
                true => peer.grant.find_interface(name),
                false => None,
            },
            |all| all.find_interface(name),
        );
        self.ruled(found)
            .ok_or_else(|| denied(who, &format!("change the interface {name:?}"), "interface", name))
    }

    /// Whether a resource limit may be raised so far.
    pub fn limit(&self, who: &Requester, limit: &Limit) -> Result<&Rule, Denied> {
        let look = |find: fn(&super::grant::Grant, &Limit) -> Option<RuleId>| {
            self.find(
                who,
                |peer| match peer.allows_any("limit") {
                    true => find(&peer.grant, limit),
                    false => None,
                },
                |all| find(all, limit),
            )
        };
        if let Some(rule) = self.ruled(look(super::grant::Grant::find_limit)) {
            return Ok(rule);
        }
        let mut denied = denied(who, &format!("have {limit}"), "limit", &limit.to_string());
        let nearest = self.ruled(look(super::grant::Grant::find_resource));
        denied.nearest = nearest.map(Rule::to_string);
        Err(denied)
    }

    fn ruled(&self, id: Option<RuleId>) -> Option<&Rule> {
        id.and_then(|id| self.rule(id))
    }
}

fn denied(who: &Requester, what: &str, option: &str, value: &str) -> Denied {
    let of = match who {
        Requester::Worker => "a permit",
        Requester::Local { .. } => "a permit that a peer scope of that user names",
    };
    Denied {
        message: format!("nothing permits {who} to {what}"),
        nearest: None,
        remedy: format!("add {value:?} to the {option} of {of}"),
    }
}
