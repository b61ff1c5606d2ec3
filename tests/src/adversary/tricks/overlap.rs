//! A peer that requests endpoints beside those of others, with the options that let the kernel share a port. All sockets are
//! root's, so the kernel does not refuse them.

use std::time::Duration;

use portreeve_protocol::Text;

use crate::adversary::socket_option::select_one_of_group;
use crate::adversary::{Attacker, Trick, Who};
use crate::peer::listen;

/// See the module.
pub struct Overlap;

impl Trick for Overlap {
    fn attack(&self, attacker: &mut Attacker<'_>) {
        let mut open = None;
        while attacker.next_round() {
            let Some(mut session) = open.take().or_else(|| attacker.session()) else { continue };
            let mut taken = Vec::new();
            for endpoint in attacker.targets.endpoints.iter().filter(|endpoint| !endpoint.starts_with('/')) {
                for device in ["", "lo"] {
                    let mut request = listen(endpoint);
                    request.options.reuse_port = true;
                    request.options.dual_stack = endpoint.starts_with("[::]");
                    request.options.device = Text::truncated(device);
                    if let Ok((id, socket)) = session.listen(&request) {
                        attacker.harm(format_args!("{endpoint} was granted beside another peer's"));
                        let _ = select_one_of_group(&socket); // needs SO_REUSEPORT
                        taken.push((id, socket));
                    }
                }
            }
            if !taken.is_empty() {
                std::thread::sleep(Duration::from_millis(20));
            }
            if taken.into_iter().all(|(id, _)| session.stop(id).is_ok()) {
                open = Some(session);
            }
        }
    }

    fn suits(&self, who: Who) -> bool {
        // The worker asks for its own endpoints.
        who != Who::Worker
    }
}
