//! What needs attention, in plain words, with what to do.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::IpAddr;

use super::{BrokerState, Membership, Problem, ProblemCode, Status, View, milliseconds};
use crate::core::decide::READ_INTERVAL;
use crate::core::patience;
use crate::core::placement::{self, Why};
use crate::core::promise::PromiseAnswer;
use crate::core::record::{Key, Name, NodeState, Value};
use crate::core::time::BootTime;

/// How many names or addresses a sentence lists.
const LISTED: usize = 5;

pub(super) fn problems(view: View<'_>, status: &Status) -> Vec<Problem> {
    let mut found = Found(Vec::new());
    this_node(status, &mut found);
    engine(view, status, &mut found);
    hold(view, &mut found);
    nodes(status, &mut found);
    addresses(view, status, &mut found);
    orders(view, status, &mut found);
    keys(view, &mut found);
    found.0.sort_by_key(|problem| problem.code);
    found.0
}

struct Found(Vec<Problem>);

impl Found {
    fn add(&mut self, code: ProblemCode, text: impl Into<String>, remedy: impl Into<String>) {
        self.0.push(Problem { code, text: text.into(), remedy: remedy.into() });
    }
}

fn this_node(status: &Status, found: &mut Found) {
    let node = &status.node;
    match (node.membership, node.broker) {
        (Membership::Refused, _) => {
            let remedy = "Give this host another nodename, or stop the other host's coordinator.";
            found.add(ProblemCode::Refused, format!("this node must not join: {}", node.why), remedy);
        }
        (Membership::Outside, BrokerState::Connected) if status.engine.answered_ms.is_some() => {
            let remedy =
                "Wait: it joins when the session that it had before has ended and its addresses are removed.";
            found.add(ProblemCode::NotMember, "this node has not joined the cluster", remedy);
        }
        (Membership::Outside, _) => {
            let remedy = "It joins when both the engine and the broker reply.";
            found.add(ProblemCode::NotMember, "this node has not joined the cluster", remedy);
        }
        (Membership::Member | Membership::Left, _) => {}
    }
    match node.broker {
        BrokerState::Connected => {}
        BrokerState::Hanging => found.add(
            ProblemCode::Broker,
            "the broker of this host does not answer, so this node holds no address",
            "See `systemctl status portreeved` and its log.",
        ),
        BrokerState::Disconnected => found.add(
            ProblemCode::Broker,
            "the broker of this host is not connected, so this node cannot add or remove addresses",
            "Start portreeved, or check that its configuration allows this coordinator's user.",
        ),
    }
    if let Some(left) = node.lease_left_ms.filter(|left| *left < node.lease_ms / 3) {
        let text = match left {
            0 => "the lease of this node has ended: it has no address until a beat succeeds".to_owned(),
            _ => format!("the addresses of this node end in {}", seconds(left)),
        };
        let remedy = "The engine has not confirmed a beat for too long: check it and the network to it.";
        found.add(ProblemCode::LeaseShort, text, remedy);
    }
    if node.is_fenced == Some(false) {
        found.add(
            ProblemCode::NoFence,
            "the broker has no packet filter that ends addresses, so others wait longer before they take them over",
            "Load nf_tables on this host; `portreeve address list` shows whether the broker uses it.",
        );
    }
}

fn engine(view: View<'_>, status: &Status, found: &mut Found) {
    let settle = milliseconds(patience::settle(view.node.config().heartbeat));
    let remedy =
        "Check the engine's members, the network to them, and the certificates. Nothing moves meanwhile.";
    match status.engine.answered_ms {
        None => found.add(ProblemCode::EngineUnreachable, "the engine has never replied", remedy),
        Some(ago) if ago > settle => {
            let text = format!("the engine has not replied for {}", seconds(ago));
            found.add(ProblemCode::EngineUnreachable, text, remedy);
        }
        Some(_) => {}
    }
    for endpoint in status.engine.endpoints.iter().filter(|endpoint| !endpoint.is_up) {
        let text = match endpoint.state.as_str() {
            "" => format!("the endpoint {} of the engine does not reply", endpoint.url),
            state => format!("the endpoint {} of the engine does not reply: {state}", endpoint.url),
        };
        found.add(ProblemCode::EndpointDown, text, "Check that member of the engine.");
    }
}

