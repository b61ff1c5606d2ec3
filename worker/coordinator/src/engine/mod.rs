//! The engine: a linearizable store in which the nodes of a cluster agree.

#[cfg(feature = "daemon")]
pub mod etcd;
#[cfg(feature = "daemon")]
pub mod files;
pub mod memory;

use std::future::Future;
use std::sync::Arc;

use crate::core::check;
use crate::core::record::Entry;
use crate::core::report::Endpoint;
use crate::core::txn::{NoReply, Reply, Txn};

/// What a watch reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Watched {
    /// The watch has begun. It does not report what changed before.
    Started,
    /// Changes. They are hints: some may be missing, or come twice or late.
    Changed(Arc<[Arc<Entry>]>),
}

/// What a coordinator needs of an engine.
pub trait Engine {
    /// Reads all keys of the group. Ends with a reply, or without one when an attempt at each endpoint has timed out.
    fn read(&self) -> impl Future<Output = Result<Reply, NoReply>>;

    /// Performs a transaction. Ends as [`Engine::read`].
    fn txn(&self, txn: Txn) -> impl Future<Output = Result<Reply, NoReply>>;

    /// The endpoints, for reports.
    fn endpoints(&self) -> Vec<Endpoint>;

    /// Asks each endpoint what the checks have to know. Takes a few seconds at most.
    fn inspect(&self) -> impl Future<Output = check::Engine>;

    /// Watches the keys of the group, without those of the beats unless `with_beats` is set. Ends when the watch is lost.
    fn watch(&self, with_beats: bool, report: impl FnMut(Watched)) -> impl Future<Output = NoReply>;
}
