//! Leases whose end is requested as an instant of CLOCK_BOOTTIME: it counts however late the broker handles the request, and
//! replies tell it in sessions that support that.

use std::process::Command;
use std::time::{Duration, Instant};

use portreeve_protocol::address::{AddAddress, LeaseTimes, Leases, ListAddresses, RenewAddress, RenewAll};
use portreeve_protocol::message::{Features, Hello, Outcome};
use portreeve_protocol::{Fault, FaultCode, Text, Trailing};
use portreeve_tests::namespaces::run;
use portreeve_tests::neighbour::{self, Neighbour};
use portreeve_tests::packet_capture::PacketCapture;
use portreeve_tests::peer::one_address;
use portreeve_tests::{Broker, Peer, eventually, isolated, lan, sample};
use rustix::process::Signal;

const SECOND: u64 = 1_000_000_000;
const BOTH: [&str; 2] = ["10.1.1.7", "2001:db8::7"];

/// CLOCK_BOOTTIME in nanoseconds.
pub fn boot_time() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap() * SECOND + u64::try_from(now.tv_nsec).unwrap()
}

/// Runs nft(8) with these words.
pub fn nft(words: &str) -> String {
    run(Command::new("nft").args(words.split_whitespace()), "nftables")
}

fn add_until(address: &str, until: u64) -> AddAddress {
    AddAddress { addresses: one_address(address), until: Trailing(Some(until)), ..AddAddress::default() }
}

fn renew_until(address: &str, until: u64) -> RenewAddress {
    RenewAddress { addresses: one_address(address), until: Trailing(Some(until)), ..RenewAddress::default() }
}

/// The only result and its deadline.
#[track_caller]
fn only(leases: Leases) -> Result<u64, Fault> {
    let LeaseTimes { now, deadlines } = leases.times.0.expect("the deadlines");
    assert!(now <= boot_time() && boot_time() - now < 60 * SECOND, "{now}");
    assert_eq!((leases.results.len(), deadlines.len()), (1, 1));
    match leases.results.into_vec().remove(0) {
        Outcome::Done(_) => Ok(deadlines[0]),
        Outcome::Fault(fault) => {
            assert_eq!(deadlines[0], 0);
            Err(fault)
        }
    }
}

/// How much later than its deadline an address may answer: 5 ms, and the kernel's tick, of 10 ms where it is longest.
pub const LATENESS: Duration = Duration::from_millis(15);

/// Requests an address every few milliseconds, and checks that the last answer comes at this time and not long before.
#[track_caller]
fn is_silent_from(wire: &mut PacketCapture, address: &str, end: Instant) {
    let (neighbour, mut last) = (Neighbour::number(0), None);
    while Instant::now() < end + Duration::from_secs(1) {
        wire.send(&neighbour.request_for(address.parse().unwrap()));
        let is_answer = |frame: &[u8]| neighbour::parse_reply(frame).is_some();
        for frame in wire.collect(Duration::from_millis(4), is_answer, |_| false) {
            last = Some(frame.at);
        }
    }
    let last = last.expect("answers while the lease lasts");
    assert!(last <= end + LATENESS, "{address}: {:?} late", last - end);
    assert!(last + Duration::from_secs(1) > end, "{address}: {:?} early", end - last);
}

/// A peer whose replies have the deadlines.
fn timed_peer() -> Peer {
    let mut peer = Peer::connect(portreeve_tests::broker::SOCKET.as_ref()).unwrap();
    let hello = Hello { client: Text::truncated("test"), features: u64::MAX };
    let features = peer.request(&hello).unwrap().0.features;
    assert_eq!(features & Features::LEASE_TIMES, Features::LEASE_TIMES);
    peer
}

#[test]
fn a_lease_ends_at_the_requested_instant_however_late_the_broker_handles_the_request() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let mut peer = timed_peer();
        let mut wire = PacketCapture::on("far");
        // The broker handles the addition, and then the renewal, long after they were sent.
        let late = |peer: &mut Peer, send: &mut dyn FnMut(&mut Peer)| {
            broker.suspend();
            send(peer);
            std::thread::sleep(Duration::from_millis(1_500));
            broker.signal(Signal::CONT);
        };
        for address in BOTH {
            let until = boot_time() + 4 * SECOND;
            late(&mut peer, &mut |peer| _ = peer.send(&add_until(address, until)));
            let reply = peer.receive().unwrap().reply::<AddAddress>().unwrap().0;
            assert_eq!(only(reply), Ok(until));
            let (until, end) = (boot_time() + 4 * SECOND, Instant::now() + Duration::from_secs(4));
            late(&mut peer, &mut |peer| _ = peer.send(&renew_until(address, until)));
            let reply = peer.receive().unwrap().reply::<RenewAddress>().unwrap().0;
            assert_eq!(only(reply), Ok(until));
            // Whatever the broker does from now on.
            broker.suspend();
            is_silent_from(&mut wire, address, end);
            broker.signal(Signal::CONT);
        }
    });
}

