//! Requests about listeners and addresses of others.

use portreeve_protocol::List;
use portreeve_protocol::address::AddAddress;
use portreeve_protocol::message::{ListenMany, ListenerId, Stop};

use super::epochs::all_requests;
use crate::adversary::{Attacker, Trick, Who};
use crate::peer::{listen, one_address};

/// How many listeners one request names.
const BATCH: u64 = 253;

/// See the module.
pub struct ForeignObjects;

impl Trick for ForeignObjects {
    fn attack(&self, attacker: &mut Attacker<'_>) {
        let (mut open, mut first) = (None, 0);
        while attacker.next_round() {
            let Some(mut session) = open.take().or_else(|| attacker.session()) else { continue };
            let ids: Vec<ListenerId> = (first..first + BATCH).map(ListenerId).collect();
            first = (first + BATCH) % 4_000;
            let stop = Stop { listeners: List::truncated(ids.clone()) };
            if let Ok((stopped, _)) = session.ask(&stop)
                && stopped.unknown.len() != ids.len()
            {
                attacker.harm(format_args!("{} listeners stopped", ids.len() - stopped.unknown.len()));
            }
            // An IPv6 wildcard overlaps with none of them.
            let held = attacker.targets.endpoints.iter().filter(|endpoint| !endpoint.starts_with('['));
            for endpoint in held.clone() {
                if session.listen(&listen(endpoint)).is_ok() {
                    attacker.harm(format_args!("{endpoint} was granted to two peers"));
                }
            }
            let all = held.map(|endpoint| listen(endpoint));
            let many = ListenMany::truncated(attacker.random.one_in(2), all);
            drop(session.ask(&many));
            // The epoch of the lease, as the victim knows it, and the first address is held.
            let Some(address) = attacker.targets.addresses.first() else { continue };
            if all_requests(&mut session, address, 7).contains(&Some(None)) {
                attacker.harm(format_args!("a request about {address} succeeded"));
            }
            let add = AddAddress { addresses: one_address(address), epoch: 7, ..AddAddress::default() };
            if let Ok((reply, _)) = session.ask(&add)
                && reply.results.iter().any(|result| result.fault().is_none())
            {
                attacker.harm(format_args!("{address} was granted to two peers"));
            }
            open = Some(session);
        }
    }

    fn suits(&self, who: Who) -> bool {
        // Root is allowed to stop each listener; the worker asks for its own endpoints.
        !matches!(who, Who::Root | Who::Worker)
    }
}
