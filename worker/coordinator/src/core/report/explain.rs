//! One address: who has it, since when, why there, why not elsewhere, and what happens next and when.

use std::net::IpAddr;
use std::sync::Arc;

use super::plan::without;
use super::problems::seconds;
use super::status::address as row_of;
use super::{AddressRow, Choice, Explanation, Next, Step, View, milliseconds};
use crate::core::placement::{self, Why};
use crate::core::record::{Entry, Key, Name, NodeState};

/// Explains an address; `None`: no node declares it and it has no claim.
pub fn explain(view: View<'_>, address: IpAddr) -> Option<Explanation> {
    let config = view.node.config();
    let Some(placed) = placement::explain(view.node.state(), config.is_auto, address) else {
        if !config.declared.contains_key(&address) {
            return None;
        }
        let row = row_of(view, address, Why::Nobody, None);
        let next = vec![Next { in_ms: None, text: "nothing, until a node is in the cluster".to_owned() }];
        return Some(Explanation { row, nodes: Vec::new(), conflict: Vec::new(), next });
    };
    let row = row_of(view, address, placed.why, placed.node);
    let next = Story { view, row: &row, is_urgent: placed.is_urgent }.next();
    let choice = |(node, addresses, unfit): (Name, usize, Option<placement::Unfit>)| Choice {
        node,
        addresses,
        unfit: unfit.map(|unfit| unfit.to_string()),
    };
    let nodes = placed.nodes.into_iter().map(choice).collect();
    Some(Explanation { row, nodes, conflict: placed.conflict, next })
}

struct Story<'a> {
    view: View<'a>,
    row: &'a AddressRow,
    is_urgent: bool,
}

fn now(text: impl Into<String>) -> Next {
    Next { in_ms: None, text: text.into() }
}

