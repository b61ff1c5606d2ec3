//! The cluster coordinator with real etcd.

mod bed;
mod check;
mod control;
mod engine;
mod failover;
mod page;
