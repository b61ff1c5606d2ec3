//! Addresses of a killed owner, possibly killed during a request: they are removed when their lease expires, and nothing
//! is left behind.

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
/// The maximum delay of the kernel for an address that no broker manages. The kernel checks once a second, or when its
/// timer fires, which may be late by an eighth of the timeout.
const LATE: Duration = Duration::from_secs(1);
const BOTH: [&str; 2] = ["10.1.1.7", "2001:db8::7"];
/// Addresses that ip(8) adds a moment later with the same lifetime. A kernel that is later than [`LATE`] because it is
/// busy is late with these too.
const OTHERS: [&str; 2] = ["10.1.1.8", "2001:db8::8"];

fn try_kill(pid: u32) -> rustix::io::Result<()> {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL)
}

fn kill(pid: u32) {
    try_kill(pid).unwrap();
}

fn request(addresses: &[&str]) -> AddAddress {
    let addresses = List::truncated(addresses.iter().map(|address| address.parse().unwrap()));
    AddAddress { addresses, lease: Some(3), ..AddAddress::default() }
}

/// Adds the other addresses, with the same lifetime.
fn add_others() {
    for (address, more) in OTHERS.into_iter().zip(["/32", "/128 nodad"]) {
        lan::ip(&format!("addr add {address}{more} dev eth1 valid_lft 3 preferred_lft 3"));
    }
}

/// Waits until all these addresses are removed. Asserts that no address of the broker was seen later than [`LATE`]
/// after its lease, unless the kernel was as late with the other address.
#[track_caller]
fn end_in_time(granted: Instant, who: &str) {
    let mut last = [Duration::ZERO; 2];
    eventually("the removal of the addresses", || {
        // An address in the output existed when the command started.
        let look = granted.elapsed();
        let text = lan::ip("-o addr show dev eth1");
        let is_present = |address: &str| text.contains(&format!(" {address}/"));
        for (last, (own, other)) in last.iter_mut().zip(BOTH.into_iter().zip(OTHERS)) {
            if is_present(own) {
                *last = look;
                assert!(
                    look < LEASE + LATE || is_present(other),
                    "{own} still existed {look:?} after it was granted; killed: {who}"
                );
            }
        }
        (!BOTH.into_iter().chain(OTHERS).any(is_present)).then_some(())
    });
    println!("{who} killed: {BOTH:?} were last seen {last:?} after they were granted");
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
                // The broker first, or it would remove its addresses. The others end by themselves, possibly before they are
                // killed.
                _ => {
                    kill(own);
                    for pid in [launcher, worker] {
                        let _ = try_kill(pid);
                    }
                }
            }
            end_in_time(granted, who);
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
            end_in_time(Instant::now(), "the worker");
            assert_eq!(lan::addresses(), before);
        }
        // The next worker can add an address of the killed one.
        let (_scripted, mut channel) = setup.accept();
        channel.hello();
        channel.add_address(BOTH[0], |_| {}).unwrap();
    });
}

#[test]
fn an_address_expires_if_its_peer_disconnects_during_the_probe() {
    isolated(|host| {
        lan::create(&["far", "rival", "third"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let (before, descriptors) = (lan::addresses(), broker.descriptors());
        let mut peer = broker.peer();
        peer.send(&AddAddress { probes: 3, announce: true, ..request(&BOTH) });
        drop(peer);
        BOTH.iter().for_each(|address| drop(eventually("the address", || lan::show_address(address))));
        end_in_time(Instant::now(), "the peer");
        assert_eq!(lan::addresses(), before);
        broker.await_no_leak(&descriptors);
    });
}

/// The number of elements in the sets of the fence.
fn fenced() -> usize {
    let rules = run(Command::new("nft").args(["list", "ruleset"]), "nftables");
    rules.matches("10.1.1.").count() + rules.matches("2001:db8::").count()
}

fn start_again(host: &Host) -> Broker {
    Broker::start_command(host, broker::command(host, Path::new("/run/host/portreeve.conf")))
}

#[test]
fn a_broker_killed_in_any_phase_of_a_request_leaves_nothing_behind() {
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
            // Additions, renewals and removals are in flight; each round kills the broker a little later.
            peer.send(&add);
            if round % 2 == 1 {
                peer.receive().unwrap();
                peer.send(&renew);
                peer.send(&remove);
            }
            std::thread::sleep(Duration::from_micros(300) * (round / 2).pow(2));
            broker.signal(Signal::KILL);
            drop((peer, broker));
            let remaining = lan::addresses().len() - before.len();
            caught += usize::from(remaining > 0);
            println!("round {round}: {remaining} addresses remained");
            broker = start_again(host);
        }
        assert!(caught > 0, "no kill interrupted a request");
        // Without a next broker, the kernel removes the addresses.
        let mut peer = Peer::connect(Path::new(broker::SOCKET)).unwrap();
        peer.hello();
        peer.send(&request(&many));
        peer.receive().unwrap();
        drop(broker);
        let killed = Instant::now();
        eventually("the removal of the addresses", || (lan::addresses() == before).then_some(()));
        println!("{} addresses were removed {:?} after the kill", many.len(), killed.elapsed());
    });
}
