//! Peers and their sessions: requests, refusals, quotas, events, and the log lines and metrics about them.

mod audit;
mod channel;
mod cluster_settings;
mod descriptors_in_flight;
mod events;
mod everyday_commands;
mod explain_answers;
mod in_flight_limit;
mod isolation;
mod json_output;
mod log;
mod malformed;
mod metrics;
mod policy_pages;
mod quotas;
mod refusals;
mod session_fuzz;
mod untrusted_text;
