//! What must always hold, judged from what was recorded. All times are counted from the beginning of the recording by one
//! clock: the hosts share a kernel.
//!
//! 1. No two hosts answer for an address at once. Each question gets every host's answer, so two hosts at once show as the
//!    answers A B A, of which the first and the last are less than [`BACK_AND_FORTH`] apart: no address moves to another host
//!    and back that fast. Also, the hosts that answer one after another are those that claimed the address in the engine
//!    one after another: [`unclaimed`].
//! 2. Epochs rise with each change of a claim, and the owner that a claim names had a session at that revision: [`history`].
//! 3. A host lets no packet of a floating address pass later than the lease after it sent its last beat: [`outlived`]. When a
//!    beat was sent is not recorded; when the engine reported it is, which is later.
//! 4. Some time after a fault has ended, one host answers for each address, and nothing moves: [`unsettled`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use serde_json::Value;

use super::{ADDRESSES, NODES, host_of, name_of};
use crate::neighbour::MacAddress;

/// See the module.
pub const BACK_AND_FORTH: Duration = Duration::from_secs(1);
/// How much later than its lease an element may end: the kernel's tick, the lateness that a host with a fence declares, and
/// a rounding to milliseconds.
const TOLERANCE: Duration = Duration::from_millis(25);
/// How much later than the coordinator the test may learn of a beat.
const REPORT: Duration = Duration::from_secs(1);
/// The longest time without an answer that is no gap: questions and answers can be lost on a busy machine.
pub const SILENCE: Duration = Duration::from_millis(400);
/// How many violations of one rule are worth reporting.
const REPORTED: usize = 5;

/// An answer on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// When it arrived.
    pub at: Duration,
    /// For which address.
    pub address: IpAddr,
    /// Who answered.
    pub mac: MacAddress,
}

/// A change of a key in the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// When a member first reported it.
    pub at: Duration,
    /// Its revision.
    pub revision: i64,
    /// The create_revision of the key.
    pub created: i64,
    /// The key, after the prefix.
    pub key: String,
    /// The value; `None`: deleted.
    pub value: Option<String>,
}

/// What the kernel of a node lets pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FenceSample {
    /// When it was read.
    pub at: Duration,
    /// The place of the node in [`NODES`].
    pub node: usize,
    /// When the last element ends.
    pub end: Duration,
}

/// Seconds, for people.
fn seconds(time: Duration) -> String {
    format!("{:.3} s", time.as_secs_f64())
}

fn by_address(answers: &[Answer]) -> BTreeMap<IpAddr, Vec<&Answer>> {
    let mut by_address: BTreeMap<IpAddr, Vec<&Answer>> = BTreeMap::new();
    answers.iter().for_each(|answer| by_address.entry(answer.address).or_default().push(answer));
    by_address
}

/// Rule 1: hosts that answer for an address at once.
pub fn shared(answers: &[Answer]) -> Vec<String> {
    let mut violations = Vec::new();
    for (address, answers) in by_address(answers) {
        // The last answer of each host, and whether another host has answered since.
        let mut last: BTreeMap<MacAddress, (Duration, Option<MacAddress>)> = BTreeMap::new();
        let mut reported = 0;
        for answer in answers {
            if let Some((before, Some(other))) = last.get(&answer.mac)
                && answer.at - *before < BACK_AND_FORTH
                && reported < REPORTED
            {
                reported += 1;
                let (host, other) = (name_of(answer.mac), name_of(*other));
                let (from, to) = (seconds(*before), seconds(answer.at));
                violations.push(format!(
                    "{address}: {host} answered at {from} and at {to}, and {other} between them"
                ));
            }
            last.insert(answer.mac, (answer.at, None));
            for (mac, (_, other)) in &mut last {
                if *mac != answer.mac {
                    other.get_or_insert(answer.mac);
                }
            }
        }
    }
    violations
}

/// The hosts that answer for an address one after another, each with its first and its last answer.
pub fn runs(answers: &[Answer], address: IpAddr) -> Vec<(MacAddress, Duration, Duration)> {
    let mut runs: Vec<(MacAddress, Duration, Duration)> = Vec::new();
    for answer in answers.iter().filter(|answer| answer.address == address) {
        match runs.last_mut() {
            Some((mac, _, end)) if *mac == answer.mac => *end = answer.at,
            _ => runs.push((answer.mac, answer.at, answer.at)),
        }
    }
    runs
}

