//! An engine in memory, for tests and simulations.
//!
//! [`Store`] is the store itself: what it does is linearizable, and a copy of it is a backup. [`Memory`] shares one between
//! tasks. Delays, lost replies and outages are the simulator's.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use super::{Engine, Watched};
use crate::core::check;
use crate::core::record::{Entry, Key};
use crate::core::report::Endpoint;
use crate::core::txn::{Compare, NoReply, Operation, Reply, Txn};

/// The keys of a group and their revisions, as etcd has them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Store {
    revision: i64,
    entries: BTreeMap<Key, Arc<Entry>>,
}

impl Store {
    /// The current revision.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// An entry that exists.
    pub fn get(&self, key: &Key) -> Option<&Arc<Entry>> {
        self.entries.get(key)
    }

    /// Reads all keys.
    pub fn read(&self) -> Reply {
        Reply { revision: self.revision, succeeded: true, entries: self.entries.values().cloned().collect() }
    }

    /// Performs a transaction. Returns the reply and what has changed.
    pub fn txn(&mut self, txn: &Txn) -> (Reply, Vec<Arc<Entry>>) {
        let succeeded = txn.compare.iter().all(|compare| self.holds(compare));
        let operations = if succeeded { &txn.success } else { &txn.failure };
        let revision = self.revision + 1;
        let (mut read, mut changed) = (Vec::new(), Vec::new());
        for operation in operations {
            match operation {
                Operation::Put(key, text) => {
                    let created = self.entries.get(key).map_or(revision, |entry| entry.created);
                    let entry = Arc::new(Entry::decode(key.clone(), created, revision, Arc::clone(text)));
                    self.entries.insert(key.clone(), Arc::clone(&entry));
                    changed.push(entry);
                }
                Operation::Delete(key) => {
                    if self.entries.remove(key).is_some() {
                        changed.push(Arc::new(Entry::deleted(key.clone(), revision)));
                    }
                }
                Operation::Get(key) => read.push(match self.entries.get(key) {
                    Some(entry) => Arc::clone(entry),
                    None => Arc::new(Entry::deleted(key.clone(), self.revision)),
                }),
            }
        }
        if !changed.is_empty() {
            self.revision = revision;
        }
        (Reply { revision: self.revision, succeeded, entries: read }, changed)
    }

    fn holds(&self, compare: &Compare) -> bool {
        let created = |key| self.entries.get(key).map_or(0, |entry: &Arc<Entry>| entry.created);
        match compare {
            Compare::Value(key, text) => self.entries.get(key).is_some_and(|entry| entry.text == *text),
            Compare::Created(key, revision) => created(key) == *revision,
            Compare::NotCreated(key, revision) => created(key) != *revision,
        }
    }
}

#[derive(Default)]
struct Shared {
    store: Store,
    history: Vec<Arc<Entry>>,
    waiting: Vec<Waker>,
}

/// A [`Store`] that tasks share. It always replies.
#[derive(Clone, Default)]
pub struct Memory(Arc<Mutex<Shared>>);

impl Memory {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        // A store is never left half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine for Memory {
    async fn read(&self) -> Result<Reply, NoReply> {
        Ok(self.lock().store.read())
    }

    async fn txn(&self, txn: Txn) -> Result<Reply, NoReply> {
        let mut shared = self.lock();
        let (reply, changed) = shared.store.txn(&txn);
        shared.history.extend(changed);
        shared.waiting.drain(..).for_each(Waker::wake);
        Ok(reply)
    }

    fn endpoints(&self) -> Vec<Endpoint> {
        Vec::new()
    }

    async fn inspect(&self) -> check::Engine {
        check::Engine::default()
    }

    async fn watch(&self, with_beats: bool, mut report: impl FnMut(Watched)) -> NoReply {
        let mut seen = self.lock().history.len();
        report(Watched::Started);
        poll_fn(move |context| {
            let mut shared = self.lock();
            let news: Vec<Arc<Entry>> = shared.history.iter().skip(seen).cloned().collect();
            seen = shared.history.len();
            shared.waiting.push(context.waker().clone());
            drop(shared);
            let is_watched = |entry: &Arc<Entry>| with_beats || !matches!(entry.key, Key::Beat(_));
            let news: Arc<[Arc<Entry>]> = news.into_iter().filter(is_watched).collect();
            if !news.is_empty() {
                report(Watched::Changed(news));
            }
            Poll::Pending
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Context;

    use super::*;
    use crate::core::txn;

    fn put(key: &Key, text: &str, compare: Compare) -> Txn {
        Txn {
            compare: vec![compare],
            success: vec![Operation::Put(key.clone(), text.into())],
            failure: vec![Operation::Get(key.clone())],
        }
    }

    #[test]
    fn comparisons_and_revisions_are_those_of_etcd() {
        let (mut store, key) = (Store::default(), Key::Freeze);
        let (reply, _) = store.txn(&put(&key, "{}", Compare::Value(key.clone(), "{}".into())));
        assert_eq!((reply.succeeded, reply.revision), (false, 0), "a key that does not exist has no value");
        let (reply, _) = store.txn(&put(&key, "{}", Compare::Created(key.clone(), 0)));
        assert_eq!((reply.succeeded, reply.revision), (true, 1));
        let (reply, _) = store.txn(&put(&key, "{ }", Compare::NotCreated(key.clone(), 9)));
        assert_eq!((reply.succeeded, reply.revision), (true, 2));
        let entry = store.get(&key).unwrap().clone();
        assert_eq!((entry.created, entry.modified), (1, 2));
        let (reply, changed) = store.txn(&txn::delete(&entry));
        assert_eq!((reply.revision, changed[0].value.is_none()), (3, true));
        let (reply, _) = store.txn(&put(&key, "{}", Compare::Created(key.clone(), 1)));
        assert_eq!((reply.succeeded, reply.entries[0].modified), (false, 3));
    }

    #[test]
    fn a_watch_reports_changes() {
        let memory = Memory::default();
        let mut context = Context::from_waker(Waker::noop());
        let reports = Mutex::new(Vec::new());
        let mut watch = pin!(memory.watch(true, |watched| reports.lock().unwrap().push(watched)));
        assert!(watch.as_mut().poll(&mut context).is_pending());
        let mut write = pin!(memory.txn(put(&Key::Freeze, "{}", Compare::Created(Key::Freeze, 0))));
        assert!(write.as_mut().poll(&mut context).is_ready());
        assert!(watch.as_mut().poll(&mut context).is_pending());
        let mut read = pin!(memory.read());
        let Poll::Ready(Ok(reply)) = read.as_mut().poll(&mut context) else { panic!("no reply") };
        let changed = Watched::Changed(reply.entries.into());
        assert_eq!(*reports.lock().unwrap(), [Watched::Started, changed]);
    }
}
