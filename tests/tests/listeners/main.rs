//! Listeners: created, passed to workers, kept across the end of a worker or of the broker, and disabled.

mod fdstore;
mod listeners;
mod process_deaths;
mod refused_endpoints;
mod scale;
mod smtp;
mod socket_activation;
mod under_load;
mod worker_errors;
mod worker_restarts;
