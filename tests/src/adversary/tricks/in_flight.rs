//! Sockets that are sent and never received. The kernel counts them for root on the whole host, and refuses each process of
//! root without capabilities to send one when there are too many; see unix(7).

use portreeve_protocol::message::{Listen, ListenMany, StatusRequest};

use crate::adversary::session::Session;
use crate::adversary::{Attacker, Trick};
use crate::peer::listen;

/// How many descriptors one reply can carry.
const BATCH: u32 = 253;
/// How many sessions one peer uses.
const SESSIONS: usize = 16;
/// How many ended sessions one peer keeps.
const ENDED: usize = 48;

/// The same endpoint again and again, or different ones.
fn request(attacker: &mut Attacker<'_>) -> ListenMany {
    let (same, port) = (attacker.random.one_in(2), attacker.targets.ports);
    let block = attacker.who.number() + 1;
    let endpoint = |number: u32| -> Listen {
        listen(&format!("127.{block}.1.{}:{port}", if same { 1 } else { number % 253 + 1 }))
    };
    ListenMany::truncated(false, (0..BATCH).map(endpoint))
}

/// Sends requests until the channel is full, and reads nothing.
fn fill(session: &mut Session, request: &ListenMany, attacker: &Attacker<'_>) {
    let _ = session.channel.set_nonblocking(true); // it is an open socket
    for _ in 0..32 {
        if attacker.is_over() || !session.send(request) {
            break;
        }
        for endpoint in request.requests().take(8) {
            session.send(&endpoint);
        }
    }
    let _ = session.channel.set_nonblocking(false); // it is an open socket
}

/// One session with unread descriptors.
pub struct OneRequest;

impl Trick for OneRequest {
    fn attack(&self, attacker: &mut Attacker<'_>) {
        let mut open = None;
        while attacker.next_round() {
            let many = request(attacker);
            if open.is_none() {
                open = attacker.session();
            }
            open.iter_mut().for_each(|session| fill(session, &many, attacker));
        }
    }
}

/// Many sessions with unread descriptors.
pub struct ManySessions;

impl Trick for ManySessions {
    fn attack(&self, attacker: &mut Attacker<'_>) {
        let mut held = Vec::new();
        while attacker.next_round() {
            let many = request(attacker);
            if held.len() < SESSIONS {
                held.extend(attacker.session());
            }
            held.iter_mut().for_each(|session| fill(session, &many, attacker));
        }
    }
}

/// Sessions that the broker ends, in which descriptors wait until the peer closes its channel.
pub struct EndedSessions;

impl Trick for EndedSessions {
    fn attack(&self, attacker: &mut Attacker<'_>) {
        let mut held = Vec::new();
        while attacker.next_round() {
            if held.len() >= ENDED {
                attacker.hold();
                return;
            }
            let many = request(attacker);
            let Some(mut session) = attacker.session() else { continue };
            fill(&mut session, &many, attacker);
            session.send(&StatusRequest { after: 0 });
            session.send_bytes(b"malformed");
            held.push(session);
        }
    }
}
