//! The nodes: what they declare, and how their beats do.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{CheckName, Found, Inspection, Node, Of, Verdict, time};
use crate::core::report::ProblemCode;

/// Longer than this after the end of its lease, an address is ended by the broker or the kernel's own lifetimes, and not by
/// the packet filter.
const FENCED: Duration = Duration::from_millis(100);
/// How many nodes are named for each value.
const NAMED: usize = 3;

/// What `status` reports, except what has a check of its own.
pub(super) fn status(problems: &[ProblemCode], found: &mut Found) {
    let has_check = |code: ProblemCode| {
        matches!(code, ProblemCode::EndpointDown | ProblemCode::NoFence | ProblemCode::DeclarationsDiffer)
    };
    let mut names: Vec<&str> =
        problems.iter().filter(|code| !has_check(**code)).map(|code| code.name()).collect();
    names.dedup();
    let of = Of { check: CheckName::Status, subject: "", limit: "no problem" };
    if names.is_empty() {
        found.ok(of, "no problem");
        return;
    }
    let is_severe = |code: &ProblemCode| {
        matches!(
            code,
            ProblemCode::Refused
                | ProblemCode::NotMember
                | ProblemCode::EngineUnreachable
                | ProblemCode::Broker
                | ProblemCode::LeaseShort
                | ProblemCode::Unowned
        )
    };
    let verdict = if problems.iter().any(is_severe) { Verdict::Failure } else { Verdict::Warning };
    found.add(of, verdict, names.join(", "), "`portreeve cluster status` shows each with what to do.");
}

/// How long beats take.
pub(super) fn beats(inspection: &Inspection, found: &mut Found) {
    let Inspection { lease, heartbeat, beats, .. } = inspection;
    let limit = format!("{}, a sixth of the lease", time(*lease / 6));
    let of = Of { check: CheckName::Beats, subject: "", limit: &limit };
    let Some(p99) = beats.p99_us.map(Duration::from_micros) else {
        let remedy =
            format!("Check again when this node has been in the cluster for {}.", time(*heartbeat * 2));
        found.add(of, Verdict::Unknown, "no beat yet", remedy);
        return;
    };
    let value = format!("99 of 100 within {}; {} of {} without a reply", time(p99), beats.failed, beats.sent);
    let remedy = "The engine is slow, most often because of its disks: give it disks of its own. Addresses end when beats take \
                  most of a lease.";
    match p99 {
        p99 if p99 > *lease / 3 => found.add(of, Verdict::Failure, value, remedy),
        p99 if p99 > *lease / 6 => found.add(of, Verdict::Warning, value, remedy),
        _ => found.ok(of, value),
    }
}

/// What the nodes declare.
pub(super) fn nodes(nodes: &[Node], found: &mut Found) {
    for Node { name, beat, .. } in nodes {
        let of = Of { check: CheckName::Fence, subject: name, limit: "the kernel ends addresses in time" };
        match beat.as_ref().map(super::super::record::Beat::late) {
            None => {
                found.add(of, Verdict::Unknown, "its beat cannot be read", "See `portreeve cluster status`.")
            }
            Some(late) if late <= FENCED => found.ok(of, format!("at most {} late", time(late))),
            Some(late) => {
                let remedy =
                    format!("Load nf_tables on {name}. The other nodes wait that much longer meanwhile.");
                found.add(
                    of,
                    Verdict::Warning,
                    format!("up to {} late, without a packet filter", time(late)),
                    remedy,
                );
            }
        }
    }
    let beat =
        |value: fn(&super::super::record::Beat) -> String| move |node: &Node| node.beat.as_ref().map(value);
    let compare = |found: &mut Found, check, value: &dyn Fn(&Node) -> Option<String>, remedy: &str| {
        same(nodes, check, value, remedy, found);
    };
    let everywhere = "Write the same value on every node, and reload the brokers.";
    compare(
        found,
        CheckName::Addresses,
        &|node| Some(node.record.declares.to_string()),
        "Compare the floating addresses and preferences with `portreeve policy`, and reload the older configuration.",
    );
    compare(found, CheckName::Lease, &beat(|beat| time(beat.lease())), everywhere);
    compare(
        found,
        CheckName::Failback,
        &|node| node.record.is_auto.map(|is_auto| if is_auto { "auto" } else { "manual" }.to_owned()),
        everywhere,
    );
    // With `hold`, a beat names the nodes that may evict its node.
    let on_engine_loss = beat(|beat| if beat.roster.is_empty() { "release" } else { "hold" }.to_owned());
    compare(found, CheckName::OnEngineLoss, &on_engine_loss, everywhere);
    compare(
        found,
        CheckName::CoordinatorVersion,
        &|node| Some(node.record.version.clone()),
        "Upgrade the older coordinators; that moves no address.",
    );
}

