//! Opening and stopping listeners through the broker, compared with the same work in a privileged process and in a minimal
//! helper: one at a time, pipelined, in batches, by many peers at once, and with thousands of listeners already open. Also
//! the round trip of a ping.

mod direct;
mod echo;
mod endpoints;
mod helper;
mod portreeve;

use std::cell::RefCell;
use std::net::SocketAddrV4;
use std::sync::Mutex;

use helper::Helper;
use portreeve::{Asynchronous, Blocking, Broker, Pipelined, Worker};
use portreeve_tests::Host;
use portreeve_tests::benchmark::{self, Subject};

fn main() {
    if helper::is_helper_process() {
        return helper::serve();
    }
    if echo::is_echo_process() {
        return echo::serve();
    }
    benchmark::main("Opening a listener: time for each, median of rounds", inside);
}

fn inside(host: &Host) {
    let broker = Broker::start(host);
    ping();
    sizes();
    benchmark::with_all_cpus(broker.pid(), || listen("listen/all CPUs", 1, &mut Blocking::open()));
    for (held, case) in [(1_000, "listen/held1000"), (10_000, "listen/held10000")] {
        let _held = broker.hold(held);
        listen(case, 1, &mut Blocking::open());
    }
    for peers in [4, 16] {
        parallel_peers(peers);
    }
    for (size, case) in [(1, "listen-stop/1"), (200, "listen-stop/batch200")] {
        listen_and_stop(case, size);
    }
}

fn sizes() {
    listen("listen/1", 1, &mut Blocking::open());
    listen("listen/1/async", 1, &mut Asynchronous::open());
    for (size, case) in [(8, "listen/pipelined8"), (64, "listen/pipelined64")] {
        listen_with(case, size, &mut Pipelined::open(), Helper::pipelined);
    }
    for (size, case) in [(64, "listen/batch64"), (200, "listen/batch200")] {
        listen(case, size, &mut Blocking::open());
    }
    listen("listen/batch200/async", 200, &mut Asynchronous::open());
}

/// The minimum number of listeners in a round: enough to make the time of reading the clock negligible.
const UNITS: usize = 1600;

/// Measures opening only. The listeners are stopped after each round, which is not measured.
fn listen(case: &str, size: usize, client: &mut dyn Worker) {
    listen_with(case, size, client, Helper::batch);
}

fn listen_with(case: &str, size: usize, client: &mut dyn Worker, request: fn(&Helper, &[SocketAddrV4])) {
    let units = UNITS.div_ceil(size) * size;
    let (helper, confined) = (Helper::start(), Helper::start_confined());
    let duties = Helper::start_with_duties();
    let client = RefCell::new(client);
    let subjects = vec![
        Subject::new("portreeve", || {
            in_batches(units, size, |endpoints| client.borrow_mut().listen(endpoints))
        })
        .after_round(|| client.borrow_mut().stop()),
        Subject::new("direct", || endpoints::next(units).for_each(direct::listen_and_close)),
        Subject::new("helper", || in_batches(units, size, |endpoints| request(&helper, endpoints)))
            .after_round(|| helper.release()),
        Subject::new("confined", || in_batches(units, size, |endpoints| request(&confined, endpoints)))
            .after_round(|| confined.release()),
        Subject::new("duties", || in_batches(units, size, |endpoints| request(&duties, endpoints)))
            .after_round(|| duties.release()),
    ];
    benchmark::measure(case, units, subjects);
}

/// Measures opening and stopping.
fn listen_and_stop(case: &str, size: usize) {
    let units = UNITS.div_ceil(size) * size;
    let (client, helper) = (RefCell::new(Blocking::open()), Helper::start());
    let theirs = |endpoints: &[SocketAddrV4]| {
        helper.batch(endpoints);
        helper.release();
    };
    let subjects = vec![
        Subject::new("portreeve", || {
            in_batches(units, size, |endpoints| client.borrow_mut().listen_and_stop(endpoints))
        }),
        Subject::new("direct", || endpoints::next(units).for_each(direct::listen_and_close)),
        Subject::new("helper", || in_batches(units, size, theirs)),
    ];
    benchmark::measure(case, units, subjects);
}

/// Measures several peers at once, each with a thread. Each has a helper process of its own.
fn parallel_peers(peers: usize) {
    let share = UNITS / peers;
    let clients: Vec<_> = (0..peers).map(|_| Mutex::new(Blocking::open())).collect();
    let helpers: Vec<_> = (0..peers).map(|_| Helper::start()).collect();
    let ours = |client: &Mutex<Blocking>, endpoints: &[SocketAddrV4]| {
        let mut client = client.lock().unwrap();
        endpoints.chunks(1).for_each(|one| client.listen(one));
    };
    let theirs =
        |helper: &Helper, endpoints: &[SocketAddrV4]| endpoints.chunks(1).for_each(|one| helper.batch(one));
    let subjects = vec![
        Subject::new("portreeve", || each_in_a_thread(&clients, share, ours))
            .after_round(|| clients.iter().for_each(|client| client.lock().unwrap().stop())),
        Subject::new("helper", || each_in_a_thread(&helpers, share, theirs))
            .after_round(|| helpers.iter().for_each(Helper::release)),
    ];
    benchmark::measure(&format!("listen/peers{peers}"), peers * share, subjects);
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
    let subjects = vec![
        Subject::new("portreeve", || (0..UNITS).for_each(|_| client.ping())),
        Subject::new("echo", || (0..UNITS).for_each(|_| echo.echo())),
    ];
    benchmark::measure("ping", UNITS, subjects);
}

fn in_batches(units: usize, size: usize, batch: impl FnMut(&[SocketAddrV4])) {
    let endpoints: Vec<SocketAddrV4> = endpoints::next(units).collect();
    endpoints.chunks(size).for_each(batch);
}
