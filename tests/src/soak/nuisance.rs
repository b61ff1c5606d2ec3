//! A peer that means harm: frames that are none, requests that nothing permits, connections without end. It is one user,
//! and nobody else may notice.

use std::net::Shutdown;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use portreeve_protocol::message::{Hello, Listen, Operation, Ping};
use portreeve_protocol::{Text, channel, codec};

use super::actor::Actor;
use super::ledger::Ledger;
use crate::Peer;
use crate::broker::SOCKET;
use crate::peer::listen;
use crate::random::Random;

/// The nuisance, as this user.
pub struct Nuisance {
    /// Chance.
    pub random: Random,
    /// Who it is.
    pub user: u32,
}

impl Actor for Nuisance {
    fn act(&mut self, ledger: &Ledger) {
        match self.random.below(5) {
            0 => self.storm(ledger),
            1 => self.flood(ledger),
            2 => self.unread(ledger),
            _ => self.spoil(ledger),
        }
    }

    fn give_back(&mut self, _: &Ledger) {}

    fn pause(&mut self) -> Duration {
        Duration::from_millis(20 + self.random.below(100))
    }
}

impl Nuisance {
    fn connect(&self) -> Option<Peer> {
        // Where the broker is gone there is nobody to harm.
        Peer::connect_as(Path::new(SOCKET), self.user, self.user).ok()
    }

    fn greeted(&self) -> Option<Peer> {
        let mut peer = self.connect()?;
        let hello = Hello { client: Text::truncated("\n\u{1b}[2J"), features: u64::MAX };
        send(&peer, &hello);
        peer.receive().is_ok().then_some(peer)
    }

    /// Sessions that begin and end at once, or never say a word.
    fn storm(&mut self, ledger: &Ledger) {
        let held: Vec<Peer> = (0..self.random.below(100)).map_while(|_| self.connect()).collect();
        ledger.add("sessions stormed", held.len() as u64);
    }

    /// Requests that nothing permits, some of which want no answer.
    fn flood(&mut self, ledger: &Ledger) {
        let Some(mut peer) = self.greeted() else { return };
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
        ledger.add("requests refused", many);
    }

    /// Answers that nobody reads.
    fn unread(&mut self, ledger: &Ledger) {
        let Some(peer) = self.greeted() else { return };
        peer.channel.set_nonblocking(true).unwrap();
        for _ in 0..1_000 {
            send(&peer, &Ping {});
        }
        ledger.count("sessions that do not read");
    }

    /// Frames that are none, of which each ends its session.
    fn spoil(&mut self, ledger: &Ledger) {
        let Some(mut peer) = (if self.random.one_in(2) { self.connect() } else { self.greeted() }) else {
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
        let _ended_already = channel::send(&peer.channel, &packet, &descriptors);
        let _ended_already = peer.channel.shutdown(Shutdown::Write);
        while peer.receive().is_ok() {}
        ledger.count("frames spoiled");
    }
}

fn send<T: Operation>(peer: &Peer, message: &T) {
    let mut buffer = codec::frame_buffer();
    let packet = codec::encode(&mut buffer, T::KIND, 1, 0, message).unwrap();
    let _full_or_ended = channel::send_bytes(&peer.channel, packet);
}
