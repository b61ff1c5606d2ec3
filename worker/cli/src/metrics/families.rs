//! The metric families: one for each thing that the broker counts or measures.

use std::fmt::{self, Display};

use portreeve::address::AddressRow;
use portreeve::metrics::{AddressCounts, Metrics, OperationCounts};

use super::exposition::Text;

/// The page of all families.
pub fn page(metrics: &Metrics, leases: &[AddressRow]) -> String {
    let mut text = Text::default();
    up(&mut text, true);
    let release = metrics.release.to_string();
    text.family("portreeve_build_info", "gauge", "The broker's release.").sample(&[("release", &release)], 1);
    text.family("portreeve_uptime_seconds", "gauge", "Time since the broker started to serve.")
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
        text.family("portreeve_worker_restarts_total", "counter", "Restarts of the worker.")
            .sample(&[], worker.restarts);
    }
    text.family(
        "portreeve_log_lines_suppressed_total",
        "counter",
        "Log lines about requests that changed nothing and ended sessions that were counted instead of written, because there were too many.",
    )
    .sample(&[], metrics.log.suppressed);
    text.family(
        "portreeve_log_lines_lost_total",
        "counter",
        "Log lines lost because they were not read in time.",
    )
    .sample(&[], metrics.log.lost);
    text.family("portreeve_event_subscribers", "gauge", "Sessions that subscribe to events.")
        .sample(&[], metrics.events.subscribers);
    text.family(
        "portreeve_events_lost_total",
        "counter",
        "Events that a session lost because it took earlier ones too slowly.",
    )
    .sample(&[], metrics.events.lost);
    peers(&mut text, metrics);
    text.finish()
}

/// The page while no broker replies.
pub fn page_without_broker() -> String {
    let mut text = Text::default();
    up(&mut text, false);
    text.finish()
}

fn up(text: &mut Text, up: bool) {
    text.family("portreeve_up", "gauge", "Whether the broker replies.").sample(&[], u8::from(up));
}

fn requests(text: &mut Text, metrics: &Metrics) {
    let mut requests = text.family(
        "portreeve_requests_total",
        "counter",
        "Requests by outcome; each listener or address of a batch counts.",
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
        "Duration of requests from receipt to reply; a batch counts once.",
    );
    for operation in metrics.operations.iter() {
        let name = operation.name.as_str();
        let mut sum = 0;
        for (index, count) in operation.latencies.iter().enumerate() {
            sum += count;
            let bound = metrics.bounds_us.get(index).map(|bound| Micros(*bound).to_string());
            let bound = bound.as_deref().unwrap_or("+Inf");
            durations.suffixed("_bucket", &[("operation", name), ("le", bound)], sum);
        }
        durations.suffixed("_sum", &[("operation", name)], Micros(operation.sum_us));
        durations.suffixed("_count", &[("operation", name)], sum);
    }
}

fn sessions(text: &mut Text, metrics: &Metrics) {
    let sessions = &metrics.sessions;
    text.family("portreeve_sessions", "gauge", "Open sessions.").sample(&[], sessions.open);
    text.family("portreeve_sessions_opened_total", "counter", "Sessions opened.")
        .sample(&[], sessions.opened);
    text.family(
        "portreeve_sessions_refused_total",
        "counter",
        "Connections refused because the peer had its maximum number of sessions.",
    )
    .sample(&[], sessions.rejected);
    text.family(
        "portreeve_sessions_malformed_total",
        "counter",
        "Sessions ended because of a malformed packet.",
    )
    .sample(&[], sessions.malformed);
    text.family(
        "portreeve_peer_delays_total",
        "counter",
        "Delays of a peer after many requests, refusals or new sessions within a second, or because of other descriptors in flight.",
    )
    .sample(&[], sessions.delayed);
}

fn listeners(text: &mut Text, metrics: &Metrics) {
    let listeners = &metrics.listeners;
    text.family("portreeve_listeners", "gauge", "Listeners held.").sample(&[], listeners.held);
    text.family(
        "portreeve_listeners_retained",
        "gauge",
        "Listeners retained for the next session of their owner.",
    )
    .sample(&[], listeners.retained);
    text.family("portreeve_listeners_limit", "gauge", "Maximum number of listeners of the broker.")
        .sample(&[], listeners.limit);
    text.family(
        "portreeve_listeners_missing",
        "gauge",
        "Optional listeners that are not open, and listeners without their interface.",
    )
    .sample(&[], listeners.missing);
}

fn addresses(text: &mut Text, addresses: &AddressCounts, leases: &[AddressRow]) {
    text.family("portreeve_addresses", "gauge", "Addresses by state.")
        .sample(&[("state", "held")], addresses.held)
        .sample(&[("state", "adding")], addresses.adding)
        .sample(&[("state", "missing")], addresses.missing);
    let mut soonest = text.family(
        "portreeve_lease_soonest_end_seconds",
        "gauge",
        "Time until the next lease ends if it is not renewed.",
    );
    if let Some(remaining) = addresses.next_expiry_ms {
        soonest.sample(&[], Millis(remaining));
    }
    let mut remaining = text.family(
        "portreeve_lease_remaining_seconds",
        "gauge",
        "Time until the lease of an address ends if it is not renewed.",
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
            milliseconds => remaining.sample(&labels, Millis(milliseconds)),
        };
    }
    text.family("portreeve_lease_renewals_total", "counter", "Renewals of leases.")
        .sample(&[], addresses.renewals);
    text.family(
        "portreeve_leases_expired_total",
        "counter",
        "Leases that ended because they were not renewed.",
    )
    .sample(&[], addresses.expired);
    text.family(
        "portreeve_address_conflicts_total",
        "counter",
        "Other hosts found to have an address, when it was requested or while it was held.",
    )
    .sample(&[], addresses.conflicts);
    text.family("portreeve_addresses_put_back_total", "counter", "Missing addresses that were added again.")
        .sample(&[], addresses.restored);
    text.family(
        "portreeve_fence_repairs_total",
        "counter",
        "Times that the fence was built again after another program had removed parts of it.",
    )
    .sample(&[], addresses.fence_repairs);
}

fn peers(text: &mut Text, metrics: &Metrics) {
    let mut quotas = text.family("portreeve_quota_limit", "gauge", "Limit of each peer, by option.");
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
    let mut refusals = text.family("portreeve_peer_refusals_total", "counter", "Refused requests of a peer.");
    for peer in metrics.peers.iter() {
        refusals.sample(&[("peer", &peer.peer)], peer.refused);
    }
}

/// Milliseconds, shown as seconds.
pub struct Millis(pub u64);

impl Display for Millis {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{:03}", self.0 / 1_000, self.0 % 1_000)
    }
}

/// Microseconds, shown as seconds.
pub struct Micros(pub u64);

impl Display for Micros {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000);
        out.write_str(text.trim_end_matches('0').trim_end_matches('.'))
    }
}
