//! When an address falls silent whose owner is killed, as a third host sees it: it asks for the address every few
//! milliseconds, and the last answer never comes after the lease.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use portreeve_protocol::List;
use portreeve_protocol::address::AddAddress;
use portreeve_protocol::message::Outcome;
use portreeve_tests::neighbour::{self, Neighbour};
use portreeve_tests::packet_capture::PacketCapture;
use portreeve_tests::scripted_worker::{ScriptedWorker, WorkerSetup};
use portreeve_tests::{Broker, Host, Peer, broker, isolated, lan, sample};
use rustix::process::{Pid, Signal, kill_process};

const LEASE: Duration = Duration::from_secs(3);
/// The kernel counts a timeout in ticks, of 10 ms where they are longest (CONFIG_HZ=100).
const TICK: Duration = Duration::from_millis(10);
/// How long after the lease answers are waited for.
const AFTER: Duration = Duration::from_millis(1_500);
const PROBER: &str = "prober";

/// What happens to the owner of an address.
#[derive(Clone, Copy, Debug)]
enum Blow {
    WorkerKilled,
    BrokerKilled,
    AllKilled,
    BrokerStopped,
}

const BLOWS: [Blow; 4] = [Blow::WorkerKilled, Blow::BrokerKilled, Blow::AllKilled, Blow::BrokerStopped];

/// A host whose worker asks for addresses.
struct Owner {
    _broker: Broker,
    _setup: WorkerSetup,
    _scripted: ScriptedWorker,
    channel: Peer,
    addresses: [IpAddr; 2],
    blow: Blow,
    /// The processes that the blow hits, in order.
    targets: Vec<(u32, Signal)>,
}

impl Owner {
    /// Starts a broker and its worker on the host of this number; `run` tells one run on it from another.
    fn start(host: &Host, number: usize, run: usize, blow: Blow) -> Self {
        let setup = WorkerSetup::new(host, &format!("chroot{number}.{run}"));
        let rest = r#"
            cluster {
                topology "10.1.1.0/24" { interface = eth1 }
                topology "2001:db8::/64" { interface = eth1 }
            }
            broker { permit "any" { address = ( "10.1.1.0/24" "2001:db8::/64" ) } }"#;
        let text = sample::worker(&setup.chroot, "( /run/host/bin/scripted_worker )", rest)
            .replace("cap_net_bind_service", "cap_net_admin,cap_net_raw");
        let command = broker::command(host, &broker::config(host, &text));
        let broker = lan::in_host(&name(number), || Broker::start_command(host, command));
        let (scripted, mut channel) = setup.accept();
        channel.hello();
        let [own, launcher, worker] = [broker.pid(), broker.launcher(), broker.worker()];
        let targets = match blow {
            Blow::WorkerKilled => vec![(worker, Signal::KILL)],
            Blow::BrokerKilled => vec![(own, Signal::KILL)],
            Blow::AllKilled => [own, launcher, worker].map(|pid| (pid, Signal::KILL)).to_vec(),
            Blow::BrokerStopped => vec![(own, Signal::STOP)],
        };
        let last = u8::try_from(100 + number).unwrap();
        let addresses = [
            Ipv4Addr::new(10, 1, 1, last).into(),
            Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 1, last.into()).into(),
        ];
        Self { _broker: broker, _setup: setup, _scripted: scripted, channel, addresses, blow, targets }
    }

    /// Adds both addresses, strikes, and gives when they were asked for and when they had been granted.
    fn strike(&mut self) -> (Instant, Instant) {
        let add = AddAddress {
            addresses: List::truncated(self.addresses),
            lease: Some(LEASE.as_secs().try_into().unwrap()),
            ..AddAddress::default()
        };
        let asked = Instant::now();
        let leases = self.channel.request(&add).unwrap().0;
        let granted = Instant::now();
        assert!(leases.results.iter().all(|result| matches!(result, Outcome::Done(_))), "{leases:?}");
        for (pid, signal) in &self.targets {
            kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), *signal).unwrap();
        }
        (asked, granted)
    }
}

fn name(number: usize) -> String {
    format!("owner{number}")
}

