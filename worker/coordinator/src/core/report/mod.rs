//! What a node knows of the cluster, for people and for their programs: pure functions of a [`Node`] at an instant.
//!
//! Durations are in milliseconds and end in `_ms`. Names and reasons come from the engine, where other hosts wrote them:
//! whoever prints them escapes them.

mod explain;
mod metrics;
mod plan;
mod problems;
mod status;

use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::decide::Node;
use super::news::{BeatCounts, Counts, Journal};
use super::placement::Why;
use super::record::{Name, NodeState, Order, Phase, Want};
use super::time::BootTime;

pub use explain::explain;
pub use metrics::metrics;
pub use plan::plan;
pub use status::status;

/// What the program knows and the node does not.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// The name of the group.
    pub group: String,
    /// Whether the broker ends addresses with its packet filter; `None`: it has not said.
    pub is_fenced: Option<bool>,
    /// The endpoints of the engine.
    pub endpoints: Vec<Endpoint>,
    /// Requests to the engine, and those without a reply.
    pub requests: (u64, u64),
}

/// An endpoint of the engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Its URL.
    pub url: String,
    /// Whether it replies.
    #[serde(rename = "up")]
    pub is_up: bool,
    /// More about that, such as the error.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub state: String,
    /// The version of the engine there; empty: not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
}

/// A node with all that a report needs.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// The node.
    pub node: &'a Node,
    /// The current instant.
    pub now: BootTime,
    /// What happened since the process started.
    pub journal: &'a Journal,
    /// What the program knows.
    pub around: &'a Surroundings,
}

impl View<'_> {
    fn ago(&self, instant: BootTime) -> u64 {
        milliseconds(self.now.since(instant))
    }

    fn until(&self, instant: BootTime) -> u64 {
        milliseconds(instant.since(self.now))
    }

    /// How long a pin lasts from now.
    fn pin(&self, address: IpAddr, want: &Want) -> Pin {
        let lasts = want.for_ms.map(Duration::from_millis);
        let ends = lasts.and_then(|lasts| self.node.pin_ends(address, lasts));
        Pin {
            node: want.node.clone(),
            by: want.by.clone(),
            left_ms: ends.map(|ends| self.until(ends)).or(want.for_ms),
            until: want.until.clone(),
        }
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Everything at a glance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The name of the group.
    pub group: String,
    /// This node.
    pub node: ThisNode,
    /// The engine.
    pub engine: Engine,
    /// All nodes that were ever in the cluster.
    pub nodes: Vec<NodeRow>,
    /// All addresses that a node declares or has claimed.
    pub addresses: Vec<AddressRow>,
    /// The order that stops voluntary moves.
    pub frozen: Option<Order>,
    /// What needs attention, the worst first.
    pub problems: Vec<Problem>,
}

/// How far this node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Membership {
    /// It has no session.
    Outside,
    /// It has a session.
    Member,
    /// It must not join.
    Refused,
    /// It left.
    Left,
}

/// The connection to the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BrokerState {
    /// It is connected.
    Connected,
    /// It is connected and does not answer.
    Hanging,
    /// It is not connected.
    Disconnected,
}

/// The node of the coordinator that reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThisNode {
    /// Its name.
    pub name: Name,
    /// The coordinator's version.
    pub version: String,
    /// How far it is.
    pub membership: Membership,
    /// Its state in the engine; `None`: it has no session.
    pub state: Option<NodeState>,
    /// Why it is in that state, or must not join.
    pub why: String,
    /// For how long this process has had the session.
    pub session_ms: Option<u64>,
    /// How long its addresses last if no further beat succeeds.
    pub lease_left_ms: Option<u64>,
    /// Whether its addresses outlive its last beat, because all nodes that may evict it promise not to.
    #[serde(rename = "holding")]
    pub is_holding: bool,
    /// For how long it claims nothing, because it joined recently.
    pub quarantine_ms: Option<u64>,
    /// How long a beat lasts.
    pub lease_ms: u64,
    /// The time between two beats.
    pub heartbeat_ms: u64,
    /// How long others wait after its last beat before they evict it.
    pub patience_ms: u64,
    /// Whether its addresses move voluntarily.
    #[serde(rename = "automatic")]
    pub is_auto: bool,
    /// The connection to the broker.
    pub broker: BrokerState,
    /// Whether the broker ends addresses with its packet filter; `None`: it has not said.
    #[serde(rename = "fenced")]
    pub is_fenced: Option<bool>,
}

