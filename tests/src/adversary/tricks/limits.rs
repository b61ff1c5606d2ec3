//! Requests for limits beyond the permitted ones, and of resources that do not exist.

use portreeve_protocol::Text;
use portreeve_protocol::limit::{SetLimit, UNLIMITED};

use crate::adversary::{Attacker, Trick, Who};

/// See the module.
pub struct Limits;

impl Trick for Limits {
    fn attack(&self, attacker: &mut Attacker<'_>) {
        let limits = || std::fs::read_to_string(format!("/proc/{}/limits", attacker.targets.broker)).ok();
        let before = limits();
        let mut requests: Vec<SetLimit> = Vec::new();
        for resource in ["nofile", "core", "nproc", "memlock", "rtprio", "as", "", "NOFILE", "\0"] {
            for (soft, hard) in [(Some(UNLIMITED), None), (None, Some(UNLIMITED)), (Some(4_097), Some(4_098))]
            {
                requests.push(SetLimit { resource: Text::truncated(resource), soft, hard });
            }
        }
        let mut open = None;
        while attacker.next_round() {
            let Some(mut session) = open.take().or_else(|| attacker.session()) else { continue };
            for request in &requests {
                if let Ok((limit, _)) = session.ask(request) {
                    attacker.harm(format_args!("{request:?} gave {limit:?}"));
                }
            }
            open = Some(session);
        }
        // The broker may have ended: another took over.
        if limits().is_some_and(|now| before.is_some_and(|before| before != now)) {
            attacker.harm("the broker's own limits have changed");
        }
    }

    fn suits(&self, who: Who) -> bool {
        // Root may be allowed more.
        who != Who::Root
    }
}
