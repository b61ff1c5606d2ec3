//! Which ARP packets are a conflict: RFC 5227. This host's own interfaces are no rivals, and a host that only probes for an
//! address does not use it.

use std::net::UdpSocket;
use std::time::Duration;

use portreeve_protocol::EventCode;
use portreeve_protocol::FaultCode;
use portreeve_protocol::address::{AddAddress, Lease};
use portreeve_protocol::message::Outcome;
use portreeve_tests::packet_capture::{PacketCapture, hex};
use portreeve_tests::peer::one_address;
use portreeve_tests::wait::TIMEOUT;
use portreeve_tests::{Broker, Peer, isolated, lan, sample};

/// The frame of a host that probes for 10.1.1.7: RFC 5227 section 1.1.
const PROBE_BY_FAR: &str = "ff ff ff ff ff ff 02 00 00 00 00 02 08 06 00 01 08 00 06 04 00 01 \
     02 00 00 00 00 02 00 00 00 00 00 00 00 00 00 00 0a 01 01 07";

/// The frame of a host that uses 10.1.1.7 and asks for another one.
const USE_BY_FAR: &str = "ff ff ff ff ff ff 02 00 00 00 00 02 08 06 00 01 08 00 06 04 00 01 \
     02 00 00 00 00 02 0a 01 01 07 00 00 00 00 00 00 0a 01 01 c9";

fn is_probe_by_broker(frame: &[u8]) -> bool {
    frame.get(6..14) == Some(&[2, 0, 0, 0, 0, 1, 8, 6]) && frame.get(28..32) == Some(&[0; 4])
}

fn add_with_probes() -> AddAddress {
    AddAddress { addresses: one_address("10.1.1.7"), lease: Some(30), probes: 3, ..AddAddress::default() }
}

/// Requests the address. Sends these frames from another host, each after the broker's probe of that number: from 0 on the
/// first three, and from 3 on those that it sends once more. Returns the outcome.
fn add_while_far_sends(peer: &mut Peer, frames: &[(usize, &str)]) -> Outcome<Lease> {
    let mut wire = PacketCapture::on("far");
    peer.send(&add_with_probes());
    for number in 0..6 {
        let probes = wire.collect(TIMEOUT, is_probe_by_broker, |frames| !frames.is_empty());
        assert_eq!(probes.len(), 1, "no probe number {number}");
        let now = frames.iter().filter(|(after, _)| *after == number);
        now.for_each(|(_, frame)| wire.send(&hex(frame)));
    }
    peer.receive().unwrap().reply::<AddAddress>().unwrap().0.results.into_vec().remove(0)
}

#[test]
fn a_host_that_only_asks_once_is_no_conflict() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let mut peer = broker.peer();
        let outcome = add_while_far_sends(&mut peer, &[(0, PROBE_BY_FAR)]);
        assert!(matches!(outcome, Outcome::Done(_)), "{outcome:?}");
        assert!(lan::show_address("10.1.1.7").is_some());
    });
}

#[test]
fn a_host_that_asks_again_while_the_broker_does_is_a_conflict_that_says_so() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let before = lan::addresses();
        let outcome = add_while_far_sends(&mut broker.peer(), &[(0, PROBE_BY_FAR), (3, PROBE_BY_FAR)]);
        let Outcome::Fault(fault) = outcome else { panic!("{outcome:?}") };
        assert_eq!((fault.code, &*fault.subject), (FaultCode::Conflict, "02:00:00:00:00:02"));
        assert!(fault.message.contains("does not use 10.1.1.7, but probed for it twice"), "{fault}");
        assert!(fault.remedy.contains("switch"), "{fault}");
        assert_eq!(lan::addresses(), before);
    });
}

#[test]
fn two_hosts_that_probe_at_the_same_time_do_not_both_get_the_address() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let mut peer = broker.peer();
        // The other host probes, and then uses the address.
        let outcome = add_while_far_sends(&mut peer, &[(0, PROBE_BY_FAR), (3, USE_BY_FAR)]);
        let Outcome::Fault(fault) = outcome else { panic!("{outcome:?}") };
        assert_eq!(fault.code, FaultCode::Conflict);
        assert!(fault.message.contains("already uses 10.1.1.7"), "{fault}");
    });
}

