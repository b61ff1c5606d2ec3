//! Requests that policy allows, as many as the broker serves.

use portreeve_protocol::List;
use portreeve_protocol::address::{
    AddAddress, Announce, ListAddresses, RemoveAddress, RenewAddress, RenewAll,
};
use portreeve_protocol::cluster::ClusterRequest;
use portreeve_protocol::message::{ListenMany, ListenerId, Outcome, StatusRequest, Stop};
use portreeve_protocol::metrics::MetricsRequest;
use portreeve_protocol::policy::PolicyRequest;

use crate::adversary::{Attacker, Trick, Who};
use crate::peer::listen;

/// Starts and stops listeners, one at a time and many at once.
pub struct Listeners;

impl Trick for Listeners {
    fn attack(&self, attacker: &mut Attacker<'_>) {
        let mut open = None;
        while attacker.next_round() {
            let Some(mut session) = open.take().or_else(|| attacker.session()) else { continue };
            if let Ok((id, _)) = session.listen(&listen(&attacker.endpoint())) {
                let _ = session.stop(id); // the broker may hold this peer back
            }
            let many = (0..200).map(|_| listen(&attacker.endpoint()));
            let Ok((reply, sockets)) = session.ask(&ListenMany::truncated(false, many)) else {
                continue;
            };
            drop(sockets);
            let ids = reply.results.iter().filter_map(|result| match result {
                Outcome::Done(listening) => Some(listening.id),
                Outcome::Fault(_) => None,
            });
            let ids: Vec<ListenerId> = ids.collect();
            if session.ask(&Stop { listeners: List::truncated(ids) }).is_ok() {
                open = Some(session);
            }
        }
    }
}

/// Adds, renews, announces and removes addresses.
pub struct Addresses;

impl Trick for Addresses {
    fn attack(&self, attacker: &mut Attacker<'_>) {
        let mut open = None;
        while attacker.next_round() {
            let Some(mut session) = open.take().or_else(|| attacker.session()) else { continue };
            let some: Vec<_> = (0..64).map(|number| attacker.address(number)).collect();
            let list = || List::truncated(some.clone());
            let announce = attacker.random.one_in(2);
            let add = AddAddress { addresses: list(), announce, lease: Some(3), ..AddAddress::default() };
            let renew =
                RenewAddress { addresses: list(), lease: Some(3), epoch: 0, ..RenewAddress::default() };
            let all = RenewAll { lease: Some(3), until: None };
            let done = session.ask(&add).is_ok()
                && (0..4).all(|_| session.ask(&renew).is_ok() && session.ask(&all).is_ok())
                && session.ask(&Announce { addresses: list(), epoch: 0 }).is_ok()
                && session.ask(&RemoveAddress { addresses: list(), epoch: 0 }).is_ok();
            if done {
                open = Some(session);
            }
        }
        release_addresses(attacker, 64);
    }
}

/// Removes the first addresses of a peer, in case a session ended before it did.
pub fn release_addresses(attacker: &Attacker<'_>, count: u16) {
    for _ in 0..10 {
        let Some(mut session) = attacker.session() else { continue };
        let all: Vec<_> = (0..count).map(|number| attacker.address(number)).collect();
        let remove = |some: &[_]| RemoveAddress { addresses: List::truncated(some.to_vec()), epoch: 0 };
        if all.chunks(256).all(|some| session.ask(&remove(some)).is_ok()) {
            return;
        }
    }
}

/// Keeps many slow requests in flight: each probes for addresses that no other request names, so none is refused.
pub struct Probes;

/// How many addresses one request names, and how many requests wait in one session.
const PROBED: u16 = 8;
const WAITING: usize = 4;
/// From how many addresses they are taken: an interface has a limit of frames a second.
const OF: u16 = 256;

impl Trick for Probes {
    fn attack(&self, attacker: &mut Attacker<'_>) {
        let mut held: Vec<_> = (0..4).filter_map(|_| Some((attacker.session()?, 0))).collect();
        let mut next = 0;
        while attacker.next_round() {
            for (session, waiting) in &mut held {
                let _ = session.channel.set_nonblocking(true); // it is an open socket
                while *waiting < WAITING {
                    let some = (next..next + PROBED).map(|number| attacker.address(number));
                    let addresses = List::truncated(some);
                    let add = AddAddress { addresses, probes: 3, lease: Some(3), ..AddAddress::default() };
                    if !session.send(&add) {
                        break;
                    }
                    next = (next + PROBED) % OF;
                    *waiting += 1;
                }
                *waiting -= session.drain(*waiting);
                let _ = session.channel.set_nonblocking(false); // it is an open socket
            }
        }
        drop(held);
        release_addresses(attacker, OF);
    }
}

/// Requests every page that it may read.
pub struct Queries;

impl Trick for Queries {
    fn attack(&self, attacker: &mut Attacker<'_>) {
        let mut open = None;
        while attacker.next_round() {
            let Some(mut session) = open.take().or_else(|| attacker.session()) else { continue };
            let sent = (0..8).all(|_| {
                session.send(&StatusRequest { after: 0 })
                    && session.send(&MetricsRequest {})
                    && session.send(&PolicyRequest { after: 0 })
                    && session.send(&ClusterRequest {})
                    && session.send(&ListAddresses { after: None })
            });
            if sent && session.drain(40) == 40 {
                open = Some(session);
            }
        }
    }

    fn suits(&self, who: Who) -> bool {
        // Root's own client is as important as any other of root's.
        who != Who::Root
    }
}
