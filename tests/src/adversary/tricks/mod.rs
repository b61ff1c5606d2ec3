//! The tricks, one file for each family.

pub mod epochs;
pub mod foreign_objects;
pub mod full_tables;
pub mod granted;
pub mod hellos;
pub mod huge_requests;
pub mod idle;
pub mod in_flight;
pub mod limits;
pub mod locked_filter;
pub mod log_text;
pub mod malformed;
pub mod overlap;
pub mod refusals;
pub mod sessions;
pub mod socket_options;
pub mod stopped_copy;
pub mod subscriptions;
pub mod takeover_attempts;
pub mod unix_paths;
pub mod unread_replies;