#[test]
fn a_frame_of_this_hosts_own_second_interface_is_no_conflict() {
    isolated(|host| {
        lan::create(&["far"]);
        lan::add_second_interface();
        let broker = Broker::start(host, &sample::addresses(""));
        let (mut peer, mut watcher) = (broker.peer(), broker.peer());
        watcher.subscribe(false);
        let mut wire = PacketCapture::on("far");
        peer.add_address("10.1.1.7", |add| add.lease = Some(60)).unwrap();
        // A connection from the address through the other interface: the kernel asks there, from the address.
        lan::ip("route add 10.1.1.250/32 dev eth2");
        let client = UdpSocket::bind("10.1.1.7:0").unwrap();
        client.send_to(b"x", "10.1.1.250:9").unwrap();
        let question = |frame: &[u8]| {
            frame.get(6..14) == Some(&[2, 0, 0, 0, 0, 9, 8, 6]) && frame.get(28..32) == Some(&[10, 1, 1, 7])
        };
        assert!(!wire.collect(TIMEOUT, question, |frames| !frames.is_empty()).is_empty(), "no such question");
        // A real rival is reported afterwards, as the first one.
        lan::ip("-n far addr add 10.1.1.7/32 dev eth1");
        wire.send(&hex(USE_BY_FAR));
        let event = watcher.await_event(EventCode::AddressConflict);
        assert_eq!(&*event.detail, "02:00:00:00:00:02");
        let lines = broker.log.lines();
        assert!(!lines.iter().any(|line| line.contains("02:00:00:00:00:09")), "{lines:?}");
    });
}

#[test]
fn an_address_is_probed_for_when_its_carrier_returns_and_another_host_is_reported_as_a_conflict() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let (mut peer, mut watcher) = (broker.peer(), broker.peer());
        watcher.subscribe(false);
        peer.add_address("10.1.1.7", |add| (add.lease, add.announce) = (Some(600), true)).unwrap();
        lan::ip("-n switch link set port1 down");
        watcher.await_event(EventCode::LinkDown);
        lan::ip("-n far addr add 10.1.1.7/32 dev eth1");
        let mut wire = PacketCapture::on("far");
        lan::ip("-n switch link set port1 up");
        let event = watcher.await_event(EventCode::AddressConflict);
        assert_eq!(&*event.detail, "02:00:00:00:00:02");
        let ours = |frame: &[u8]| frame.get(6..14) == Some(&[2, 0, 0, 0, 0, 1, 8, 6]);
        let frames = wire.collect(TIMEOUT, ours, |frames| frames.len() == 3);
        assert!(is_probe_by_broker(&frames[0].bytes), "{frames:?}");
    });
}

#[test]
fn an_address_is_not_added_to_an_interface_without_a_carrier_unless_it_needs_no_probe() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let before = lan::addresses();
        let mut peer = broker.peer();
        lan::ip("-n switch link set port1 down");
        let is_down = || lan::ip("link show eth1").contains("NO-CARRIER").then_some(());
        portreeve_tests::eventually("the loss of the carrier", is_down);
        for address in ["10.1.1.7", "2001:db8::7"] {
            let fault = peer.add_address(address, |add| add.probes = 3).unwrap_err();
            assert_eq!((fault.code, fault.errno), (FaultCode::Os, libc::ENETDOWN.unsigned_abs()), "{fault}");
            assert!(fault.message.contains("no carrier") && fault.remedy.contains("no probes"), "{fault}");
        }
        assert_eq!(lan::addresses(), before);
        peer.add_address("10.1.1.7", |add| add.probes = 0).unwrap();
        // A carrier that is lost during the probes.
        lan::ip("-n switch link set port1 up");
        let is_up = || lan::ip("link show eth1").contains("LOWER_UP").then_some(());
        portreeve_tests::eventually("a carrier", is_up);
        let mut wire = PacketCapture::on("far");
        peer.send(&AddAddress { addresses: one_address("10.1.1.8"), ..add_with_probes() });
        let of_8 = |frame: &[u8]| is_probe_by_broker(frame) && frame.get(38..42) == Some(&[10, 1, 1, 8]);
        assert_eq!(wire.collect(TIMEOUT, of_8, |frames| !frames.is_empty()).len(), 1);
        lan::ip("-n switch link set port1 down");
        let outcome = peer.receive().unwrap().reply::<AddAddress>().unwrap().0.results.into_vec().remove(0);
        assert!(
            matches!(&outcome, Outcome::Fault(fault) if fault.message.contains("no carrier")),
            "{outcome:?}"
        );
        assert!(wire.collect(Duration::from_millis(1), of_8, |_| false).len() < 3);
    });
}
