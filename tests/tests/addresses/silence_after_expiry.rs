//! When an address becomes silent after its owner is killed, as a third host sees it. That host requests the address
//! every few milliseconds; the last answer never arrives after the lease, whichever way its end was requested.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use portreeve_protocol::address::{AddAddress, ListAddresses, RenewAll};
use portreeve_protocol::message::Outcome;
use portreeve_protocol::{List, Trailing};
use portreeve_tests::neighbour::{self, Neighbour};
use portreeve_tests::packet_capture::PacketCapture;
use portreeve_tests::scripted_worker::{ScriptedWorker, WorkerSetup};
use portreeve_tests::{Broker, Host, Peer, broker, eventually, isolated, lan, sample};
use rustix::process::{Pid, Signal, kill_process};

use crate::deadlines::{LATENESS, boot_time, nft};

const LEASE: Duration = Duration::from_secs(3);
/// How long after the lease the test waits for answers.
const AFTER: Duration = Duration::from_millis(1_500);
const PROBER: &str = "prober";

/// What happens to the owner of an address.
#[derive(Clone, Copy, Debug)]
enum Failure {
    WorkerKilled,
    BrokerKilled,
    AllKilled,
    BrokerStopped,
}

const FAILURES: [Failure; 4] =
    [Failure::WorkerKilled, Failure::BrokerKilled, Failure::AllKilled, Failure::BrokerStopped];

/// How the end of the lease is requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// As a length.
    Length,
    /// As an instant.
    Instant,
    /// As an instant; then another program flushes the packet filter, and the broker builds the fence again.
    Flushed,
    /// By a renewal of all addresses until an instant.
    AllRenewed,
}

const ENDS: [End; 4] = [End::Length, End::Instant, End::Flushed, End::AllRenewed];

/// A host with a broker, and a worker that requests addresses.
struct Owner {
    host: String,
    _broker: Broker,
    _setup: WorkerSetup,
    _scripted: ScriptedWorker,
    channel: Peer,
    addresses: [IpAddr; 2],
    failure: Failure,
    /// The processes that the failure hits, in order.
    targets: Vec<(u32, Signal)>,
}

impl Owner {
    /// Starts a broker and its worker on the host of this number; `run` distinguishes the runs on it.
    fn start(host: &Host, number: usize, run: usize, failure: Failure) -> Self {
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
        let targets = match failure {
            Failure::WorkerKilled => vec![(worker, Signal::KILL)],
            Failure::BrokerKilled => vec![(own, Signal::KILL)],
            Failure::AllKilled => [own, launcher, worker].map(|pid| (pid, Signal::KILL)).to_vec(),
            Failure::BrokerStopped => vec![(own, Signal::STOP)],
        };
        let last = u8::try_from(100 + number).unwrap();
        let addresses = [
            Ipv4Addr::new(10, 1, 1, last).into(),
            Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 1, last.into()).into(),
        ];
        let host = name(number);
        Self {
            host,
            _broker: broker,
            _setup: setup,
            _scripted: scripted,
            channel,
            addresses,
            failure,
            targets,
        }
    }

    /// Adds both addresses, injects the failure, and returns between which times the lease ends.
    fn inject(&mut self, end: End) -> (Instant, Instant) {
        let length = u32::try_from(LEASE.as_secs()).unwrap();
        let (requested, until) = (Instant::now(), boot_time() + u64::try_from(LEASE.as_nanos()).unwrap());
        let (lease, until) = match end {
            End::Length => (Some(length), None),
            // Renewed at once, and until then for longer.
            End::AllRenewed => (Some(2 * length), Some(until)),
            End::Instant | End::Flushed => (None, Some(until)),
        };
        let add = AddAddress {
            addresses: List::truncated(self.addresses),
            lease,
            until: Trailing(until.filter(|_| lease.is_none())),
            ..AddAddress::default()
        };
        let leases = self.channel.request(&add).unwrap().0;
        assert!(leases.results.iter().all(|result| matches!(result, Outcome::Done(_))), "{leases:?}");
        match end {
            End::Flushed => {
                lan::in_host(&self.host, || nft("flush ruleset"));
                eventually("the fence", || {
                    self.channel.request(&ListAddresses { after: None }).unwrap().0.fenced.then_some(())
                });
            }
            End::AllRenewed => {
                // So many that the fence has sets of its own for them.
                let last = self.addresses[0].to_string().rsplit('.').next().unwrap().parse::<u16>().unwrap();
                let more =
                    (1..=65).map(|number| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 2, last, number).into());
                let add = AddAddress { addresses: List::truncated(more), lease, ..AddAddress::default() };
                self.channel.request(&add).unwrap();
                let renewed = self.channel.request(&RenewAll { lease: None, until }).unwrap().0;
                assert_eq!((renewed.renewed, Some(renewed.deadline)), (67, until));
            }
            End::Length | End::Instant => {}
        }
        let granted = if until.is_some() { requested } else { Instant::now() };
        for (number, (pid, signal)) in self.targets.iter().enumerate() {
            let killed = kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), *signal);
            // The launcher and the worker end with the broker, possibly before they are killed.
            assert!(killed.is_ok() || number > 0, "{killed:?}");
        }
        (requested + LEASE, granted + LEASE)
    }
}

