//! A reload that would close all listeners of a scope is refused, because a misspelt scope or a lost file looks the same. A
//! peer that reloads with `force` consents to it.

use std::collections::BTreeMap;
use std::path::Path;

use super::validate::Validated;
use crate::config::{Diagnostic, Listener, OnNarrow, Report};
use crate::policy::{Policy, Requester};
use crate::server::state::Broker;

/// How many endpoints a message names.
const MAX_NAMED: usize = 4;

/// The report that refuses a configuration unless a peer has consented to it; `None` if it needs no consent.
pub(super) fn missing(broker: &Broker, validated: &Validated) -> Option<Report> {
    let fixed = &broker.reloading.fixed;
    if validated.config.broker.on_narrow == OnNarrow::Keep {
        return None;
    }
    let opens = |listener: &&Listener| {
        let registry = broker.registry.borrow();
        let known = |directory: &Path| registry.directories().get(directory).is_ok();
        listener.socket.enable && fixed.out_of_reach(&listener.endpoint.value, known).is_none()
    };
    let new: Vec<&Listener> = validated.config.listeners.iter().filter(opens).collect();
    let lost = lost(&fixed.listeners.borrow(), &new, &validated.policy);
    if lost.is_empty() {
        return None;
    }
    let help = match fixed.in_force.borrow().get("broker socket") {
        None | Some("") => {
            "check the names of its scopes and its includes; if this is intended, restart portreeved"
        }
        Some(_) => {
            "check the names of its scopes and its includes; if this is intended, run portreeve reload --force"
        }
    };
    let file = fixed.started.path.display().to_string();
    let refuse =
        |lost: String| Diagnostic::about_file(&file, format!("this reload would close {lost}"), help);
    let mut report = validated.report.clone();
    report.extend(lost.into_iter().map(refuse));
    Some(report)
}

/// The groups of listeners of which none remains and none opens: each listener scope, and all that are static. `new` are the
/// listeners of the new configuration that can be opened without a restart.
fn lost(old: &[Listener], new: &[&Listener], policy: &Policy) -> Vec<String> {
    let old: Vec<&Listener> = old.iter().filter(|listener| listener.socket.enable).collect();
    let all_close = |listeners: &[&Listener]| {
        listeners.iter().all(|listener| policy.listen(&Requester::Worker, &listener.endpoint.value).is_err())
    };
    let mut scopes: BTreeMap<String, Vec<&Listener>> = BTreeMap::new();
    for listener in &old {
        scopes.entry(listener.scope.to_ascii_lowercase()).or_default().push(listener);
    }
    scopes.retain(|scope, listeners| {
        all_close(listeners) && !new.iter().any(|listener| listener.scope.eq_ignore_ascii_case(scope))
    });
    let of_scope = |listeners: &Vec<&Listener>| {
        let scope = listeners.first().map_or("", |listener| &listener.scope);
        format!("every listener of {scope}: {}", named(listeners))
    };
    let mut lost: Vec<String> = scopes.values().map(of_scope).collect();
    let fixed: Vec<&Listener> = old.iter().copied().filter(|listener| listener.is_static()).collect();
    let none_remains = all_close(&fixed) && !new.iter().any(|listener| listener.is_static());
    if lost.is_empty() && !fixed.is_empty() && none_remains {
        lost.push(format!("every static listener: {}", named(&fixed)));
    }
    lost
}

fn named(listeners: &[&Listener]) -> String {
    let names = listeners.iter().take(MAX_NAMED).map(|listener| listener.endpoint.value.to_string());
    let names: Vec<String> = names.collect();
    match listeners.len().saturating_sub(MAX_NAMED) {
        0 => names.join(", "),
        more => format!("{} and {more} more", names.join(", ")),
    }
}
