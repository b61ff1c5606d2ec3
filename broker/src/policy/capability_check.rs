//! Rules that the broker's capabilities cannot serve: reported at start and by `check`, not when a peer first needs them.

use crate::capability::{Capability, CapabilitySet};
use crate::config::{Config, Diagnostic, ListenPattern, Listener, MAX_DIAGNOSTICS, Severity, Span};

/// Finds rules that a broker with these effective capabilities cannot serve. Ports from `unprivileged_port_start` on need no
/// capability (net.ipv4.ip_unprivileged_port_start, see ip(7)). A rule that is only partly useless gives a warning, any
/// other an error.
pub fn capability_check(
    config: &Config,
    effective: CapabilitySet,
    unprivileged_port_start: u16,
) -> Vec<Diagnostic> {
    let mut check = Check { config, effective, diagnostics: Vec::new() };
    check.ports(unprivileged_port_start);
    check.addresses();
    check.interfaces();
    check.limits();
    check.diagnostics
}

/// The alternatives to adding the capability, for remedies.
const KEEP: &str = "leave it as it is if that is intended";
const REMOVE: &str = "remove it";

struct Check<'c> {
    config: &'c Config,
    effective: CapabilitySet,
    diagnostics: Vec<Diagnostic>,
}

impl Check<'_> {
    fn lacks(&self, capability: Capability) -> bool {
        !self.effective.has(capability)
    }

    fn report(
        &mut self,
        severity: Severity,
        span: Span,
        (what, missing): (&str, Capability),
        alternative: &str,
    ) {
        // One beyond what a report keeps, so that the report says that there are more.
        if self.diagnostics.len() > MAX_DIAGNOSTICS {
            return;
        }
        let name = missing.to_string().to_ascii_lowercase();
        let message = format!("{what}: the broker does not retain {name}");
        let help = format!("add {name}+ep to capabilities in the security scope, or {alternative}");
        self.diagnostics.push(match severity {
            Severity::Error => self.config.error(span, message, help),
            Severity::Warning | Severity::Note => self.config.warning(span, message, help),
        });
    }

    fn ports(&mut self, unprivileged_port_start: u16) {
        const MISSING: Capability = Capability::CAP_NET_BIND_SERVICE;
        if !self.lacks(MISSING) {
            return;
        }
        let needs_it = |port: u16| port < unprivileged_port_start;
        for pattern in self.config.broker.permits.iter().flat_map(|permit| &permit.listen) {
            if let ListenPattern::Inet { ports, .. } = &pattern.value
                && needs_it(*ports.start())
            {
                let problem = format!("port {} cannot be bound", ports.start());
                let alternative = format!("permit ports from {unprivileged_port_start} on");
                self.report(Severity::Error, pattern.span, (&problem, MISSING), &alternative);
            }
        }
        for listener in &self.config.listeners {
            if let Some(inet) = listener.endpoint.value.inet().filter(|inet| needs_it(inet.port)) {
                let (severity, consequence) = unbound_later(listener);
                let problem = format!("port {} {consequence}", inet.port);
                self.report(severity, listener.endpoint.span, (&problem, MISSING), KEEP);
            }
        }
    }

    fn addresses(&mut self) {
        let blocks = self.config.broker.permits.iter().flat_map(|permit| &permit.address);
        let blocks = blocks.map(|block| (block.span, "this address"));
        let floating = self.config.floating_addresses().map(|(_, span)| (span, "this DuraVIP address"));
        for (span, subject) in blocks.chain(floating) {
            let (consequence, missing) = if self.lacks(Capability::CAP_NET_ADMIN) {
                ("cannot be added to an interface", Capability::CAP_NET_ADMIN)
            } else if self.lacks(Capability::CAP_NET_RAW) {
                ("cannot be announced", Capability::CAP_NET_RAW)
            } else {
                return;
            };
            self.report(Severity::Error, span, (&format!("{subject} {consequence}"), missing), REMOVE);
        }
    }

    fn interfaces(&mut self) {
        const MISSING: Capability = Capability::CAP_NET_ADMIN;
        if !self.lacks(MISSING) {
            return;
        }
        for interface in self.config.broker.permits.iter().flat_map(|permit| &permit.interface) {
            let problem = format!("the interface {} cannot be changed", interface.value);
            self.report(Severity::Error, interface.span, (&problem, MISSING), REMOVE);
        }
    }

    fn limits(&mut self) {
        const MISSING: Capability = Capability::CAP_SYS_RESOURCE;
        if !self.lacks(MISSING) {
            return;
        }
        for limit in self.config.broker.permits.iter().flat_map(|permit| &permit.limit) {
            let problem = format!(
                "the limit {} can be set only for processes of user 0, and only up to their hard limit",
                limit.value
            );
            self.report(Severity::Warning, limit.span, (&problem, MISSING), KEEP);
        }
    }
}

/// How serious it is that a listener's port cannot be bound once the broker is confined.
fn unbound_later(listener: &Listener) -> (Severity, &'static str) {
    match (listener.duravip.floats(), listener.socket.enable) {
        (false, true) => (Severity::Warning, "is bound at start and cannot be started again"),
        (false, false) => (Severity::Warning, "cannot be started at run time"),
        (true, _) => (Severity::Error, "cannot be bound when its address arrives"),
    }
}
