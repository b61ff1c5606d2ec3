//! Addresses: added, announced, defended, moved and removed; their leases, their fence and their interfaces.

mod addresses;
mod announcements;
mod clean_slate;
mod cluster;
mod devices;
mod duravip;
mod fence;
mod interfaces;
mod lease_ends;
mod leases;
mod links;
mod many_addresses;
mod moves;
mod orphans;
mod prober;
mod removal;
mod two_hosts;
