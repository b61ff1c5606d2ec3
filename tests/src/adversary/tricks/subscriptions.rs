//! Peers that subscribe in many sessions, read no event, and cause events.

use portreeve_protocol::List;
use portreeve_protocol::address::{AddAddress, RemoveAddress};
use portreeve_protocol::event::Subscribe;

use super::granted::release_addresses;
use crate::adversary::{Attacker, Trick};

/// How many sessions it keeps.
const SESSIONS: usize = 24;

/// See the module.
pub struct Subscriptions;

impl Trick for Subscriptions {
    fn attack(&self, attacker: &mut Attacker<'_>) {
        let (mut held, mut open) = (Vec::new(), None);
        while attacker.next_round() {
            if held.len() < SESSIONS
                && let Some(session) = attacker.session()
            {
                held.push(session);
            }
            for session in &mut held {
                let _ = session.channel.set_nonblocking(true); // it is an open socket
                let follow = attacker.random.one_in(2);
                session.send(&Subscribe { follow, all: follow });
                session.send(&Subscribe { follow: true, all: true });
                let _ = session.channel.set_nonblocking(false);
            }
            let Some(mut session) = open.take().or_else(|| attacker.session()) else { continue };
            let addresses: Vec<_> = (0..16).map(|number| attacker.address(number)).collect();
            let add = AddAddress {
                addresses: List::truncated(addresses.clone()),
                lease: Some(3),
                ..AddAddress::default()
            };
            let remove = RemoveAddress { addresses: List::truncated(addresses), epoch: 0 };
            if session.ask(&add).is_ok() && session.ask(&remove).is_ok() {
                open = Some(session);
            }
        }
        release_addresses(attacker, 16);
    }
}
