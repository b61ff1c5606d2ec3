//! Decisions about addresses, interfaces and resource limits.

use std::borrow::Cow;
use std::net::IpAddr;
use std::rc::Rc;

use portreeve_protocol::Text;
use portreeve_protocol::endpoint::MAX_INTERFACE;

use super::denied::permit_of;
use super::grant::Entry;
use super::permit::{AddressPermit, LeasePermit, Place};
use super::resource::{Kind, Pattern, Resource};
use super::{Denied, Policy, Requester, Rule};
use crate::config::{Cluster, Limit, not_manageable};

impl Policy {
    /// Whether a peer is allowed an address, and the place that the topology gives it.
    pub fn address(&self, requester: &Requester, address: IpAddr) -> Result<AddressPermit, Denied> {
        if let Some(remedy) = not_manageable(address) {
            return Err(Denied {
                message: format!("{requester} is not allowed to have {address}"),
                nearest: None,
                remedy: remedy.to_owned(),
            });
        }
        // A peer that has a permit for neither learns nothing of their binding.
        let is_permitted = |one| self.find(requester, &Resource::Address(one)).is_some();
        if let Some(leader) = self.floating.leader(address)
            && (is_permitted(address) || is_permitted(leader))
        {
            return Err(Denied {
                message: format!("{address} follows {leader} and is managed only with it"),
                nearest: None,
                remedy: format!("request {leader}: its followers are included"),
            });
        }
        let Some(rule) = self.find(requester, &Resource::Address(address)) else {
            return Err(denied(requester, &format!("have {address}"), "address", &address.to_string()));
        };
        Ok(AddressPermit { rule: rule.clone(), place: self.place(address) })
    }

    /// Whether a peer is allowed to add, renew, announce or move an address; with a lease of 0, whether the address may be
    /// permanent.
    pub fn lease(
        &self,
        requester: &Requester,
        address: IpAddr,
        lease: Option<u32>,
    ) -> Result<LeasePermit, Denied> {
        let AddressPermit { rule, place } = self.address(requester, address)?;
        let permanent_rule = match lease {
            Some(0) => Some(self.permanent(requester, address)?.clone()),
            _ => None,
        };
        let Some(place) = place else {
            return Err(Denied {
                message: format!("no topology block contains {address}"),
                nearest: Some(rule.to_string()),
                remedy: "add a topology scope that contains it to the cluster scope".to_owned(),
            });
        };
        let followers =
            self.followers(address).iter().filter_map(|follower| Some((*follower, self.place(*follower)?)));
        Ok(LeasePermit { address, rule, permanent_rule, place, followers: followers.collect() })
    }

    fn permanent(&self, requester: &Requester, address: IpAddr) -> Result<&Rc<Rule>, Denied> {
        self.find(requester, &Resource::PermanentAddress(address)).ok_or_else(|| Denied {
            message: format!("{requester} is not allowed to have {address} permanently, with a lease of 0"),
            nearest: None,
            remedy: "add permanent = true to a permit of that address, or request a lease and renew it"
                .to_owned(),
        })
    }

    /// The place that the topology gives an address; `None` if none of its blocks contains the address.
    pub fn place(&self, address: IpAddr) -> Option<Place> {
        place(&self.topology, address)
    }

    /// One interface as a destination for the addresses that a peer is allowed.
    pub fn destination(&self, requester: &Requester, interface: &str) -> Destination {
        Destination {
            interface: Text::truncated(interface),
            topology: self.topology.clone(),
            rule: self.interface(requester, interface).ok(),
        }
    }

    /// Whether a peer is allowed to set an interface up, down or to another MTU.
    pub fn interface(&self, requester: &Requester, name: &str) -> Result<Rc<Rule>, Denied> {
        let rule = self.find(requester, &Resource::Interface(Cow::Borrowed(name)));
        let action = || format!("change the interface {name:?}");
        rule.cloned().ok_or_else(|| denied(requester, &action(), "interface", name))
    }

    /// Whether a peer is allowed to raise a resource limit to this value.
    pub fn limit(&self, requester: &Requester, limit: &Limit) -> Result<Rc<Rule>, Denied> {
        if let Some(rule) = self.find(requester, &Resource::Limit(*limit)) {
            return Ok(rule.clone());
        }
        let same_resource = |(entry, _): &(Entry<'_>, _)| matches!(entry, Entry::Pattern(Pattern::Limits(lower)) if lower.resource == limit.resource);
        let nearest = self.search(requester, Kind::Limit, |grant| {
            grant.entries(Kind::Limit).find(same_resource).map(|(_, rule)| rule)
        });
        let nearest = nearest.map(|rule| rule.to_string());
        Err(Denied {
            nearest,
            ..denied(requester, &format!("have the limit {limit}"), "limit", &limit.to_string())
        })
    }
}

/// An interface as the place to move addresses to.
#[derive(Clone, Debug)]
pub struct Destination {
    /// The interface.
    pub interface: Text<MAX_INTERFACE>,
    topology: Rc<Cluster>,
    /// The rule that allows the peer to change the interface, if any.
    rule: Option<Rc<Rule>>,
}

impl Destination {
    /// The prefix length that an address gets there: that of a topology block that contains it and names the interface,
    /// or, on an interface that the peer is allowed to change, that of any block that contains it. `None` if the address is
    /// not allowed there.
    pub fn prefix(&self, address: IpAddr) -> Option<u8> {
        let named = self.named_by_topology(address);
        named.or_else(|| self.rule.as_ref().and_then(|_| place(&self.topology, address)).map(|it| it.prefix))
    }

    /// The rule of the interface, if an address is allowed there only because of it.
    pub fn interface_rule(&self, address: IpAddr) -> Option<&Rc<Rule>> {
        self.rule.as_ref().filter(|_| self.named_by_topology(address).is_none())
    }

    fn named_by_topology(&self, address: IpAddr) -> Option<u8> {
        let blocks =
            self.topology.topology.iter().filter(|block| {
                block.interface.value == *self.interface && block.block.value.contains(address)
            });
        blocks.max_by_key(|block| block.block.value.prefix()).map(|block| block.mask)
    }
}

fn place(topology: &Cluster, address: IpAddr) -> Option<Place> {
    let block = topology.block_of(address)?;
    Some(Place { interface: Text::truncated(&block.interface.value), prefix: block.mask })
}

fn denied(requester: &Requester, what: &str, option: &str, value: &str) -> Denied {
    Denied {
        message: format!("{requester} is not allowed to {what}"),
        nearest: None,
        remedy: format!("add {value:?} to the {option} list of {}", permit_of(requester)),
    }
}
