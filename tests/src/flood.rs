//! Floods of requests and connections by an unprivileged user, and the latency of a well-behaved peer meanwhile.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use portreeve_protocol::message::{Listen, Operation as _};
use portreeve_protocol::{channel, codec};

use crate::Peer;
use crate::broker::SOCKET;
use crate::chroot::WORKER;
use crate::peer::listen;

/// Floods until the flag is set.
pub type Flood = fn(&AtomicBool);

/// Every kind of flood.
pub const ALL: [(&str, Flood); 3] =
    [("refused", refused_requests), ("malformed", malformed_frames), ("connections", connections)];

/// Runs `action` during a flood. The flooding user has its own quotas.
pub fn during<T>(flood: Flood, mut action: impl FnMut() -> T) -> T {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            set_worker_user();
            flood(&stop);
        });
        let result = action();
        stop.store(true, Ordering::Relaxed);
        result
    })
}

/// The median round-trip time of pings, with one every half millisecond.
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

fn refused_requests(stop: &AtomicBool) {
    let mut peer = Peer::connect(Path::new(SOCKET)).unwrap();
    peer.hello();
    peer.channel.set_nonblocking(true).unwrap();
    let mut buffer = codec::frame_buffer();
    let request = codec::encode(&mut buffer, Listen::KIND, 7, 0, &listen("192.0.2.1:25")).unwrap();
    while !stop.load(Ordering::Relaxed) {
        // The first of the two requests asks for no reply.
        let mut silent = request.to_vec();
        silent[8] = 0;
        let _ = channel::send_bytes(&peer.channel, &silent); // the queue may be full
        let _ = channel::send_bytes(&peer.channel, request); // the queue may be full
        while peer.receive().is_ok() {}
        std::thread::yield_now();
    }
}

fn malformed_frames(stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        if let Ok(peer) = Peer::connect(Path::new(SOCKET)) {
            let _ = channel::send_bytes(&peer.channel, &[0x50; 100]); // the broker may have disconnected
        }
    }
}

fn connections(stop: &AtomicBool) {
    let mut held = std::collections::VecDeque::new();
    while !stop.load(Ordering::Relaxed) {
        held.extend(Peer::connect(Path::new(SOCKET)));
        if held.len() > 200 {
            held.pop_front();
        }
    }
}

/// Changes the user of this thread only.
fn set_worker_user() {
    rustix::thread::set_thread_groups(&[]).unwrap();
    rustix::thread::set_thread_gid(rustix::process::Gid::from_raw(WORKER)).unwrap();
    rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(WORKER)).unwrap();
}
