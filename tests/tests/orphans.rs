//! Addresses whose owner is gone, or goes while it is being served: they end with their lease, and nothing of them stays.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use portreeve_protocol::List;
use portreeve_protocol::address::{AddAddress, RemoveAddress, RenewAddress};
use portreeve_tests::namespaces::run;
use portreeve_tests::puppet::Stage;
use portreeve_tests::{Broker, Host, Peer, broker, eventually, isolated, lan, sample};
use rustix::process::{Pid, Signal, kill_process};

const LEASE: Duration = Duration::from_secs(3);
/// How late the kernel may be with an address of which no broker takes care.
const LATE: Duration = Duration::from_secs(2);
const BOTH: [&str; 2] = ["10.1.1.7", "2001:db8::7"];

fn kill(pid: u32) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
}

fn request(addresses: &[&str]) -> AddAddress {
    let addresses = List::first_of(addresses.iter().map(|address| address.parse().unwrap()));
    AddAddress { addresses, lease: Some(3), ..AddAddress::default() }
}

/// Waits until neither address is there, and checks that it was not there for long after its lease.
#[track_caller]
fn go_in_time(asked: Instant, who: &str) {
    for address in BOTH {
        eventually("the end of the address", || lan::shown(address).is_none().then_some(()));
        let gone = asked.elapsed();
        println!("{who} killed: {address} was gone {} ms after it was asked for", gone.as_millis());
        assert!(gone < LEASE + LATE, "{address} was there for {gone:?} though {who} was killed");
    }
}

#[test]
fn addresses_end_with_their_lease_when_worker_launcher_broker_or_all_are_killed() {
    isolated(|host| {
        lan::join(&["far", "rival", "third"]);
        let before = lan::addresses();
        for who in ["the worker", "the launcher", "the broker", "everyone"] {
            let stage = Stage::new(host, who);
            let text = sample::worker(&stage.chroot, "( /run/host/bin/puppet )", &sample::addresses(""));
            let broker = Broker::start(host, &text);
            let (_puppet, mut channel) = stage.enter();
            channel.hello();
            let (own, launcher, worker) = (broker.pid(), broker.launcher(), broker.worker());
            let asked = Instant::now();
            channel.ask(&request(&BOTH)).unwrap();
            assert!(BOTH.iter().all(|address| lan::shown(address).is_some()));
            match who {
                "the worker" => kill(worker),
                "the launcher" => kill(launcher),
                "the broker" => kill(own),
                // The broker first, or it would give its addresses back.
                _ => [own, launcher, worker].into_iter().for_each(kill),
            }
            go_in_time(asked, who);
            assert_eq!(lan::addresses(), before);
        }
    });
}

#[test]
fn a_worker_killed_in_any_phase_of_a_request_leaves_no_address() {
    isolated(|host| {
        lan::join(&["far", "rival", "third"]);
        let before = lan::addresses();
        let stage = Stage::new(host, "chroot");
        let rest = sample::addresses("worker { stable_after = 0 }");
        let broker = Broker::start(host, &sample::worker(&stage.chroot, "( /run/host/bin/puppet )", &rest));
        // Before it sends, after it has sent, and before it reads the reply.
        for phase in 0..3 {
            let (_puppet, mut channel) = stage.enter();
            channel.hello();
            let asked = Instant::now();
            if phase > 0 {
                channel.send(&request(&BOTH));
            }
            if phase > 1 {
                BOTH.iter().for_each(|address| drop(eventually("the address", || lan::shown(address))));
            }
            kill(broker.worker());
            drop(channel);
            go_in_time(asked, "the worker");
            assert_eq!(lan::addresses(), before);
        }
        // What was the dead worker's can be had by the next.
        let (_puppet, mut channel) = stage.enter();
        channel.hello();
        channel.add_address(BOTH[0], |_| {}).unwrap();
    });
}

#[test]
fn a_peer_that_hangs_up_while_its_address_is_probed_for_leaves_it_to_its_lease() {
    isolated(|host| {
        lan::join(&["far", "rival", "third"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let (before, descriptors) = (lan::addresses(), broker.census());
        let mut peer = broker.peer();
        peer.send(&AddAddress { probes: 3, announce: true, ..request(&BOTH) });
        drop(peer);
        BOTH.iter().for_each(|address| drop(eventually("the address", || lan::shown(address))));
        go_in_time(Instant::now(), "the peer");
        assert_eq!(lan::addresses(), before);
        broker.await_no_more_than(&descriptors);
    });
}

/// The elements of the fence's sets.
fn fenced() -> usize {
    let rules = run(Command::new("nft").args(["list", "ruleset"]), "nftables");
    rules.matches("10.1.1.").count() + rules.matches("2001:db8::").count()
}

fn start_again(host: &Host) -> Broker {
    Broker::start_command(host, broker::command(host, Path::new("/run/host/portreeve.conf")))
}

#[test]
fn a_broker_killed_in_any_phase_of_a_request_leaves_nothing_to_the_next_one() {
    isolated(|host| {
        lan::join(&["far", "rival", "third"]);
        let before = lan::addresses();
        let many: Vec<String> = (10..110)
            .flat_map(|number| [format!("10.1.1.{number}"), format!("2001:db8::{number}")])
            .collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let mut broker = Broker::start(host, &sample::addresses(""));
        let mut caught = 0;
        for round in 0..12_u32 {
            assert_eq!((lan::addresses(), fenced()), (before.clone(), 0), "after {round} kills");
            let mut peer = broker.peer();
            let add = request(&many);
            let (renew, remove) = (
                RenewAddress { addresses: add.addresses.clone(), ..RenewAddress::default() },
                RemoveAddress { addresses: add.addresses.clone(), epoch: 0 },
            );
            // Adding, renewing and removing are all on their way; each round strikes a little later.
            peer.send(&add);
            if round % 2 == 1 {
                peer.receive().unwrap();
                peer.send(&renew);
                peer.send(&remove);
            }
            std::thread::sleep(Duration::from_micros(300) * (round / 2).pow(2));
            broker.signal(Signal::KILL);
            drop((peer, broker));
            let left = lan::addresses().len() - before.len();
            caught += usize::from(left > 0);
            println!("round {round}: {left} addresses were there");
            broker = start_again(host);
        }
        assert!(caught > 0, "no kill came in the middle of anything");
        // And where there is no next one the kernel ends them.
        let mut peer = Peer::connect(Path::new(broker::SOCKET)).unwrap();
        peer.hello();
        peer.send(&request(&many));
        eventually("an address", || lan::shown(many[0]));
        drop(broker);
        let killed = Instant::now();
        eventually("the end of the addresses", || (lan::addresses() == before).then_some(()));
        assert!(killed.elapsed() < LEASE + LATE, "{:?}", killed.elapsed());
    });
}
