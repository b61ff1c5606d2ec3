//! A listener made, handed over and closed: through the broker, beside the same work done directly by a
//! privileged process, and beside the least helper that could do it.

mod floors;
mod ours;
mod ports;

use portreeve_tests::Host;
use portreeve_tests::figures::{self, Contender};

fn main() {
    if floors::is_helper() {
        return floors::help();
    }
    figures::main(
        "bind, listen, hand over, close: per listener, median of rounds",
        inside,
    );
}

fn inside(host: &Host) {
    let ours = ours::Broker::start(host);
    let helper = floors::Helper::start();
    one_at_a_time(&ours, &helper);
    in_batches(&ours, &helper, "handover/batch64", 64);
    in_batches(&ours, &helper, "handover/batch200", 200);
}

/// Enough listeners a round that reading the clock and awaiting the last `Stop` are nothing beside them.
const A_ROUND: usize = 1600;

fn one_at_a_time(ours: &ours::Broker, helper: &floors::Helper) {
    let mut client = ours.client();
    let contenders = vec![
        Contender {
            name: "ours",
            run: Box::new(|| {
                ports::next(A_ROUND).for_each(|port| client.one(port));
                client.settle();
            }),
        },
        Contender {
            name: "direct",
            run: Box::new(|| ports::next(A_ROUND).for_each(floors::direct)),
        },
        Contender {
            name: "helper",
            run: Box::new(|| ports::next(A_ROUND).for_each(|port| helper.batch(&[port]))),
        },
    ];
    figures::measure("handover/1", A_ROUND, contenders);
}

fn in_batches(ours: &ours::Broker, helper: &floors::Helper, case: &str, size: usize) {
    let mut client = ours.client();
    let units = A_ROUND.div_ceil(size) * size;
    let batches = |units| {
        let ports: Vec<u16> = ports::next(units).collect();
        ports
    };
    let contenders = vec![
        Contender {
            name: "ours",
            run: Box::new(|| {
                batches(units).chunks(size).for_each(|ports| client.batch(ports));
                client.settle();
            }),
        },
        Contender {
            name: "direct",
            run: Box::new(|| ports::next(units).for_each(floors::direct)),
        },
        Contender {
            name: "helper",
            run: Box::new(|| batches(units).chunks(size).for_each(|ports| helper.batch(ports))),
        },
    ];
    figures::measure(case, units, contenders);
}
