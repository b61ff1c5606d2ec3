//! The maximum number of addresses, in one namespace, from addition to removal.

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::time::{Duration, Instant};

use portreeve_protocol::address::{
    ADDRESS_PAGE, AddAddress, Leases, ListAddresses, MAX_ADDRESSES, RemoveAddress, RenewAddress,
};
use portreeve_protocol::message::Outcome;
use portreeve_protocol::{Fault, FaultCode, List};
use portreeve_tests::namespaces::run;
use portreeve_tests::{Broker, Peer, eventually, isolated, lan, process, sample};

const MAX: u32 = 10_240;

fn addresses(from: u32, count: u32) -> Vec<IpAddr> {
    (from..from + count).map(|number| Ipv4Addr::from(0x0a02_0000 + 1 + number).into()).collect()
}

fn done(leases: Leases) -> usize {
    let done = leases.results.iter().filter(|result| matches!(result, Outcome::Done(_))).count();
    assert_eq!(
        done,
        leases.results.len(),
        "{:?}",
        leases.results.iter().find(|one| matches!(one, Outcome::Fault(_)))
    );
    done
}

/// Sends requests for all addresses, each request full, and returns how long that took.
#[track_caller]
fn timed(what: &str, all: &[IpAddr], mut request: impl FnMut(List<IpAddr, MAX_ADDRESSES>)) -> Duration {
    let begin = Instant::now();
    all.chunks(MAX_ADDRESSES).for_each(|some| request(List::new(some.to_vec()).unwrap()));
    let time = begin.elapsed();
    println!("{what} of {} addresses: {} ms", all.len(), time.as_millis());
    time
}

fn add(peer: &mut Peer, addresses: List<IpAddr, MAX_ADDRESSES>) -> Result<Leases, Fault> {
    let add = AddAddress { addresses, lease: Some(120), ..AddAddress::default() };
    Ok(peer.request(&add)?.0)
}

fn cpu(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = text.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn the_maximum_number_of_addresses_is_added_renewed_listed_and_removed() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let before = lan::addresses();
        let mut peer = broker.peer();
        let all = addresses(0, MAX);
        timed("add", &all, |some| _ = done(add(&mut peer, some).unwrap()));
        let one_more = peer.add_address("10.1.1.7", |_| {}).unwrap_err();
        assert_eq!(one_more.code, FaultCode::Quota);

        let renew = |peer: &mut Peer| {
            timed("renewal", &all, |addresses| {
                let renew = RenewAddress { addresses, ..RenewAddress::default() };
                _ = done(peer.request(&renew).unwrap().0);
            })
        };
        let (began, ticks) = (Instant::now(), cpu(broker.pid()));
        renew(&mut peer);
        renew(&mut peer);
        let share = (cpu(broker.pid()) - ticks) as f64 / 100.0 / began.elapsed().as_secs_f64();
        println!(
            "processor share while it renews: {share:.2}; VmRSS {}",
            process::status_field(broker.pid(), "VmRSS")
        );

        let mut listed = Vec::new();
        loop {
            let page = peer.request(&ListAddresses { after: listed.last().copied() }).unwrap().0;
            assert!(page.addresses.len() <= ADDRESS_PAGE);
            listed.extend(page.addresses.iter().map(|row| row.lease.address));
            if !page.more {
                break;
            }
        }
        assert_eq!(listed, all);

        timed("removal", &all, |addresses| {
            let removed = peer.request(&RemoveAddress { addresses, epoch: 0 }).unwrap().0;
            assert!(
                removed
                    .results
                    .iter()
                    .all(|result| matches!(result, Outcome::Done(removed) if removed.verified))
            );
        });
        assert_eq!(lan::addresses(), before);
    });
}

/// Takes more than a minute: `cargo test --release -p portreeve-tests many_addresses -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn cost_of_the_maximum_number_of_addresses_for_a_minute() {
    isolated(|host| {
        lan::create(&["far", "rival", "third"]);
        let broker = Broker::start_with_log_file(host, &sample::addresses(""));
        let mut peer = broker.peer();
        let memory = || process::status_field(broker.pid(), "VmRSS");
        println!("no addresses: VmRSS {}", memory());
        let all = addresses(0, MAX);
        timed("add", &all, |some| _ = done(add(&mut peer, some).unwrap()));
        println!("{MAX} addresses: VmRSS {}", memory());
        // A default lease of 10 s is renewed after a fifth of its time.
        let every = Duration::from_secs(2);
        let (began, ticks) = (Instant::now(), cpu(broker.pid()));
        let mut sweeps = Vec::new();
        while began.elapsed() < Duration::from_secs(60) {
            let sweep = Instant::now();
            for some in all.chunks(MAX_ADDRESSES) {
                let addresses = List::new(some.to_vec()).unwrap();
                let renew = RenewAddress { addresses, lease: Some(10), epoch: 0, ..RenewAddress::default() };
                _ = done(peer.request(&renew).unwrap().0);
            }
            sweeps.push(sweep.elapsed());
            std::thread::sleep(every.saturating_sub(sweep.elapsed()));
        }
        let share = (cpu(broker.pid()) - ticks) as f64 / began.elapsed().as_secs_f64();
        sweeps.sort_unstable();
        println!(
            "{} renewals of all: {:?} in the median, {:?} at most; the broker took {share:.1} % of a processor; VmRSS {}",
            sweeps.len(),
            sweeps[sweeps.len() / 2],
            sweeps[sweeps.len() - 1],
            memory()
        );
    });
}

#[test]
fn lost_kernel_notifications_are_recovered() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let mut peer = broker.peer();
        peer.add_address("10.1.1.7", |add| add.lease = Some(120)).unwrap();
        // While the broker is suspended, more notifications arrive than its socket can buffer. Then the address is
        // removed.
        broker.suspend();
        let mut flood = String::new();
        for round in 0..6 {
            for number in 1..6_000 {
                let (verb, host) = (if round % 2 == 0 { "add" } else { "del" }, number % 250 + 1);
                flood.push_str(&format!("addr {verb} 10.2.{}.{host}/32 dev eth1\n", number / 250));
            }
        }
        flood.push_str("addr del 10.1.1.7/32 dev eth1\n");
        let script = host.file("flood", &flood);
        run(Command::new("ip").args(["-force", "-batch"]).arg(script), "iproute2");
        assert_eq!(lan::show_address("10.1.1.7"), None);
        broker.signal(rustix::process::Signal::CONT);
        broker.log.wait_for(&["lost notifications from the kernel"]);
        eventually("the restored address", || lan::show_address("10.1.1.7"));
    });
}
