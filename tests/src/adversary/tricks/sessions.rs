//! Peers that open as many sessions as they can.

use crate::adversary::{Attacker, Trick, Who};

/// More sessions than one peer can have.
const SESSIONS: usize = 300;

/// Opens sessions until the broker refuses them, some without a Hello, and keeps them.
pub struct FullTable;

impl Trick for FullTable {
    fn attack(&self, attacker: &mut Attacker<'_>) {
        let mut held = Vec::new();
        while attacker.next_round() {
            while held.len() < SESSIONS && !attacker.is_over() {
                let session = if held.len() % 2 == 0 { attacker.connect() } else { attacker.session() };
                let Some(session) = session else { break };
                held.push(session);
            }
        }
    }

    fn suits(&self, who: Who) -> bool {
        // The worker has one channel, and root would only refuse itself.
        !matches!(who, Who::Worker | Who::Root)
    }
}

/// Connects and disconnects as fast as it can.
pub struct ShortConnections;

impl Trick for ShortConnections {
    fn attack(&self, attacker: &mut Attacker<'_>) {
        while attacker.next_round() {
            let some: Vec<_> = (0..attacker.random.below(32)).map_while(|_| attacker.connect()).collect();
            if attacker.random.one_in(2) {
                some.iter().for_each(|session| _ = session.send_bytes(b"PRTV"));
            }
        }
    }

    fn suits(&self, who: Who) -> bool {
        !matches!(who, Who::Worker | Who::Root)
    }
}