/// For how long two hosts answered for an address at once. A host answers from one answer to the next if the next is not later
/// than [`SILENCE`].
pub fn overlap(answers: &[Answer], address: IpAddr) -> Duration {
    // Of each host, the begin and the end of the time for which it answers.
    let mut spans: BTreeMap<MacAddress, Vec<(Duration, Duration)>> = BTreeMap::new();
    for answer in answers.iter().filter(|answer| answer.address == address) {
        let spans = spans.entry(answer.mac).or_default();
        match spans.last_mut() {
            Some((_, end)) if answer.at <= *end + SILENCE => *end = answer.at,
            _ => spans.push((answer.at, answer.at)),
        }
    }
    let edges = spans.values().flatten().flat_map(|(begin, end)| [(*begin, 1), (*end, -1)]);
    let mut edges: Vec<(Duration, i32)> = edges.collect();
    edges.sort_unstable();
    let (mut total, mut count) = (Duration::ZERO, 0);
    for pair in edges.windows(2) {
        count += pair[0].1;
        if count > 1 {
            total += pair[1].0 - pair[0].0;
        }
    }
    total
}

/// A claim, as far as the referee needs it.
struct Claim {
    epoch: u64,
    node: String,
    session: i64,
    is_free: bool,
}

impl Claim {
    fn parse(text: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(text).ok()?;
        Some(Self {
            epoch: value["epoch"].as_u64()?,
            node: value["node"].as_str()?.to_owned(),
            session: value["session"]["created"].as_i64()?,
            is_free: value["phase"] == "free",
        })
    }
}

/// Rule 1 again: a host that answers for an address without having claimed it since the host that answered before.
/// `leader_of` returns the address whose claim an address goes with.
pub fn unclaimed(
    answers: &[Answer],
    changes: &[Change],
    leader_of: impl Fn(IpAddr) -> IpAddr,
) -> Vec<String> {
    let mut violations = Vec::new();
    for address in by_address(answers).into_keys() {
        let key = format!("claim/{}", leader_of(address));
        let owners = changes.iter().filter(|change| change.key == key).filter_map(|change| {
            let claim = Claim::parse(change.value.as_deref()?)?;
            (!claim.is_free).then(|| host_of(&claim.node).to_owned())
        });
        let mut owners = owners.peekable();
        for (mac, from, _) in runs(answers, address) {
            let host = name_of(mac);
            // An owner that did not answer before it lost the address again is passed over.
            while owners.next_if(|owner| *owner != host).is_some() {}
            if owners.peek().is_none() {
                let at = seconds(from);
                violations
                    .push(format!("{address}: {host} answers at {at} without a claim since the last move"));
                break;
            }
        }
    }
    violations
}

/// Rule 2: the engine's history, in the order of revisions.
pub fn history(changes: &[Change]) -> Vec<String> {
    let mut violations = Vec::new();
    let mut sessions: BTreeMap<&str, i64> = BTreeMap::new();
    let mut epochs: BTreeMap<&str, u64> = BTreeMap::new();
    // The changes of one transaction have the same revision and no order.
    for changes in changes.chunk_by(|one, other| one.revision == other.revision) {
        for change in changes {
            if let Some(node) = change.key.strip_prefix("beat/") {
                match change.value {
                    Some(_) => sessions.insert(node, change.created),
                    None => sessions.remove(node),
                };
            }
        }
        for change in changes {
            let Some(address) = change.key.strip_prefix("claim/") else { continue };
            // Another program may have written a key that no coordinator reads as a claim of an address of the cluster.
            if !ADDRESSES.contains(&address) {
                continue;
            }
            let at = change.revision;
            let Some(claim) = change.value.as_deref().and_then(Claim::parse) else {
                violations.push(format!("the claim of {address} is deleted or unreadable at revision {at}"));
                continue;
            };
            let last = epochs.insert(address, claim.epoch).unwrap_or_default();
            if claim.epoch <= last {
                let epoch = claim.epoch;
                violations.push(format!("{address}: epoch {epoch} after epoch {last} at revision {at}"));
            }
            if !claim.is_free && sessions.get(&*claim.node) != Some(&claim.session) {
                let node = claim.node;
                violations.push(format!("{address}: the owner {node} has no session at revision {at}"));
            }
        }
    }
    violations
}

/// Rule 3: fences that end too late.
pub fn outlived(samples: &[FenceSample], changes: &[Change], lease: Duration) -> Vec<String> {
    let mut violations = Vec::new();
    for (node, name) in NODES.iter().enumerate() {
        let is_beat = |change: &&Change| {
            change.key.strip_prefix("beat/").is_some_and(|of| host_of(of) == *name) && change.value.is_some()
        };
        let beats: BTreeSet<Duration> = changes.iter().filter(is_beat).map(|change| change.at).collect();
        let late = samples.iter().filter(|sample| sample.node == node).filter_map(|sample| {
            let (at, end) = (seconds(sample.at), seconds(sample.end));
            match beats.range(..=sample.at + REPORT).next_back() {
                None => Some(format!("{name}: the fence is open at {at} before its first beat")),
                Some(beat) if sample.end > *beat + lease + TOLERANCE => Some(format!(
                    "{name}: at {at} the fence is open until {end}, but its last beat was at {}",
                    seconds(*beat)
                )),
                Some(_) => None,
            }
        });
        violations.extend(late.take(REPORTED));
    }
    violations
}

