//! Applying a validated configuration: first the steps that can fail, then the others.

use std::rc::Rc;

use super::report::{APPLIED, Done, NEEDS_RESTART, Outcome, Row};
use super::restart_only::needs_restart;
use super::validate::Validated;
use super::{address, listener};
use crate::config::Snapshot;
use crate::log;
use crate::server::state::Broker;

/// Applies it, or changes nothing.
pub(super) fn apply(broker: &Rc<Broker>, validated: Validated) -> Outcome {
    let Validated { config, policy, snapshot, report, files, accounts } = validated;
    let fixed = &broker.reloading.fixed;
    // The new listeners are open before any old one is closed.
    let opened = match listener::open(broker, &config, &policy) {
        Ok(opened) => opened,
        Err(fault) => return Outcome::Failed(fault),
    };

    let mut rows = Vec::new();
    let in_force = merged(&fixed.in_force.borrow(), &snapshot, &mut rows);
    let ports = fixed.ports_out_of_reach(policy.tcp_ports());
    if !ports.is_empty() {
        let detail = "permitted now, but the Landlock rules were fixed when the broker started: they can be bound after a \
            restart";
        rows.push(Row::new(NEEDS_RESTART, format!("TCP ports {ports}"), detail));
    }
    if let Some((names, reason)) = fixed.limits_out_of_reach(policy.limited_resources()) {
        let detail = format!("permitted now, but {reason}: they can be set after a restart");
        rows.push(Row::new(NEEDS_RESTART, format!("limits of peers: {names}"), detail));
    }
    fixed.in_force.replace(in_force);
    fixed.accounts.replace(accounts);
    fixed.listeners.replace(config.listeners.clone());
    log::set_user_names(policy.user_names().clone());
    log::set_level(config.broker.log_level);
    broker.policy.replace(policy);
    broker.retain.set(config.broker.retain);
    broker.accounts.set_quotas(config.broker.quotas);
    address::apply(broker, &config, &mut rows);
    listener::apply(broker, &config, opened, &mut rows);
    rows.sort_by_key(|row| match row.outcome {
        NEEDS_RESTART => 0,
        APPLIED => 2,
        _ => 1,
    });
    Outcome::Done(Done { rows, report, files })
}

/// The options in force from now on: the new ones, except those that need a restart.
fn merged(old: &Snapshot, new: &Snapshot, rows: &mut Vec<Row>) -> Snapshot {
    let mut in_force = Snapshot::default();
    for name in old.names(new) {
        let (before, after) = (old.get(name), new.get(name));
        let restart = needs_restart(name).filter(|_| before != after);
        if before != after {
            let change = match (before, after) {
                (Some(before), Some(after)) => format!("{} -> {}", or_none(before), or_none(after)),
                (None, Some(after)) => format!("added: {}", or_none(after)),
                (Some(before), None) => format!("removed: {}", or_none(before)),
                (None, None) => String::new(),
            };
            rows.push(match restart {
                Some(reason) => Row::new(NEEDS_RESTART, name, format!("{change}; {reason}")),
                None => Row::new(APPLIED, name, change),
            });
        }
        let value = if restart.is_some() { before } else { after };
        value.into_iter().for_each(|value| in_force.add(name.to_owned(), value.to_owned()));
    }
    in_force
}

fn or_none(value: &str) -> &str {
    if value.is_empty() { "none" } else { value }
}
