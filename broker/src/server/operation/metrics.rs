//! Metrics: counters, latencies, and how much of each limited resource is used.

use std::fmt;

use portreeve_protocol::message::{ListenerId, OPERATIONS};
use portreeve_protocol::metrics::{
    ListenerCounts, LogCounts, Metrics, MetricsRequest, PeerCounts, SessionCounts,
};
use portreeve_protocol::{Fault, List, Text};

use super::Done;
use super::handler::{Handler, Immediate};
use super::status;
use crate::log;
use crate::policy::{OperationPermit, Policy, Requester};
use crate::server::counters::BOUNDS_US;
use crate::server::session::Session;
use crate::server::state::{Broker, RELEASE};

impl Handler for MetricsRequest {
    const CHANGES_STATE: bool = false;
    const FREQUENT: bool = true;
    type Permit = OperationPermit;

    fn decide(&self, _: &Policy, _: &Requester) -> Result<OperationPermit, Fault> {
        Ok(OperationPermit)
    }

    fn arguments(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

impl Immediate for MetricsRequest {
    fn act(&self, _: &OperationPermit, broker: &Broker, _: &Session) -> Result<Done<Metrics>, Fault> {
        let counters = &broker.counters;
        let totals = broker.accounts.totals();
        let registry = broker.registry.borrow();
        let retained =
            registry.iter_after(ListenerId(0)).filter(|(_, entry)| entry.retained_until.is_some()).count();
        Ok(Done::new(Metrics {
            release: Text::truncated(RELEASE),
            uptime_ms: u64::try_from(broker.uptime().as_millis()).unwrap_or(u64::MAX),
            bounds_us: List::truncated(BOUNDS_US),
            operations: List::truncated(
                OPERATIONS.iter().filter_map(|(kind, name)| counters.of(*kind, name)),
            ),
            quotas: List::truncated(status::quotas(broker)),
            peers: List::truncated(peers(broker)),
            sessions: SessionCounts {
                open: broker.session_count() as u64,
                opened: counters.opened.get(),
                rejected: counters.rejected.get(),
                malformed: counters.malformed.get(),
                delayed: totals.delayed.get(),
            },
            listeners: ListenerCounts {
                held: registry.count() as u64,
                retained: retained as u64,
                limit: registry.capacity() as u64,
                missing: registry.missing() as u64,
            },
            addresses: broker.addresses.as_ref().map(|addresses| addresses.counts()),
            worker: broker.worker_counts(),
            log: LogCounts { suppressed: totals.not_logged.get(), lost: log::dropped() },
            events: broker.events.counts(),
        }))
    }
}

fn peers(broker: &Broker) -> Vec<PeerCounts> {
    let (registry, sessions) = (broker.registry.borrow(), broker.sessions.borrow());
    broker.accounts.map(|account| {
        let of_account = sessions.values().filter(|info| std::ptr::eq(&*info.account, account));
        PeerCounts {
            peer: Text::truncated(&account.peer().to_string()),
            sessions: account.open_sessions(),
            listeners: of_account.map(|info| registry.count_of(info.owner) as u64).sum(),
            refused: account.refusals(),
        }
    })
}