#[test]
fn an_end_that_has_passed_is_too_far_or_comes_with_a_length_is_refused() {
    isolated(|host| {
        lan::create(&["far"]);
        let _broker = Broker::start(host, &sample::addresses(""));
        let mut peer = timed_peer();
        let granted = boot_time() + 60 * SECOND;
        assert_eq!(only(peer.request(&add_until(BOTH[0], granted)).unwrap().0), Ok(granted));
        let refused = |peer: &mut Peer, until: u64, lease: Option<u32>| {
            let code = |fault: Fault| {
                assert_eq!((fault.subject.as_str(), fault.remedy.is_empty()), ("until", false), "{fault}");
                fault.code
            };
            let one = |reply: Result<(Leases, _), Fault>| {
                code(match reply {
                    Ok((leases, _)) => only(leases).unwrap_err(),
                    Err(fault) => fault,
                })
            };
            let codes = [
                one(peer.request(&AddAddress { lease, ..add_until(BOTH[1], until) })),
                one(peer.request(&AddAddress { lease, ..add_until(BOTH[0], until) })),
                one(peer.request(&RenewAddress { lease, ..renew_until(BOTH[0], until) })),
                code(peer.request(&RenewAll { lease, until: Some(until) }).unwrap_err()),
            ];
            assert!(codes.iter().all(|code| *code == codes[0]), "{codes:?}");
            codes[0]
        };
        for passed in [0, 1, boot_time() - SECOND, boot_time(), boot_time() + SECOND / 2] {
            assert_eq!(refused(&mut peer, passed, None), FaultCode::Expired, "{passed}");
        }
        for far in [boot_time() + 86_500 * SECOND, u64::MAX - 1, u64::MAX] {
            assert_eq!(refused(&mut peer, far, None), FaultCode::Invalid, "{far}");
        }
        for lease in [0, 10] {
            let until = boot_time() + 10 * SECOND;
            assert_eq!(refused(&mut peer, until, Some(lease)), FaultCode::Invalid);
        }
        let page = peer.request(&ListAddresses { after: None }).unwrap().0;
        assert_eq!(page.addresses.len(), 1);
        assert_eq!(*page.times.0.unwrap().leases.deadlines, [granted], "a refused request changed the lease");
    });
}

#[test]
fn replies_have_deadlines_only_in_sessions_that_support_them() {
    isolated(|host| {
        lan::create(&["far"]);
        let _broker = Broker::start(host, &sample::addresses(""));
        let (mut timed, mut earlier) =
            (timed_peer(), Peer::connect(portreeve_tests::broker::SOCKET.as_ref()).unwrap());
        assert_eq!(earlier.hello().features, 0);
        let add = AddAddress { addresses: one_address(BOTH[0]), lease: Some(60), ..AddAddress::default() };
        let renew = RenewAddress { addresses: one_address(BOTH[0]), ..RenewAddress::default() };
        assert_eq!(earlier.request(&add).unwrap().0.times, Trailing(None));
        assert_eq!(earlier.request(&renew).unwrap().0.times, Trailing(None));
        assert_eq!(earlier.request(&ListAddresses { after: None }).unwrap().0.times, Trailing(None));
        let before = boot_time();
        let deadline = only(timed.request(&renew).unwrap().0).unwrap();
        assert!((before..=boot_time()).contains(&(deadline - 60 * SECOND)), "{deadline}");
        let times = timed.request(&ListAddresses { after: None }).unwrap().0.times.0.unwrap();
        assert_eq!(*times.leases.deadlines, [deadline]);
        assert!((before..=boot_time()).contains(&times.leases.now));
        assert!(times.bounds.ipv4_fenced && times.bounds.ipv6_fenced);
        // A renewal without either keeps the length, also after an end was requested.
        let until = boot_time() + 30 * SECOND;
        assert_eq!(only(timed.request(&renew_until(BOTH[0], until)).unwrap().0), Ok(until));
        let kept = only(timed.request(&renew).unwrap().0).unwrap();
        assert!(kept.abs_diff(until) < 20 * SECOND, "{kept} after {until}");
    });
}

/// Sets the clock of the machine this much later or earlier.
fn step_clock(seconds: i64) {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let to = rustix::time::Timespec { tv_sec: now.tv_sec + seconds, ..now };
    rustix::time::clock_settime(rustix::time::ClockId::Realtime, to).unwrap();
}

/// `tests/kernels/run a_stepped_clock` runs it in an emulated machine.
#[test]
#[ignore = "it sets the clock of the whole machine"]
fn a_stepped_clock_changes_no_lease() {
    const DAY: i64 = 86_400;
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let mut peer = timed_peer();
        let mut wire = PacketCapture::on("far");
        for (step, address) in [(400 * DAY, BOTH[0]), (-800 * DAY, BOTH[1]), (400 * DAY, BOTH[0])] {
            let (until, end) = (boot_time() + 8 * SECOND, Instant::now() + Duration::from_secs(8));
            assert_eq!(only(peer.request(&add_until(address, until)).unwrap().0), Ok(until));
            let renewed = peer.request(&RenewAll { lease: None, until: Some(until) }).unwrap().0;
            assert_eq!((renewed.renewed, renewed.deadline), (1, until));
            step_clock(step);
            let page = peer.request(&ListAddresses { after: None }).unwrap().0;
            assert_eq!(*page.times.0.unwrap().leases.deadlines, [until]);
            is_silent_from(&mut wire, address, end);
            eventually("the removal of the address", || lan::show_address(address).is_none().then_some(()));
        }
        drop(broker);
    });
}
