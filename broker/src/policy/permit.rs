//! Permits: the results of decisions that allow a request.
//!
//! A permit shares the rules that allow the request. The action and the audit line get the same permit, so both refer to
//! the same decision, even if a reload replaces the policy in between.

use std::net::IpAddr;
use std::rc::Rc;

use portreeve_protocol::endpoint::MAX_INTERFACE;
use portreeve_protocol::{Fault, Text};

use super::{Denied, Rule};
use crate::config::SocketOptions;

/// The result of a decision: a permit names the rules that allow the request.
pub trait Permit {
    /// Visits each of them, in the order of the request.
    fn for_each_rule(&self, visit: &mut dyn FnMut(&Rule));
}

/// Permission for an operation as a whole; it names no rule.
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

/// Permission of parts that are decided one by one: a denied part names no rule.
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
    /// The rules that allow the peer the only copy of the socket at these endpoints, if it requests that.
    pub unkept_rules: Vec<Rc<Rule>>,
    /// Whether the configuration starts this listener by itself when its address is added.
    pub floating: bool,
}

impl ListenPermit {
    /// The options of the socket, if a `listen` scope allows the endpoint.
    pub fn socket(&self) -> Option<&SocketOptions> {
        self.rule.socket.as_ref()
    }
}

impl Permit for ListenPermit {
    fn for_each_rule(&self, visit: &mut dyn FnMut(&Rule)) {
        visit(&self.rule);
        self.ipv4_rule.iter().chain(&self.unkept_rules).for_each(|rule| visit(rule));
    }
}

/// The place that the topology gives an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The interface.
    pub interface: Text<MAX_INTERFACE>,
    /// The prefix length that the address has there.
    pub prefix: u8,
}

/// Permission for an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressPermit {
    /// The rule that allows it.
    pub rule: Rc<Rule>,
    /// Its place by the topology; `None` if no topology block contains it.
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
    /// Its place by the topology.
    pub place: Place,
    /// The addresses that are added with it, and their places.
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
