//! Peers and their sessions: requests, refusals, quotas, events, and what the log and the metrics say of them.

mod channel;
mod events;
mod explain_answers;
mod log;
mod malformed;
mod metrics;
mod policy_pages;
mod quotas;
mod refusals;
mod session_fuzz;
mod untrusted_text;
