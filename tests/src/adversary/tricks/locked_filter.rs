//! A holder locks the filter of its copy, so that nobody can make the socket drop its packets, and stops the listener.

use crate::adversary::socket_option::{accept_every_packet, detach_filter, lock_filter};
use crate::adversary::{Attacker, Trick};
use crate::peer::listen;

use super::stopped_copy::{Copies, check_stopped, stop};

/// See the module.
pub struct LockedFilter;

impl Trick for LockedFilter {
    fn attack(&self, attacker: &mut Attacker<'_>) {
        let (mut copies, mut open) = (Copies::default(), None);
        while attacker.next_round() {
            let Some(mut session) = open.take().or_else(|| attacker.session()) else { continue };
            let datagrams = if attacker.random.one_in(3) { "/udp" } else { "" };
            let endpoint = attacker.endpoint() + datagrams;
            let Ok((id, copy)) = session.listen(&listen(&endpoint)) else { continue };
            // Each of these may be refused.
            match attacker.random.below(3) {
                0 => _ = accept_every_packet(&copy),
                1 => _ = detach_filter(&copy),
                _ => {}
            }
            let _ = lock_filter(&copy);
            open = stop(attacker, session, id, &endpoint, || check_stopped(attacker, &copy, &endpoint));
            copies.keep(copy);
        }
    }
}
