//! The cluster coordinator with real etcd.

mod bed;
mod control;
mod check;
mod engine;
mod failover;
mod page;