/// Who could not promise if the engine went away now.
fn hold(view: View<'_>, found: &mut Found) {
    let node = view.node;
    if !node.config().hold || node.session_times().is_none() {
        return;
    }
    let Some(promisers) = node.promisers() else {
        found.add(
            ProblemCode::HoldImpossible,
            "without the engine, this node gives its addresses up: the cluster has more than 16 nodes, or had when this node \
             last wrote its beat",
            "Write on_engine_loss = release, or make the cluster smaller.",
        );
        return;
    };
    let is_late = |at: BootTime| view.now.since(at) > 3 * READ_INTERVAL;
    let cannot: Vec<String> = promisers
        .iter()
        .filter_map(|promiser| {
            let why = match promiser.answer {
                _ if !promiser.has_peer => "has no peer_listen",
                Some((PromiseAnswer::Unseen, _)) => "has seen no beat of this node since it started",
                Some((_, at)) if is_late(at) => "does not answer any more",
                None if node.session_times().is_some_and(|times| is_late(times.joined)) => {
                    "has never answered"
                }
                _ => return None,
            };
            Some(format!("{} {why}", promiser.node))
        })
        .collect();
    if !cannot.is_empty() {
        found.add(
            ProblemCode::HoldImpossible,
            format!("without the engine, this node gives its addresses up: {}", list(&cannot)),
            "Set peer_listen on every node, and let the nodes connect to each other there. The log has the errors.",
        );
    }
}

fn nodes(status: &Status, found: &mut Found) {
    let heartbeat = status.node.heartbeat_ms;
    for row in &status.nodes {
        let name = &row.name;
        if row.state == NodeState::Sick {
            let remedy = format!("Correct that on {name}; it takes addresses again by itself.");
            found.add(ProblemCode::Sick, format!("node {name} is sick: {}", row.why), remedy);
        }
        let is_silent = row.beat_ms.is_some_and(|ago| ago > heartbeat.saturating_mul(3));
        if is_silent && *name != status.node.name && row.state != NodeState::Gone {
            let ago = seconds(row.beat_ms.unwrap_or_default());
            let evicts = match row.evict_ms {
                Some(left) => format!("; this node evicts it in {}", seconds(left)),
                None => String::new(),
            };
            let remedy = format!("Check {name} and its way to the engine.");
            found.add(
                ProblemCode::Silent,
                format!("node {name} has shown no life for {ago}{evicts}"),
                remedy,
            );
        }
        if !row.refused.is_empty() && row.state != NodeState::Gone {
            let text = format!("the broker of {name} refuses to add {}", list(&row.refused));
            let remedy =
                format!("`portreeve cluster explain ADDRESS` on {name} and the log of its broker show why.");
            found.add(ProblemCode::AddRefused, text, remedy);
        }
        if row.drain.is_some() && row.addresses > 0 && row.belongs > 0 {
            let text = format!(
                "the drained node {name} keeps {} addresses that no other node can hold",
                row.belongs
            );
            let remedy =
                format!("`portreeve cluster drain {name} --release` gives them up; nobody has them then.");
            found.add(ProblemCode::DrainKeeps, text, remedy);
        }
    }
    let differing: Vec<&Name> = status.nodes.iter().filter(|row| row.differs).map(|row| &row.name).collect();
    if !differing.is_empty() {
        found.add(
            ProblemCode::DeclarationsDiffer,
            format!("{} declare other addresses or preferences than most nodes", list(&differing)),
            "Compare the floating addresses of the configurations with `portreeve policy` and reload the older one.",
        );
    }
}

fn addresses(view: View<'_>, status: &Status, found: &mut Found) {
    let unowned: Vec<IpAddr> = status
        .addresses
        .iter()
        .filter(|row| row.owner.is_none() && !matches!(row.why, Why::Undeclared | Why::Unreadable))
        .map(|row| row.address)
        .collect();
    if !unowned.is_empty() {
        let text = match unowned.as_slice() {
            [one] => format!("no node has the address {one}"),
            all => format!("no node has these {} addresses: {}", all.len(), list(all)),
        };
        found.add(
            ProblemCode::Unowned,
            text,
            "`portreeve cluster explain ADDRESS` shows why and what happens next.",
        );
    }
    let undeclared: Vec<IpAddr> = status
        .addresses
        .iter()
        .filter(|row| row.owner.is_some() && row.why == Why::Undeclared)
        .map(|row| row.address)
        .collect();
    if !undeclared.is_empty() {
        found.add(
            ProblemCode::Undeclared,
            format!("no node declares {}, but a node has a claim on it", list(&undeclared)),
            "Nothing: the owner gives it up. If it stays, check the owner.",
        );
    }
    for (address, preferred) in conflicts(view) {
        found.add(
            ProblemCode::PreferenceConflict,
            format!(
                "{address} prefers different nodes in different configurations, so none counts: {}",
                list(&preferred)
            ),
            "Write the same duravip_preference on all nodes and reload them.",
        );
    }
    for row in &status.addresses {
        let Some(pin) = &row.pin else { continue };
        if row.why != Why::Pinned {
            let why = placement::unfit(view.node.state(), row.address, &pin.node)
                .map_or_else(String::new, |unfit| format!(": {unfit}"));
            let text = format!("{} is pinned to {}, which cannot hold it{why}", row.address, pin.node);
            let remedy =
                format!("`portreeve cluster unpin {}`, or correct that on {}.", row.address, pin.node);
            found.add(ProblemCode::PinUnfit, text, remedy);
        }
    }
}

