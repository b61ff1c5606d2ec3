//! The engine: its members, their versions, their space, and how long an election lasts.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{CheckName, Found, Of, Verdict, time};
use crate::core::patience::ATTEMPT;

/// How full a database may be: the rest is the time that an operator has to react.
const FULL_PERCENT: i64 = 80;
/// The stall of writes by a change of the leader, in tenths of the election timeout: up to 2.5 s were measured with 1 s.
const STALL_TENTHS: u32 = 25;

/// What the engine says.
#[derive(Clone, Debug, Default)]
pub struct Engine {
    /// The endpoints of the settings, in their order.
    pub endpoints: Vec<Endpoint>,
    /// The members that vote, each with its id and its name; `None`: no member says.
    pub voters: Option<Vec<(u64, String)>>,
    /// The quota of a database unless it is configured, in bytes.
    pub default_quota: i64,
}

/// An endpoint of the settings.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Its URL.
    pub url: String,
    /// The member there, or why it does not answer.
    pub member: Result<Member, String>,
}

/// A member that answers.
#[derive(Clone, Debug, Default)]
pub struct Member {
    /// Its id.
    pub id: u64,
    /// Its version.
    pub version: String,
    /// The known faults of that version; `None`: the version is not known to this program.
    pub faults: Option<Vec<Fault>>,
    /// Why it cannot be used, although it answers.
    pub problem: Option<String>,
    /// The id of the leader that it knows; `None`: none.
    pub leader: Option<u64>,
    /// The size of its database in bytes.
    pub size: i64,
    /// The quota of the database in bytes, if the member says.
    pub quota: Option<i64>,
    /// Its alarms and errors.
    pub alarms: Vec<String>,
    /// What is known about its election timeout.
    pub election: Option<LeaseTime>,
}

/// A known fault of a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What it does.
    pub text: String,
    /// Whether such a version should not be used at all.
    pub is_severe: bool,
    /// The release of the same series that corrects it; `None`: none does.
    pub fixed_in: Option<String>,
}

/// What the shortest lease that a member grants says about its election timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseTime {
    /// The election timeout is longer than this.
    pub over: Duration,
    /// And at most about this.
    pub up_to: Duration,
}

/// Which endpoints answer, and whether they are all members.
pub(super) fn endpoints(engine: &Engine, found: &mut Found) {
    for Endpoint { url, member } in &engine.endpoints {
        let of = Of { check: CheckName::EngineEndpoint, subject: url, limit: "answers" };
        let problem = match member {
            Ok(member) => member.problem.as_ref(),
            Err(problem) => Some(problem),
        };
        match problem {
            None => found.ok(of, "answers"),
            Some(problem) => {
                let remedy = "Correct that, or remove the endpoint from `endpoints`.";
                found.add(of, Verdict::Failure, problem, remedy);
            }
        }
    }
    let answering = || engine.endpoints.iter().filter_map(|endpoint| endpoint.member.as_ref().ok());
    let reached: BTreeSet<u64> = answering().map(|member| member.id).collect();
    let of = Of { check: CheckName::EngineEndpoints, subject: "", limit: "every member" };
    let count = engine.endpoints.len();
    match &engine.voters {
        None => {
            let is_one = count == 1;
            let verdict = if is_one { Verdict::Warning } else { Verdict::Unknown };
            let remedy = if is_one { ONE_ENDPOINT } else { "Check again when the engine answers." };
            found.add(of, verdict, format!("{count}, of a number of members that is not known"), remedy);
        }
        Some(voters) => {
            let value = format!("{count} of {} members", voters.len());
            let missing: Vec<&str> = voters
                .iter()
                .filter(|(id, _)| !reached.contains(id))
                .map(|(_, name)| name.as_str())
                .collect();
            let all_answer = answering().count() == count;
            if missing.is_empty() {
                found.ok(of, value);
            } else if all_answer {
                let value = format!("{value}: not {}", missing.join(", "));
                let remedy = if count == 1 { ONE_ENDPOINT } else { NOT_ALL };
                found.add(of, Verdict::Warning, value, remedy);
            } else if voters.len() > count {
                let remedy = if count == 1 { ONE_ENDPOINT } else { NOT_ALL };
                found.add(of, Verdict::Warning, value, remedy);
            } else {
                found.add(of, Verdict::Unknown, value, "Check again when every endpoint answers.");
            }
        }
    }
}