/// How much after the end of the lease the last answer came, in milliseconds; negative before it.
struct Measured {
    blow: Blow,
    ipv4: bool,
    late: f64,
}

/// Makes the network for so many owners.
fn join(owners: usize) {
    let names: Vec<String> = (0..owners).map(name).collect();
    let all: Vec<&str> = [PROBER].into_iter().chain(names.iter().map(String::as_str)).collect();
    lan::create(&all);
}

/// Has each of these blows struck at an owner of its own, and checks that no address answers after its lease.
fn measure(host: &Host, blows: &[Blow], run: usize) -> Vec<Measured> {
    let mut owners: Vec<Owner> =
        blows.iter().enumerate().map(|(number, blow)| Owner::start(host, number, run, *blow)).collect();
    let mut wire = PacketCapture::on(PROBER);
    let neighbour = Neighbour::number(0);
    let leases: Vec<(Instant, Instant)> = owners.iter_mut().map(Owner::strike).collect();
    let end = leases.iter().map(|(_, granted)| *granted).max().unwrap() + LEASE + AFTER;
    let mut last: HashMap<IpAddr, Instant> = HashMap::new();
    while Instant::now() < end {
        for address in owners.iter().flat_map(|owner| owner.addresses) {
            wire.send(&neighbour.request_for(address));
        }
        let is_answer = |frame: &[u8]| neighbour::parse_reply(frame).is_some();
        for frame in wire.collect(Duration::from_millis(4), is_answer, |_| false) {
            let (address, _) = neighbour::parse_reply(&frame.bytes).unwrap();
            last.insert(address, frame.at);
        }
    }
    let mut measured = Vec::new();
    for (owner, (asked, granted)) in owners.iter().zip(leases) {
        for address in owner.addresses {
            let (blow, last) = (owner.blow, last.get(&address).expect("an answer while the lease lasted"));
            // The lease began between the two.
            assert!(
                *last <= granted + LEASE + TICK,
                "{address} answered {:?} after its lease: {blow:?}",
                *last - (granted + LEASE)
            );
            assert!(*last > asked + LEASE / 3, "{address} fell silent early: {blow:?}");
            let lasted = last.duration_since(granted).as_secs_f64() - LEASE.as_secs_f64();
            measured.push(Measured { blow, ipv4: address.is_ipv4(), late: lasted * 1000.0 });
        }
    }
    measured
}

fn print(measured: &[Measured]) {
    println!(
        "last answer against the end of a lease of {} s, by the clock of who asked for it",
        LEASE.as_secs()
    );
    println!(
        "{:<14} {:<5} {:>5} {:>10} {:>10} {:>10}",
        "what happened", "", "runs", "earliest", "median", "latest"
    );
    for blow in BLOWS {
        for ipv4 in [true, false] {
            let of = |one: &&Measured| one.ipv4 == ipv4 && one.blow as u8 == blow as u8;
            let mut late: Vec<f64> = measured.iter().filter(of).map(|one| one.late).collect();
            late.sort_by(f64::total_cmp);
            let at = |index: usize| format!("{:+.1} ms", late[index]);
            let (runs, family) = (late.len(), if ipv4 { "IPv4" } else { "IPv6" });
            let blow = format!("{blow:?}");
            println!(
                "{blow:<14} {family:<5} {runs:>5} {:>10} {:>10} {:>10}",
                at(0),
                at(runs / 2),
                at(runs - 1)
            );
        }
    }
}

#[test]
fn no_address_answers_after_its_lease_whoever_of_its_owners_is_killed() {
    isolated(|host| {
        join(BLOWS.len());
        print(&measure(host, &BLOWS, 0));
    });
}

/// Takes two minutes: `cargo test -p portreeve-tests prober -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn table_of_last_answers() {
    isolated(|host| {
        const AT_ONCE: usize = 8;
        join(AT_ONCE);
        let blows: Vec<Blow> = BLOWS.into_iter().cycle().take(AT_ONCE).collect();
        let measured: Vec<Measured> = (0..10).flat_map(|run| measure(host, &blows, run)).collect();
        print(&measured);
    });
}
