//! The work of an operator: check, start, reload, takeover, the service manager, the samples, the tour and the other
//! pages.

mod check;
mod completions;
mod documents;
mod memory;
mod reconnect;
mod reconnect_blocking;
mod reload;
mod reload_addresses;
mod reload_consent;
mod reload_listeners;
mod samples;
mod sd_notify;
mod soak;
mod takeover;
mod takeover_failures;
mod takeover_supervised;
mod test_host;
mod tour;
