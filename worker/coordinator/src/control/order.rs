//! Orders: the transaction that each needs, if it changes anything, and what its reply means.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::answer::Answer;
use super::{Done, Fault, FaultCode, MAX_WHY, Request, Response};
use crate::core::placement::{self, Why};
use crate::core::record::{Entry, Key, Name, NodeState, Order, Value, Want};
use crate::core::report::View;
use crate::core::state::State;
use crate::core::time::utc;
use crate::core::txn::{self, NoReply, Reply};

/// How many addresses a warning lists.
const LISTED: usize = 5;

/// An order that the engine performs.
#[derive(Clone, Debug)]
pub struct Pending {
    /// The order, such as "the order to drain b".
    order: String,
    done: Done,
    /// What it means if the key is not as expected.
    failed: Fault,
}

impl Pending {
    /// The response that follows from the engine's reply.
    pub fn replied(self, reply: Result<Reply, NoReply>) -> Response {
        match reply {
            Ok(reply) if reply.succeeded => Response::Done(self.done),
            Ok(_) => Response::Error(self.failed),
            Err(NoReply) => Response::Error(Fault::new(
                FaultCode::EngineUnreachable,
                format!("the engine did not reply to {}: it may still perform it", self.order),
                "Check the engine; `portreeve cluster status` shows whether the order is in force. Giving it again does no harm.",
            )),
        }
    }
}

type Checked<T> = Result<T, Fault>;

pub(super) fn answer(view: View<'_>, unix_ms: u64, by: &str, request: Request) -> Answer {
    let orders = Orders { view, state: view.node.state(), unix_ms, by };
    let answered = match request {
        Request::Move { address, node, for_ms } => orders.pin(address, &node, for_ms),
        Request::Unpin { address } => Ok(orders.unpin(address)),
        Request::Drain { node, why, release } => orders.drain(&node, why, release),
        Request::Undrain { node } => Ok(orders.undrain(&node)),
        Request::Freeze { why } => orders.freeze(why),
        Request::Thaw {} => Ok(orders.thaw()),
        Request::Evict { node, powered_off } => orders.evict(&node, powered_off),
        _ => Err(Fault::new(FaultCode::Malformed, "the request is not an order", "")),
    };
    answered.unwrap_or_else(|fault| Answer::Now(Response::Error(fault)))
}

struct Orders<'a> {
    view: View<'a>,
    state: &'a State,
    unix_ms: u64,
    by: &'a str,
}

/// Nothing is to do.
fn unchanged(text: String) -> Answer {
    Answer::Now(Response::Done(Done { changed: false, text, warnings: Vec::new() }))
}