/// Rule 4: from an instant to another, one host answers for each of the addresses, without a gap, and always the same.
pub fn unsettled(answers: &[Answer], addresses: &[IpAddr], from: Duration, to: Duration) -> Vec<String> {
    let mut violations = Vec::new();
    for address in addresses {
        let within = |answer: &&Answer| answer.address == *address && (from..to).contains(&answer.at);
        let answers: Vec<Answer> = answers.iter().filter(within).copied().collect();
        let hosts: BTreeSet<String> = answers.iter().map(|answer| name_of(answer.mac)).collect();
        if hosts.len() > 1 {
            let hosts: Vec<String> = hosts.into_iter().collect();
            violations.push(format!("{address}: it moves between {} when all is quiet", hosts.join(", ")));
        }
        if let Some((begin, end)) = longest_silence(&answers, from, to)
            && end - begin > SILENCE
        {
            let (begin, end) = (seconds(begin), seconds(end));
            violations.push(format!("{address}: nobody answers from {begin} to {end} when all is quiet"));
        }
    }
    violations
}

/// The longest time without an answer.
pub fn longest_silence(answers: &[Answer], from: Duration, to: Duration) -> Option<(Duration, Duration)> {
    let within = answers.iter().map(|answer| answer.at).filter(|at| (from..to).contains(at));
    let instants: Vec<Duration> = [from].into_iter().chain(within).chain([to]).collect();
    instants.windows(2).map(|pair| (pair[0], pair[1])).max_by_key(|(begin, end)| *end - *begin)
}

#[cfg(test)]
mod tests {
    use super::super::mac_of;
    use super::*;

    const LEASE: Duration = Duration::from_secs(3);

    fn address() -> IpAddr {
        "10.1.1.11".parse().unwrap()
    }

    fn ms(time: u64) -> Duration {
        Duration::from_millis(time)
    }

    /// A host's answers every 5 ms.
    fn stream(node: usize, times: std::ops::Range<u64>) -> Vec<Answer> {
        let answer = |at: u64| Answer { at: ms(at), address: address(), mac: mac_of(node) };
        times.step_by(5).map(answer).collect()
    }

    fn merged(streams: &[Vec<Answer>]) -> Vec<Answer> {
        let mut answers = streams.concat();
        answers.sort_by_key(|answer| answer.at);
        answers
    }

    fn change(revision: i64, created: i64, key: &str, value: &str) -> Change {
        let value = (!value.is_empty()).then(|| value.to_owned());
        let at = ms(u64::try_from(revision).unwrap() * 100);
        Change { at, revision, created, key: key.to_owned(), value }
    }

    fn claim(revision: i64, epoch: u64, node: &str, session: i64, phase: &str) -> Change {
        let text = format!(
            r#"{{"epoch":{epoch},"node":"{node}","session":{{"created":{session},"nonce":1}},"phase":"{phase}"}}"#
        );
        change(revision, 1, "claim/10.1.1.11", &text)
    }

    #[test]
    fn hosts_that_answer_one_after_another_are_no_violation() {
        assert!(shared(&[]).is_empty());
        let moved = merged(&[stream(0, 0..5_000), stream(1, 5_001..9_000), stream(0, 9_001..10_000)]);
        assert!(shared(&moved).is_empty());
        let gap = merged(&[stream(0, 0..1_000), stream(1, 4_000..5_100), stream(0, 5_102..5_200)]);
        assert!(shared(&gap).is_empty());
    }

    #[test]
    fn hosts_that_answer_at_once_are_a_violation_however_short() {
        for overlap in [5, 10, 100, 2_000] {
            let answers = merged(&[stream(0, 0..5_000 + overlap), stream(1, 4_998..9_000)]);
            let violations = shared(&answers);
            assert!(violations[0].contains("n1 answered at"), "{overlap}: {violations:?}");
            assert!(violations.len() <= REPORTED);
        }
        // One stray answer of the host that had the address before.
        let answers = merged(&[stream(0, 0..5_000), stream(1, 6_000..9_000), stream(0, 7_001..7_002)]);
        assert_eq!(shared(&answers).len(), 1);
        // Three hosts.
        let answers =
            merged(&[stream(0, 0..100), stream(1, 100..105), stream(2, 105..110), stream(0, 110..115)]);
        assert!(!shared(&answers).is_empty());
    }

