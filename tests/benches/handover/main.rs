//! A listener made and handed over, and stopped again: through the broker, beside the same work done directly by a
//! privileged process, and beside the least helper that could do it. One at a time, pipelined, in batches, by many
//! peers at once, and with thousands of listeners held already; and the bare round trip.

mod direct;
mod echo;
mod endpoints;
mod helper;
mod ours;

use std::cell::RefCell;
use std::net::SocketAddrV4;
use std::sync::Mutex;

use helper::Helper;
use ours::{Asynchronous, Blocking, Broker, Pipelined, Worker};
use portreeve_tests::Host;
use portreeve_tests::benchmark::{self, Contender};

fn main() {
    if helper::is_wanted() {
        return helper::serve();
    }
    if echo::is_wanted() {
        return echo::serve();
    }
    benchmark::main("bind, listen, hand over: per listener, median of rounds", inside);
}

fn inside(host: &Host) {
    let broker = Broker::start(host);
    ping();
    one_and_many();
    for (held, case) in [(1_000, "handover/held1000"), (10_000, "handover/held10000")] {
        let _held = broker.hold(held);
        hand_over(case, 1, &mut Blocking::open());
    }
    for peers in [4, 16] {
        at_once(peers);
    }
    for (size, case) in [(1, "life/1"), (200, "life/batch200")] {
        live(case, size);
    }
}

fn one_and_many() {
    hand_over("handover/1", 1, &mut Blocking::open());
    hand_over("handover/1/async", 1, &mut Asynchronous::open());
    for (size, case) in [(8, "handover/pipelined8"), (64, "handover/pipelined64")] {
        hand_over_with(case, size, &mut Pipelined::open(), Helper::pipelined);
    }
    for (size, case) in [(64, "handover/batch64"), (200, "handover/batch200")] {
        hand_over(case, size, &mut Blocking::open());
    }
    hand_over("handover/batch200/async", 200, &mut Asynchronous::open());
}

/// Enough listeners a round that reading the clock is nothing beside them.
const A_ROUND: usize = 1600;

/// The hand-over alone; what was handed over is stopped when the clock does not run.
fn hand_over(case: &str, size: usize, client: &mut dyn Worker) {
    hand_over_with(case, size, client, Helper::batch);
}

fn hand_over_with(case: &str, size: usize, client: &mut dyn Worker, ask: fn(&Helper, &[SocketAddrV4])) {
    let units = A_ROUND.div_ceil(size) * size;
    let (helper, locked) = (Helper::start(), Helper::start_locked());
    let client = RefCell::new(client);
    let contenders = vec![
        Contender::new("ours", || in_batches(units, size, |endpoints| client.borrow_mut().listen(endpoints)))
            .then(|| client.borrow_mut().stop()),
        Contender::new("direct", || endpoints::next(units).for_each(direct::listen_and_close)),
        Contender::new("helper", || in_batches(units, size, |endpoints| ask(&helper, endpoints)))
            .then(|| helper.release()),
        Contender::new("locked", || in_batches(units, size, |endpoints| ask(&locked, endpoints)))
            .then(|| locked.release()),
    ];
    benchmark::measure(case, units, contenders);
}

/// From the request to the end of the listener.
fn live(case: &str, size: usize) {
    let units = A_ROUND.div_ceil(size) * size;
    let (client, helper) = (RefCell::new(Blocking::open()), Helper::start());
    let theirs = |endpoints: &[SocketAddrV4]| {
        helper.batch(endpoints);
        helper.release();
    };
    let contenders = vec![
        Contender::new("ours", || in_batches(units, size, |endpoints| client.borrow_mut().live(endpoints))),
        Contender::new("direct", || endpoints::next(units).for_each(direct::listen_and_close)),
        Contender::new("helper", || in_batches(units, size, theirs)),
    ];
    benchmark::measure(case, units, contenders);
}

/// As many peers as that, each with a thread; the helper serves each with a process.
fn at_once(peers: usize) {
    let share = A_ROUND / peers;
    let clients: Vec<_> = (0..peers).map(|_| Mutex::new(Blocking::open())).collect();
    let helpers: Vec<_> = (0..peers).map(|_| Helper::start()).collect();
    let ours = |client: &Mutex<Blocking>, endpoints: &[SocketAddrV4]| {
        let mut client = client.lock().unwrap();
        endpoints.chunks(1).for_each(|one| client.listen(one));
    };
    let theirs =
        |helper: &Helper, endpoints: &[SocketAddrV4]| endpoints.chunks(1).for_each(|one| helper.batch(one));
    let contenders = vec![
        Contender::new("ours", || each_in_a_thread(&clients, share, ours))
            .then(|| clients.iter().for_each(|client| client.lock().unwrap().stop())),
        Contender::new("helper", || each_in_a_thread(&helpers, share, theirs))
            .then(|| helpers.iter().for_each(Helper::release)),
    ];
    benchmark::measure(&format!("handover/peers{peers}"), peers * share, contenders);
}

fn each_in_a_thread<T: Sync>(all: &[T], share: usize, run: impl Fn(&T, &[SocketAddrV4]) + Sync) {
    std::thread::scope(|scope| {
        for one in all {
            let endpoints: Vec<SocketAddrV4> = endpoints::next(share).collect();
            let run = &run;
            scope.spawn(move || run(one, &endpoints));
        }
    });
}

fn ping() {
    let client = Blocking::open();
    let echo = echo::Echo::start();
    let contenders = vec![
        Contender::new("ours", || (0..A_ROUND).for_each(|_| client.ping())),
        Contender::new("echo", || (0..A_ROUND).for_each(|_| echo.echo())),
    ];
    benchmark::measure("ping", A_ROUND, contenders);
}

fn in_batches(units: usize, size: usize, batch: impl FnMut(&[SocketAddrV4])) {
    let endpoints: Vec<SocketAddrV4> = endpoints::next(units).collect();
    endpoints.chunks(size).for_each(batch);
}