impl Orders<'_> {
    fn pin(&self, address: IpAddr, node: &Name, for_ms: Option<u64>) -> Checked<Answer> {
        self.known_node(node)?;
        let placement = placement::place(self.state, self.view.node.config().is_auto);
        let declared = placement.target(address).is_some_and(|(why, _)| !matches!(why, Why::Undeclared));
        if !declared && !self.view.node.config().declared.contains_key(&address) {
            return Err(no_such_address(address));
        }
        let key = Key::Want(address);
        let known = self.state.get(&key);
        if let Some(Value::Want(want)) = known.and_then(|entry| entry.value.as_ref())
            && want.node == *node
            && want.for_ms.is_none()
            && for_ms.is_none()
        {
            let by = by(&want.by);
            return Ok(unchanged(format!("{address} is already pinned to {node}{by}")));
        }
        let until = for_ms.map(|for_ms| utc(self.unix_ms.saturating_add(for_ms))).unwrap_or_default();
        let lasts = if until.is_empty() { String::new() } else { format!(" until {until}") };
        let mut warnings = Vec::new();
        if let Some(unfit) = placement::unfit(self.state, address, node) {
            warnings
                .push(format!("{node} cannot hold {address} now: {unfit}. The pin counts as soon as it can"));
        }
        let want = Want { node: node.clone(), by: self.by.to_owned(), for_ms, until };
        let txn = txn::write_if_unchanged(key, known.map(Arc::as_ref), &Value::Want(want));
        let text = format!("{address} is pinned to {node}{lasts}");
        Ok(self.txn(txn, format!("the order to move {address} to {node}"), text, warnings))
    }

    fn unpin(&self, address: IpAddr) -> Answer {
        let text = format!("{address} is not pinned");
        self.delete(&Key::Want(address), format!("the order to unpin {address}"), text)
    }

    fn drain(&self, node: &Name, why: String, release: bool) -> Checked<Answer> {
        self.known_node(node)?;
        let key = Key::Drain(node.clone());
        let known = self.state.get(&key);
        if let Some(Value::Order(order)) = known.and_then(|entry| entry.value.as_ref())
            && order.release == release
            && (why.is_empty() || why == order.why)
        {
            return Ok(unchanged(format!("{node} is already drained{}", given(order))));
        }
        let order = self.order(why, release)?;
        let value = Value::Order(order);
        let warnings = self.drain_warnings(node, &key, &value, release);
        let txn = txn::write_if_unchanged(key, known.map(Arc::as_ref), &value);
        Ok(self.txn(txn, format!("the order to drain {node}"), format!("{node} is drained"), warnings))
    }

    /// Which addresses no other node can hold.
    fn drain_warnings(&self, node: &Name, key: &Key, value: &Value, release: bool) -> Vec<String> {
        let record = self.state.node(node);
        if record.is_none_or(|record| record.state == NodeState::Gone) {
            return vec![format!("{node} is not in the cluster; the order counts when it joins")];
        }
        let mut drained = self.state.clone();
        let modified = self.state.revision.saturating_add(1);
        let entry =
            Entry { key: key.clone(), created: 0, modified, text: "".into(), value: Some(value.clone()) };
        drained.apply(&Arc::new(entry));
        let placement = placement::place(&drained, self.view.node.config().is_auto);
        let stay = placement.targets().filter(|(target, belongs)| match release {
            false => *belongs == Some(node) && target.why == Why::NobodyElse,
            true => belongs.is_none() && self.owner(target.address).is_some_and(|owner| owner == node),
        });
        let stay: Vec<String> = stay.map(|(target, _)| target.address.to_string()).collect();
        if stay.is_empty() {
            return Vec::new();
        }
        let shown = stay.iter().take(LISTED).map(String::as_str).collect::<Vec<_>>().join(", ");
        let more = if stay.len() > LISTED { ", ..." } else { "" };
        let count = stay.len();
        vec![match release {
            false => format!(
                "no other node can hold {count} addresses, so {node} keeps them: {shown}{more}. --release gives them up"
            ),
            true => format!("no other node can hold {count} addresses, so nobody has them: {shown}{more}"),
        }]
    }

    fn owner(&self, address: IpAddr) -> Option<&Name> {
        match &self.state.get(&Key::Claim(address))?.value {
            Some(Value::Claim(claim)) if self.state.is_held(claim) => Some(&claim.node),
            _ => None,
        }
    }

    fn undrain(&self, node: &Name) -> Answer {
        let text = format!("{node} is not drained");
        self.delete(&Key::Drain(node.clone()), format!("the order to end the draining of {node}"), text)
    }

    fn freeze(&self, why: String) -> Checked<Answer> {
        let known = self.state.get(&Key::Freeze);
        if let Some(Value::Order(order)) = known.and_then(|entry| entry.value.as_ref())
            && (why.is_empty() || why == order.why)
        {
            return Ok(unchanged(format!("voluntary moves are already stopped{}", given(order))));
        }
        let value = Value::Order(self.order(why, false)?);
        let txn = txn::write_if_unchanged(Key::Freeze, known.map(Arc::as_ref), &value);
        let text = "voluntary moves are stopped; failover still works".to_owned();
        Ok(self.txn(txn, "the order to stop voluntary moves".to_owned(), text, Vec::new()))
    }

    fn thaw(&self) -> Answer {
        let text = "voluntary moves are allowed".to_owned();
        self.delete(&Key::Freeze, "the order to allow voluntary moves".to_owned(), text)
    }

    fn evict(&self, node: &Name, powered_off: bool) -> Checked<Answer> {
        self.known_node(node)?;
        if !powered_off {
            return Err(Fault::new(
                FaultCode::Refused,
                format!(
                    "this ends the session of {node} without waiting for its addresses to end: if its host still \
                     runs, two hosts answer for them"
                ),
                "Make sure that the host is powered off, then repeat the command with --powered-off. Without this command \
                 the others take its addresses over by themselves when its lease has ended.",
            ));
        }
        if *node == self.view.node.config().name {
            return Err(Fault::new(
                FaultCode::Refused,
                format!("{node} is this node itself, and it runs"),
                "Stop the coordinator: it hands its addresses over.",
            ));
        }
        let Some(beat) = self.state.get(&Key::Beat(node.clone())) else {
            return Ok(unchanged(format!("{node} is not in the cluster")));
        };
        let lease = match &beat.value {
            Some(Value::Beat(beat)) => beat.lease(),
            _ => Duration::ZERO,
        };
        // A node that keeps its addresses without the engine shows life by its requests for promises.
        let seen = self.view.node.patience().seen_at(node);
        let shown = seen.map(|seen| self.view.node.promised_at(node).map_or(seen, |at| seen.max(at)));
        let age = shown.map(|at| self.view.now.since(at));
        if age.is_none_or(|age| age < lease / 2) {
            let age = age.unwrap_or_default();
            return Err(Fault::new(
                FaultCode::Refused,
                format!("{node} showed life {:.1} s ago, so its host is not powered off", age.as_secs_f64()),
                format!(
                    "Power it off and repeat the command {:.0} s later, or drain it: `portreeve cluster drain {node}`.",
                    (lease / 2).as_secs_f64().ceil()
                ),
            ));
        }
        let txn = txn::evict(node, &beat.text, self.view.node.record_when_gone(node));
        let done = Done {
            changed: true,
            text: format!("{node} is evicted; the other nodes take its addresses over"),
            warnings: Vec::new(),
        };
        let failed = Fault::new(
            FaultCode::Changed,
            format!("{node} has shown life or was evicted since this coordinator read its beat"),
            "See `portreeve cluster status`. In a cluster of more than 16 nodes, repeat the command in 30 s.",
        );
        Ok(Answer::Txn(txn, Pending { order: format!("the order to evict {node}"), done, failed }))
    }

    /// Checks that a node was ever in the cluster.
    fn known_node(&self, node: &Name) -> Checked<()> {
        match self.state.node(node) {
            Some(_) => Ok(()),
            None => Err(no_such_node(self.state, node)),
        }
    }

    fn order(&self, why: String, release: bool) -> Checked<Order> {
        if why.len() > MAX_WHY {
            let message = format!("the reason is longer than {MAX_WHY} bytes");
            return Err(Fault::new(FaultCode::Refused, message, "Write a shorter one."));
        }
        Ok(Order { by: self.by.to_owned(), since: utc(self.unix_ms), why, release })
    }

    fn delete(&self, key: &Key, order: String, text: String) -> Answer {
        match self.state.get(key) {
            Some(entry) => self.txn(txn::delete(entry), order, text, Vec::new()),
            None => unchanged(text),
        }
    }

    fn txn(&self, txn: txn::Txn, order: String, text: String, warnings: Vec<String>) -> Answer {
        let failed = Fault::new(
            FaultCode::Changed,
            format!("another order came before {order}"),
            "See `portreeve cluster status`, and repeat the command if you still want it.",
        );
        Answer::Txn(txn, Pending { order, done: Done { changed: true, text, warnings }, failed })
    }
}

pub(super) fn no_such_address(address: IpAddr) -> Fault {
    Fault::new(
        FaultCode::NotFound,
        format!("no node declares the address {address}"),
        "`portreeve cluster status` lists the addresses. An address that follows another one moves with that one.",
    )
}

pub(super) fn no_such_node(state: &State, node: &Name) -> Fault {
    let names: Vec<String> = state.nodes().take(2 * LISTED).map(|(name, _)| name.to_string()).collect();
    let remedy = match names.is_empty() {
        true => "This coordinator knows no node yet.".to_owned(),
        false => format!("The nodes are {}.", names.join(", ")),
    };
    Fault::new(FaultCode::NotFound, format!("no node {node} was ever in the cluster"), remedy)
}

fn by(name: &str) -> String {
    if name.is_empty() { String::new() } else { format!(" by {name}") }
}

/// Who gave an order, since when, and why.
fn given(order: &Order) -> String {
    let since = if order.since.is_empty() { String::new() } else { format!(" since {}", order.since) };
    let why = if order.why.is_empty() { String::new() } else { format!(": {}", order.why) };
    format!("{}{since}{why}", by(&order.by))
}
