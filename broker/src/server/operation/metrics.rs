//! Metrics: what was counted and measured, and how much of what there is.

use std::fmt;

use portreeve_protocol::message::{ListenerId, OPERATIONS};
use portreeve_protocol::metrics::{
    ListenerCounts, LogCounts, Metrics, MetricsRequest, PeerCounts, SessionCounts,
};
use portreeve_protocol::{Fault, List, Text};

use super::Done;
use super::audit::Arguments;
use super::status;
use crate::log;
use crate::server::counters::BOUNDS_US;
use crate::server::session::Session;
use crate::server::state::{Broker, RELEASE};

impl Arguments for MetricsRequest {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

pub fn metrics(broker: &Broker, _: &Session, _: &MetricsRequest) -> Result<Done<Metrics>, Fault> {
    let counters = &broker.counters;
    let totals = broker.accounts.totals();
    let registry = broker.registry.borrow();
    let retained = registry.after(ListenerId(0)).filter(|(_, entry)| entry.retained_until.is_some()).count();
    Ok(Done::new(Metrics {
        release: Text::clipped(RELEASE),
        uptime_ms: u64::try_from(broker.uptime().as_millis()).unwrap_or(u64::MAX),
        bounds_us: List::first_of(BOUNDS_US),
        operations: List::first_of(OPERATIONS.iter().filter_map(|(kind, name)| counters.of(*kind, name))),
        quotas: List::first_of(status::quotas(broker)),
        peers: List::first_of(peers(broker)),
        sessions: SessionCounts {
            open: broker.session_count() as u64,
            opened: counters.opened.get(),
            turned_away: counters.turned_away.get(),
            malformed: counters.malformed.get(),
            delayed: totals.delayed.get(),
        },
        listeners: ListenerCounts {
            held: registry.count() as u64,
            retained: retained as u64,
            most: registry.capacity() as u64,
        },
        addresses: broker.addresses.as_ref().map(|addresses| addresses.counts()),
        worker: broker.worker_counts(),
        log: LogCounts { suppressed: totals.not_logged.get(), lost: log::dropped() },
        events: broker.events.counted(),
    }))
}

fn peers(broker: &Broker) -> Vec<PeerCounts> {
    let (registry, sessions) = (broker.registry.borrow(), broker.sessions.borrow());
    broker.accounts.each(|account| {
        let own = sessions.values().filter(|info| std::ptr::eq(&*info.account, account));
        PeerCounts {
            peer: Text::clipped(&account.peer().to_string()),
            sessions: account.open_sessions(),
            listeners: own.map(|info| registry.count_of(info.owner) as u64).sum(),
            refused: account.refusals(),
        }
    })
}
