//! A peer that requests long replies and reads none.

use portreeve_protocol::message::{Ping, StatusRequest};
use portreeve_protocol::metrics::MetricsRequest;
use portreeve_protocol::policy::PolicyRequest;

use crate::adversary::{Attacker, Trick};

/// How many sessions it keeps.
const SESSIONS: usize = 16;

/// See the module.
pub struct UnreadReplies;

impl Trick for UnreadReplies {
    fn attack(&self, attacker: &mut Attacker<'_>) {
        let mut held = Vec::new();
        while attacker.next_round() {
            if held.len() < SESSIONS
                && let Some(session) = attacker.session()
            {
                let _ = session.channel.set_nonblocking(true); // it is an open socket
                held.push(session);
            }
            for session in &mut held {
                for _ in 0..64 {
                    let sent = match attacker.random.below(4) {
                        0 => session.send(&StatusRequest { after: 0 }),
                        1 => session.send(&MetricsRequest {}),
                        2 => session.send(&PolicyRequest { after: 0 }),
                        _ => session.send(&Ping {}),
                    };
                    if !sent {
                        break;
                    }
                }
            }
        }
        // The worker's channel is shared with the next trick.
        held.iter().for_each(|session| _ = session.channel.set_nonblocking(false));
    }
}
