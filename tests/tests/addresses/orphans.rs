//! Addresses whose owner is gone, or goes while it is being served: they end with their lease, and nothing of them stays.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use portreeve_protocol::List;
use portreeve_protocol::address::{AddAddress, RemoveAddress, RenewAddress};
use portreeve_tests::namespaces::run;
use portreeve_tests::scripted_worker::WorkerSetup;
use portreeve_tests::{Broker, Host, Peer, broker, eventually, isolated, lan, sample};
use rustix::process::{Pid, Signal, kill_process};

const LEASE: Duration = Duration::from_secs(3);
/// How late the kernel is at most with an address of which no broker takes care: it looks once a second, or when its timer
/// says so, which is late by an eighth of what it was set to.
const LATE: Duration = Duration::from_secs(1);
const BOTH: [&str; 2] = ["10.1.1.7", "2001:db8::7"];
/// What ip(8) adds with the same lifetime a moment later: the kernel may be busier than [`LATE`] allows, with these as well.
const OTHERS: [&str; 2] = ["10.1.1.8", "2001:db8::8"];

fn kill(pid: u32) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
}

fn request(addresses: &[&str]) -> AddAddress {
    let addresses = List::truncated(addresses.iter().map(|address| address.parse().unwrap()));
    AddAddress { addresses, lease: Some(3), ..AddAddress::default() }
}

/// Has the kernel end other addresses after the same time.
fn add_others() {
    for (address, more) in OTHERS.into_iter().zip(["/32", "/128 nodad"]) {
        lan::ip(&format!("addr add {address}{more} dev eth1 valid_lft 3 preferred_lft 3"));
    }
}

/// Waits until nothing is there that was granted by now, and checks that no address of the broker's was seen later than
/// [`LATE`] after its lease, but for a kernel that was as late with the others.
#[track_caller]
fn go_in_time(granted: Instant, who: &str) {
    let mut last = [Duration::ZERO; 2];
    eventually("the end of the addresses", || {
        // What a look finds was there when it began.
        let look = granted.elapsed();
        let text = lan::ip("-o addr show dev eth1");
        let there = |address: &str| text.contains(&format!(" {address}/"));
        for (last, (own, other)) in last.iter_mut().zip(BOTH.into_iter().zip(OTHERS)) {
            if there(own) {
                *last = look;
                assert!(
                    look < LEASE + LATE || there(other),
                    "{own} was there {look:?} after it was granted, though {who} was killed"
                );
            }
        }
        (!BOTH.into_iter().chain(OTHERS).any(there)).then_some(())
    });
    println!("{who} killed: {BOTH:?} were last there {last:?} after they were granted");
}

#[test]
fn addresses_end_with_their_lease_when_worker_launcher_broker_or_all_are_killed() {
    isolated(|host| {
        lan::create(&["far", "rival", "third"]);
        let before = lan::addresses();
        for who in ["the worker", "the launcher", "the broker", "everyone"] {
            let setup = WorkerSetup::new(host, who);
            let text =
                sample::worker(&setup.chroot, "( /run/host/bin/scripted_worker )", &sample::addresses(""));
            let broker = Broker::start(host, &text);
            let (_scripted, mut channel) = setup.accept();
            channel.hello();
            let (own, launcher, worker) = (broker.pid(), broker.launcher(), broker.worker());
            channel.request(&request(&BOTH)).unwrap();
            let granted = Instant::now();
            add_others();
            assert!(BOTH.iter().all(|address| lan::show_address(address).is_some()));
            match who {
                "the worker" => kill(worker),
                "the launcher" => kill(launcher),
                "the broker" => kill(own),
                // The broker first, or it would give its addresses back.
                _ => [own, launcher, worker].into_iter().for_each(kill),
            }
            go_in_time(granted, who);
            assert_eq!(lan::addresses(), before);
        }
    });
}

#[test]
fn a_worker_killed_in_any_phase_of_a_request_leaves_no_address() {
    isolated(|host| {
        lan::create(&["far", "rival", "third"]);
        let before = lan::addresses();
        let setup = WorkerSetup::new(host, "chroot");
        let rest = sample::addresses("worker { stable_after = 0 }");
        let broker =
            Broker::start(host, &sample::worker(&setup.chroot, "( /run/host/bin/scripted_worker )", &rest));
        // Before it sends, after it has sent, and before it reads the reply.
        for phase in 0..3 {
            let (_scripted, mut channel) = setup.accept();
            channel.hello();
            if phase > 0 {
                channel.send(&request(&BOTH));
            }
            if phase > 1 {
                BOTH.iter()
                    .for_each(|address| drop(eventually("the address", || lan::show_address(address))));
            }
            kill(broker.worker());
            drop(channel);
            add_others();
            go_in_time(Instant::now(), "the worker");
            assert_eq!(lan::addresses(), before);
        }
        // What was the dead worker's can be had by the next.
        let (_scripted, mut channel) = setup.accept();
        channel.hello();
        channel.add_address(BOTH[0], |_| {}).unwrap();
    });
}

#[test]
fn a_peer_that_hangs_up_while_its_address_is_probed_for_leaves_it_to_its_lease() {
    isolated(|host| {
        lan::create(&["far", "rival", "third"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let (before, descriptors) = (lan::addresses(), broker.descriptors());
        let mut peer = broker.peer();
        peer.send(&AddAddress { probes: 3, announce: true, ..request(&BOTH) });
        drop(peer);
        BOTH.iter().for_each(|address| drop(eventually("the address", || lan::show_address(address))));
        go_in_time(Instant::now(), "the peer");
        assert_eq!(lan::addresses(), before);
        broker.await_no_leak(&descriptors);
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
        lan::create(&["far", "rival", "third"]);
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
        peer.receive().unwrap();
        drop(broker);
        let killed = Instant::now();
        eventually("the end of the addresses", || (lan::addresses() == before).then_some(()));
        println!("{} addresses were gone {:?} after the kill", many.len(), killed.elapsed());
    });
}
