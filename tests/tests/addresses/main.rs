//! Addresses: added, announced, defended, moved and removed; their leases, their fence and their interfaces.

mod addresses;
mod announcements;
mod cluster;
mod conflicts;
mod deadlines;
mod devices;
mod dropped_leases;
mod duravip;
mod epochs;
mod fence;
mod hold;
mod host_state;
mod interface_changes;
mod killed_owners;
mod lease_expiry;
mod leases;
mod links;
mod many_addresses;
mod moves_between_hosts;
mod moves_between_interfaces;
mod packet_filter_flushes;
mod removal;
mod renew_all;
mod second_broker;
mod silence_after_expiry;
mod stray_addresses;