/// Whether a value is the same on all nodes. A node that does not say it, such as one of an older version, does not count.
fn same(
    nodes: &[Node],
    check: CheckName,
    value: &dyn Fn(&Node) -> Option<String>,
    remedy: &str,
    found: &mut Found,
) {
    let of = Of { check, subject: "", limit: "the same on all nodes" };
    let mut values: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for node in nodes {
        if let Some(value) = value(node) {
            values.entry(value).or_default().push(&node.name);
        }
    }
    let said: usize = values.values().map(Vec::len).sum();
    let silent = match nodes.len() - said {
        0 => String::new(),
        silent => format!("; {silent} do not say"),
    };
    let names = |names: &[&str]| match names.len().checked_sub(NAMED) {
        Some(more) if more > 0 => {
            format!("{} and {more} more", names.get(..NAMED).unwrap_or_default().join(", "))
        }
        _ => names.join(", "),
    };
    match values.first_key_value() {
        None => {
            found.add(of, Verdict::Unknown, "not known", "Check again when this node has joined the cluster.")
        }
        Some((value, all)) if values.len() == 1 => {
            found.ok(of, format!("{value} on {}{silent}", all.len()));
        }
        Some(_) => {
            let values: Vec<String> =
                values.iter().map(|(value, all)| format!("{value} on {}", names(all))).collect();
            found.add(of, Verdict::Warning, format!("{}{silent}", values.join("; ")), remedy);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{named, verdicts};
    use super::*;
    use crate::core::news::BeatCounts;
    use crate::core::record::{Beat, NodeRecord, NodeState};

    fn node(name: &str) -> Node {
        let record = NodeRecord {
            nonce: 1,
            created: Some(1),
            version: "0.1.0".to_owned(),
            state: NodeState::Ready,
            why: String::new(),
            declares: "d".into(),
            is_auto: Some(true),
            joins: 1,
            peer: String::new(),
            down: Vec::new(),
            refused: Vec::new(),
        };
        let beat = Beat {
            nonce: 1,
            boot: String::new(),
            process: 1,
            sequence: 1,
            lease_ms: 6_000,
            late_ms: 15,
            roster: Vec::new(),
        };
        Node { name: name.into(), record, beat: Some(beat) }
    }

    fn change(node: &mut Node, change: impl FnOnce(&mut NodeRecord, &mut Beat)) {
        change(&mut node.record, node.beat.as_mut().unwrap());
    }

    fn three() -> Vec<Node> {
        ["a", "b", "c"].map(node).into()
    }

    fn checked(all: &[Node]) -> Found {
        let mut found = Found(Vec::new());
        nodes(all, &mut found);
        found
    }

    #[test]
    fn nodes_that_declare_the_same_pass() {
        let found = checked(&three());
        assert_eq!(found.0.len(), 8);
        assert!(found.0.iter().all(|check| check.verdict == Verdict::Ok), "{:?}", found.0);
    }

    #[test]
    fn what_differs_is_named_with_its_nodes() {
        let mut all = three();
        change(&mut all[1], |record, beat| {
            (record.declares, record.is_auto, record.version) = ("e".into(), Some(false), "0.2.0".to_owned());
            (beat.lease_ms, beat.roster) = (3_000, vec!["a".into()]);
        });
        for (check, expected) in [
            (CheckName::Addresses, "d on a, c; e on b"),
            (CheckName::Lease, "3 s on b; 6 s on a, c"),
            (CheckName::Failback, "auto on a, c; manual on b"),
            (CheckName::OnEngineLoss, "hold on b; release on a, c"),
            (CheckName::CoordinatorVersion, "0.1.0 on a, c; 0.2.0 on b"),
        ] {
            let (_, verdict, value, remedy) = named(checked(&all), check).remove(0);
            assert_eq!((verdict, value.as_str()), (Verdict::Warning, expected));
            assert!(!remedy.is_empty());
        }
    }

    #[test]
    fn a_node_that_does_not_say_something_does_not_count() {
        let mut all = three();
        all[0].record.is_auto = None;
        let (_, verdict, value, _) = named(checked(&all), CheckName::Failback).remove(0);
        assert_eq!((verdict, value.as_str()), (Verdict::Ok, "auto on 2; 1 do not say"));
        all[0].beat = None;
        assert_eq!(verdicts(checked(&all), CheckName::Fence)[0], Verdict::Unknown);
        assert_eq!(verdicts(checked(&[]), CheckName::Lease), [Verdict::Unknown]);
    }

    #[test]
    fn a_node_without_a_fence_is_named() {
        let mut all = three();
        change(&mut all[2], |_, beat| beat.late_ms = 1_140);
        let rows = named(checked(&all), CheckName::Fence);
        let rows: Vec<_> = rows.iter().map(|(name, verdict, ..)| (name.as_str(), *verdict)).collect();
        assert_eq!(rows, [("a", Verdict::Ok), ("b", Verdict::Ok), ("c", Verdict::Warning)]);
    }

    #[test]
    fn beats_must_take_a_sixth_of_the_lease_at_most() {
        for (p99_us, expected) in [
            (None, Verdict::Unknown),
            (Some(4_000), Verdict::Ok),
            (Some(1_000_000), Verdict::Ok),
            (Some(1_000_001), Verdict::Warning),
            (Some(2_000_001), Verdict::Failure),
        ] {
            let lease = Duration::from_secs(6);
            let inspection = Inspection {
                group: String::new(),
                node: "a".into(),
                lease,
                heartbeat: lease / 6,
                beats: BeatCounts { sent: 9, failed: 1, p99_us },
                nodes: Vec::new(),
                problems: Vec::new(),
            };
            let mut found = Found(Vec::new());
            beats(&inspection, &mut found);
            assert_eq!(verdicts(found, CheckName::Beats), [expected], "{p99_us:?}");
        }
    }

    #[test]
    fn problems_of_the_status_count_once() {
        for (problems, expected, value) in [
            (vec![], Verdict::Ok, "no problem"),
            (vec![ProblemCode::NoFence, ProblemCode::EndpointDown], Verdict::Ok, "no problem"),
            (
                vec![ProblemCode::Sick, ProblemCode::Sick, ProblemCode::Frozen],
                Verdict::Warning,
                "sick, frozen",
            ),
            (vec![ProblemCode::Unowned, ProblemCode::Sick], Verdict::Failure, "unowned, sick"),
        ] {
            let mut found = Found(Vec::new());
            status(&problems, &mut found);
            let (_, verdict, found, _) = named(found, CheckName::Status).remove(0);
            assert_eq!((verdict, found.as_str()), (expected, value));
        }
    }
}
