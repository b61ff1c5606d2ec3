//! Peers that try to replace the broker, to get its sockets, or to make it read its configuration.

use portreeve_protocol::reload::Reload;
use portreeve_protocol::takeover::{Begin, Commit, NextBatch, Takeover};

use crate::adversary::{Attacker, Trick, Who};

/// See the module.
pub struct TakeoverAttempts;

impl Trick for TakeoverAttempts {
    fn attack(&self, attacker: &mut Attacker<'_>) {
        let mut open = None;
        while attacker.next_round() {
            let Some(mut session) = open.take().or_else(|| attacker.session()) else { continue };
            for request in [
                Takeover::Begin(Begin { oldest: 0, newest: u16::MAX }),
                Takeover::NextBatch(NextBatch {}),
                Takeover::Commit(Commit {}),
            ] {
                if let Ok((reply, sockets)) = session.ask(&request) {
                    attacker.harm(format_args!("the broker exports {} sockets: {reply:?}", sockets.len()));
                }
            }
            if let Ok((reloaded, _)) = session.ask(&Reload::default()) {
                attacker.harm(format_args!("the broker reloads: {reloaded:?}"));
            }
            if attacker.random.one_in(2) {
                open = Some(session);
            }
        }
    }

    fn suits(&self, who: Who) -> bool {
        !matches!(who, Who::Root | Who::Worker)
    }
}
