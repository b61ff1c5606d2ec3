//! Another configuration put in force, and what is told of it.

use portreeve_protocol::reload::{Reload, Reloaded};

use crate::{Broker, Host, broker};

/// Puts another configuration in force.
#[track_caller]
pub fn reload(host: &Host, broker: &Broker, text: &str) -> Reloaded {
    broker::config(host, text);
    broker.peer().request(&Reload { last: false }).unwrap().0
}

/// What it names with an outcome.
pub fn rows<'r>(reloaded: &'r Reloaded, outcome: &str) -> Vec<&'r str> {
    let rows = reloaded.changes.iter().filter(|change| &*change.outcome == outcome);
    rows.map(|change| change.what.as_str()).collect()
}
