//! The addresses of a configuration that comes into force: those that nobody may have any more.

use portreeve_protocol::address::Removed;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::rc::Rc;

use super::report::{APPLIED, CLOSED, FAILED, KEPT, NEEDS_RESTART, Row};
use crate::address::{Addresses, FloatingListeners as _};
use crate::config::{Config, OnNarrow};
use crate::holder::Holder;
use crate::plan;
use crate::policy::{Policy, Requester};
use crate::server::state::Broker;

/// Puts the settings of the addresses in force, and stops or keeps what the policy, in force by now, does not permit.
pub(super) fn settle(broker: &Broker, config: &Config, rows: &mut Vec<Row>) {
    let Some(addresses) = &broker.addresses else {
        if plan::names_addresses(config) && !broker.reloading.fixed.started.addresses {
            let why = "the broker was started without the capability or the sockets for them";
            rows.push(Row::new(NEEDS_RESTART, "addresses", why));
        }
        return;
    };
    addresses.apply_settings(plan::address_settings(config));
    let outside = outside(broker, &broker.policy.borrow());
    late_followers(broker, rows);
    if config.broker.on_narrow == OnNarrow::Keep {
        rows.extend(outside.iter().map(|(address, holder)| {
            Row::new(KEPT, format!("address {address}"), format!("{holder}'s, and nothing permits it now"))
        }));
        return;
    }
    for (address, holder) in outside {
        tracing::warn!(%address, %holder, "nothing permits this address now: removing it");
        broker.stop(&[address]);
        let what = format!("address {address}");
        for outcome in addresses.remove(&[address]) {
            rows.push(match outcome {
                Ok(Removed { .. }) => {
                    Row::new(CLOSED, &what, format!("{holder}'s, and nothing permits it now"))
                }
                Err(fault) => Row::new(FAILED, &what, fault.to_string()),
            });
        }
    }
}

/// Says which addresses follow one that is here already and are not here themselves.
fn late_followers(broker: &Broker, rows: &mut Vec<Row>) {
    let (here, policy) = (held(broker), broker.policy.borrow());
    for leader in &here {
        for own in policy.followers(*leader).iter().filter(|own| !here.contains(own)) {
            let detail =
                format!("it follows {leader} from now on, and comes when that is added the next time");
            rows.push(Row::new(APPLIED, format!("address {own}"), detail));
        }
    }
}

/// The addresses that the broker has on interfaces.
fn held(broker: &Broker) -> BTreeSet<IpAddr> {
    let of = |addresses: &Rc<Addresses>| {
        addresses.leases_after(None, |leases| {
            leases.filter(|lease| lease.is_held()).map(|lease| lease.placement.address).collect()
        })
    };
    broker.addresses.as_ref().map(of).unwrap_or_default()
}

/// Those that stay when a policy comes into force.
pub(super) fn staying(broker: &Broker, policy: &Policy, on_narrow: OnNarrow) -> BTreeSet<IpAddr> {
    let mut here = held(broker);
    if on_narrow == OnNarrow::Close {
        let outside: BTreeSet<IpAddr> =
            outside(broker, policy).into_iter().map(|(address, _)| address).collect();
        here.retain(|address| !outside.contains(address));
    }
    here
}

/// The addresses whose holder may not have them. Of a user who has no session open the groups are not known, so its
/// addresses are left to their leases.
fn outside(broker: &Broker, policy: &Policy) -> Vec<(IpAddr, Holder)> {
    let Some(addresses) = &broker.addresses else {
        return Vec::new();
    };
    let root = Requester::Local { uid: 0, gids: Vec::new() };
    let may = |holder: Holder, address: IpAddr| match holder {
        Holder::Worker => policy.may_come(&Requester::Worker, address),
        Holder::User(user) => {
            let sessions = broker.sessions.borrow();
            let mut theirs = sessions.values().filter_map(|info| match &info.requester {
                Requester::Local { uid, .. } if *uid == user => Some(&info.requester),
                _ => None,
            });
            let first = theirs.next();
            first
                .or((user == 0).then_some(&root))
                .is_none_or(|who| std::iter::once(who).chain(theirs).any(|who| policy.may_come(who, address)))
        }
    };
    addresses.leases_after(None, |leases| {
        leases
            .map(|lease| (lease.placement.address, lease.holder))
            .filter(|(address, holder)| !may(*holder, *address))
            .collect()
    })
}