const ONE_ENDPOINT: &str =
    "Name every member in `endpoints`: if the only one that is named fails, this node loses its addresses.";
const NOT_ALL: &str = "Name every member in `endpoints`, so that this node can use each that works.";

/// What the members are and say.
pub(super) fn members(engine: &Engine, lease: Duration, heartbeat: Duration, found: &mut Found) {
    voters(engine, found);
    leader(engine, found);
    for Endpoint { url, member } in &engine.endpoints {
        let Ok(member) = member else { continue };
        version(url, member, found);
        space(url, member, engine.default_quota, found);
        alarms(url, member, found);
        election(url, member, lease, heartbeat, found);
    }
}

fn voters(engine: &Engine, found: &mut Found) {
    let of =
        Of { check: CheckName::EngineMembers, subject: "", limit: "an odd number, 3 or more, that vote" };
    let Some(voters) = &engine.voters else {
        found.add(of, Verdict::Unknown, "not known", "Check again when the engine answers.");
        return;
    };
    let count = voters.len();
    match count {
        0 | 1 => {
            let remedy = "Add two members: without the only one, every node loses its addresses.";
            found.add(of, Verdict::Warning, count.to_string(), remedy);
        }
        2 => {
            let remedy = "Add a member: with two, the failure of either stops the engine, which is worse than one alone.";
            found.add(of, Verdict::Warning, "2", remedy);
        }
        _ if count % 2 == 0 => {
            let bears = (count - 1) / 2;
            let remedy =
                format!("Add or remove a member: {count} bear the failure of {bears}, as {} do.", count - 1);
            found.add(of, Verdict::Warning, count.to_string(), remedy);
        }
        _ => found.ok(of, count.to_string()),
    }
}

fn leader(engine: &Engine, found: &mut Found) {
    let of = Of { check: CheckName::EngineLeader, subject: "", limit: "one that every member knows" };
    let answering = || engine.endpoints.iter().filter_map(|endpoint| endpoint.member.as_ref().ok());
    let known: BTreeSet<u64> = answering().filter_map(|member| member.leader).collect();
    let without = answering().filter(|member| member.leader.is_none()).count();
    let name = |id: &u64| {
        let voter = engine.voters.iter().flatten().find(|(voter, _)| voter == id);
        voter
            .map(|(_, name)| name.clone())
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| format!("{id:x}"))
    };
    let names: Vec<String> = known.iter().map(name).collect();
    match names.as_slice() {
        [one] if without == 0 => found.ok(of, one),
        [] => {
            let remedy =
                "A majority of the members must run and reach each other: check them and their network.";
            found.add(of, Verdict::Failure, "none", remedy);
        }
        _ => {
            let value = match without {
                0 => names.join(", "),
                _ => format!("{}; {without} members know none", names.join(", ")),
            };
            let remedy = "Check again in a few seconds; if it stays, check the network between the members.";
            found.add(of, Verdict::Warning, value, remedy);
        }
    }
}

fn version(url: &str, member: &Member, found: &mut Found) {
    let of = Of { check: CheckName::EngineVersion, subject: url, limit: "without known faults" };
    let Some(faults) = &member.faults else {
        let remedy = "This program does not know that version. Read its release notes.";
        found.add(of, Verdict::Unknown, &member.version, remedy);
        return;
    };
    if faults.is_empty() {
        found.ok(of, &member.version);
        return;
    }
    let is_severe = faults.iter().any(|fault| fault.is_severe);
    let fault = |Fault { text, fixed_in, .. }: &Fault| match fixed_in {
        Some(fixed) => format!("{text} (corrected in {fixed})"),
        None => text.clone(),
    };
    let texts: Vec<String> = faults.iter().map(fault).collect();
    let value = format!("{}: {}", member.version, texts.join("; "));
    let remedy = "Upgrade the engine, one member after the other. A distribution may have corrected a fault without a new version.";
    found.add(of, if is_severe { Verdict::Failure } else { Verdict::Warning }, value, remedy);
}

