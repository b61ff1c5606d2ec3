//! Putting a configuration in force: first what can fail, then what cannot.

use std::collections::BTreeSet;
use std::rc::Rc;

use super::fixed::needs_restart;
use super::judge::Judged;
use super::report::{APPLIED, Done, NEEDS_RESTART, Outcome, Row};
use super::{address, listener};
use crate::config::Facts;
use crate::server::state::Broker;

/// Puts it in force, or leaves everything as it is.
pub(super) fn commit(broker: &Rc<Broker>, judged: Judged) -> Outcome {
    let Judged { config, policy, facts: new, report, files } = judged;
    let fixed = &broker.reloading.fixed;
    // The listeners of the new one stand beside those of the old before anything of the old one goes.
    let opened = match listener::open(broker, &config, &policy) {
        Ok(opened) => opened,
        Err(fault) => return Outcome::Failed(fault),
    };

    let mut rows = Vec::new();
    let facts = merged(&fixed.facts.borrow(), new, &mut rows);
    let ports = fixed.ports_out_of_reach(policy.tcp_ports());
    if !ports.is_empty() {
        let why = "they are permitted now, and Landlock's rules are from the start: they can be bound after a restart";
        rows.push(Row::new(NEEDS_RESTART, format!("TCP ports {ports}"), why));
    }
    if let Some(why) = fixed.no_limits().filter(|_| policy.has_limits()) {
        let detail = format!("they are permitted now, and {why}: they can be set after a restart");
        rows.push(Row::new(NEEDS_RESTART, "limits of peers", detail));
    }
    fixed.facts.replace(facts);
    broker.policy.replace(policy);
    broker.retain.set(config.broker.retain);
    broker.accounts.set_quotas(config.broker.quotas);
    address::settle(broker, &config, &mut rows);
    listener::settle(broker, &config, opened, &mut rows);
    rows.sort_by_key(|row| match row.outcome {
        NEEDS_RESTART => 0,
        APPLIED => 2,
        _ => 1,
    });
    Outcome::Done(Done { rows, report, files })
}

/// The facts that are in force from now on: the new ones, but for those that need a restart.
fn merged(old: &Facts, new: Facts, rows: &mut Vec<Row>) -> Facts {
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let mut kept = Facts::new();
    for name in names {
        let (before, after) = (old.get(name), new.get(name));
        let detail = || match (before, after) {
            (Some(before), Some(after)) => format!("{} -> {}", shown(before), shown(after)),
            (None, Some(after)) => format!("new: {}", shown(after)),
            (Some(before), None) => format!("gone: {}", shown(before)),
            (None, None) => String::new(),
        };
        match needs_restart(name) {
            Some(why) if before != after => {
                rows.push(Row::new(NEEDS_RESTART, name, format!("{}; {why}", detail())));
                kept.extend(before.map(|before| (name.clone(), before.clone())));
            }
            _ => {
                if before != after {
                    rows.push(Row::new(APPLIED, name, detail()));
                }
                kept.extend(after.map(|after| (name.clone(), after.clone())));
            }
        }
    }
    kept
}

fn shown(value: &str) -> &str {
    if value.is_empty() { "none" } else { value }
}
