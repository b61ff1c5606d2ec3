//! The wire: asks for every floating address every 5 ms, from the host in the service network that has no part in the cluster. Of
//! more than 100 addresses, it asks for 100 every 20 ms: every host and every broker has to look at each question.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::CLIENT;
use super::referee::Answer;
use crate::neighbour::{Neighbour, parse_reply};
use crate::packet_capture::PacketCapture;

/// The time between two questions for an address.
const INTERVAL: Duration = Duration::from_millis(5);
/// For how many addresses it asks at once: more answers could exceed the buffer of its socket.
const AT_ONCE: usize = 100;
/// The time until it asks for the next ones.
const NEXT: Duration = Duration::from_millis(20);

#[derive(Default)]
struct Shared {
    is_stopped: AtomicBool,
    answers: Mutex<Vec<Answer>>,
    longest_pause: Mutex<Duration>,
}

/// A running watch.
pub struct Wire {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Wire {
    /// Starts to ask. Times are counted from `origin`.
    pub fn watch(neighbour: Neighbour, addresses: Vec<IpAddr>, origin: Instant) -> Self {
        let shared = Arc::new(Shared::default());
        let capture = PacketCapture::on(CLIENT);
        let thread = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || ask(capture, neighbour, &addresses, origin, &shared)
        });
        Self { shared, thread: Some(thread) }
    }

    /// All answers so far, in the order of their arrival.
    pub fn answers(&self) -> Vec<Answer> {
        self.shared.answers.lock().unwrap().clone()
    }

    /// The answers from that instant on.
    pub fn answers_since(&self, since: Duration) -> Vec<Answer> {
        let answers = self.shared.answers.lock().unwrap();
        let first = answers.partition_point(|answer| answer.at < since);
        answers[first..].to_vec()
    }

    /// The longest time since the last call for which this machine was too busy to ask: no measurement is more precise.
    pub fn take_longest_pause(&self) -> Duration {
        std::mem::take(&mut self.shared.longest_pause.lock().unwrap())
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.shared.is_stopped.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // its panic has been printed
        }
    }
}

fn ask(
    mut capture: PacketCapture,
    neighbour: Neighbour,
    addresses: &[IpAddr],
    origin: Instant,
    shared: &Shared,
) {
    let requests: Vec<Vec<u8>> = addresses.iter().map(|address| neighbour.request_for(*address)).collect();
    let is_answer = |frame: &[u8]| neighbour.is_recipient_of(frame) && parse_reply(frame).is_some();
    let known: HashSet<IpAddr> = addresses.iter().copied().collect();
    let interval = if requests.len() > AT_ONCE { NEXT } else { INTERVAL };
    let mut asked = Instant::now();
    for requests in requests.chunks(AT_ONCE).cycle() {
        if shared.is_stopped.load(Ordering::Relaxed) {
            break;
        }
        let pause = asked.elapsed();
        asked = Instant::now();
        let mut longest = shared.longest_pause.lock().unwrap();
        *longest = pause.max(*longest);
        drop(longest);
        requests.iter().for_each(|request| capture.send(request));
        let frames = capture.collect(interval, is_answer, |_| false);
        let mut answers = shared.answers.lock().unwrap();
        for frame in frames {
            let reply = parse_reply(&frame.bytes).filter(|(address, _)| known.contains(address));
            let Some((address, mac)) = reply else { continue };
            // A frame's time is computed from two readings of two clocks.
            let at = frame.at.saturating_duration_since(origin);
            let at = answers.last().map_or(at, |last: &Answer| at.max(last.at));
            answers.push(Answer { at, address, mac });
        }
    }
}
