//! The broker's overhead: the time until it is ready, the time until a killed worker's successor serves, the latency of a
//! peer while another user floods the broker, the memory of its processes at rest, the broker's memory before, with and
//! after ten thousand listeners, and the size of its program.

use std::io::Read as _;
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use portreeve_tests::benchmark::{self, is_selected, median, report, report_with_baseline};
use portreeve_tests::chroot::Chroot;
use portreeve_tests::peer::listen;
use portreeve_tests::{Broker, Host, binaries, flood, process, sample};
use rustix::process::{Pid, Signal, kill_process};

const ROUNDS: usize = 20;
/// After this time the broker has returned the memory that it does not need.
const REST: Duration = Duration::from_secs(3);

fn main() {
    benchmark::main("The broker's overhead: medians", inside);
}

fn inside(host: &Host) {
    if is_selected("start") {
        startup(host);
    }
    if is_selected("restart") {
        worker_restart(host);
    }
    if is_selected("flood") {
        latency_under_flood(host);
    }
    if is_selected("rest") {
        memory_at_rest(host);
    }
    if is_selected("memory") {
        memory(host);
        let program = std::fs::metadata(host.binary(binaries::BROKER)).unwrap();
        report("memory/program", "kB", program.len() as f64 / 1024.0);
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// The time from the start of the process until it notifies the service manager that it is ready.
fn startup(host: &Host) {
    let config = sample::control(r#"( "127.0.0.0/8:20000-20063" )"#);
    let start = || {
        let started = Instant::now();
        let mut broker = Broker::start_with_log_file(host, &config);
        let took = milliseconds(started.elapsed());
        broker.terminate();
        took
    };
    let mut samples: Vec<f64> = (0..ROUNDS).map(|_| start()).collect();
    report("start/ready", "ms", median(&mut samples));
}

/// The round trip of a peer during another user's flood, compared with that of an idle broker.
/// It should be at most twice as long.
fn latency_under_flood(host: &Host) {
    let broker = Broker::start_with_log_file(host, &sample::control(r#"( "127.0.0.1:1-65535" )"#));
    let mut bystander = broker.peer();
    let mut latency = || flood::latency(&mut bystander, Duration::from_millis(200)).as_nanos() as f64;
    for (what, flood) in flood::ALL {
        let (mut flooded, mut idle) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            idle.push(latency());
            flooded.push(flood::during(flood, &mut latency));
        }
        report_with_baseline(&format!("flood/{what}"), "ns", median(&mut flooded), "idle", median(&mut idle));
    }
}

/// The time from killing the sample mail server until the next one greets a client.
fn worker_restart(host: &Host) {
    let chroot = Chroot::new(host, "mail");
    chroot.worker_directory("Maildir");
    let command = r#"( /run/host/bin/smtp_worker "--listen" "127.0.0.1:25" "--greeting" "mx1.example" )"#;
    let rest = r#"esmtp_listener { listen "127.0.0.1:25" {} } worker { stable_after = 0 }"#;
    let broker = Broker::start_with_log_file(host, &sample::worker(&chroot, command, rest));
    let greeting = || {
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, 25)).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        client.read_exact(&mut [0; 3]).unwrap();
    };
    let mut samples: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            greeting();
            // The broker regards a worker that ends sooner as failing to start.
            std::thread::sleep(Duration::from_millis(150));
            let worker = broker.worker();
            let killed = Instant::now();
            kill_process(Pid::from_raw(worker.cast_signed()).unwrap(), Signal::KILL).unwrap();
            greeting();
            milliseconds(killed.elapsed())
        })
        .collect();
    report("restart/first greeting", "ms", median(&mut samples));
}

/// The memory of a broker with a worker, and of its processes together, when nobody has used it for a while.
fn memory_at_rest(host: &Host) {
    let chroot = Chroot::new(host, "rest");
    chroot.worker_directory("Maildir");
    let command = r#"( /run/host/bin/smtp_worker "--listen" "127.0.0.1:25" "--greeting" "mx1.example" )"#;
    let broker = Broker::start_with_log_file(
        host,
        &sample::worker(&chroot, command, r#"esmtp_listener { listen "127.0.0.1:25" {} }"#),
    );
    std::thread::sleep(REST);
    report("rest/broker/rss", "kB", kilobytes(broker.pid(), "Rss"));
    let processes = [("broker", broker.pid()), ("reader", broker.reader()), ("launcher", broker.launcher())];
    let all = processes.map(|(name, pid)| {
        let pss = kilobytes(pid, "Pss");
        report(&format!("rest/{name}/pss"), "kB", pss);
        pss
    });
    report("rest/together/pss", "kB", all.iter().sum());
}

fn kilobytes(pid: u32, field: &str) -> f64 {
    process::rollup_kilobytes(pid, field) as f64
}

/// RSS, PSS and anonymous memory.
fn memory(host: &Host) {
    let broker = Broker::start_with_log_file(host, &sample::control(r#"( "127.0.0.0/8:20000-20063" )"#));
    let mut peer = broker.peer();
    let report_memory = |when: &str| {
        for (name, field) in [("rss", "Rss"), ("pss", "Pss"), ("anonymous", "Anonymous")] {
            report(&format!("memory/{when}/{name}"), "kB", kilobytes(broker.pid(), field));
        }
        kilobytes(broker.pid(), "Anonymous")
    };
    let idle = report_memory("idle");
    let endpoints: Vec<_> = (0..10_000_u16)
        .map(|n| listen(&format!("127.1.{}.{}:{}", n / 64 / 250, n / 64 % 250, 20_000 + n % 64)))
        .collect();
    let mut held = Vec::new();
    for some in endpoints.chunks(200) {
        held.extend(peer.listen_many(some.iter().cloned()));
    }
    let with = report_memory("10000 listeners");
    report("memory/per listener", "B", (with - idle) * 1024.0 / 10_000.0);
    for some in held.chunks(200) {
        peer.stop(some);
    }
    std::thread::sleep(REST);
    report_memory("released");
}
