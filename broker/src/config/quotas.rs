//! How much one peer may use up: options of the `broker` scope.

use std::time::Duration;

use super::reader::Reader;

/// What each peer may use at most. All sessions of one user count together; the worker is a peer of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quotas {
    /// Sessions that are open at once.
    pub sessions: u32,
    /// Sessions begun in a second; more than that wait to be served.
    pub new_sessions: u32,
    /// Listeners held at once.
    pub listeners: u32,
    /// Addresses held at once.
    pub addresses: u32,
    /// Requests of one session that are carried out at once; one more is told to come later.
    pub in_flight: u32,
    /// Refused requests in a second; after more than that the peer waits for its next answer. Never the worker.
    pub refusals: u32,
    /// Lines in the log a second about refusals and ends of sessions; what is more is counted in one line.
    pub lines: u32,
    /// How long a reply may be left unread, and a session without its hello.
    pub unread_timeout: Duration,
}

impl Default for Quotas {
    fn default() -> Self {
        Quotas {
            sessions: 64,
            new_sessions: 200,
            listeners: 16_384,
            addresses: 10_240,
            in_flight: 256,
            refusals: 50,
            lines: 20,
            unread_timeout: Duration::from_secs(30),
        }
    }
}

impl Quotas {
    /// Each by the name of its option, in the option's own unit.
    pub fn named(&self) -> [(&'static str, u64); 8] {
        [
            ("max_sessions", self.sessions.into()),
            ("max_new_sessions", self.new_sessions.into()),
            ("max_listeners", self.listeners.into()),
            ("max_addresses", self.addresses.into()),
            ("max_in_flight", self.in_flight.into()),
            ("max_refusals", self.refusals.into()),
            ("max_log_lines", self.lines.into()),
            ("unread_timeout", self.unread_timeout.as_secs()),
        ]
    }

    pub(super) fn read(reader: &mut Reader<'_, '_>) -> Self {
        let default = Quotas::default();
        Quotas {
            sessions: reader.number("max_sessions", 1..=256).unwrap_or(default.sessions),
            new_sessions: reader.number("max_new_sessions", 1..=100_000).unwrap_or(default.new_sessions),
            listeners: reader.number("max_listeners", 1..=1_000_000).unwrap_or(default.listeners),
            addresses: reader.number("max_addresses", 1..=10_240).unwrap_or(default.addresses),
            in_flight: reader.number("max_in_flight", 1..=65_536).unwrap_or(default.in_flight),
            refusals: reader.number("max_refusals", 1..=100_000).unwrap_or(default.refusals),
            lines: reader.number("max_log_lines", 1..=100_000).unwrap_or(default.lines),
            unread_timeout: reader.seconds("unread_timeout", 1..=3_600).unwrap_or(default.unread_timeout),
        }
    }
}
