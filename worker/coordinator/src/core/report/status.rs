//! The status: this node, the engine, every node and every address.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::problems::problems;
use super::{
    AddressRow, BrokerState, Engine, Membership, NodeRow, Status, Step, ThisNode, View, milliseconds,
};
use crate::core::decide::{AtBroker, Stage};
use crate::core::patience;
use crate::core::placement::{self, Placement, Why};
use crate::core::record::{Block, Entry, Key, Name, NodeRecord, NodeState, Order, Phase, Value};

/// The status.
pub fn status(view: View<'_>) -> Status {
    let state = view.node.state();
    let placement = placement::place(state, view.node.config().is_auto);
    let addresses = addresses(view, &placement);
    let nodes = nodes(view, &addresses);
    let frozen = state.get(&Key::Freeze).map(order);
    let engine = Engine {
        answered_ms: view.node.patience().answered_at().map(|at| view.ago(at)),
        revision: state.revision,
        endpoints: view.around.endpoints.clone(),
    };
    let group = view.around.group.clone();
    let mut status =
        Status { group, node: this_node(view), engine, nodes, addresses, frozen, problems: Vec::new() };
    status.problems = problems(view, &status);
    status
}

fn order(entry: &Arc<Entry>) -> Order {
    match &entry.value {
        Some(Value::Order(order)) => order.clone(),
        _ => Order::default(),
    }
}

pub(super) fn this_node(view: View<'_>) -> ThisNode {
    let (node, config) = (view.node, view.node.config());
    let record = node.state().node(&config.name).filter(|record| record.state != NodeState::Gone);
    let times = node.session_times();
    let record = record.filter(|_| times.is_some());
    let (membership, refused) = match node.stage() {
        Stage::Outside => (Membership::Outside, None),
        Stage::Member => (Membership::Member, None),
        Stage::Refused(why) => (Membership::Refused, Some(why.clone())),
        Stage::Left => (Membership::Left, None),
    };
    let broker = match node.broker() {
        (false, _) => BrokerState::Disconnected,
        (true, true) => BrokerState::Hanging,
        (true, false) => BrokerState::Connected,
    };
    let quarantine = times.map(|times| times.quarantine_until).filter(|until| *until > view.now);
    ThisNode {
        name: Arc::clone(&config.name),
        version: config.version.clone(),
        membership,
        state: record.map(|record| record.state),
        why: refused.or_else(|| record.map(|record| record.why.clone())).unwrap_or_default(),
        session_ms: times.map(|times| view.ago(times.joined)),
        lease_left_ms: node.end().map(|end| view.until(end)),
        is_holding: node.is_holding(),
        quarantine_ms: quarantine.map(|until| view.until(until)),
        lease_ms: milliseconds(config.lease),
        heartbeat_ms: milliseconds(config.heartbeat),
        patience_ms: milliseconds(patience::eviction(config.lease, config.late)),
        is_auto: config.is_auto,
        broker,
        is_fenced: view.around.is_fenced,
    }
}

/// What most nodes declare; of two with as many nodes the one that sorts first.
fn usual(view: View<'_>) -> Option<Name> {
    let mut counts: BTreeMap<&Name, usize> = BTreeMap::new();
    for (_, record) in view.node.state().nodes().filter(|(_, record)| record.state != NodeState::Gone) {
        *counts.entry(&record.declares).or_default() += 1;
    }
    let most = counts.values().copied().max()?;
    counts.into_iter().find(|(_, count)| *count == most).map(|(digest, _)| Arc::clone(digest))
}

