//! Peers that hold as many listeners and addresses as they get.

use portreeve_protocol::List;
use portreeve_protocol::address::AddAddress;
use portreeve_protocol::message::ListenMany;

use super::granted::release_addresses;
use crate::adversary::attacker::ADDRESSES;
use crate::adversary::{Attacker, Trick, Who};
use crate::peer::listen;

/// Fills the table of listeners.
pub struct ManyListeners;

impl Trick for ManyListeners {
    fn attack(&self, attacker: &mut Attacker<'_>) {
        let (mut open, mut next) = (attacker.session(), 0_u32);
        let who = attacker.who.number();
        while attacker.next_round() {
            let Some(session) = &mut open else {
                open = attacker.session();
                continue;
            };
            let endpoint = |number: u32| {
                let (block, last) = (number / 250, number % 250 + 1);
                listen(&format!("127.{}.{block}.{last}:{}", who + 1, attacker.targets.ports))
            };
            let some = (next..next + 200).map(endpoint);
            // The sockets are closed at once: the broker's registry holds them.
            match session.ask(&ListenMany::truncated(false, some)) {
                Ok((reply, _)) if reply.results.iter().any(|result| result.fault().is_none()) => next += 200,
                Ok(_) => attacker.hold(),
                Err(_) => open = None,
            }
        }
    }

    fn suits(&self, who: Who) -> bool {
        // The broker reserves a part of its table for the worker and root.
        !matches!(who, Who::Worker | Who::Root)
    }
}

/// Fills the table of addresses.
pub struct ManyAddresses;

impl Trick for ManyAddresses {
    fn attack(&self, attacker: &mut Attacker<'_>) {
        let (mut open, mut next) = (attacker.session(), 0);
        while attacker.next_round() {
            let Some(session) = &mut open else {
                open = attacker.session();
                continue;
            };
            let some = List::truncated((next..next + 256).map(|number| attacker.address(number)));
            let add = AddAddress { addresses: some, lease: Some(10), ..AddAddress::default() };
            match session.ask(&add) {
                Ok(_) if next + 512 <= ADDRESSES => next += 256,
                Ok(_) => attacker.hold(),
                Err(_) => open = None,
            }
        }
        drop(open);
        release_addresses(attacker, next + 256);
    }

    fn suits(&self, who: Who) -> bool {
        !matches!(who, Who::Worker | Who::Root)
    }
}
