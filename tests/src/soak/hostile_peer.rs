//! A hostile peer: malformed frames, requests that no rule allows, floods of connections. It has a user id of its own, and
//! no other peer may notice it.

use std::net::Shutdown;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use portreeve_protocol::message::{Hello, Listen, Operation, Ping};
use portreeve_protocol::{Text, channel, codec};

use super::actor::Actor;
use super::model::Model;
use crate::Peer;
use crate::broker::SOCKET;
use crate::peer::listen;
use crate::random::Random;

/// See the module.
pub struct HostilePeer {
    /// The source of its random choices.
    pub random: Random,
    /// Its user id.
    pub user: u32,
}

impl Actor for HostilePeer {
    fn step(&mut self, model: &Model) {
        match self.random.below(5) {
            0 => self.flood_connections(model),
            1 => self.send_denied_requests(model),
            2 => self.leave_replies_unread(model),
            _ => self.send_malformed_frame(model),
        }
    }

    fn release(&mut self, _: &Model) {}

    fn pause(&mut self) -> Duration {
        Duration::from_millis(20 + self.random.below(100))
    }
}

impl HostilePeer {
    fn connect(&self) -> Option<Peer> {
        // Failing is expected while no broker runs.
        Peer::connect_as(Path::new(SOCKET), self.user, self.user).ok()
    }

    fn connect_with_hello(&self) -> Option<Peer> {
        let mut peer = self.connect()?;
        let hello = Hello { client: Text::truncated("\n\u{1b}[2J"), features: u64::MAX };
        send(&peer, &hello);
        peer.receive().is_ok().then_some(peer)
    }

    /// Opens sessions that end at once, without a Hello.
    fn flood_connections(&mut self, model: &Model) {
        let held: Vec<Peer> = (0..self.random.below(100)).map_while(|_| self.connect()).collect();
        model.add("hostile: connections opened", held.len() as u64);
    }

    /// Sends requests that no rule allows.
    fn send_denied_requests(&mut self, model: &Model) {
        let Some(mut peer) = self.connect_with_hello() else { return };
        let many = self.random.below(40);
        for number in 0..many {
            let request = listen(&format!("192.0.2.1:{}", 25 + number));
            send(&peer, &request);
        }
        for _ in 0..many {
            if peer.receive().is_err() {
                break;
            }
        }
        model.add("hostile: requests denied", many);
    }

    /// Sends requests and does not read the replies.
    fn leave_replies_unread(&mut self, model: &Model) {
        let Some(peer) = self.connect_with_hello() else { return };
        peer.channel.set_nonblocking(true).unwrap();
        for _ in 0..1_000 {
            send(&peer, &Ping {});
        }
        model.count("hostile: sessions with unread replies");
    }

    /// Sends a malformed frame, which ends the session.
    fn send_malformed_frame(&mut self, model: &Model) {
        let Some(mut peer) = (if self.random.one_in(2) { self.connect() } else { self.connect_with_hello() })
        else {
            return;
        };
        let mut buffer = codec::frame_buffer();
        let mut packet =
            codec::encode(&mut buffer, Listen::KIND, 1, 0, &listen("192.0.2.1:25")).unwrap().to_vec();
        let mut descriptors: Vec<BorrowedFd<'_>> = Vec::new();
        let file = std::fs::File::open("/dev/null").unwrap();
        match self.random.below(4) {
            0 => packet.truncate(self.random.below(packet.len() as u64) as usize + 1),
            1 => packet = (0..self.random.below(70_000) + 1).map(|_| self.random.below(256) as u8).collect(),
            2 => descriptors = vec![file.as_fd(); self.random.below(253) as usize + 1],
            _ => {
                let at = self.random.below(packet.len() as u64) as usize;
                packet[at] ^= 1 << self.random.below(8);
            }
        }
        let _ = channel::send(&peer.channel, &packet, &descriptors); // the session may have ended
        let _ = peer.channel.shutdown(Shutdown::Write); // the session may have ended
        while peer.receive().is_ok() {}
        model.count("hostile: malformed frames");
    }
}

fn send<T: Operation>(peer: &Peer, message: &T) {
    let mut buffer = codec::frame_buffer();
    let packet = codec::encode(&mut buffer, T::KIND, 1, 0, message).unwrap();
    let _ = channel::send_bytes(&peer.channel, packet); // the queue may be full, or the session may have ended
}
