//! Listeners: created, passed to workers, kept across the end of a worker or of the broker, and disabled.

mod commands;
mod fdstore;
mod inherited_options;
mod interfaces;
mod listeners;
mod orphans;
mod ownership;
mod process_deaths;
mod refused_endpoints;
mod revocation;
mod scale;
mod smtp;
mod socket_activation;
mod socket_options;
mod static_listeners;
mod under_load;
mod unix_listeners;
mod unkept;
mod worker_control;
mod worker_errors;
mod worker_restarts;
