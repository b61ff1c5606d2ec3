//! Whether a cluster is set up so that it survives what it is meant to survive: named checks, each with the value that was
//! found, its limit, and what to do.
//!
//! [`Inspection`] takes what the node knows at an instant. The program then asks the engine and reads the files, which takes
//! time, and [`Inspection::judge`] makes the result of everything. The rules do no input and output.

mod engine;
mod files;
mod nodes;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::news::BeatCounts;
use super::record::{Key, Name, NodeRecord, NodeState, Value};
use super::report::{self, ProblemCode, View};

pub use engine::{Endpoint, Engine, Fault, LeaseTime, Member};
pub use files::{Certificate, Files, Key as KeyFile, Secret};

/// The result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checks {
    /// The name of the group.
    pub group: String,
    /// The node whose coordinator checked.
    pub node: Name,
    /// The worst verdict.
    pub verdict: Verdict,
    /// The checks, in the order of their names.
    pub checks: Vec<Check>,
}

/// One check of one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What is checked.
    pub check: CheckName,
    /// The endpoint, node or file that it is about; empty: the cluster.
    pub subject: String,
    /// The outcome.
    pub verdict: Verdict,
    /// What was found.
    pub value: String,
    /// What it has to be.
    pub limit: String,
    /// What to do; empty if it is as it should be.
    pub remedy: String,
}

/// The outcome of a check, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It could not be found out.
    Unknown,
    /// The cluster works, with less safety or less notice than it should have.
    Warning,
    /// The cluster does not work, or will not when it is needed.
    Failure,
}

/// The checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckName {
    /// What `status` reports and no other check covers.
    Status,
    /// Whether an endpoint of the engine answers.
    EngineEndpoint,
    /// Whether the endpoints are all members.
    EngineEndpoints,
    /// How many members vote.
    EngineMembers,
    /// Whether the members know one leader.
    EngineLeader,
    /// Whether the version of a member has known faults.
    EngineVersion,
    /// How full the database of a member is.
    EngineSpace,
    /// The alarms and errors that a member reports.
    EngineAlarms,
    /// Whether the lease survives an election.
    EngineElection,
    /// How long beats take.
    Beats,
    /// How long a certificate is valid.
    Certificate,
    /// Whether the private key is that of the certificate.
    Key,
    /// Who may read a file with a secret.
    Permissions,
    /// Whether the kernel of a node ends addresses in time.
    Fence,
    /// Whether all nodes declare the same addresses and preferences.
    Addresses,
    /// Whether all nodes have the same `lease`.
    Lease,
    /// Whether all nodes have the same `failback`.
    Failback,
    /// Whether all nodes have the same `on_engine_loss`.
    OnEngineLoss,
    /// Whether all coordinators have the same version.
    CoordinatorVersion,
}

impl CheckName {
    /// The name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            CheckName::Status => "status",
            CheckName::EngineEndpoint => "engine-endpoint",
            CheckName::EngineEndpoints => "engine-endpoints",
            CheckName::EngineMembers => "engine-members",
            CheckName::EngineLeader => "engine-leader",
            CheckName::EngineVersion => "engine-version",
            CheckName::EngineSpace => "engine-space",
            CheckName::EngineAlarms => "engine-alarms",
            CheckName::EngineElection => "engine-election",
            CheckName::Beats => "beats",
            CheckName::Certificate => "certificate",
            CheckName::Key => "key",
            CheckName::Permissions => "permissions",
            CheckName::Fence => "fence",
            CheckName::Addresses => "addresses",
            CheckName::Lease => "lease",
            CheckName::Failback => "failback",
            CheckName::OnEngineLoss => "on-engine-loss",
            CheckName::CoordinatorVersion => "coordinator-version",
        }
    }
}

impl Verdict {
    /// The name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Unknown => "unknown",
            Verdict::Warning => "warning",
            Verdict::Failure => "failure",
        }
    }
}

/// What the node knows, at the instant of the request.
#[derive(Clone, Debug)]
pub struct Inspection {
    group: String,
    node: Name,
    lease: Duration,
    heartbeat: Duration,
    beats: BeatCounts,
    /// The nodes that are in the cluster.
    nodes: Vec<Node>,
    /// What `status` reports.
    problems: Vec<ProblemCode>,
}

/// A node in the cluster.
#[derive(Clone, Debug)]
struct Node {
    name: Name,
    record: NodeRecord,
    /// Its beat, if it can be read.
    beat: Option<super::record::Beat>,
}