/// The engine as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Engine {
    /// How long ago it answered; `None`: never.
    pub answered_ms: Option<u64>,
    /// Its revision.
    pub revision: i64,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRow {
    /// Its name.
    pub name: Name,
    /// Its state.
    pub state: NodeState,
    /// Why it is in that state.
    pub why: String,
    /// The version of its coordinator.
    pub version: String,
    /// For how long it has had its session, if this process saw it join.
    pub session_ms: Option<u64>,
    /// How long ago this process saw a new beat of it; `None`: it does not watch that node, or there is no beat.
    pub beat_ms: Option<u64>,
    /// When this process evicts it if it shows no life until then; `None`: it does not monitor that node.
    pub evict_ms: Option<u64>,
    /// How many addresses it has.
    pub addresses: usize,
    /// How many addresses belong to it.
    pub belongs: usize,
    /// The order that drains it.
    pub drain: Option<Order>,
    /// The digest of what it declares.
    pub declares: Name,
    /// Whether it declares something else than most nodes.
    pub differs: bool,
    /// The blocks whose interface is down, such as 192.0.2.0/24.
    pub down: Vec<String>,
    /// The addresses that its broker refuses to add.
    pub refused: Vec<IpAddr>,
}

/// A pin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// The node that must have the address if it can.
    pub node: Name,
    /// Who asked for it.
    pub by: String,
    /// How long it lasts; `None`: until it is removed.
    pub left_ms: Option<u64>,
    /// Its end by the clock of whoever asked for it.
    pub until: String,
}

/// How far an address of this node is at its broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// The broker has added it.
    Held,
    /// The broker was asked to add it.
    Adding,
    /// The broker was asked to remove it, or this node hands it over.
    Removing,
    /// The connection to the broker ended.
    Unknown,
    /// The broker refused it, or this node may not add it yet.
    Missing,
}

/// An address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressRow {
    /// The address.
    pub address: IpAddr,
    /// The node that has it; `None`: no node.
    pub owner: Option<Name>,
    /// The node that had it last, if none has it.
    pub last: Option<Name>,
    /// The phase of its claim; `None`: it has none that can be read.
    pub phase: Option<Phase>,
    /// The epoch of its claim.
    pub epoch: Option<u64>,
    /// The revision of the engine that changed the claim last.
    pub revision: Option<i64>,
    /// For how long the owner has had it, if this process saw the change.
    pub since_ms: Option<u64>,
    /// If this node owns it: how far it is at the broker.
    pub step: Option<Step>,
    /// The node that it belongs to.
    pub belongs: Option<Name>,
    /// Why there.
    pub why: Why,
    /// The pin.
    pub pin: Option<Pin>,
}

/// One address: who has it, why there, why not elsewhere, and what happens next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// How it is.
    #[serde(flatten)]
    pub row: AddressRow,
    /// The nodes in the cluster, and whether they can get it.
    pub nodes: Vec<Choice>,
    /// The preferences, if there are different ones, of which none counts.
    pub conflict: Vec<Name>,
    /// What happens next, the most important first.
    pub next: Vec<Next>,
}

/// A node that an address could belong to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// The node.
    pub node: Name,
    /// How many addresses belong to it.
    pub addresses: usize,
    /// Why it cannot get the address; `None`: it can.
    pub unfit: Option<String>,
}

/// What happens to an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Next {
    /// When; `None`: at once, or the text says when.
    pub in_ms: Option<u64>,
    /// What.
    pub text: String,
}

/// The moves that the placement wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The node without which this plan is made.
    pub without: Option<Name>,
    /// Whether voluntary moves are allowed.
    pub voluntary: bool,
    /// The moves, in the order of the addresses.
    pub moves: Vec<Move>,
    /// The nodes in the cluster.
    pub nodes: Vec<Load>,
}

/// A move of an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    /// The address.
    pub address: IpAddr,
    /// The node that has it.
    pub from: Option<Name>,
    /// The node that it belongs to.
    pub to: Option<Name>,
    /// Whether it moves at once, and not at an interval of voluntary moves.
    pub urgent: bool,
    /// Why there.
    pub why: Why,
}

