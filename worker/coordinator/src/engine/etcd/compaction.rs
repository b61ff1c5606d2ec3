//! Compaction: etcd keeps each value that a key ever had, and beats are written all the time.
//!
//! The nodes share one key, `compaction`. Each looks at it every five minutes; a node that finds it unchanged
//! since it looked last writes the current revision into it, by comparison, and compacts what is older than the
//! revision of ten rounds before. So one node at a time does it, and if that node is gone, another one.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep_until};

use super::Etcd;
use super::endpoint::COMPACT;
use super::messages::{CompactionRequest, CompactionResponse};
use super::problem::Problem;
use crate::core::record::{Entry, Key};
use crate::core::txn::{Compare, Operation, Txn};
use crate::engine::Engine;

/// The time from one round to the next.
pub const INTERVAL: Duration = Duration::from_secs(300);

/// The key, which is not among those that the engine reports.
pub(super) const KEY: &str = "compaction";

/// How many rounds of history are kept.
const KEEP: usize = 10;

/// Debian's etcd 3.4 compacts for every user; later versions may not.
const NOT_ALLOWED: &str = "this user may not compact. Grant it the role root, or set `compaction` to off and \
    start etcd with --auto-compaction-retention=1h";

/// The value of the key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Rounds {
    /// The node that wrote it.
    by: String,
    /// The revision at each of the last rounds.
    revisions: Vec<i64>,
}

/// What a round did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Round {
    /// Another node, or an earlier round of this one, is not long ago.
    Waits,
    /// This node noted the revision; there is nothing old enough to compact yet.
    Noted,
    /// This node compacted what is older than that revision.
    Compacted(i64),
    /// etcd did not answer.
    NoReply,
    /// etcd refuses to compact.
    Refused(Problem),
}

/// Compacts in the name of one node.
pub struct Compaction {
    etcd: Etcd,
    node: String,
    /// The key when it was looked at last.
    seen: Option<Arc<Entry>>,
}

impl Compaction {
    /// For the node with that name.
    pub fn new(etcd: Etcd, node: &str) -> Self {
        Compaction { etcd, node: node.to_owned(), seen: None }
    }

    /// Performs a round every five minutes, and reports what it did. Never returns.
    pub async fn run(mut self, mut report: impl FnMut(Round) + Send) {
        let mut at = Instant::now();
        loop {
            report(self.round().await);
            at = (at + INTERVAL).max(Instant::now());
            sleep_until(at).await;
        }
    }

    /// Performs one round. The first one only looks, because another node may just have done it.
    pub async fn round(&mut self) -> Round {
        let key = Key::Foreign(KEY.to_owned());
        let look = Txn { success: vec![Operation::Get(key.clone())], ..Txn::default() };
        let Ok(reply) = self.etcd.txn(look).await else { return Round::NoReply };
        let Some(found) = reply.entries.first() else { return Round::NoReply };
        if self.seen.as_ref().is_none_or(|seen| seen.text != found.text) {
            self.seen = Some(Arc::clone(found));
            return Round::Waits;
        }
        let (text, compacted) = next(&self.node, &found.text, reply.revision);
        let compare = match found.value {
            Some(_) => Compare::Value(key.clone(), Arc::clone(&found.text)),
            None => Compare::Created(key.clone(), 0),
        };
        let write = Txn {
            compare: vec![compare],
            success: vec![Operation::Put(key.clone(), Arc::clone(&text))],
            failure: vec![Operation::Get(key.clone())],
        };
        let Ok(reply) = self.etcd.txn(write).await else { return Round::NoReply };
        // When an earlier attempt of the same transaction has written it, the comparison fails.
        if !reply.succeeded && reply.entries.first().is_none_or(|entry| entry.text != text) {
            return Round::Waits;
        }
        self.seen = Some(Arc::new(Entry::decode(key, 0, reply.revision, text)));
        let Some(revision) = compacted else { return Round::Noted };
        let outcome = self.etcd.endpoints.request(|endpoint| async move {
            endpoint.call::<_, CompactionResponse>(COMPACT, CompactionRequest { revision }).await
        });
        match outcome.await {
            // Someone else has compacted, or an earlier attempt of this request.
            Ok(_) => Round::Compacted(revision),
            Err(problems) if problems.contains(&Problem::Compacted) => Round::Compacted(revision),
            Err(problems) if problems.contains(&Problem::PermissionDenied) => {
                Round::Refused(Problem::Engine(NOT_ALLOWED.to_owned()))
            }
            Err(problems) => problems.into_iter().next().map_or(Round::NoReply, Round::Refused),
        }
    }
}

/// The value that follows another one, and the revision to compact.
fn next(node: &str, text: &str, revision: i64) -> (Arc<str>, Option<i64>) {
    // A value that cannot be read is replaced: it only says how much history to keep.
    let mut revisions = serde_json::from_str::<Rounds>(text).unwrap_or_default().revisions;
    // A cluster that was restored may be at an earlier revision.
    revisions.retain(|earlier| (1..revision).contains(earlier));
    let surplus = revisions.len().saturating_sub(KEEP - 1);
    let compacted = revisions.drain(..surplus).next_back();
    revisions.push(revision);
    let rounds = Rounds { by: node.to_owned(), revisions };
    // It contains nothing that JSON cannot express.
    (serde_json::to_string(&rounds).unwrap_or_default().into(), compacted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_rounds_are_kept() {
        let mut text: Arc<str> = "".into();
        for round in 1..=10 {
            let (next, compacted) = next("a", &text, round * 100);
            assert_eq!(compacted, None);
            text = next;
        }
        let (text, compacted) = next("a", &text, 1_100);
        assert_eq!(compacted, Some(100));
        assert_eq!(&*text, r#"{"by":"a","revisions":[200,300,400,500,600,700,800,900,1000,1100]}"#);
        // Restored from a backup.
        let (text, compacted) = next("b", &text, 350);
        assert_eq!((&*text, compacted), (r#"{"by":"b","revisions":[200,300,350]}"#, None));
    }

    #[test]
    fn a_value_of_another_program_is_replaced() {
        for text in ["", "x", "[]", r#"{"by":"a","revisions":[-5,9223372036854775807]}"#] {
            let (text, compacted) = next("a", text, 7);
            assert_eq!((&*text, compacted), (r#"{"by":"a","revisions":[7]}"#, None));
        }
    }
}
