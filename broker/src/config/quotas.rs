//! Quotas of each peer: options of the `broker` scope.

use std::time::Duration;

use super::reader::Reader;
use crate::holder::Holder;

/// The default of `max_addresses` for a user other than root.
const USER_ADDRESSES: u32 = 4_096;

/// The limits of each peer. All sessions of one user count together; the worker is a peer of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quotas {
    /// Concurrent sessions.
    pub sessions: u32,
    /// New sessions per second; further ones wait.
    pub new_sessions: u32,
    /// Requests per second; further ones wait. Does not apply to the worker and root.
    pub requests: u32,
    /// Concurrent listeners.
    pub listeners: u32,
    /// Concurrent addresses; `None` for the defaults, which depend on the peer: see [`Quotas::addresses_of`].
    pub addresses: Option<u32>,
    /// Requests in flight; a further one gets the fault `busy`.
    pub in_flight: u32,
    /// Refused requests per second; beyond that the peer's next reply is delayed. Does not apply to the worker.
    pub refusals: u32,
    /// Log lines per second about requests that change nothing and about ended sessions; further ones are counted in one line.
    pub lines: u32,
    /// How long the peer may leave a reply unread, or take to send Hello.
    pub unread_timeout: Duration,
}

impl Default for Quotas {
    fn default() -> Self {
        Quotas {
            sessions: 64,
            new_sessions: 200,
            requests: 1_000,
            listeners: 16_384,
            addresses: None,
            in_flight: 256,
            refusals: 50,
            lines: 20,
            unread_timeout: Duration::from_secs(30),
        }
    }
}

impl Quotas {
    /// How many addresses a holder may have. Without a configured number, the worker, root and the coordinator may have all
    /// that the table of leases allows them.
    pub fn addresses_of(&self, holder: Holder, is_coordinator: bool) -> usize {
        let default = match holder {
            Holder::Worker | Holder::ROOT => None,
            Holder::User(_) => (!is_coordinator).then_some(USER_ADDRESSES),
        };
        self.addresses.or(default).and_then(|max| usize::try_from(max).ok()).unwrap_or(usize::MAX)
    }

    /// Each value by its option's name, in the option's unit.
    pub fn named(&self) -> [(&'static str, u64); 9] {
        // Destructured in full, so that no quota is forgotten.
        let Quotas {
            sessions,
            new_sessions,
            requests,
            listeners,
            addresses,
            in_flight,
            refusals,
            lines,
            unread_timeout,
        } = *self;
        [
            ("max_sessions", sessions.into()),
            ("max_new_sessions", new_sessions.into()),
            ("max_requests", requests.into()),
            ("max_listeners", listeners.into()),
            ("max_addresses", addresses.unwrap_or(USER_ADDRESSES).into()),
            ("max_in_flight", in_flight.into()),
            ("max_refusals", refusals.into()),
            ("max_log_lines", lines.into()),
            ("unread_timeout", unread_timeout.as_secs()),
        ]
    }

    pub(super) fn read(reader: &mut Reader<'_, '_>) -> Self {
        let default = Quotas::default();
        Quotas {
            sessions: reader.number("max_sessions", 1..=256).unwrap_or(default.sessions),
            new_sessions: reader.number("max_new_sessions", 1..=100_000).unwrap_or(default.new_sessions),
            requests: reader.number("max_requests", 1..=1_000_000).unwrap_or(default.requests),
            listeners: reader.number("max_listeners", 1..=1_000_000).unwrap_or(default.listeners),
            addresses: reader.number("max_addresses", 1..=10_240).or(default.addresses),
            in_flight: reader.number("max_in_flight", 1..=65_536).unwrap_or(default.in_flight),
            refusals: reader.number("max_refusals", 1..=100_000).unwrap_or(default.refusals),
            lines: reader.number("max_log_lines", 1..=100_000).unwrap_or(default.lines),
            unread_timeout: reader.seconds("unread_timeout", 1..=3_600).unwrap_or(default.unread_timeout),
        }
    }
}