/// The addresses with more than one preference, and the nodes that are preferred.
pub(super) fn conflicts(view: View<'_>) -> BTreeMap<IpAddr, Vec<Name>> {
    let state = view.node.state();
    let in_use: BTreeSet<&Name> = state
        .nodes()
        .filter(|(_, record)| record.state != NodeState::Gone)
        .map(|(_, record)| &record.declares)
        .collect();
    let mut preferred: BTreeMap<IpAddr, BTreeSet<&Name>> = BTreeMap::new();
    for (_, entry) in state.pieces().filter(|(digest, _)| in_use.contains(digest)) {
        let Some(Value::Have(piece)) = &entry.value else { continue };
        for (address, name) in piece.iter().filter_map(|(address, name)| Some((*address, name.as_ref()?))) {
            preferred.entry(address).or_default().insert(name);
        }
    }
    preferred.retain(|_, names| names.len() > 1);
    preferred.into_iter().map(|(address, names)| (address, names.into_iter().cloned().collect())).collect()
}

fn orders(view: View<'_>, status: &Status, found: &mut Found) {
    if let Some(order) = &status.frozen {
        let by = if order.by.is_empty() { String::new() } else { format!(" by {}", order.by) };
        let since = if order.since.is_empty() { String::new() } else { format!(" since {}", order.since) };
        let why = if order.why.is_empty() { String::new() } else { format!(": {}", order.why) };
        found.add(
            ProblemCode::Frozen,
            format!("voluntary moves are stopped{by}{since}{why}"),
            "`portreeve cluster thaw` allows them again.",
        );
    }
    let state = view.node.state();
    for entry in state.all() {
        let (node, remedy) = match (&entry.key, &entry.value) {
            (Key::Drain(node), _) => (node, format!("`portreeve cluster undrain {node}` removes the order.")),
            (Key::Want(address), Some(Value::Want(want))) => {
                (&want.node, format!("`portreeve cluster unpin {address}` removes the pin."))
            }
            _ => continue,
        };
        if state.node(node).is_none() {
            let what = if matches!(entry.key, Key::Drain(_)) { "drained" } else { "the target of a pin" };
            found.add(
                ProblemCode::UnknownNode,
                format!("{node} is {what}, but no such node was ever in the cluster"),
                remedy,
            );
        }
    }
}

fn keys(view: View<'_>, found: &mut Found) {
    let prefix = Key::prefix(&view.around.group);
    let mut foreign = Vec::new();
    for entry in view.node.state().all() {
        let Some(Value::Unreadable(why)) = &entry.value else { continue };
        if let Key::Foreign(path) = &entry.key {
            foreign.push(path.as_str());
            continue;
        }
        found.add(
            ProblemCode::Unreadable,
            format!("the value of {prefix}{} cannot be read: {why}", entry.key),
            "A later version or another program wrote it. Upgrade this coordinator, or correct the value with etcdctl.",
        );
    }
    if !foreign.is_empty() {
        found.add(
            ProblemCode::ForeignKey,
            format!("another program wrote keys under {prefix}: {}", list(&foreign)),
            "Let the role in the engine allow this prefix to coordinators only, and delete the keys with etcdctl.",
        );
    }
}

/// The first items, and how many more there are.
fn list<T: Display>(items: &[T]) -> String {
    let shown: Vec<String> = items.iter().take(LISTED).map(T::to_string).collect();
    match items.len().checked_sub(LISTED) {
        Some(more) if more > 0 => format!("{} and {more} more", shown.join(", ")),
        _ => shown.join(", "),
    }
}

pub(super) fn seconds(milliseconds: u64) -> String {
    format!("{}.{} s", milliseconds / 1_000, milliseconds % 1_000 / 100)
}
