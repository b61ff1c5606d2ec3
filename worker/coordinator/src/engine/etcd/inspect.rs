//! What the checks have to know of the members.

use std::sync::Arc;
use std::time::Duration;

use super::endpoint::{Endpoint, LEASE_GRANT, LEASE_REVOKE, MEMBER_LIST};
use super::messages::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseRevokeRequest, LeaseRevokeResponse, MemberListRequest,
    MemberListResponse,
};
use super::problem::printable;
use super::status::MemberStatus;
use super::{Etcd, faults};
use crate::core::check;

/// etcd's default of --quota-backend-bytes, 2 GiB.
const DEFAULT_QUOTA: i64 = 2 << 30;
/// A member grants no lease that is shorter than one and a half times its election timeout, rounded up to whole seconds
/// (`minTTL` in etcd's server.go, from 3.4 to 3.8). This is the only trace of that setting in the API.
const LEASE_PER_ELECTION: (u32, u32) = (3, 2);
/// The requested length of a lease, in seconds: each member grants a longer one.
const SHORTEST: i64 = 1;
/// A lease of more than this many seconds says nothing: etcd's longest election timeout is 50 s.
const LONGEST: u32 = 75;

impl Etcd {
    /// Asks each endpoint for what the checks have to know. Each member grants a lease, which no key has, and which is revoked
    /// again or ends by itself.
    pub(super) async fn inspect_members(&self) -> check::Engine {
        let mut tasks = tokio::task::JoinSet::new();
        for (number, endpoint) in self.endpoints.all().iter().cloned().enumerate() {
            tasks.spawn(async move {
                let (lease, voters) = tokio::join!(shortest_lease(&endpoint), voters(&endpoint));
                (number, lease, voters)
            });
        }
        let (statuses, mut more) = tokio::join!(self.status(), tasks.join_all());
        more.sort_by_key(|(number, ..)| *number);
        let voters = more.iter_mut().find_map(|(_, _, voters)| voters.take());
        let leases = more.into_iter().map(|(_, lease, _)| lease);
        let endpoints = statuses.into_iter().zip(leases).map(|((url, status), lease)| {
            let member = status.map(|status| member(status, lease)).map_err(|problem| problem.to_string());
            check::Endpoint { url, member }
        });
        check::Engine { endpoints: endpoints.collect(), voters, default_quota: DEFAULT_QUOTA }
    }
}

fn member(status: MemberStatus, lease: Option<i64>) -> check::Member {
    check::Member {
        id: status.member,
        faults: faults::of(&status.version),
        version: status.version,
        problem: status.problem.map(|problem| problem.to_string()),
        leader: (status.leader != 0).then_some(status.leader),
        size: status.db_size,
        quota: status.db_size_quota,
        alarms: status.alarms,
        election: lease.and_then(lease_time),
    }
}

fn lease_time(seconds: i64) -> Option<check::LeaseTime> {
    let seconds = u32::try_from(seconds).ok().filter(|seconds| (1..=LONGEST).contains(seconds))?;
    let (numerator, denominator) = LEASE_PER_ELECTION;
    let election = |lease: u32| Duration::from_secs(lease.into()) * denominator / numerator;
    Some(check::LeaseTime { over: election(seconds - 1), up_to: election(seconds) })
}

/// The length in seconds of the shortest lease that the member grants; `None`: it grants none.
async fn shortest_lease(endpoint: &Arc<Endpoint>) -> Option<i64> {
    let granted: LeaseGrantResponse =
        endpoint.ask(LEASE_GRANT, LeaseGrantRequest { ttl: SHORTEST, id: 0 }).await.ok()?;
    let revoked = endpoint.ask::<_, LeaseRevokeResponse>(LEASE_REVOKE, LeaseRevokeRequest { id: granted.id });
    let _ = revoked.await; // it ends by itself
    Some(granted.ttl)
}

/// The members that vote; `None`: the member does not say.
async fn voters(endpoint: &Arc<Endpoint>) -> Option<Vec<(u64, String)>> {
    let listed: MemberListResponse =
        endpoint.ask(MEMBER_LIST, MemberListRequest { linearizable: false }).await.ok()?;
    let voters = listed.members.into_iter().filter(|member| !member.is_learner);
    Some(voters.map(|member| (member.id, printable(&member.name))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_says_between_what_the_election_timeout_is() {
        let milliseconds =
            |seconds| lease_time(seconds).map(|time| (time.over.as_millis(), time.up_to.as_millis()));
        assert_eq!(milliseconds(1), Some((0, 666)));
        assert_eq!(milliseconds(2), Some((666, 1_333)), "etcd's default is 1 s");
        assert_eq!(milliseconds(75), Some((49_333, 50_000)));
        for nonsense in [-1, 0, 76, i64::MAX] {
            assert_eq!(milliseconds(nonsense), None);
        }
    }
}