fn name(number: usize) -> String {
    format!("owner{number}")
}

/// How long after the end of the lease the last answer arrived, in milliseconds; negative if it arrived before.
struct Measured {
    end: End,
    failure: Failure,
    ipv4: bool,
    late: f64,
}

/// Creates a network with this many owners.
fn join(owners: usize) {
    let names: Vec<String> = (0..owners).map(name).collect();
    let all: Vec<&str> = [PROBER].into_iter().chain(names.iter().map(String::as_str)).collect();
    lan::create(&all);
}

/// Injects each of these failures into its own owner, and checks that no address answers after its lease.
fn measure(host: &Host, end: End, failures: &[Failure], run: usize) -> Vec<Measured> {
    let mut owners: Vec<Owner> = failures
        .iter()
        .enumerate()
        .map(|(number, failure)| Owner::start(host, number, run, *failure))
        .collect();
    let mut wire = PacketCapture::on(PROBER);
    let neighbour = Neighbour::number(0);
    let leases: Vec<(Instant, Instant)> = owners.iter_mut().map(|owner| owner.inject(end)).collect();
    let stop = leases.iter().map(|(_, latest)| *latest).max().unwrap() + AFTER;
    let mut last: HashMap<IpAddr, Instant> = HashMap::new();
    while Instant::now() < stop {
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
    for (owner, (earliest, latest)) in owners.iter().zip(leases) {
        for address in owner.addresses {
            let (failure, last) =
                (owner.failure, last.get(&address).expect("an answer while the lease lasted"));
            assert!(
                *last <= latest + LATENESS,
                "{address} answered {:?} after its lease: {end:?}, {failure:?}",
                *last - latest
            );
            assert!(*last > earliest - LEASE * 2 / 3, "{address} was silent too early: {end:?}, {failure:?}");
            let lasted = last.saturating_duration_since(latest - LEASE).as_secs_f64() - LEASE.as_secs_f64();
            measured.push(Measured { end, failure, ipv4: address.is_ipv4(), late: lasted * 1000.0 });
        }
    }
    measured
}

fn print(measured: &[Measured]) {
    println!(
        "last answer relative to the end of a lease of {} s, by the clock of the requester",
        LEASE.as_secs()
    );
    println!(
        "{:<11} {:<14} {:<5} {:>5} {:>10} {:>10} {:>10}",
        "end", "failure", "", "runs", "earliest", "median", "latest"
    );
    for (end, failure) in ENDS.into_iter().flat_map(|end| FAILURES.map(|failure| (end, failure))) {
        for ipv4 in [true, false] {
            let of =
                |one: &&Measured| one.end == end && one.ipv4 == ipv4 && one.failure as u8 == failure as u8;
            let mut late: Vec<f64> = measured.iter().filter(of).map(|one| one.late).collect();
            late.sort_by(f64::total_cmp);
            let (Some(runs), family) = (late.len().checked_sub(1), if ipv4 { "IPv4" } else { "IPv6" }) else {
                continue;
            };
            let at = |index: usize| format!("{:+.1} ms", late[index]);
            let (end, failure) = (format!("{end:?}"), format!("{failure:?}"));
            println!(
                "{end:<11} {failure:<14} {family:<5} {:>5} {:>10} {:>10} {:>10}",
                late.len(),
                at(0),
                at(runs / 2),
                at(runs)
            );
        }
    }
}

fn check(host: &Host, end: End) {
    join(FAILURES.len());
    print(&measure(host, end, &FAILURES, 0));
}

#[test]
fn no_address_answers_after_its_lease_whichever_process_is_killed() {
    isolated(|host| check(host, End::Length));
}

#[test]
fn no_address_answers_after_the_instant_at_which_its_lease_ends() {
    isolated(|host| check(host, End::Instant));
}

#[test]
fn no_address_answers_after_its_lease_if_the_packet_filter_was_flushed() {
    isolated(|host| check(host, End::Flushed));
}

#[test]
fn no_address_answers_after_the_last_renewal_of_all() {
    isolated(|host| check(host, End::AllRenewed));
}

/// Takes two minutes: `cargo test -p portreeve-tests silence_after_expiry -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn table_of_last_answers() {
    isolated(|host| {
        const AT_ONCE: usize = 8;
        join(AT_ONCE);
        let failures: Vec<Failure> = FAILURES.into_iter().cycle().take(AT_ONCE).collect();
        let mut measured = Vec::new();
        for (run, end) in (0..5).flat_map(|_| ENDS).enumerate() {
            measured.extend(measure(host, end, &failures, run));
        }
        print(&measured);
    });
}
