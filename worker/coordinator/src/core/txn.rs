//! Transactions: comparisons and operations on keys, as the engine performs them, atomically.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::record::{Claim, Entry, Key, Name, NodeRecord, Phase, Session, Value};

/// How many comparisons or operations a transaction has at most; etcd's default limit is 128 of each.
pub const MAX_OPERATIONS: usize = 120;

/// A comparison.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Compare {
    /// The key has this value.
    Value(Key, Arc<str>),
    /// The key has this create_revision; 0: it does not exist.
    Created(Key, i64),
    /// The key has another create_revision, or does not exist.
    NotCreated(Key, i64),
}

/// An operation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Writes a value.
    Put(Key, Arc<str>),
    /// Deletes a key.
    Delete(Key),
    /// Reads a key.
    Get(Key),
}

/// A transaction: if all comparisons hold, the operations of `success`, otherwise those of `failure`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Txn {
    /// The comparisons.
    pub compare: Vec<Compare>,
    /// What to do if they hold.
    pub success: Vec<Operation>,
    /// What to do if they do not hold.
    pub failure: Vec<Operation>,
}

/// The reply to a transaction, or to a read of all keys of the group.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reply {
    /// The engine's revision.
    pub revision: i64,
    /// Whether the comparisons held.
    pub succeeded: bool,
    /// What was read; a key that does not exist as [`Entry::deleted`] at `revision`.
    pub entries: Vec<Arc<Entry>>,
}

/// No reply came in time: the engine may have performed the request, may perform it later, or never.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NoReply;

fn put(key: Key, value: &Value) -> Operation {
    Operation::Put(key, value.encode())
}

/// The comparison with a key of which this entry is known, or with one that does not exist.
fn unchanged(key: &Key, known: Option<&Entry>) -> Compare {
    match known {
        Some(entry) => Compare::Value(key.clone(), Arc::clone(&entry.text)),
        None => Compare::Created(key.clone(), 0),
    }
}

/// JOIN, BEAT and RESUME: writes the node's beat if it is still what is known of it, and the keys of others to read
/// along. JOIN knows no beat, and writes the node's record too.
pub fn beat(
    name: &Name,
    known: Option<Arc<str>>,
    text: &Arc<str>,
    record: Option<NodeRecord>,
    read: &[Name],
) -> Txn {
    let key = Key::Beat(Arc::clone(name));
    let compare = match known {
        Some(known) => Compare::Value(key.clone(), known),
        None => Compare::Created(key.clone(), 0),
    };
    let mut success = vec![Operation::Put(key.clone(), Arc::clone(text))];
    let failure = vec![Operation::Get(key), Operation::Get(Key::Node(Arc::clone(name)))];
    success.extend(record.map(|record| put(Key::Node(Arc::clone(name)), &Value::Node(record))));
    success.extend(read.iter().map(|node| Operation::Get(Key::Beat(Arc::clone(node)))));
    Txn { compare: vec![compare], success, failure }
}

/// EVICT, and LEAVE: deletes a beat that is still what is known of it, and writes that the node is gone.
pub fn evict(name: &Name, text: &Arc<str>, record: NodeRecord) -> Txn {
    let key = Key::Beat(Arc::clone(name));
    Txn {
        compare: vec![Compare::Value(key.clone(), Arc::clone(text))],
        success: vec![Operation::Delete(key.clone()), put(Key::Node(Arc::clone(name)), &Value::Node(record))],
        failure: vec![Operation::Get(key), Operation::Get(Key::Node(Arc::clone(name)))],
    }
}

/// Writes the node's own record during its session.
pub fn record(name: &Name, session: Session, record: NodeRecord) -> Txn {
    Txn {
        compare: vec![Compare::Created(Key::Beat(Arc::clone(name)), session.created)],
        success: vec![put(Key::Node(Arc::clone(name)), &Value::Node(record))],
        failure: vec![Operation::Get(Key::Beat(Arc::clone(name)))],
    }
}

/// Writes a key that does not exist.
pub fn create(key: Key, value: &Value) -> Txn {
    write_if_unchanged(key, None, value)
}

/// Writes a key that is still what is known of it.
pub fn write_if_unchanged(key: Key, known: Option<&Entry>, value: &Value) -> Txn {
    Txn {
        compare: vec![unchanged(&key, known)],
        success: vec![put(key.clone(), value)],
        failure: vec![Operation::Get(key)],
    }
}

/// Deletes a key that is still what is known of it.
pub fn delete(entry: &Entry) -> Txn {
    Txn {
        compare: vec![Compare::Value(entry.key.clone(), Arc::clone(&entry.text))],
        success: vec![Operation::Delete(entry.key.clone())],
        failure: vec![Operation::Get(entry.key.clone())],
    }
}

/// A change of a claim.
#[derive(Clone, Debug)]
pub struct Change {
    /// The address.
    pub address: IpAddr,
    /// What is known of its claim.
    pub known: Option<Arc<Entry>>,
    /// The new claim.
    pub claim: Claim,
}

/// The transaction that writes claims. Which sessions must live or be gone depends on who writes: see [`claim`] and [`grant`].
fn write(changes: &[Change], mut compare: Vec<Compare>) -> Txn {
    let key = |change: &Change| Key::Claim(change.address);
    compare.extend(changes.iter().map(|change| unchanged(&key(change), change.known.as_deref())));
    Txn {
        compare,
        success: changes.iter().map(|change| put(key(change), &Value::Claim(change.claim.clone()))).collect(),
        failure: changes.iter().map(|change| Operation::Get(key(change))).collect(),
    }
}

/// CLAIM: takes addresses that are free or whose owners' sessions are gone, during the session `mine` of `name`.
pub fn claim(name: &Name, mine: Session, changes: &[Change]) -> Txn {
    let mut compare = vec![Compare::Created(Key::Beat(Arc::clone(name)), mine.created)];
    let previous: BTreeSet<(Name, i64)> = changes
        .iter()
        .filter_map(|change| match &change.known.as_ref()?.value {
            Some(Value::Claim(claim)) if claim.session != mine && claim.phase != Phase::Free => {
                Some((Arc::clone(&claim.node), claim.session.created))
            }
            _ => None,
        })
        .collect();
    compare.extend(previous.into_iter().map(|(node, created)| Compare::NotCreated(Key::Beat(node), created)));
    write(changes, compare)
}

/// GRANT to a node with that session, or RELEASE: by the owner, after its broker has removed the addresses.
pub fn grant(to: Option<(&Name, Session)>, changes: &[Change]) -> Txn {
    let lives = to.map(|(node, session)| Compare::Created(Key::Beat(Arc::clone(node)), session.created));
    let mut txn = write(changes, lives.into_iter().collect());
    txn.failure.extend(to.into_iter().flat_map(|(node, _)| {
        [Operation::Get(Key::Beat(Arc::clone(node))), Operation::Get(Key::Node(Arc::clone(node)))]
    }));
    txn
}
