//! Rules: the permissions of the configuration, each with the line that states it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::rc::Rc;

use super::grant::Grant;
use super::resource::{Pattern, Resource};
use super::{Policy, Requester};
use crate::config::{Config, SocketOptions, Span};

/// One line of the configuration that permits something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// `file:line`
    pub place: String,
    /// What it says, in one line: `permit "mail": listen *:25`.
    pub text: String,
    /// The options of the socket, if the rule is a `listen` scope.
    pub socket: Option<SocketOptions>,
}

/// `file:line: text`
impl fmt::Display for Rule {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.place, self.text)
    }
}

/// The number of a rule: its position in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RuleId(usize);

impl Policy {
    /// The rule of a number.
    pub(super) fn rule(&self, id: RuleId) -> Option<&Rc<Rule>> {
        self.rules.get(id.0)
    }

    /// Every rule that applies to a peer, in the order of the configuration.
    pub fn rules_for(&self, requester: &Requester) -> Vec<&Rule> {
        let mut ids: Vec<RuleId> = Vec::new();
        for (grant, scope) in self.grants(requester) {
            let usable = grant.kinds().filter(|kind| scope.is_none_or(|it| it.allows_any(kind.allow_word())));
            ids.extend(usable.flat_map(|kind| grant.entries(kind)).map(|(_, id)| id));
        }
        ids.sort();
        ids.dedup();
        ids.into_iter().filter_map(|id| self.rule(id)).map(|rule| &**rule).collect()
    }

    fn add_rule(
        &mut self,
        config: &Config,
        span: Span,
        text: String,
        socket: Option<SocketOptions>,
    ) -> RuleId {
        let place = config.sources().file_line(span);
        self.rules.push(Rc::new(Rule { place, text, socket }));
        RuleId(self.rules.len() - 1)
    }

    /// Adds every rule to the grant of the worker and user 0, and returns the grant of each permit by its name.
    pub(super) fn add_rules(&mut self, config: &Config) -> HashMap<String, Grant> {
        let mut permits = HashMap::new();
        for permit in &config.broker.permits {
            let name = &permit.name.value;
            let grant = self.add_permit(config, permit);
            self.all.join(&grant);
            permits.insert(name.clone(), grant);
        }
        // Of two rules for one endpoint the later one determines the socket options. So listen scopes are added after
        // the permits, and of two listen scopes for one endpoint the enabled one is added last.
        let (enabled, disabled): (Vec<_>, Vec<_>) =
            config.listeners.iter().partition(|listener| listener.socket.enable);
        for listener in disabled.into_iter().chain(enabled) {
            let endpoint = &listener.endpoint;
            let text = format!("{}: Listen \"{}\"", listener.scope, endpoint.value);
            let rule = self.add_rule(config, endpoint.span, text, Some(listener.socket.clone()));
            self.all.allow(Resource::Endpoint(Cow::Owned(endpoint.value.clone())), rule);
            if let Some(inet) = endpoint.value.inet().filter(|_| listener.duravip.floats()) {
                self.all.allow(Resource::Address(inet.address), rule);
            }
            if let Some(inet) = endpoint.value.inet() {
                self.floating.add_address(inet.address, listener.scope.clone(), &listener.duravip);
            }
            if config.worker.is_some() {
                self.floating.add_listener(listener, rule);
            }
        }
        self.floating.add_followers(config);
        for binding in &config.bindings {
            if let Some(address) = binding.address.as_ref().filter(|_| binding.duravip.floats()) {
                let text = format!("binding {:?}: bind_address = {}", binding.name.value, address.value);
                let rule = self.add_rule(config, address.span, text, None);
                self.all.allow(Resource::Address(address.value), rule);
                self.floating.add_address(address.value, binding.name.value.clone(), &binding.duravip);
            }
        }
        permits
    }

    fn add_permit(&mut self, config: &Config, permit: &crate::config::Permit) -> Grant {
        let mut grant = Grant::default();
        let text =
            |kind: &str, value: &dyn fmt::Display| format!("permit {:?}: {kind} {value}", permit.name.value);
        for pattern in &permit.listen {
            let kind = if permit.unkept { "listen unkept" } else { "listen" };
            let rule = self.add_rule(config, pattern.span, text(kind, &pattern.value), None);
            grant.allow_pattern(Pattern::Endpoints(pattern.value.clone()), rule);
            if permit.unkept {
                grant.allow_pattern(Pattern::UnkeptEndpoints(pattern.value.clone()), rule);
            }
        }
        for block in &permit.address {
            let kind = if permit.permanent { "permanent address" } else { "address" };
            let rule = self.add_rule(config, block.span, text(kind, &block.value), None);
            grant.allow_pattern(Pattern::Addresses(block.value), rule);
            if permit.permanent {
                grant.allow_pattern(Pattern::PermanentAddresses(block.value), rule);
            }
        }
        for interface in &permit.interface {
            let rule = self.add_rule(config, interface.span, text("interface", &interface.value), None);
            grant.allow(Resource::Interface(Cow::Owned(interface.value.clone())), rule);
        }
        for limit in &permit.limit {
            let rule = self.add_rule(config, limit.span, text("limit", &limit.value), None);
            grant.allow_pattern(Pattern::Limits(limit.value), rule);
        }
        grant
    }
}
