//! Rules: what the configuration permits, by the line that says so.

use std::collections::HashMap;
use std::fmt;

use super::grant::Grant;
use super::{Policy, Requester};
use crate::config::{Config, SocketOptions, Span};

/// One line of the configuration that permits something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// `file:line`
    pub place: String,
    /// What it says, in one line: `permit "mail": listen *:25`.
    pub text: String,
    /// How the socket is made, where the rule is a `listen` scope.
    pub socket: Option<SocketOptions>,
}

/// `file:line: text`
impl fmt::Display for Rule {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.place, self.text)
    }
}

/// The number of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RuleId(usize);

impl Policy {
    /// The rule of a number.
    pub(super) fn rule(&self, id: RuleId) -> Option<&Rule> {
        self.rules.get(id.0)
    }

    /// Every rule by which somebody may ask for something, in the order of the configuration.
    pub fn rules_for(&self, who: &Requester) -> Vec<&Rule> {
        let mut ids: Vec<RuleId> = Vec::new();
        for (grant, scope) in self.grants(who) {
            ids.extend(grant.rules(|word| scope.is_none_or(|scope| scope.allows_any(word))));
        }
        ids.sort();
        ids.dedup();
        ids.into_iter().filter_map(|id| self.rule(id)).collect()
    }

    fn add_rule(
        &mut self,
        config: &Config,
        span: Span,
        text: String,
        socket: Option<SocketOptions>,
    ) -> RuleId {
        let place = config.sources().file_line(span);
        self.rules.push(Rule { place, text, socket });
        RuleId(self.rules.len() - 1)
    }

    /// Every rule, in the grant of those who may have all; gives the grant of each permit by its name.
    pub(super) fn rules_of(&mut self, config: &Config) -> HashMap<String, Grant> {
        let mut permits = HashMap::new();
        for permit in &config.broker.permits {
            let name = &permit.name.value;
            let grant = self.permit(config, permit);
            self.all.join(&grant);
            permits.insert(name.clone(), grant);
        }
        // After the permits: of two rules for one endpoint the listen scope says how its socket is made. Of two
        // listen scopes it is the one that is enabled.
        let (enabled, disabled): (Vec<_>, Vec<_>) =
            config.listeners.iter().partition(|listener| listener.socket.enable);
        for listener in disabled.into_iter().chain(enabled) {
            let endpoint = &listener.endpoint;
            let text = format!("{}: Listen \"{}\"", listener.scope, endpoint.value);
            let rule = self.add_rule(config, endpoint.span, text, Some(listener.socket.clone()));
            self.all.endpoint(endpoint.value.clone(), rule);
            if let Some(inet) = endpoint.value.inet().filter(|_| listener.duravip.floats()) {
                self.all.address(inet.address, rule);
            }
            if let Some(inet) = endpoint.value.inet() {
                self.moving.declare(inet.address, listener.scope.clone(), &listener.duravip);
            }
            if config.worker.is_some() {
                self.moving.listener(listener, rule);
            }
        }
        self.moving.follow(config);
        for binding in &config.bindings {
            if let Some(address) = binding.address.as_ref().filter(|_| binding.duravip.floats()) {
                let text = format!("binding {:?}: bind_address = {}", binding.name.value, address.value);
                let rule = self.add_rule(config, address.span, text, None);
                self.all.address(address.value, rule);
                self.moving.declare(address.value, binding.name.value.clone(), &binding.duravip);
            }
        }
        permits
    }

    fn permit(&mut self, config: &Config, permit: &crate::config::Permit) -> Grant {
        let mut grant = Grant::default();
        let text =
            |what: &str, value: &dyn fmt::Display| format!("permit {:?}: {what} {value}", permit.name.value);
        for pattern in &permit.listen {
            let rule = self.add_rule(config, pattern.span, text("listen", &pattern.value), None);
            grant.pattern(pattern.value.clone(), rule);
        }
        for block in &permit.address {
            let what = if permit.permanent { "address, for ever too," } else { "address" };
            let rule = self.add_rule(config, block.span, text(what, &block.value), None);
            grant.block(block.value, rule);
            if permit.permanent {
                grant.permanent(block.value, rule);
            }
        }
        for interface in &permit.interface {
            let rule = self.add_rule(config, interface.span, text("interface", &interface.value), None);
            grant.interface(interface.value.clone(), rule);
        }
        for limit in &permit.limit {
            let rule = self.add_rule(config, limit.span, text("limit", &limit.value), None);
            grant.limit(limit.value, rule);
        }
        grant
    }
}
