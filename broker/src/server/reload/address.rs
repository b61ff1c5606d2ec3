//! Reloading the addresses: their settings, and those that the new policy no longer permits to their holders.

use portreeve_protocol::address::Removal;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::rc::Rc;

use super::report::{APPLIED, CLOSED, FAILED, KEPT, NEEDS_RESTART, Row};
use crate::address::{Addresses, FloatingListeners as _};
use crate::config::{Config, OnNarrow};
use crate::holder::Holder;
use crate::log;
use crate::plan;
use crate::policy::{Policy, Requester};
use crate::server::state::Broker;

/// Applies the settings of addresses, and removes or keeps the addresses that the new policy, already in force, does not
/// permit.
pub(super) fn apply(broker: &Broker, config: &Config, rows: &mut Vec<Row>) {
    let Some(addresses) = &broker.addresses else {
        if plan::names_addresses(config) && !broker.reloading.fixed.started.addresses {
            let detail = "the broker was started without the capability or the sockets for them";
            rows.push(Row::new(NEEDS_RESTART, "addresses", detail));
        }
        return;
    };
    addresses.apply_settings(plan::address_settings(config));
    let not_permitted = not_permitted(broker, &broker.policy.borrow());
    report_new_followers(broker, rows);
    if config.broker.on_narrow == OnNarrow::Keep {
        rows.extend(not_permitted.iter().map(|(address, holder)| {
            Row::new(KEPT, format!("address {address}"), format!("held by {holder}, no longer permitted"))
        }));
        return;
    }
    for (address, holder) in not_permitted {
        tracing::warn!(%address, holder = %log::named(holder), "an address is no longer permitted to its holder: removing it");
        broker.stop(&[address]);
        let subject = format!("address {address}");
        for outcome in addresses.remove(&[address]) {
            rows.push(match outcome {
                Ok(Removal { .. }) => {
                    Row::new(CLOSED, &subject, format!("held by {holder}, no longer permitted"))
                }
                Err(fault) => Row::new(FAILED, &subject, fault.to_string()),
            });
        }
    }
}

/// Reports the addresses that now follow an existing one and are not on this host yet.
fn report_new_followers(broker: &Broker, rows: &mut Vec<Row>) {
    let (present, policy) = (present(broker), broker.policy.borrow());
    for leader in &present {
        for follower in policy.followers(*leader).iter().filter(|follower| !present.contains(follower)) {
            let detail = format!("follows {leader} from now on, and is added with it the next time");
            rows.push(Row::new(APPLIED, format!("address {follower}"), detail));
        }
    }
}

/// The broker's addresses that are on interfaces.
fn present(broker: &Broker) -> BTreeSet<IpAddr> {
    let held_addresses = |addresses: &Rc<Addresses>| {
        addresses.leases_after(None, |leases| {
            leases.filter(|lease| lease.is_held()).map(|lease| lease.placement.address).collect()
        })
    };
    broker.addresses.as_ref().map(held_addresses).unwrap_or_default()
}

/// The addresses that stay when a policy comes into force.
pub(super) fn remaining(broker: &Broker, policy: &Policy, on_narrow: OnNarrow) -> BTreeSet<IpAddr> {
    let mut remaining = present(broker);
    if on_narrow == OnNarrow::Close {
        let not_permitted: BTreeSet<IpAddr> =
            not_permitted(broker, policy).into_iter().map(|(address, _)| address).collect();
        remaining.retain(|address| !not_permitted.contains(address));
    }
    remaining
}

/// The addresses that a policy does not permit to their holders. The groups of a user without a session are not known, so
/// that user's addresses stay until their leases expire.
fn not_permitted(broker: &Broker, policy: &Policy) -> Vec<(IpAddr, Holder)> {
    let Some(addresses) = &broker.addresses else {
        return Vec::new();
    };
    let root = Requester::Local { uid: 0, gids: Vec::new() };
    let is_permitted = |holder: Holder, address: IpAddr| match holder {
        Holder::Worker => policy.allows_address(&Requester::Worker, address),
        Holder::User(user) => {
            let sessions = broker.sessions.borrow();
            let mut requesters = sessions.values().filter_map(|info| match &info.requester {
                Requester::Local { uid, .. } if *uid == user => Some(&info.requester),
                _ => None,
            });
            let first = requesters.next();
            first.or((user == 0).then_some(&root)).is_none_or(|requester| {
                std::iter::once(requester)
                    .chain(requesters)
                    .any(|requester| policy.allows_address(requester, address))
            })
        }
    };
    addresses.leases_after(None, |leases| {
        leases
            .map(|lease| (lease.placement.address, lease.holder))
            .filter(|(address, holder)| !is_permitted(*holder, *address))
            .collect()
    })
}
