//! Requests that no rule allows, with and without a number.

use portreeve_protocol::message::ListenMany;

use crate::adversary::{Attacker, Trick};
use crate::peer::listen;

/// See the module.
pub struct Refusals;

impl Trick for Refusals {
    fn attack(&self, attacker: &mut Attacker<'_>) {
        let refused = |port| listen(&format!("192.0.2.1:{port}"));
        let many = ListenMany::truncated(false, (1..=253).map(refused));
        let mut open = None;
        while attacker.next_round() {
            let Some(mut session) = open.take().or_else(|| attacker.session()) else { continue };
            let _ = session.channel.set_nonblocking(true); // it is an open socket
            for port in 1..=32 {
                session.send(&refused(port));
                session.send_numbered(0, &refused(port));
            }
            session.send(&many);
            session.drain(40);
            let _ = session.channel.set_nonblocking(false);
            open = (!attacker.random.one_in(8)).then_some(session);
        }
    }
}
