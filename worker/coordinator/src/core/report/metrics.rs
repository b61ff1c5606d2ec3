//! The numbers for monitoring.

use super::status::status;
use super::{AddressRow, Metrics, Step, View};
use crate::core::placement::Why;
use crate::core::record::NodeState;

const STATES: [NodeState; 6] = [
    NodeState::Joining,
    NodeState::Founding,
    NodeState::Ready,
    NodeState::Sick,
    NodeState::Leaving,
    NodeState::Gone,
];

/// An address that nobody declares, or whose claim cannot be read, is another problem.
fn is_unowned(row: &AddressRow) -> bool {
    row.owner.is_none() && !matches!(row.why, Why::Undeclared | Why::Unreadable)
}

/// The numbers.
pub fn metrics(view: View<'_>) -> Metrics {
    let status = status(view);
    let rows = &status.addresses;
    let own = Some(&status.node.name);
    let (requests, requests_failed) = view.around.requests;
    let of_state = |state| (state, status.nodes.iter().filter(|node| node.state == state).count());
    Metrics {
        answered_ms: status.engine.answered_ms,
        nodes: STATES.into_iter().map(of_state).collect(),
        differing: status.nodes.iter().filter(|node| node.differs).count(),
        addresses: rows.len(),
        owned: rows.iter().filter(|row| row.owner.as_ref() == own).count(),
        not_added: rows.iter().filter(|row| row.step.is_some_and(|step| step != Step::Held)).count(),
        unowned: rows.iter().filter(|row| is_unowned(row)).count(),
        elsewhere: rows.iter().filter(|row| row.owner.is_some() && row.owner != row.belongs).count(),
        pins: rows.iter().filter(|row| row.pin.is_some()).count(),
        drained: status.nodes.iter().filter(|node| node.drain.is_some()).count(),
        frozen: status.frozen.is_some(),
        counts: view.journal.counts(),
        beats: view.node.beat_counts(),
        requests,
        requests_failed,
        problems: status.problems.iter().map(|problem| problem.code).collect(),
        group: status.group,
        node: status.node,
        endpoints: status.engine.endpoints,
    }
}