impl Inspection {
    /// Takes what the node knows.
    pub fn of(view: View<'_>) -> Self {
        let (config, state) = (view.node.config(), view.node.state());
        let lives = state.nodes().filter(|(_, record)| record.state != NodeState::Gone);
        let node = |(name, record): (&Name, &NodeRecord)| Node {
            name: Name::clone(name),
            record: record.clone(),
            beat: match state.get(&Key::Beat(Name::clone(name))).and_then(|entry| entry.value.as_ref()) {
                Some(Value::Beat(beat)) => Some(beat.clone()),
                _ => None,
            },
        };
        Inspection {
            group: view.around.group.clone(),
            node: Name::clone(&config.name),
            lease: config.lease,
            heartbeat: config.heartbeat,
            beats: view.node.beat_counts(),
            nodes: lives.map(node).collect(),
            problems: report::status(view).problems.iter().map(|problem| problem.code).collect(),
        }
    }

    /// Judges it together with what the engine and the files say. `now` is in seconds since 1970, by the host's clock, which
    /// is also that of TLS.
    pub fn judge(self, engine: &Engine, files: &Files, now: i64) -> Checks {
        let mut found = Found(Vec::new());
        nodes::status(&self.problems, &mut found);
        engine::endpoints(engine, &mut found);
        engine::members(engine, self.lease, self.heartbeat, &mut found);
        nodes::beats(&self, &mut found);
        files::check(files, now, &mut found);
        nodes::nodes(&self.nodes, &mut found);
        let mut checks = found.0;
        // Each rule adds its checks in the order of its subjects.
        checks.sort_by_key(|check| check.check);
        let verdict = checks.iter().map(|check| check.verdict).max().unwrap_or(Verdict::Ok);
        Checks { group: self.group, node: self.node, verdict, checks }
    }
}

/// The checks so far.
struct Found(Vec<Check>);

/// What a check is about.
#[derive(Clone, Copy)]
struct Of<'a> {
    check: CheckName,
    subject: &'a str,
    limit: &'a str,
}

impl Found {
    fn add(&mut self, of: Of<'_>, verdict: Verdict, value: impl Into<String>, remedy: impl Into<String>) {
        self.0.push(Check {
            check: of.check,
            subject: of.subject.to_owned(),
            verdict,
            value: value.into(),
            limit: of.limit.to_owned(),
            remedy: remedy.into(),
        });
    }

    fn ok(&mut self, of: Of<'_>, value: impl Into<String>) {
        self.add(of, Verdict::Ok, value, "");
    }
}

/// A time in seconds with one digit, or in milliseconds if it is short.
fn time(time: Duration) -> String {
    match time.as_millis() {
        milliseconds @ 0..1_000 => format!("{milliseconds} ms"),
        milliseconds if milliseconds % 1_000 == 0 => format!("{} s", milliseconds / 1_000),
        milliseconds => format!("{}.{} s", milliseconds / 1_000, milliseconds % 1_000 / 100),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The checks of that name: the subject, the verdict, the value and the remedy of each.
    pub(super) fn named(found: Found, name: CheckName) -> Vec<(String, Verdict, String, String)> {
        let named = found.0.into_iter().filter(|check| check.check == name);
        named.map(|check| (check.subject, check.verdict, check.value, check.remedy)).collect()
    }

    /// The verdicts of that name.
    pub(super) fn verdicts(found: Found, name: CheckName) -> Vec<Verdict> {
        named(found, name).into_iter().map(|(_, verdict, ..)| verdict).collect()
    }

    #[test]
    fn a_name_is_the_same_in_json_and_in_text() {
        for check in [CheckName::Status, CheckName::EngineEndpoint, CheckName::OnEngineLoss] {
            assert_eq!(serde_json::to_value(check).unwrap(), check.name());
        }
        for verdict in [Verdict::Ok, Verdict::Unknown, Verdict::Warning, Verdict::Failure] {
            assert_eq!(serde_json::to_value(verdict).unwrap(), verdict.name());
        }
    }

    #[test]
    fn a_failure_is_the_worst_verdict() {
        assert!(Verdict::Failure > Verdict::Warning && Verdict::Warning > Verdict::Unknown);
        assert!(Verdict::Unknown > Verdict::Ok);
    }

    #[test]
    fn a_time_is_shown_in_its_unit() {
        for (milliseconds, text) in [(0, "0 ms"), (999, "999 ms"), (1_000, "1 s"), (2_650, "2.6 s")] {
            assert_eq!(time(Duration::from_millis(milliseconds)), text);
        }
    }
}
