//! The broker's status as a page for people, or as one JSON value.

use std::io;

use caps::Capability;
use portreeve::status::{Credentials, Listener, Process, Quota, Session};
use serde_json::{Value, json};

use super::State;
use crate::address;
use crate::output::{Style, duration, render, table};

/// The status as JSON.
pub fn value(State { status, listeners, addresses }: &State) -> Value {
    let processes: Vec<_> = status
        .processes
        .iter()
        .map(|process| {
            let held = &process.credentials;
            let sets: serde_json::Map<_, _> =
                sets(held).into_iter().map(|(name, set)| (name.to_owned(), names(set).into())).collect();
            json!({
                "role": process.role.as_str(),
                "pid": process.pid,
                "restarts": process.restarts,
                "root": process.root.as_str(),
                "uid": held.uid,
                "gid": held.gid,
                "groups": *held.groups,
                "capabilities": sets,
                "no_new_privs": held.no_new_privs,
                "seccomp": held.seccomp,
                "locks": *process.locks,
            })
        })
        .collect();
    let quotas: serde_json::Map<_, _> =
        status.quotas.iter().map(|quota| (quota.name.to_string(), quota.limit.into())).collect();
    let mut value = json!({
        "release": status.release.as_str(),
        "uptime_ms": status.uptime_ms,
        "warnings": *status.warnings,
        "processes": processes,
        "quotas": quotas,
        "sessions": *status.sessions,
        "listeners_held": status.listeners_held,
        "listeners": listeners,
    });
    if let (Some(value), Some((fenced, rows))) = (value.as_object_mut(), addresses) {
        value.insert("fenced".to_owned(), (*fenced).into());
        value.insert("addresses".to_owned(), address::values(rows).into());
    }
    value
}

/// The status for people.
pub fn text(State { status, listeners, addresses }: &State) -> String {
    let mut parts = vec![format!("portreeved {}, up {}", status.release, duration(status.uptime_ms / 1000))];
    let warning = |text| Style::Warning.on(&io::stdout(), &format!("warning: {text}"));
    parts.extend(status.warnings.iter().map(warning));
    parts.extend(status.processes.iter().map(process));
    parts.push(sessions(&status.sessions));
    let quotas: Vec<_> = status.quotas.iter().map(|quota| [quota.name.to_string(), limit(quota)]).collect();
    let mut limits = table(["LIMIT OF EACH PEER", "VALUE"]);
    limits.add_rows(quotas);
    parts.push(render(limits));
    parts.push(listener_table(listeners, status.listeners_held));
    if let Some((fenced, rows)) = addresses.as_ref().filter(|(_, rows)| !rows.is_empty()) {
        parts.push(address::address_table(rows, *fenced));
    }
    parts.join("\n\n")
}

/// The limit, with its unit if it is a time.
fn limit(quota: &Quota) -> String {
    let unit = if quota.name.ends_with("timeout") { " s" } else { "" };
    format!("{}{unit}", quota.limit)
}

fn process(process: &Process) -> String {
    let held = &process.credentials;
    let mut table = table(["", ""]);
    let mut row = |name: &str, value: String| {
        table.add_row([name.to_owned(), value]);
    };
    row(&process.role.to_string(), format!("pid {}, restarts {}", process.pid, process.restarts));
    row("  user", ids(held.uid));
    row("  group", ids(held.gid));
    let groups: Vec<_> = held.groups.iter().map(u32::to_string).collect();
    row("  groups", if groups.is_empty() { "none".into() } else { groups.join(" ") });
    row("  root", process.root.to_string());
    for (name, set) in sets(held) {
        row(&format!("  {name}"), name_list(set));
    }
    row("  no_new_privs", if held.no_new_privs { "yes".into() } else { "no".into() });
    let seccomp = match held.seccomp {
        0 => "none".into(),
        1 => "strict".into(),
        2 => "filter".into(),
        other => other.to_string(),
    };
    row("  seccomp", seccomp);
    for (number, lock) in process.locks.iter().enumerate() {
        row(if number == 0 { "  locks" } else { "" }, lock.to_string());
    }
    render(table)
}

fn sessions(sessions: &[Session]) -> String {
    let mut table = table(["ID", "PEER", "CLIENT", "PID", "HELD", "REFUSED"]);
    for session in sessions {
        table.add_row([
            session.id.to_string(),
            session.peer.to_string(),
            session.client.to_string(),
            if session.pid == 0 { "-".into() } else { session.pid.to_string() },
            session.listeners.to_string(),
            session.refused.to_string(),
        ]);
    }
    render(table)
}

fn listener_table(listeners: &[Listener], held: u64) -> String {
    if listeners.is_empty() {
        return format!("listeners held: {held}");
    }
    let mut table = table(["LISTENER", "ENDPOINT", "OWNER", "STATE"]);
    for listener in listeners {
        table.add_row([
            listener.id.0.to_string(),
            listener.endpoint.to_string(),
            listener.owner.to_string(),
            if listener.retained { "retained".into() } else { "held".to_owned() },
        ]);
    }
    render(table)
}

/// One number if all four are the same, as they should be.
fn ids(ids: [u32; 4]) -> String {
    match ids {
        [real, effective, saved, filesystem] if [effective, saved, filesystem] == [real; 3] => {
            real.to_string()
        }
        [real, effective, saved, filesystem] => {
            format!("real {real}, effective {effective}, saved {saved}, filesystem {filesystem}")
        }
    }
}

fn sets(held: &Credentials) -> [(&'static str, u64); 5] {
    [
        ("permitted", held.permitted),
        ("effective", held.effective),
        ("inheritable", held.inheritable),
        ("bounding", held.bounding),
        ("ambient", held.ambient),
    ]
}

/// The names of a capability set, in the order of their numbers; bits without a name as one number.
fn names(set: u64) -> Vec<String> {
    let mut known: Vec<Capability> = caps::all().into_iter().collect();
    known.sort_by_key(Capability::index);
    let held = known.into_iter().filter(|capability| set & capability.bitmask() != 0);
    let mut unnamed = set;
    let mut names: Vec<_> = held
        .map(|capability| {
            unnamed &= !capability.bitmask();
            capability.to_string().to_lowercase()
        })
        .collect();
    if unnamed != 0 {
        names.push(format!("{unnamed:#x}"));
    }
    names
}

fn name_list(set: u64) -> String {
    let names = names(set);
    match names.len() {
        0 => "none".to_owned(),
        all if all == caps::all().len() => "all".to_owned(),
        _ => names.join(" "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_shown_by_name_and_unknown_bits_as_a_number() {
        assert_eq!(name_list(0), "none");
        assert_eq!(name_list(1 << 10 | 1 << 12), "cap_net_bind_service cap_net_admin");
        assert_eq!(name_list(1 << 10 | 1 << 63), "cap_net_bind_service 0x8000000000000000");
        assert_eq!(name_list((1 << 41) - 1), "all");
    }

    #[test]
    fn ids_that_differ_are_shown_one_by_one() {
        assert_eq!(ids([7; 4]), "7");
        assert_eq!(ids([7, 0, 7, 7]), "real 7, effective 0, saved 7, filesystem 7");
    }
}
