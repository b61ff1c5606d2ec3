//! Malformed frames, with and without descriptors.

use std::net::Shutdown;
use std::os::fd::{AsFd as _, BorrowedFd};

use portreeve_protocol::message::{Listen, Operation as _};
use portreeve_protocol::{channel, codec};

use crate::adversary::{Attacker, Trick};
use crate::peer::listen;

/// See the module.
pub struct MalformedFrames;

impl Trick for MalformedFrames {
    fn attack(&self, attacker: &mut Attacker<'_>) {
        let file = std::fs::File::open("/dev/null").unwrap();
        let mut buffer = codec::frame_buffer();
        while attacker.next_round() {
            let session = if attacker.random.one_in(2) { attacker.connect() } else { attacker.session() };
            let Some(mut session) = session else { continue };
            let mut packet =
                codec::encode(&mut buffer, Listen::KIND, 1, 0, &listen("127.0.0.1:1025")).unwrap().to_vec();
            let random = &mut attacker.random;
            let mut descriptors: Vec<BorrowedFd<'_>> = Vec::new();
            match random.below(6) {
                0 => packet.truncate(random.below(packet.len() as u64) as usize + 1),
                1 => packet = (0..random.below(70_000) + 1).map(|_| random.below(256) as u8).collect(),
                2 => descriptors = vec![file.as_fd(); random.below(253) as usize + 1],
                // The channel refers to itself.
                3 => descriptors = vec![session.channel.as_fd(); 8],
                4 => packet.extend_from_slice(&[0; 100]),
                _ => {
                    let at = random.below(packet.len() as u64) as usize;
                    packet[at] ^= 1 << random.below(8);
                }
            }
            let _ = channel::send(&session.channel, &packet, &descriptors); // the session may have ended
            drop(descriptors);
            let _ = session.channel.shutdown(Shutdown::Write); // the session may have ended
            session.drain(4);
        }
    }
}
