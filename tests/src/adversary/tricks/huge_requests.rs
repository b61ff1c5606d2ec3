//! Requests of the maximum size, and bodies that declare more than they contain.

use portreeve_protocol::address::AddAddress;
use portreeve_protocol::endpoint::Endpoint;
use portreeve_protocol::frame::MAX_BODY;
use portreeve_protocol::message::{Listen, ListenMany, ListenOptions, ListenerId, OPERATIONS, Stop};
use portreeve_protocol::{Header, List, Text};

use crate::adversary::{Attacker, Trick};

/// See the module.
pub struct HugeRequests;

impl Trick for HugeRequests {
    fn attack(&self, attacker: &mut Attacker<'_>) {
        let long = |number: u32| {
            Listen::new(
                Endpoint::UnixStream(Text::truncated(&format!("/{number:03}{}", "\u{e9}".repeat(51)))),
                ListenOptions { device: Text::truncated("abcdefghijklmno"), ..ListenOptions::default() },
            )
        };
        let many = ListenMany::truncated(true, (0..253).map(long));
        let stop = Stop { listeners: List::truncated((0..253).map(|number| ListenerId(u64::MAX - number))) };
        let addresses =
            (0..256_u16).map(|number| std::net::Ipv6Addr::new(0x2001, 0xdb8, 9, 9, 9, 9, 9, number).into());
        let add = AddAddress { addresses: List::truncated(addresses), ..AddAddress::default() };
        let mut open = None;
        while attacker.next_round() {
            let Some(mut session) = open.take().or_else(|| attacker.session()) else { continue };
            let requests =
                [session.ask(&many).is_ok(), session.ask(&stop).is_ok(), session.ask(&add).is_ok()];
            let (kind, _) = attacker.random.pick(OPERATIONS).copied().unwrap();
            let length = attacker.random.below(MAX_BODY as u64) as u16;
            let header = Header { kind, request: 1, descriptors: 0, body: length };
            // As a length, this is the highest number.
            let body = vec![0xff; usize::from(length)];
            if attacker.random.one_in(4) || !requests.contains(&true) {
                session.send_bytes(&[&header.encode()[..], &body].concat());
                session.drain(2);
            } else {
                open = Some(session);
            }
        }
    }
}
