//! What a configuration permits and the broker's capabilities cannot serve: said at start, not at run time.

use crate::config::{Config, Diagnostic, ListenPattern, Listener, MAX_DIAGNOSTICS, Severity, Span};

/// The capabilities' numbers, see include/uapi/linux/capability.h.
const NET_BIND_SERVICE: u32 = 10;
const NET_ADMIN: u32 = 12;
const NET_RAW: u32 = 13;
const SYS_RESOURCE: u32 = 24;

/// What cannot be served with these effective capabilities (a bit each, see capabilities(7)) where ports from
/// `unprivileged_port_start` on need none (net.ipv4.ip_unprivileged_port_start, see ip(7)). Errors, but for what
/// is only hampered: that is a warning.
pub fn unserved(config: &Config, effective: u64, unprivileged_port_start: u16) -> Vec<Diagnostic> {
    let has = |capability: u32| effective & (1 << capability) != 0;
    let mut found = Vec::new();
    let mut say = |severity, span: Span, message: String, capability: &str, otherwise: &str| {
        // One beyond what a report keeps, so that it tells that there are more.
        if found.len() > MAX_DIAGNOSTICS {
            return;
        }
        let help = format!("add {capability}+ep to capabilities in the security scope, or {otherwise}");
        found.push(match severity {
            Severity::Error => config.error(span, message, help),
            Severity::Warning | Severity::Note => config.warning(span, message, help),
        });
    };
    let permits = &config.broker.permits;
    if !has(NET_BIND_SERVICE) {
        let low = |port: u16| port < unprivileged_port_start;
        for pattern in permits.iter().flat_map(|permit| &permit.listen) {
            if let ListenPattern::Inet { ports, .. } = &pattern.value
                && low(*ports.start())
            {
                let port = ports.start();
                let message =
                    format!("port {port} cannot be bound: the broker does not keep cap_net_bind_service");
                let otherwise = format!("permit ports from {unprivileged_port_start} on");
                say(Severity::Error, pattern.span, message, "cap_net_bind_service", &otherwise);
            }
        }
        for listener in &config.listeners {
            if let Some(inet) = listener.endpoint.value.inet().filter(|inet| low(inet.port)) {
                let (severity, when) = when_unbound(listener);
                let message =
                    format!("port {} {when}: the broker does not keep cap_net_bind_service", inet.port);
                let otherwise = "leave it as it is where that is meant";
                say(severity, listener.endpoint.span, message, "cap_net_bind_service", otherwise);
            }
        }
    }
    let blocks: Vec<Span> =
        permits.iter().flat_map(|permit| &permit.address).map(|block| block.span).collect();
    for (span, what) in blocks
        .iter()
        .map(|span| (*span, "this address"))
        .chain(config.floating_addresses().map(|(_, span)| (span, "this DuraVIP address")))
    {
        if !has(NET_ADMIN) {
            let message =
                format!("{what} cannot be put on an interface: the broker does not keep cap_net_admin");
            say(Severity::Error, span, message, "cap_net_admin", "remove it");
        } else if !has(NET_RAW) {
            let message = format!("{what} cannot be announced: the broker does not keep cap_net_raw");
            say(Severity::Error, span, message, "cap_net_raw", "remove it");
        }
    }
    if !has(NET_ADMIN) {
        for interface in permits.iter().flat_map(|permit| &permit.interface) {
            let message = format!(
                "the interface {} cannot be changed: the broker does not keep cap_net_admin",
                interface.value
            );
            say(Severity::Error, interface.span, message, "cap_net_admin", "remove it");
        }
    }
    if !has(SYS_RESOURCE) {
        for limit in permits.iter().flat_map(|permit| &permit.limit) {
            let message = format!(
                "the limit {} can be given to processes of root alone, up to their hard limit: the broker does not keep \
                 cap_sys_resource",
                limit.value
            );
            let otherwise = "leave it as it is where that is meant";
            say(Severity::Warning, limit.span, message, "cap_sys_resource", otherwise);
        }
    }
    found
}

/// How bad it is that a listener's port cannot be bound once the broker is confined.
fn when_unbound(listener: &Listener) -> (Severity, &'static str) {
    match (listener.duravip.floats(), listener.socket.enable) {
        (false, true) => (Severity::Warning, "is bound at start and cannot be started again"),
        (false, false) => (Severity::Warning, "cannot be started at run time"),
        (true, _) => (Severity::Error, "cannot be bound when its address arrives"),
    }
}
