//! Peers that ask for more than is good, as another user than root, and what a peer that does no harm notices of them.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use portreeve_protocol::message::{Listen, Operation as _};
use portreeve_protocol::{channel, codec};

use crate::Peer;
use crate::broker::SOCKET;
use crate::chroot::WORKER;
use crate::peer::listen;

/// Floods until it is told to stop.
pub type Flood = fn(&AtomicBool);

/// Every kind of flood.
pub const ALL: [(&str, Flood); 3] =
    [("refused", refused_requests), ("malformed", malformed_frames), ("connections", connections)];

/// Does something while a flood goes on. The quotas of the user that floods are its own.
pub fn during<T>(flood: Flood, mut something: impl FnMut() -> T) -> T {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            become_nobody();
            flood(&over);
        });
        let result = something();
        over.store(true, Ordering::Relaxed);
        result
    })
}

/// The median time of a ping, of one every half millisecond.
pub fn latency(peer: &mut Peer, during: Duration) -> Duration {
    let end = Instant::now() + during;
    let mut samples = Vec::new();
    while Instant::now() < end {
        let start = Instant::now();
        peer.ping();
        samples.push(start.elapsed());
        std::thread::sleep(Duration::from_micros(500));
    }
    samples.sort_unstable();
    samples[samples.len() / 2]
}

fn refused_requests(over: &AtomicBool) {
    let mut peer = Peer::connect(Path::new(SOCKET)).unwrap();
    peer.hello();
    peer.channel.set_nonblocking(true).unwrap();
    let mut buffer = codec::frame_buffer();
    let request = codec::encode(&mut buffer, Listen::KIND, 7, 0, &listen("192.0.2.1:25")).unwrap();
    while !over.load(Ordering::Relaxed) {
        // One of them wants no answer.
        let mut silent = request.to_vec();
        silent[8] = 0;
        let _full_is_as_good = channel::send_bytes(&peer.channel, &silent);
        let _full_is_as_good = channel::send_bytes(&peer.channel, request);
        while peer.receive().is_ok() {}
        std::thread::yield_now();
    }
}

fn malformed_frames(over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        if let Ok(peer) = Peer::connect(Path::new(SOCKET)) {
            let _cut_off_already = channel::send_bytes(&peer.channel, &[0x50; 100]);
        }
    }
}

fn connections(over: &AtomicBool) {
    let mut held = std::collections::VecDeque::new();
    while !over.load(Ordering::Relaxed) {
        held.extend(Peer::connect(Path::new(SOCKET)));
        if held.len() > 200 {
            held.pop_front();
        }
    }
}

/// Of this thread alone, which ends with it.
fn become_nobody() {
    rustix::thread::set_thread_groups(&[]).unwrap();
    rustix::thread::set_thread_gid(rustix::process::Gid::from_raw(WORKER)).unwrap();
    rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(WORKER)).unwrap();
}
