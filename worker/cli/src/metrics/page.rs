//! Which metrics there are: one family for each thing that is counted or measured.

use std::fmt::{self, Display};

use portreeve::address::AddressRow;
use portreeve::metrics::{AddressCounts, Metrics, OperationCounts};

use super::text::Text;

/// All of them.
pub fn of(metrics: &Metrics, leases: &[AddressRow]) -> String {
    let mut text = Text::default();
    up(&mut text, true);
    let release = metrics.release.to_string();
    text.family("portreeve_build_info", "gauge", "The broker's release.").sample(&[("release", &release)], 1);
    text.family("portreeve_uptime_seconds", "gauge", "How long the broker serves.")
        .sample(&[], Millis(metrics.uptime_ms));
    requests(&mut text, metrics);
    sessions(&mut text, metrics);
    listeners(&mut text, metrics);
    if let Some(addresses) = &metrics.addresses {
        self::addresses(&mut text, addresses, leases);
    }
    if let Some(worker) = &metrics.worker {
        text.family("portreeve_worker_up", "gauge", "Whether the worker runs.")
            .sample(&[], u8::from(worker.running));
        text.family("portreeve_worker_restarts_total", "counter", "How often the worker was started again.")
            .sample(&[], worker.restarts);
    }
    text.family(
        "portreeve_log_lines_suppressed_total",
        "counter",
        "Log lines about refusals and ends of sessions that were only counted, because there were too many.",
    )
    .sample(&[], metrics.log.suppressed);
    text.family(
        "portreeve_log_lines_lost_total",
        "counter",
        "Log lines that were lost because nobody read them.",
    )
    .sample(&[], metrics.log.lost);
    text.family("portreeve_event_subscribers", "gauge", "Sessions that are told of events.")
        .sample(&[], metrics.events.subscribers);
    text.family(
        "portreeve_events_lost_total",
        "counter",
        "Events that a session was not told of, because it took those before too slowly.",
    )
    .sample(&[], metrics.events.lost);
    peers(&mut text, metrics);
    text.finish()
}

/// What there is to say while no broker answers.
pub fn of_nobody() -> String {
    let mut text = Text::default();
    up(&mut text, false);
    text.finish()
}

fn up(text: &mut Text, up: bool) {
    text.family("portreeve_up", "gauge", "Whether the broker answers.").sample(&[], u8::from(up));
}

fn requests(text: &mut Text, metrics: &Metrics) {
    let mut requests = text.family(
        "portreeve_requests_total",
        "counter",
        "Requests by what became of them; each listener or address of a batch counts.",
    );
    for operation in metrics.operations.iter() {
        let OperationCounts { granted, denied, quota, failed, .. } = *operation;
        let name = operation.name.as_str();
        for (outcome, count) in
            [("granted", granted), ("denied", denied), ("quota", quota), ("failed", failed)]
        {
            requests.sample(&[("operation", name), ("outcome", outcome)], count);
        }
    }
    let mut durations = text.family(
        "portreeve_request_duration_seconds",
        "histogram",
        "How long requests took, from their receipt to their answer; a batch counts once.",
    );
    for operation in metrics.operations.iter() {
        let name = operation.name.as_str();
        let mut sum = 0;
        for (index, count) in operation.latencies.iter().enumerate() {
            sum += count;
            let bound = metrics.bounds_us.get(index).map(|bound| Micros(*bound).to_string());
            let bound = bound.as_deref().unwrap_or("+Inf");
            durations.part("_bucket", &[("operation", name), ("le", bound)], sum);
        }
        durations.part("_sum", &[("operation", name)], Micros(operation.sum_us));
        durations.part("_count", &[("operation", name)], sum);
    }
}

fn sessions(text: &mut Text, metrics: &Metrics) {
    let sessions = &metrics.sessions;
    text.family("portreeve_sessions", "gauge", "Open sessions.").sample(&[], sessions.open);
    text.family("portreeve_sessions_opened_total", "counter", "Sessions that began.")
        .sample(&[], sessions.opened);
    text.family(
        "portreeve_sessions_refused_total",
        "counter",
        "Peers that got no session, because they had as many as they may.",
    )
    .sample(&[], sessions.rejected);
    text.family(
        "portreeve_sessions_malformed_total",
        "counter",
        "Sessions that ended because of a packet that was no request.",
    )
    .sample(&[], sessions.malformed);
    text.family(
        "portreeve_peer_delays_total",
        "counter",
        "How often a peer had to wait, after many refusals or new sessions within a second.",
    )
    .sample(&[], sessions.delayed);
}

