//! What operators see of the endpoints.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::Etcd;
use super::endpoint::{Endpoint, Known};
use super::messages::{ResponseHeader, StatusResponse};
use super::problem::{Problem, printable};
use crate::core::report;

/// At most so many alarms of a member are shown.
const MAX_ALARMS: usize = 8;

/// What has become known about an endpoint by its use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnosis {
    /// The endpoint.
    pub url: String,
    /// Whether it works.
    pub state: State,
    /// Its version of etcd.
    pub version: Option<String>,
    /// The id of its cluster.
    pub cluster: Option<u64>,
}

impl From<Diagnosis> for report::Endpoint {
    fn from(diagnosis: Diagnosis) -> Self {
        let Diagnosis { url, state, version, .. } = diagnosis;
        let (is_up, state) = match state {
            State::Works => (true, String::new()),
            State::Unused => (false, "not used yet".to_owned()),
            State::Fails(problem) => (false, problem.to_string()),
        };
        report::Endpoint { url, is_up, state, version: version.unwrap_or_default() }
    }
}

/// Whether an endpoint works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It has not been needed yet.
    Unused,
    /// It answered last time.
    Works,
    /// It did not.
    Fails(Problem),
}

/// What a member says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its version of etcd.
    pub version: String,
    /// The id of its cluster.
    pub cluster: u64,
    /// Its own id.
    pub member: u64,
    /// The id of the leader that it knows; 0: none.
    pub leader: u64,
    /// The number of elections.
    pub raft_term: u64,
    /// Whether it does not vote yet, and answers no requests.
    pub is_learner: bool,
    /// The size of its database in bytes.
    pub db_size: i64,
    /// How much of that is in use.
    pub db_size_in_use: i64,
    /// The quota of the database, if the member tells it; etcd 3.6 and later do.
    pub db_size_quota: Option<i64>,
    /// Its alarms, such as that the quota is reached.
    pub alarms: Vec<String>,
    /// Why the coordinator cannot use it, although it answers.
    pub problem: Option<Problem>,
}

impl Etcd {
    /// What has become known about each endpoint by its use. It sends nothing.
    pub fn diagnosis(&self) -> Vec<Diagnosis> {
        let diagnosis = |endpoint: &Arc<Endpoint>| {
            let Known { is_used, problem, refused_write, version, cluster } = endpoint.known();
            let state = match problem.or(refused_write) {
                Some(problem) => State::Fails(problem),
                None if is_used => State::Works,
                None => State::Unused,
            };
            Diagnosis { url: endpoint.url.clone(), state, version, cluster }
        };
        self.endpoints.all().iter().map(diagnosis).collect()
    }

    /// Asks each endpoint for its status, all at the same time. Takes a few seconds at most.
    pub async fn status(&self) -> Vec<(String, Result<MemberStatus, Problem>)> {
        let mut all = JoinSet::new();
        for (number, endpoint) in self.endpoints.all().iter().cloned().enumerate() {
            all.spawn(async move {
                let outcome = endpoint.check().await.map(|(status, problem)| member(status, problem));
                (number, endpoint.url.clone(), outcome)
            });
        }
        let mut all = all.join_all().await;
        all.sort_by_key(|(number, ..)| *number);
        all.into_iter().map(|(_, url, outcome)| (url, outcome)).collect()
    }
}

fn member(status: StatusResponse, problem: Option<Problem>) -> MemberStatus {
    let ResponseHeader { cluster_id, member_id, .. } = status.header.unwrap_or_default();
    MemberStatus {
        version: printable(&status.version),
        cluster: cluster_id,
        member: member_id,
        leader: status.leader,
        raft_term: status.raft_term,
        is_learner: status.is_learner,
        db_size: status.db_size,
        db_size_in_use: status.db_size_in_use,
        db_size_quota: (status.db_size_quota != 0).then_some(status.db_size_quota),
        alarms: status.errors.iter().take(MAX_ALARMS).map(|alarm| printable(alarm)).collect(),
        problem,
    }
}
