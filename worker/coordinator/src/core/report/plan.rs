//! The moves that the placement wants, now or without a node.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Load, Move, Plan, View};
use crate::core::placement;
use crate::core::record::{Entry, Key, Name, NodeRecord, NodeState, Value};
use crate::core::state::State;

/// The moves that the placement wants; as if one node were not in the cluster, if it is given.
pub fn plan(view: View<'_>, without: Option<&Name>) -> Plan {
    let state = view.node.state();
    let is_auto = view.node.config().is_auto;
    let changed = without.map(|node| self::without(state, node));
    let planned = changed.as_ref().unwrap_or(state);
    let placement = placement::place(planned, is_auto);
    let mut counts: HashMap<&Name, (usize, usize)> = HashMap::new();
    let mut moves = Vec::new();
    for (target, belongs) in placement.targets() {
        let claim = match state.get(&Key::Claim(target.address)).and_then(|entry| entry.value.as_ref()) {
            Some(Value::Claim(claim)) => Some(claim),
            _ => None,
        };
        let owner = claim.filter(|claim| state.is_held(claim)).map(|claim| &claim.node);
        if let Some(owner) = owner {
            counts.entry(owner).or_default().0 += 1;
        }
        if let Some(belongs) = belongs {
            counts.entry(belongs).or_default().1 += 1;
        }
        if owner != belongs {
            moves.push(Move {
                address: target.address,
                from: owner.cloned(),
                to: belongs.cloned(),
                urgent: target.is_urgent,
                why: target.why,
            });
        }
    }
    let lives = state.nodes().filter(|(_, record)| record.state != NodeState::Gone);
    let load = |(name, _): (&Name, &NodeRecord)| {
        let (before, after) = counts.get(name).copied().unwrap_or_default();
        Load { node: Arc::clone(name), before, after }
    };
    let nodes = lives.map(load).collect();
    Plan { without: without.cloned(), voluntary: is_auto && !state.is_frozen(), moves, nodes }
}

/// The state when a node's session has ended.
pub(super) fn without(state: &State, node: &Name) -> State {
    let mut changed = state.clone();
    if let Some(record) = state.node(node) {
        let record = NodeRecord { state: NodeState::Gone, ..record.clone() };
        let modified = state.revision.saturating_add(1);
        let key = Key::Node(Arc::clone(node));
        let value = Some(Value::Node(record));
        changed.apply(&Arc::new(Entry { key, created: 0, modified, text: "".into(), value }));
    }
    changed
}
