//! Peers and their sessions: requests, refusals, quotas, events, and what the log and the metrics say of them.

mod answers;
mod channel;
mod events;
mod log;
mod malformed;
mod metrics;
mod peer_text;
mod policies;
mod quotas;
mod refusals;
mod session_fuzz;
