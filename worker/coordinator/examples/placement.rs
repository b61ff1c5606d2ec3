//! Measures the placement: all addresses at first, then after the death of a node, and once more without any change.
//!
//! ```sh
//! cargo run --release -p portreeve-coordinator --example placement -- 1000 10000
//! ```

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use portreeve_coordinator::core::placement::{Placement, place};
use portreeve_coordinator::core::record::{
    Claim, Entry, Key, Name, NodeRecord, NodeState, Phase, Piece, Session, Value,
};
use portreeve_coordinator::core::state::State;

fn main() {
    let mut numbers = std::env::args().skip(1).map(|text| text.parse().ok());
    let mut number = |default| numbers.next().flatten().unwrap_or(default);
    let (nodes, addresses) = (number(1_000), number(10_000));
    let mut cluster = Cluster::default();
    let first = Ipv4Addr::new(10, 0, 0, 1).to_bits();
    let declared: Piece =
        (0..addresses).map(|n| (IpAddr::from(Ipv4Addr::from_bits(first + n)), None)).collect();
    cluster.put(Key::Have("declared".into(), 0), Value::Have(declared));
    for node in 0..nodes {
        cluster.put(Key::Node(name(node)), Value::Node(record(u64::from(node), NodeState::Ready)));
    }

    let placement = measure("at first", &cluster.state);
    cluster.perform(&placement);
    let placement = measure("again", &cluster.state);
    assert_eq!(placement.moves(), 0, "placing twice moves nothing");
    cluster.put(Key::Node(name(0)), Value::Node(record(0, NodeState::Gone)));
    let placement = measure("after a death", &cluster.state);
    assert_eq!(placement.moves(), 0, "only the addresses of the dead node get a new one");
    cluster.perform(&placement);
    cluster.put(Key::Node(name(0)), Value::Node(record(0, NodeState::Ready)));
    let placement = measure("after its return", &cluster.state);
    println!("moves to the node that returned: {}", placement.moves());
}

fn measure(what: &str, state: &State) -> Placement {
    const RUNS: u32 = 5;
    let mut best = Duration::MAX;
    let mut placement = Placement::default();
    for _ in 0..RUNS {
        let start = Instant::now();
        placement = place(state, true);
        best = best.min(start.elapsed());
    }
    println!("{what}: {:.2} ms", best.as_secs_f64() * 1_000.0);
    placement
}

fn name(node: u32) -> Name {
    format!("node{node:04}").into()
}

fn record(nonce: u64, state: NodeState) -> NodeRecord {
    NodeRecord {
        nonce,
        created: Some(1),
        version: String::new(),
        state,
        why: String::new(),
        declares: "declared".into(),
        is_auto: None,
        joins: 1,
        peer: String::new(),
        down: Vec::new(),
        refused: Vec::new(),
    }
}

#[derive(Default)]
struct Cluster {
    state: State,
    revision: i64,
}

impl Cluster {
    fn put(&mut self, key: Key, value: Value) {
        self.revision += 1;
        let entry = Entry { key, created: 1, modified: self.revision, text: "".into(), value: Some(value) };
        self.state.apply(&Arc::new(entry));
    }

    /// Every node claims what belongs to it.
    fn perform(&mut self, placement: &Placement) {
        for (target, node) in placement.targets() {
            let Some(node) = node else { continue };
            let nonce = self.state.node(node).map_or(0, |record| record.nonce);
            let session = Session { created: 1, nonce };
            let claim = Claim { epoch: 1, node: Arc::clone(node), session, phase: Phase::Held };
            self.put(Key::Claim(target.address), Value::Claim(claim));
        }
    }
}
