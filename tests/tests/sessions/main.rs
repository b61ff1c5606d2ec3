//! Peers and their sessions: requests, refusals, quotas, events, and the log lines and metrics about them.

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
