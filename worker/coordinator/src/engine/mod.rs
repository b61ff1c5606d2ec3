//! The engine: a linearizable store in which the nodes of a cluster agree.

pub mod memory;

use std::future::Future;
use std::sync::Arc;

use crate::core::record::Entry;
use crate::core::txn::{NoReply, Reply, Txn};

/// What a coordinator needs of an engine. Each call ends with a reply or, in at most 0.8 s, without.
pub trait Engine {
    /// Reads all keys of the group.
    fn read(&self) -> impl Future<Output = Result<Reply, NoReply>> + Send;

    /// Performs a transaction.
    fn txn(&self, txn: Txn) -> impl Future<Output = Result<Reply, NoReply>> + Send;

    /// Waits for changes after a revision, and returns them. They are hints: some may be missing, or come twice or late.
    /// `NoReply`: the changes since that revision are lost; read everything.
    fn watch(&self, after: i64) -> impl Future<Output = Result<Vec<Arc<Entry>>, NoReply>> + Send;
}
