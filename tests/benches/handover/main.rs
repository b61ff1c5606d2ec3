//! A listener made, handed over and closed: through the broker, beside the same work done directly by a
//! privileged process, and beside the least helper that could do it.

mod floors;
mod ours;
mod ports;

use ours::Worker;
use portreeve_tests::Host;
use portreeve_tests::figures::{self, Contender};

fn main() {
    if floors::is_helper() {
        return floors::help();
    }
    figures::main("bind, listen, hand over, close: per listener, median of rounds", inside);
}

fn inside(host: &Host) {
    let broker = ours::Broker::start(host);
    let helper = floors::Helper::start();
    let mut blocking = broker.blocking();
    let mut asynchronous = broker.asynchronous();
    for (size, case) in [(1, "handover/1"), (64, "handover/batch64"), (200, "handover/batch200")] {
        measure(case, size, &mut blocking, &helper);
        measure(&format!("{case}/async"), size, &mut asynchronous, &helper);
    }
}

/// Enough listeners a round that reading the clock and settling are nothing beside them.
const A_ROUND: usize = 1600;

fn measure(case: &str, size: usize, client: &mut dyn Worker, helper: &floors::Helper) {
    let units = A_ROUND.div_ceil(size) * size;
    let ours = || {
        match size {
            1 => ports::next(units).for_each(|port| client.one(port)),
            _ => in_batches(units, size, |ports| client.batch(ports)),
        }
        client.settle();
    };
    let contenders = vec![
        Contender::new("ours", ours),
        Contender::new("direct", || ports::next(units).for_each(floors::direct)),
        Contender::new("helper", || in_batches(units, size, |ports| helper.batch(ports))),
    ];
    figures::measure(case, units, contenders);
}

fn in_batches(units: usize, size: usize, batch: impl FnMut(&[u16])) {
    let ports: Vec<u16> = ports::next(units).collect();
    ports.chunks(size).for_each(batch);
}