    #[test]
    fn an_overlap_lasts_from_the_first_answer_of_one_host_to_the_last_of_the_other() {
        assert_eq!(overlap(&[], address()), Duration::ZERO);
        let moved = merged(&[stream(0, 0..1_000), stream(1, 1_001..2_000), stream(0, 2_001..3_000)]);
        assert_eq!(overlap(&moved, address()), Duration::ZERO);
        let both = merged(&[stream(0, 0..3_000), stream(1, 1_000..2_001), stream(2, 1_500..2_001)]);
        assert_eq!(overlap(&both, address()), ms(1_000));
        let twice = merged(&[stream(0, 0..5_000), stream(1, 1_000..1_101), stream(1, 3_000..3_101)]);
        assert_eq!(overlap(&twice, address()), ms(200));
    }

    #[test]
    fn a_host_must_have_claimed_what_it_answers_for() {
        let answers = merged(&[stream(0, 0..1_000), stream(1, 4_000..5_000), stream(0, 9_000..9_100)]);
        let unclaimed = |changes: &[Change]| unclaimed(&answers, changes, |address| address);
        let mut changes = vec![
            claim(2, 1, "n1", 1, "held"),
            claim(3, 2, "n2", 1, "held"),
            claim(4, 3, "n2", 1, "free"),
            claim(5, 4, "n3", 1, "held"),
            claim(6, 5, "n1", 1, "granted"),
        ];
        assert!(unclaimed(&changes).is_empty());
        changes.remove(1);
        assert!(unclaimed(&changes)[0].contains("n2 answers at 4.000 s"), "{:?}", unclaimed(&changes));
        assert_eq!(unclaimed(&[]).len(), 1);
        let at_the_end = [claim(2, 1, "n1", 1, "held"), claim(3, 2, "n2", 1, "held")];
        assert!(unclaimed(&at_the_end)[0].contains("n1 answers at 9.000 s"));
    }

    #[test]
    fn epochs_rise_and_owners_have_sessions() {
        let good = [
            change(1, 1, "beat/n1", "{}"),
            claim(2, 1, "n1", 1, "held"),
            change(3, 0, "beat/n1", ""),
            change(3, 1, "node/n1", "{}"),
            change(4, 4, "beat/n2", "{}"),
            claim(5, 2, "n2", 4, "held"),
            change(6, 0, "beat/n2", ""),
            claim(7, 3, "n2", 4, "free"),
        ];
        assert_eq!(history(&good), [""; 0]);
        let with = |place: usize, change: Change| {
            let mut changes = good.to_vec();
            changes[place] = change;
            history(&changes)
        };
        assert!(with(5, claim(5, 1, "n2", 4, "held"))[0].contains("epoch 1 after epoch 1"));
        assert!(with(5, claim(5, 2, "n1", 1, "held"))[0].contains("the owner n1 has no session"));
        assert!(with(5, claim(5, 2, "n2", 3, "held"))[0].contains("the owner n2 has no session"));
        assert!(with(5, change(5, 1, "claim/10.1.1.11", ""))[0].contains("deleted"));
        assert!(with(7, claim(7, 3, "n2", 4, "held"))[0].contains("no session at revision 7"));
    }

    #[test]
    fn a_fence_ends_a_lease_after_the_last_beat() {
        let beats =
            [change(10, 1, "beat/n1", "{}"), change(15, 1, "beat/n1", "{}"), change(20, 0, "beat/n1", "")];
        let sample = |at: u64, end: u64| FenceSample { at: ms(at), node: 0, end: ms(end) };
        let outlived = |sample: FenceSample| outlived(&[sample], &beats, LEASE);
        assert!(outlived(sample(1_010, 4_000)).is_empty());
        assert!(outlived(sample(2_900, 4_520)).is_empty());
        assert!(
            outlived(sample(2_900, 4_530))[0]
                .contains("open until 4.530 s, but its last beat was at 1.500 s")
        );
        assert!(outlived(sample(9_000, 9_001)).len() == 1);
        assert!(
            outlived(FenceSample { node: 1, ..sample(2_000, 2_100) })[0].contains("n2: the fence is open")
        );
        assert!(outlived(sample(2_900, u64::MAX / 2)).len() == 1);
    }

    #[test]
    fn after_a_fault_one_host_answers_and_nothing_moves() {
        let judge = |answers: &[Answer]| unsettled(answers, &[address()], ms(1_000), ms(9_000));
        assert!(judge(&merged(&[stream(1, 0..500), stream(0, 700..10_000)])).is_empty());
        let moved = judge(&merged(&[stream(0, 0..5_000), stream(1, 5_001..10_000)]));
        assert!(moved[0].contains("moves between n1, n2"), "{moved:?}");
        let silent = judge(&merged(&[stream(0, 0..5_000), stream(0, 5_500..10_000)]));
        assert!(silent[0].contains("nobody answers from 4.995 s to 5.500 s"), "{silent:?}");
        assert_eq!(judge(&stream(0, 0..8_000)).len(), 1);
        assert_eq!(judge(&[]).len(), 1);
    }
}
