//! Listeners: made, passed to workers, kept across the end of a worker or of the broker, and taken out of service.

mod activation;
mod descriptor_store;
mod lifetimes;
mod listeners;
mod refused_endpoints;
mod scale;
mod smtp;
mod survival;
mod under_load;
mod worker_errors;