fn nodes(view: View<'_>, addresses: &[AddressRow]) -> Vec<NodeRow> {
    let (node, state) = (view.node, view.node.state());
    let usual = usual(view);
    let mut counts: HashMap<&Name, (usize, usize)> = HashMap::new();
    for row in addresses {
        if let Some(owner) = &row.owner {
            counts.entry(owner).or_default().0 += 1;
        }
        if let Some(belongs) = &row.belongs {
            counts.entry(belongs).or_default().1 += 1;
        }
    }
    let own = &node.config().name;
    let row = |(name, record): (&Name, &NodeRecord)| {
        let lives = record.state != NodeState::Gone;
        let session = if name == own {
            node.session_times().map(|times| times.joined)
        } else {
            view.journal.joined_at(name)
        };
        let is_watched = name == own || node.monitored().contains(name);
        let beat = node.patience().seen_at(name).filter(|_| lives && is_watched);
        let (addresses, belongs) = counts.get(name).copied().unwrap_or_default();
        NodeRow {
            name: Arc::clone(name),
            state: record.state,
            why: record.why.clone(),
            version: record.version.clone(),
            session_ms: session.filter(|_| lives).map(|at| view.ago(at)),
            beat_ms: beat.map(|at| view.ago(at)),
            evict_ms: node.evicts_at(name).filter(|_| lives && name != own).map(|at| view.until(at)),
            addresses,
            belongs,
            drain: state.drain(name),
            declares: Arc::clone(&record.declares),
            differs: lives && usual.as_ref().is_some_and(|usual| *usual != record.declares),
            down: record.down.iter().map(block).collect(),
            refused: record.refused.clone(),
        }
    };
    state.nodes().map(row).collect()
}

fn block(block: &Block) -> String {
    format!("{}/{}", block.address, block.prefix)
}

fn addresses(view: View<'_>, placement: &Placement) -> Vec<AddressRow> {
    let mut rows: Vec<AddressRow> = placement
        .targets()
        .map(|(target, belongs)| address(view, target.address, target.why, belongs.cloned()))
        .collect();
    // While no node is in the cluster, none declares anything; claims of addresses that nobody declares any more stay.
    let declared = &view.node.config().declared;
    rows.retain_mut(|row| {
        if row.why == Why::Undeclared && declared.contains_key(&row.address) {
            row.why = Why::Nobody;
        }
        row.why != Why::Undeclared || row.owner.is_some() || row.pin.is_some()
    });
    let known: BTreeSet<IpAddr> = rows.iter().map(|row| row.address).collect();
    let missing = declared.keys().filter(|address| !known.contains(address));
    rows.extend(missing.map(|missing| address(view, *missing, Why::Nobody, None)));
    rows.sort_by_key(|row| row.address);
    rows
}

pub(super) fn address(view: View<'_>, address: IpAddr, why: Why, belongs: Option<Name>) -> AddressRow {
    let (node, state) = (view.node, view.node.state());
    let entry = state.get(&Key::Claim(address));
    let claim = match entry.and_then(|entry| entry.value.as_ref()) {
        Some(Value::Claim(claim)) => Some(claim),
        _ => None,
    };
    let held = claim.filter(|claim| state.is_held(claim));
    let owner = held.map(|claim| Arc::clone(&claim.node));
    let last = claim.filter(|_| held.is_none()).map(|claim| Arc::clone(&claim.node));
    let is_mine = held.is_some_and(|claim| claim.node == node.config().name && claim.phase != Phase::Free);
    let pin = match state.get(&Key::Want(address)).and_then(|entry| entry.value.as_ref()) {
        Some(Value::Want(want)) => Some(view.pin(address, want)),
        _ => None,
    };
    AddressRow {
        address,
        owner,
        last,
        phase: claim.map(|claim| claim.phase),
        epoch: claim.map(|claim| claim.epoch),
        revision: entry.map(|entry| entry.modified),
        since_ms: view.journal.owned_since(address).map(|at| view.ago(at)),
        step: is_mine.then(|| step(view, address)),
        belongs,
        why,
        pin,
    }
}

fn step(view: View<'_>, address: IpAddr) -> Step {
    match view.node.at_broker(address) {
        _ if view.node.is_moving(address) => Step::Removing,
        Some(AtBroker::Held) => Step::Held,
        Some(AtBroker::Adding) => Step::Adding,
        Some(AtBroker::Removing) => Step::Removing,
        Some(AtBroker::Unknown) => Step::Unknown,
        None => Step::Missing,
    }
}