fn space(url: &str, member: &Member, default_quota: i64, found: &mut Found) {
    let quota = member.quota.unwrap_or(default_quota);
    let limit = match member.quota {
        Some(quota) => format!("less than {FULL_PERCENT} % of {}", mebibytes(quota)),
        None => format!(
            "less than {FULL_PERCENT} % of the quota, which this version does not say; the default is {}",
            mebibytes(quota)
        ),
    };
    let of = Of { check: CheckName::EngineSpace, subject: url, limit: &limit };
    // Space that a compaction has freed is used again, but only a defragmentation makes the file smaller.
    let is_full = member.size > quota / 100 * FULL_PERCENT;
    if !is_full {
        found.ok(of, mebibytes(member.size));
        return;
    }
    let remedy = match member.quota {
        Some(_) => {
            "Defragment the member, or raise its --quota-backend-bytes: at the quota, writes and then all addresses stop."
        }
        None => {
            "Unless its --quota-backend-bytes is much larger, defragment the member: at the quota, writes and then all addresses stop."
        }
    };
    found.add(of, Verdict::Warning, mebibytes(member.size), remedy);
}

fn mebibytes(bytes: i64) -> String {
    // One digit is enough to see how fast it grows.
    let tenths = bytes.max(0) / (1 << 20) * 10 + bytes.max(0) % (1 << 20) * 10 / (1 << 20);
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

fn alarms(url: &str, member: &Member, found: &mut Found) {
    let of = Of { check: CheckName::EngineAlarms, subject: url, limit: "none" };
    if member.alarms.is_empty() {
        found.ok(of, "none");
        return;
    }
    let value = member.alarms.join("; ");
    let remedy = if value.contains("CORRUPT") {
        "The data of the members differ: replace the member that is wrong, then run: etcdctl alarm disarm"
    } else if value.contains("NOSPACE") {
        "Compact and defragment the members, then run: etcdctl alarm disarm"
    } else {
        "See the log of that member."
    };
    found.add(of, Verdict::Failure, value, remedy);
}

/// A node must not lose its addresses while the members elect a leader: a heartbeat, the stall and one attempt must fit into
/// the lease.
fn election(url: &str, member: &Member, lease: Duration, heartbeat: Duration, found: &mut Found) {
    let most = lease.saturating_sub(heartbeat + ATTEMPT) * 10 / STALL_TENTHS;
    let lease_text = time(lease);
    let Some(LeaseTime { over, up_to }) = member.election else {
        let limit = format!("at most {}, for a lease of {lease_text}", time(most));
        let of = Of { check: CheckName::EngineElection, subject: url, limit: &limit };
        let remedy =
            "The member grants no lease now, from which it could be seen. Compare its --election-timeout.";
        found.add(of, Verdict::Unknown, "not known", remedy);
        return;
    };
    // What is found out is a range, so the limit is the end of the last range that is allowed.
    let step = up_to.saturating_sub(over).as_micros().max(1);
    let steps = most.as_micros() / step;
    let limit = Duration::from_micros(u64::try_from(steps * step).unwrap_or(u64::MAX));
    let limit_text = format!("at most {}, for a lease of {lease_text}", time(limit));
    let of = Of { check: CheckName::EngineElection, subject: url, limit: &limit_text };
    let value = match over.is_zero() {
        true => format!("up to {}", time(up_to)),
        false => format!("{} to {}", time(over), time(up_to)),
    };
    if up_to <= most {
        found.ok(of, value);
        return;
    }
    let remedy = format!(
        "Set --election-timeout of every member to at most {} ms, or lengthen `lease` on every node: otherwise addresses end when \
         the members elect a leader.",
        limit.as_millis()
    );
    found.add(of, Verdict::Warning, value, remedy);
}

#[cfg(test)]
mod tests {
    use super::super::tests::{named, verdicts};
    use super::*;

    fn member(id: u64) -> Member {
        Member {
            id,
            version: "3.5.33".to_owned(),
            faults: Some(Vec::new()),
            leader: Some(1),
            ..Member::default()
        }
    }

    fn engine(members: Vec<Member>) -> Engine {
        let voters = members.iter().map(|member| (member.id, format!("m{}", member.id))).collect();
        let endpoint =
            |member: Member| Endpoint { url: format!("https://m{}", member.id), member: Ok(member) };
        Engine {
            endpoints: members.into_iter().map(endpoint).collect(),
            voters: Some(voters),
            default_quota: 2 << 30,
        }
    }

    fn three() -> Engine {
        engine(vec![member(1), member(2), member(3)])
    }

    fn checked(engine: &Engine, lease: u64) -> Found {
        let mut found = Found(Vec::new());
        endpoints(engine, &mut found);
        let lease = Duration::from_secs(lease);
        members(engine, lease, lease / 6, &mut found);
        found
    }

    fn one(engine: &Engine, name: CheckName) -> (Verdict, String, String) {
        let mut all = named(checked(engine, 6), name);
        assert!(!all.is_empty());
        let (_, verdict, value, remedy) = all.remove(0);
        (verdict, value, remedy)
    }

    #[test]
    fn an_engine_that_works_passes() {
        let engine = three();
        let found = checked(&engine, 6);
        // Its members do not say what their election timeouts are.
        let wrong = |check: &&super::super::Check| {
            check.verdict != Verdict::Ok && check.check != CheckName::EngineElection
        };
        assert_eq!(found.0.iter().find(wrong), None);
        assert!(found.0.iter().all(|check| check.remedy.is_empty() == (check.verdict == Verdict::Ok)));
    }

    #[test]
    fn an_endpoint_that_does_not_answer_is_a_failure() {
        let mut engine = three();
        engine.endpoints[1].member = Err("connection refused".to_owned());
        engine.endpoints[2].member = Ok(Member { problem: Some("no leader".to_owned()), ..member(3) });
        let all = named(checked(&engine, 6), CheckName::EngineEndpoint);
        let all: Vec<_> =
            all.iter().map(|(of, verdict, value, _)| (of.as_str(), *verdict, value.as_str())).collect();
        assert_eq!(
            all,
            [
                ("https://m1", Verdict::Ok, "answers"),
                ("https://m2", Verdict::Failure, "connection refused"),
                ("https://m3", Verdict::Failure, "no leader"),
            ]
        );
        // The second one may be the member that is missing.
        assert_eq!(one(&engine, CheckName::EngineEndpoints).0, Verdict::Unknown);
    }

    #[test]
    fn every_member_must_be_an_endpoint() {
        let mut engine = three();
        engine.endpoints.remove(2);
        let (verdict, value, _) = one(&engine, CheckName::EngineEndpoints);
        assert_eq!((verdict, value.as_str()), (Verdict::Warning, "2 of 3 members: not m3"));
        // Two names of one member.
        engine.endpoints.push(engine.endpoints[0].clone());
        assert_eq!(one(&engine, CheckName::EngineEndpoints).0, Verdict::Warning);
        engine.endpoints.truncate(1);
        let (verdict, _, remedy) = one(&engine, CheckName::EngineEndpoints);
        assert!(verdict == Verdict::Warning && remedy.contains("the only one"), "{remedy}");
        engine.voters = None;
        assert_eq!(one(&engine, CheckName::EngineEndpoints).0, Verdict::Warning);
    }

    #[test]
    fn three_or_five_members_vote() {
        for (count, expected) in [
            (1, Verdict::Warning),
            (2, Verdict::Warning),
            (3, Verdict::Ok),
            (4, Verdict::Warning),
            (5, Verdict::Ok),
            (6, Verdict::Warning),
        ] {
            let engine = engine((1..=count).map(member).collect());
            assert_eq!(one(&engine, CheckName::EngineMembers).0, expected, "{count}");
        }
        let unknown = Engine { voters: None, ..three() };
        assert_eq!(one(&unknown, CheckName::EngineMembers).0, Verdict::Unknown);
    }

    #[test]
    fn all_members_know_one_leader() {
        let mut engine = three();
        let (verdict, value, _) = one(&engine, CheckName::EngineLeader);
        assert_eq!((verdict, value.as_str()), (Verdict::Ok, "m1"));
        engine.endpoints[2].member = Ok(Member { leader: None, ..member(3) });
        let (verdict, value, _) = one(&engine, CheckName::EngineLeader);
        assert_eq!((verdict, value.as_str()), (Verdict::Warning, "m1; 1 members know none"));
        engine.endpoints.iter_mut().for_each(|endpoint| endpoint.member = Err(String::new()));
        assert_eq!(one(&engine, CheckName::EngineLeader).0, Verdict::Failure);
    }

    #[test]
    fn a_version_is_judged_by_its_worst_fault() {
        let fault = |text: &str, is_severe, fixed_in: &str| Fault {
            text: text.to_owned(),
            is_severe,
            fixed_in: Some(fixed_in.to_owned()),
        };
        let mut faults = vec![fault("a", false, "3.5.9")];
        let with = |faults| engine(vec![Member { faults, version: "3.5.1".to_owned(), ..member(1) }]);
        let (verdict, value, _) = one(&with(Some(faults.clone())), CheckName::EngineVersion);
        assert_eq!((verdict, value.as_str()), (Verdict::Warning, "3.5.1: a (corrected in 3.5.9)"));
        faults.push(fault("b", true, "3.5.3"));
        assert_eq!(one(&with(Some(faults)), CheckName::EngineVersion).0, Verdict::Failure);
        assert_eq!(one(&with(None), CheckName::EngineVersion).0, Verdict::Unknown);
    }

    #[test]
    fn space_is_compared_with_the_quota_or_its_default() {
        let with = |size, quota| engine(vec![Member { size, quota, ..member(1) }]);
        for (size, quota, expected) in [
            (1 << 30, None, Verdict::Ok),
            (1_800 << 20, None, Verdict::Warning),
            (1_800 << 20, Some(8 << 30), Verdict::Ok),
            (90 << 20, Some(100 << 20), Verdict::Warning),
        ] {
            assert_eq!(one(&with(size, quota), CheckName::EngineSpace).0, expected, "{size} {quota:?}");
        }
        assert_eq!(mebibytes(3 << 19), "1.5 MiB");
        assert_eq!(mebibytes(i64::MAX), "8796093022207.9 MiB");
    }

    #[test]
    fn an_alarm_is_a_failure() {
        let with = |alarm: &str| engine(vec![Member { alarms: vec![alarm.to_owned()], ..member(1) }]);
        let (verdict, value, remedy) = one(&with("memberID:1 alarm:NOSPACE "), CheckName::EngineAlarms);
        assert!(verdict == Verdict::Failure && value.contains("NOSPACE") && remedy.contains("defragment"));
        assert!(one(&with("memberID:1 alarm:CORRUPT "), CheckName::EngineAlarms).2.contains("differ"));
    }

    #[test]
    fn an_election_must_fit_into_the_lease() {
        // What a shortest lease of that many seconds says.
        let of = |seconds: u64| LeaseTime {
            over: Duration::from_micros((seconds - 1) * 2_000_000 / 3),
            up_to: Duration::from_micros(seconds * 2_000_000 / 3),
        };
        for (lease, shortest, expected) in [
            // etcd with 500 ms, with its default of 1 s, with 3 s.
            (3, 1, Verdict::Ok),
            (3, 2, Verdict::Warning),
            (6, 1, Verdict::Ok),
            (6, 2, Verdict::Ok),
            (6, 5, Verdict::Warning),
            (15, 5, Verdict::Ok),
            (15, 8, Verdict::Warning),
        ] {
            let engine = engine(vec![Member { election: Some(of(shortest)), ..member(1) }]);
            let found = verdicts(checked(&engine, lease), CheckName::EngineElection);
            assert_eq!(found, [expected], "a lease of {lease} s, {shortest} s");
        }
        assert_eq!(one(&three(), CheckName::EngineElection).0, Verdict::Unknown);
    }
}
