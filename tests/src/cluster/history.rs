//! The engine's history: every change of a key of the cluster, and when a member first reported it.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::gateway::{Gateway, Stream, decode_base64, encode_base64};
use super::referee::Change;
use super::{GROUP, NODES};

const RETRY: Duration = Duration::from_millis(50);

/// By revision and key.
type Changes = BTreeMap<(i64, String), Change>;

#[derive(Default)]
struct Shared {
    is_stopped: AtomicBool,
    changes: Mutex<Changes>,
}

/// A running recording. It watches every member, because the watch of one can lose events and be late.
pub struct History {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

fn prefix() -> String {
    format!("/portreeve/{GROUP}/")
}

impl History {
    /// Starts to record from the first revision on. Times are counted from `origin`.
    pub fn record(origin: Instant) -> Self {
        let shared = Arc::new(Shared::default());
        let watch = |host: &'static str| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || watch(Gateway::of(host), origin, &shared))
        };
        Self { threads: NODES.iter().copied().map(watch).collect(), shared }
    }

    /// The changes so far, in the order of the engine's revisions.
    pub fn changes(&self) -> Vec<Change> {
        self.shared.changes.lock().unwrap().values().cloned().collect()
    }
}

impl Drop for History {
    fn drop(&mut self) {
        self.shared.is_stopped.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join(); // its panic has been printed
        }
    }
}

fn open(gateway: Gateway, from: i64) -> io::Result<Stream> {
    let begin = prefix();
    let end = begin.replace(&format!("{GROUP}/"), &format!("{GROUP}0")); // '0' is the character after '/'
    let range = json!({
        "key": encode_base64(begin.as_bytes()),
        "range_end": encode_base64(end.as_bytes()),
        "start_revision": from,
    });
    gateway.open("watch", &json!({ "create_request": range }))
}

fn watch(gateway: Gateway, origin: Instant, shared: &Shared) {
    let mut next = 1;
    while !shared.is_stopped.load(Ordering::Relaxed) {
        // A member that does not run, or does not yet, is asked again.
        let _ = open(gateway, next).and_then(|stream| follow(stream, &mut next, origin, shared));
        std::thread::sleep(RETRY);
    }
}

fn follow(mut stream: Stream, next: &mut i64, origin: Instant, shared: &Shared) -> io::Result<()> {
    while !shared.is_stopped.load(Ordering::Relaxed) {
        let Some(message) = stream.receive()? else { continue };
        let at = origin.elapsed();
        let compacted = number(&message["result"]["compact_revision"]);
        if compacted > 0 {
            *next = compacted;
            break;
        }
        let mut changes = shared.changes.lock().unwrap();
        for event in message["result"]["events"].as_array().into_iter().flatten() {
            let change = decode(event, at);
            *next = change.revision + 1;
            let known = changes.entry((change.revision, change.key.clone())).or_insert(change);
            known.at = known.at.min(at);
        }
    }
    Ok(())
}

/// The whole history, as a member tells it now. Unlike a watch, this does not lose events.
///
/// # Errors
/// The member does not answer.
pub fn read(gateway: Gateway) -> io::Result<Vec<Change>> {
    let all = json!({ "key": encode_base64(b"/"), "count_only": true });
    let revision = number(&gateway.call("kv/range", &all)?["header"]["revision"]);
    // An event after the revision ends the wait for the last one.
    let end = json!({ "key": encode_base64(format!("{}end", prefix()).as_bytes()), "value": "" });
    gateway.call("kv/put", &end)?;
    let mut stream = open(gateway, 1)?;
    let mut changes = Changes::new();
    loop {
        let message = stream.receive()?.ok_or(io::ErrorKind::TimedOut)?;
        for event in message["result"]["events"].as_array().into_iter().flatten() {
            let change = decode(event, Duration::ZERO);
            if change.revision > revision {
                return Ok(changes.into_values().collect());
            }
            changes.insert((change.revision, change.key.clone()), change);
        }
    }
}

fn decode(event: &Value, at: Duration) -> Change {
    let text = |name: &str| {
        let bytes = event["kv"][name].as_str().map(decode_base64).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let key = text("key");
    Change {
        at,
        revision: number(&event["kv"]["mod_revision"]),
        created: number(&event["kv"]["create_revision"]),
        key: key.strip_prefix(&prefix()).unwrap_or(&key).to_owned(),
        value: (event["type"] != "DELETE").then(|| text("value")),
    }
}

/// A 64-bit integer, which JSON of protobuf has as text.
fn number(value: &Value) -> i64 {
    value.as_str().map_or_else(|| value.as_i64().unwrap_or_default(), |text| text.parse().unwrap_or_default())
}
