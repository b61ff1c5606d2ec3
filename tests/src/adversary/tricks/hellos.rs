//! A peer that greets again and again. If each Hello had a line in the log, other lines would be lost.

use portreeve_protocol::Text;
use portreeve_protocol::message::Hello;

use crate::adversary::{Attacker, Trick};

/// See the module.
pub struct Hellos;

impl Trick for Hellos {
    fn attack(&self, attacker: &mut Attacker<'_>) {
        let hello = Hello { client: Text::truncated(&"hostile ".repeat(8)), features: u64::MAX };
        let mut open = None;
        while attacker.next_round() {
            let Some(mut session) = open.take().or_else(|| attacker.connect()) else { continue };
            if (0..200).all(|_| session.send(&hello)) && session.drain(200) == 200 {
                open = Some(session);
            }
        }
    }
}
