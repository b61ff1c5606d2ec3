//! Floating addresses and address settings of a configuration.

use portreeve_protocol::Text;

use crate::address::{AddSpec, Settings};
use crate::config::Config;
use crate::sys::rtnl::SourceUse;

/// Whether the configuration manages any address or interface.
pub fn names_addresses(config: &Config) -> bool {
    let mut permits = config.broker.permits.iter();
    permits.any(|permit| !permit.address.is_empty() || !permit.interface.is_empty())
        || config.floating_addresses().next().is_some()
}

/// The configured floating addresses with the interface that the topology names.
pub fn floating(config: &Config) -> Vec<AddSpec> {
    let spec = |address| {
        let block = config.cluster.block_of(address)?;
        let interface = Text::truncated(&block.interface.value);
        Some(AddSpec { address, interface, prefix: block.mask, follows: None })
    };
    config.floating_addresses().filter_map(|(address, _)| spec(address)).collect()
}

/// The settings for address management.
pub fn address_settings(config: &Config) -> Settings {
    Settings {
        default_lease: u32::try_from(config.broker.lease.as_secs()).unwrap_or(u32::MAX),
        restore_limit: config.cluster.if_down_limit,
        reconcile_interval: config.cluster.if_check_interval,
        broadcast: config.cluster.arp_all_hosts,
        source: if config.cluster.ipv6_as_source { SourceUse::Allowed } else { SourceUse::Never },
    }
}
