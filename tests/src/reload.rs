//! Reloads of the configuration, and their reported changes.

use portreeve_protocol::reload::{Reload, Reloaded};

use crate::{Broker, Host, broker};

/// Writes another configuration and reloads it.
#[track_caller]
pub fn reload(host: &Host, broker: &Broker, text: &str) -> Reloaded {
    broker::config(host, text);
    broker.peer().request(&Reload::default()).unwrap().0
}

/// The changes with this outcome.
pub fn rows<'r>(reloaded: &'r Reloaded, outcome: &str) -> Vec<&'r str> {
    let rows = reloaded.changes.iter().filter(|change| &*change.outcome == outcome);
    rows.map(|change| change.what.as_str()).collect()
}
