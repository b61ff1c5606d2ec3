//! The cluster coordinator with real etcd.

mod bed;
mod engine;
mod failover;
mod page;