/// How many addresses a node has and gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// The node.
    pub node: Name,
    /// How many addresses it has.
    pub before: usize,
    /// How many it has after all moves.
    pub after: usize,
}

/// The numbers of a coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metrics {
    /// The name of the group.
    pub group: String,
    /// The coordinator's node.
    pub node: ThisNode,
    /// How long ago the engine answered.
    pub answered_ms: Option<u64>,
    /// The endpoints of the engine.
    pub endpoints: Vec<Endpoint>,
    /// How many nodes are in each state.
    pub nodes: Vec<(NodeState, usize)>,
    /// How many nodes declare something else than most.
    pub differing: usize,
    /// The addresses that a node declares or has claimed.
    pub addresses: usize,
    /// Those of this node.
    pub owned: usize,
    /// Those of this node that its broker has not added.
    pub not_added: usize,
    /// Those that no node has.
    pub unowned: usize,
    /// Those that another node has than the one that they belong to.
    pub elsewhere: usize,
    /// Pins.
    pub pins: usize,
    /// Drained nodes.
    pub drained: usize,
    /// Whether voluntary moves are stopped.
    pub frozen: bool,
    /// How often things happened since this process started.
    pub counts: Counts,
    /// The beats of this process.
    pub beats: BeatCounts,
    /// Requests to the engine.
    pub requests: u64,
    /// Those to which it did not reply.
    pub requests_failed: u64,
    /// What needs attention.
    pub problems: Vec<ProblemCode>,
}

/// Something that needs attention.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// A word that does not change.
    pub code: ProblemCode,
    /// What is wrong.
    pub text: String,
    /// What to do.
    pub remedy: String,
}

/// The kinds of problems, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProblemCode {
    /// This node must not join.
    Refused,
    /// This node has no session.
    NotMember,
    /// The engine does not reply.
    EngineUnreachable,
    /// The broker of this host does not work.
    Broker,
    /// The addresses of this node end soon.
    LeaseShort,
    /// This node is to keep its addresses without the engine, and could not.
    HoldImpossible,
    /// No node has these addresses.
    Unowned,
    /// A node shows no life.
    Silent,
    /// A node must not hold addresses.
    Sick,
    /// A broker refuses to add addresses.
    AddRefused,
    /// The addresses of this node end late, because there is no packet filter.
    NoFence,
    /// Nodes declare different addresses.
    DeclarationsDiffer,
    /// Nodes prefer different nodes for one address.
    PreferenceConflict,
    /// Claims of addresses that no node declares.
    Undeclared,
    /// A pin to a node that cannot hold the address.
    PinUnfit,
    /// A drained node keeps addresses that no other node can hold.
    DrainKeeps,
    /// An order about a node that is not in the cluster.
    UnknownNode,
    /// A value that cannot be read.
    Unreadable,
    /// A key that is not the coordinator's.
    ForeignKey,
    /// An endpoint of the engine does not reply.
    EndpointDown,
    /// Voluntary moves are stopped.
    Frozen,
}

impl ProblemCode {
    /// The name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            ProblemCode::Refused => "refused",
            ProblemCode::NotMember => "not-member",
            ProblemCode::EngineUnreachable => "engine-unreachable",
            ProblemCode::Broker => "broker",
            ProblemCode::LeaseShort => "lease-short",
            ProblemCode::HoldImpossible => "hold-impossible",
            ProblemCode::Unowned => "unowned",
            ProblemCode::Silent => "silent",
            ProblemCode::Sick => "sick",
            ProblemCode::AddRefused => "add-refused",
            ProblemCode::NoFence => "no-fence",
            ProblemCode::DeclarationsDiffer => "declarations-differ",
            ProblemCode::PreferenceConflict => "preference-conflict",
            ProblemCode::Undeclared => "undeclared",
            ProblemCode::PinUnfit => "pin-unfit",
            ProblemCode::DrainKeeps => "drain-keeps",
            ProblemCode::UnknownNode => "unknown-node",
            ProblemCode::Unreadable => "unreadable",
            ProblemCode::ForeignKey => "foreign-key",
            ProblemCode::EndpointDown => "endpoint-down",
            ProblemCode::Frozen => "frozen",
        }
    }
}