fn listeners(text: &mut Text, metrics: &Metrics) {
    let listeners = &metrics.listeners;
    text.family("portreeve_listeners", "gauge", "Listeners that are held.").sample(&[], listeners.held);
    text.family(
        "portreeve_listeners_retained",
        "gauge",
        "Those of them that are kept for a successor of their owner.",
    )
    .sample(&[], listeners.retained);
    text.family("portreeve_listeners_limit", "gauge", "How many listeners the broker can hold.")
        .sample(&[], listeners.limit);
}

fn addresses(text: &mut Text, addresses: &AddressCounts, leases: &[AddressRow]) {
    text.family("portreeve_addresses", "gauge", "Addresses by where they are on their way.")
        .sample(&[("state", "held")], addresses.held)
        .sample(&[("state", "adding")], addresses.adding)
        .sample(&[("state", "missing")], addresses.missing);
    let mut soonest = text.family(
        "portreeve_lease_soonest_end_seconds",
        "gauge",
        "Until the next lease ends, if it is not renewed.",
    );
    if let Some(left) = addresses.next_expiry_ms {
        soonest.sample(&[], Millis(left));
    }
    let mut remaining = text.family(
        "portreeve_lease_remaining_seconds",
        "gauge",
        "Until the lease of an address ends, if it is not renewed.",
    );
    for row in leases {
        let (address, lease) = (row.lease.address.to_string(), &row.lease);
        let labels = [
            ("address", address.as_str()),
            ("interface", lease.interface.as_str()),
            ("holder", row.holder.as_str()),
        ];
        match lease.remaining_ms {
            u64::MAX => remaining.sample(&labels, "+Inf"),
            left => remaining.sample(&labels, Millis(left)),
        };
    }
    text.family("portreeve_lease_renewals_total", "counter", "Leases that were renewed.")
        .sample(&[], addresses.renewals);
    text.family(
        "portreeve_leases_expired_total",
        "counter",
        "Leases that ended because nobody renewed them.",
    )
    .sample(&[], addresses.expired);
    text.family(
        "portreeve_address_conflicts_total",
        "counter",
        "Other hosts that were found to have an address, when it was asked for or while it was held.",
    )
    .sample(&[], addresses.conflicts);
    text.family(
        "portreeve_addresses_put_back_total",
        "counter",
        "Addresses that somebody took away and that were put back.",
    )
    .sample(&[], addresses.restored);
}

fn peers(text: &mut Text, metrics: &Metrics) {
    let mut quotas =
        text.family("portreeve_quota_limit", "gauge", "What each peer may use at most, by option.");
    for quota in metrics.quotas.iter() {
        quotas.sample(&[("option", &quota.name)], quota.limit);
    }
    let mut sessions = text.family("portreeve_peer_sessions", "gauge", "Open sessions of a peer.");
    for peer in metrics.peers.iter() {
        sessions.sample(&[("peer", &peer.peer)], peer.sessions);
    }
    let mut listeners = text.family("portreeve_peer_listeners", "gauge", "Listeners of a peer's sessions.");
    for peer in metrics.peers.iter() {
        listeners.sample(&[("peer", &peer.peer)], peer.listeners);
    }
    let mut refusals = text.family("portreeve_peer_refusals_total", "counter", "What a peer was refused.");
    for peer in metrics.peers.iter() {
        refusals.sample(&[("peer", &peer.peer)], peer.refused);
    }
}

/// Milliseconds, shown as seconds.
struct Millis(u64);

impl Display for Millis {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{:03}", self.0 / 1_000, self.0 % 1_000)
    }
}

/// Microseconds, shown as seconds.
struct Micros(u64);

impl Display for Micros {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000);
        out.write_str(text.trim_end_matches('0').trim_end_matches('.'))
    }
}
