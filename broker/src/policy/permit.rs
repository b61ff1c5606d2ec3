//! Permits: what a decision gives when a request is allowed.
//!
//! A permit shares the rules by which it was given. It is handed to the action and to the audit line, so both speak of
//! the same decision, even if a reload replaces the policy in between.

use std::net::IpAddr;
use std::rc::Rc;

use portreeve_protocol::endpoint::MAX_INTERFACE;
use portreeve_protocol::{Fault, Text};

use super::{Denied, Rule};
use crate::config::SocketOptions;

/// The result of a decision: a permit names the rules that it rests on.
pub trait Permit {
    /// Visits each of them, in the order of the request.
    fn for_each_rule(&self, visit: &mut dyn FnMut(&Rule));
}

/// Permission for an operation as a whole; it rests on no single rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OperationPermit;

impl Permit for OperationPermit {
    fn for_each_rule(&self, _: &mut dyn FnMut(&Rule)) {}
}

/// Permission by one rule, such as that of an interface or of a resource limit.
impl Permit for Rc<Rule> {
    fn for_each_rule(&self, visit: &mut dyn FnMut(&Rule)) {
        visit(self);
    }
}

/// Permission of parts that are decided one by one: those that are denied rest on no rule.
impl<P: Permit, E> Permit for Vec<Result<P, E>> {
    fn for_each_rule(&self, visit: &mut dyn FnMut(&Rule)) {
        self.iter().flatten().for_each(|permit| permit.for_each_rule(visit));
    }
}

/// Permission to listen on an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenPermit {
    /// The rule that allows the endpoint.
    pub rule: Rc<Rule>,
    /// The rule that allows the IPv4 endpoint that a dual-stack socket serves too.
    pub ipv4_rule: Option<Rc<Rule>>,
    /// Whether the configuration starts this listener by itself when its address is added.
    pub floating: bool,
}

impl ListenPermit {
    /// How the socket is made, where a `listen` scope says so.
    pub fn socket(&self) -> Option<&SocketOptions> {
        self.rule.socket.as_ref()
    }
}

impl Permit for ListenPermit {
    fn for_each_rule(&self, visit: &mut dyn FnMut(&Rule)) {
        visit(&self.rule);
        self.ipv4_rule.iter().for_each(|rule| visit(rule));
    }
}

/// Where the topology puts an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The interface.
    pub interface: Text<MAX_INTERFACE>,
    /// The prefix length that the address has there.
    pub prefix: u8,
}

/// Permission to have an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressPermit {
    /// The rule that allows it.
    pub rule: Rc<Rule>,
    /// Where the topology puts it; `None` if no topology block holds it.
    pub place: Option<Place>,
}

/// Permission to add, renew, announce or move an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeasePermit {
    /// The address.
    pub address: IpAddr,
    /// The rule that allows it.
    pub rule: Rc<Rule>,
    /// The rule that allows it without a time limit, if that is requested.
    pub permanent_rule: Option<Rc<Rule>>,
    /// Where the topology puts it.
    pub place: Place,
    /// The addresses that are added with it, and where.
    pub followers: Vec<(IpAddr, Place)>,
}

impl Permit for LeasePermit {
    fn for_each_rule(&self, visit: &mut dyn FnMut(&Rule)) {
        visit(&self.rule);
        self.permanent_rule.iter().for_each(|rule| visit(rule));
    }
}

/// A denial is a fault for the peer.
impl From<Denied> for Fault {
    fn from(denied: Denied) -> Self {
        denied.fault()
    }
}