impl Story<'_> {
    fn next(&self) -> Vec<Next> {
        let row = self.row;
        let mut next = self.silence();
        match (&row.owner, &row.belongs) {
            _ if row.why == Why::Unreadable => {
                next.push(now("nothing: no node touches a claim that cannot be read"));
            }
            (Some(owner), _) if self.is_silent(owner) => next.extend(self.after(owner)),
            (Some(owner), Some(belongs)) if owner == belongs => next.push(self.stays(owner)),
            (Some(owner), Some(belongs)) => next.push(self.moves(owner, belongs)),
            (Some(owner), None) => {
                next.push(now(format!("{owner} gives it up, because {}", row.why)));
            }
            (None, Some(belongs)) => next.push(self.is_claimed(belongs)),
            (None, None) => next.push(now(format!("nothing, as long as {}", row.why))),
        }
        next.extend(self.matures());
        if let Some(pin) = &row.pin
            && pin.left_ms.is_some()
        {
            next.push(Next { in_ms: pin.left_ms, text: format!("the pin to {} ends", pin.node) });
        }
        next.extend(self.otherwise());
        next
    }

    fn is_me(&self, node: &Name) -> bool {
        *node == self.view.node.config().name
    }

    /// What happens when the owner is evicted.
    fn after(&self, owner: &Name) -> Option<Next> {
        let view = self.view;
        let placement = placement::place(&without(view.node.state(), owner), view.node.config().is_auto);
        let (why, belongs) = placement.target(self.row.address)?;
        Some(now(match belongs {
            Some(node) => format!("then {node} takes it ({why})"),
            None => format!("then nobody has it, because {why}"),
        }))
    }

    fn is_silent(&self, node: &Name) -> bool {
        let heartbeat = milliseconds(self.view.node.config().heartbeat);
        let seen = self.view.node.patience().seen_at(node).filter(|_| !self.is_me(node));
        seen.is_some_and(|at| self.view.ago(at) > heartbeat.saturating_mul(2))
            && self.view.node.evicts_at(node).is_some()
    }

    /// What happens to the owner, or to the node that should get the address, if it shows no life.
    fn silence(&self) -> Vec<Next> {
        let view = self.view;
        let named = [self.row.owner.as_ref(), self.row.belongs.as_ref()];
        let mut nodes: Vec<&Name> = named.into_iter().flatten().collect();
        nodes.dedup();
        let eviction = |node: &Name| {
            let silent = view.ago(view.node.patience().seen_at(node)?);
            let text = format!("this node evicts {node}, which has shown no life for {}", seconds(silent));
            Some(Next { in_ms: view.node.evicts_at(node).map(|at| view.until(at)), text })
        };
        nodes.into_iter().filter(|node| self.is_silent(node)).filter_map(eviction).collect()
    }

    /// The owner keeps it.
    fn stays(&self, owner: &Name) -> Next {
        let view = self.view;
        if !self.is_me(owner) {
            let refuses = view.node.state().node(owner);
            let refuses = refuses.is_some_and(|record| record.refused.contains(&self.row.address));
            return now(match refuses {
                true => format!("the broker of {owner} refused to add it; {owner} asks it again"),
                false => format!("nothing: {owner} keeps it"),
            });
        }
        let (is_connected, _) = view.node.broker();
        match self.row.step {
            Some(Step::Adding) => now("the broker is adding it"),
            Some(Step::Removing) => now("the broker is removing it"),
            Some(Step::Unknown) => now("this node asks the broker what it has when that is connected again"),
            Some(Step::Missing) if !is_connected => now("the broker adds it when it is connected again"),
            Some(Step::Missing) => match view.node.refused(self.row.address) {
                Some((until, why)) => Next {
                    in_ms: Some(view.until(until)),
                    text: format!("this node asks its broker again, which refused to add it: {why}"),
                },
                None => match self.quarantine() {
                    Some(left) => Next {
                        in_ms: Some(left),
                        text: "this node adds it when its quarantine after the join ends".to_owned(),
                    },
                    None => now("this node adds it when a beat succeeds"),
                },
            },
            Some(Step::Held) | None => now("nothing: this node keeps it"),
        }
    }

    fn quarantine(&self) -> Option<u64> {
        let until = self.view.node.session_times()?.quarantine_until;
        (until > self.view.now).then(|| self.view.until(until))
    }

    fn moves(&self, owner: &Name, belongs: &Name) -> Next {
        let view = self.view;
        if self.is_me(owner) && self.row.step == Some(Step::Removing) {
            return now(format!("the broker is removing it; then {belongs} gets it"));
        }
        if self.is_urgent {
            return now(format!("{owner} hands it over to {belongs} at once"));
        }
        if self.is_me(owner) {
            let text = format!("moves to {belongs}, with the next set of voluntary moves");
            return Next { in_ms: Some(view.until(view.node.balance_at())), text };
        }
        let interval = seconds(milliseconds(view.node.config().balance_interval));
        now(format!(
            "{owner} moves it to {belongs} with one of its next sets of voluntary moves, one every {interval}"
        ))
    }

    fn is_claimed(&self, belongs: &Name) -> Next {
        if self.is_me(belongs) {
            return match self.quarantine() {
                Some(left) => Next {
                    in_ms: Some(left),
                    text: "this node claims it when its quarantine after the join ends".to_owned(),
                },
                None => now("this node claims it at once"),
            };
        }
        let node = self.view.node;
        let is_new = [NodeState::Joining, NodeState::Founding]
            .into_iter()
            .any(|state| node.is_in_state(belongs, state));
        now(match is_new {
            true => format!("{belongs} claims it when its quarantine after the join ends"),
            false => format!("{belongs} claims it at once"),
        })
    }

    /// This node gets no address before it is mature.
    fn matures(&self) -> Option<Next> {
        let (view, name) = (self.view, &self.view.node.config().name);
        let times = view.node.session_times()?;
        let is_joining = view.node.is_in_state(name, NodeState::Joining);
        (is_joining && times.ready_at > view.now).then(|| Next {
            in_ms: Some(view.until(times.ready_at)),
            text: "this node is mature and counts for placement".to_owned(),
        })
    }

    /// Where it would move if addresses moved voluntarily.
    fn otherwise(&self) -> Option<Next> {
        let state = self.view.node.state();
        let is_auto = self.view.node.config().is_auto;
        if is_auto && !state.is_frozen() {
            return None;
        }
        let mut thawed = state.clone();
        thawed.apply(&Arc::new(Entry::deleted(Key::Freeze, state.revision.saturating_add(1))));
        let placement = placement::place(&thawed, true);
        let (why, belongs) = placement.target(self.row.address)?;
        let belongs = belongs.filter(|belongs| Some(*belongs) != self.row.belongs.as_ref())?;
        let because = match is_auto {
            true => "voluntary moves were not stopped by an operator",
            false => "failback were auto",
        };
        Some(now(format!("would move to {belongs} ({why}) if {because}")))
    }
}
