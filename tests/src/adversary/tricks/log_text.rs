//! Text that tries to forge fields and lines of the log.

use portreeve_protocol::Text;
use portreeve_protocol::address::{MoveAddress, SetLink};
use portreeve_protocol::endpoint::Endpoint;
use portreeve_protocol::limit::SetLimit;
use portreeve_protocol::message::{Listen, ListenOptions};

use crate::adversary::attacker::path;
use crate::adversary::{Attacker, Trick, log_reader::FORGED};
use crate::peer::one_address;

/// See the module.
pub struct LogText;

fn texts() -> Vec<String> {
    [" ", "\" ", "\\\" ", "\n", "\u{2028}", "\u{202e}", "\u{85}", "\u{1b}[2K", "' ", "} ", "\t"]
        .iter()
        .map(|separator| format!("x{separator}{FORGED}=1"))
        .collect()
}

impl Trick for LogText {
    fn attack(&self, attacker: &mut Attacker<'_>) {
        let (texts, mut next) = (texts(), 0);
        while attacker.next_round() {
            let text = &texts[next % texts.len()];
            next += 1;
            let Some(mut session) = attacker.connect() else { continue };
            if session.hello(text).is_err() && attacker.who != crate::adversary::Who::Worker {
                continue;
            }
            let permitted = path(attacker.targets, format!("{}{text}", attacker.who.number()));
            for place in [permitted, format!("/nowhere/{text}")] {
                let endpoint = Endpoint::UnixStream(Text::truncated(&place));
                if let Ok((id, _)) = session.listen(&Listen::new(endpoint, ListenOptions::default())) {
                    let _ = session.stop(id); // the broker may hold this peer back
                }
            }
            let short = Text::truncated(text);
            let options = ListenOptions { device: short.clone(), ..ListenOptions::default() };
            let endpoint = attacker.endpoint().parse().unwrap();
            let moved = MoveAddress {
                addresses: one_address("10.2.1.1"),
                interface: short.clone(),
                ..MoveAddress::default()
            };
            // Each is refused.
            let _ = session.listen(&Listen::new(endpoint, options));
            let _ = session.ask(&SetLink { interface: short, up: None, mtu: None });
            let _ = session.ask(&SetLimit { resource: Text::truncated(text), soft: Some(1), hard: None });
            let _ = session.ask(&moved);
        }
    }
}
