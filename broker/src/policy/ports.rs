//! The TCP ports of a configuration, merged into as few ranges as possible.

use std::ops::RangeInclusive;

use portreeve_protocol::Endpoint;

use crate::config::{Config, ListenPattern};

/// Every TCP port that a listener or permit names, as [`merged_ports`] ranges.
pub(super) fn tcp(config: &Config) -> Vec<RangeInclusive<u16>> {
    let listeners = config.listeners.iter().filter_map(|listener| match &listener.endpoint.value {
        Endpoint::Tcp(inet) => Some(inet.port..=inet.port),
        _ => None,
    });
    let permits = config.broker.permits.iter().flat_map(|permit| &permit.listen);
    let patterns = permits.filter_map(|pattern| match &pattern.value {
        ListenPattern::Inet { udp: false, ports, .. } => Some(ports.clone()),
        _ => None,
    });
    merged_ports(listeners.chain(patterns).collect())
}

/// The ports of these ranges, each once and in order; adjacent and overlapping ranges are merged.
pub fn merged_ports(mut ranges: Vec<RangeInclusive<u16>>) -> Vec<RangeInclusive<u16>> {
    ranges.sort_by_key(|range| *range.start());
    let mut merged: Vec<RangeInclusive<u16>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if *range.start() <= last.end().saturating_add(1) => {
                *last = *last.start()..=*last.end().max(range.end());
            }
            _ => merged.push(range),
        }
    }
    merged
}
