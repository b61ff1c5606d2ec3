//! What neighbours see of an address: probes and announcements, with their bytes and times, and conflicts with other
//! hosts.

use std::time::Duration;

use portreeve_protocol::FaultCode;
use portreeve_protocol::address::{AddAddress, Announce};
use portreeve_tests::packet_capture::{Frame, PacketCapture, hex};
use portreeve_tests::peer::one_address;
use portreeve_tests::{Broker, eventually, isolated, lan, sample};

/// An announcement (RFC 5227): a broadcast ARP request (RFC 826) for the host's own address.
const ARP_REQUEST: &str = "ff ff ff ff ff ff 02 00 00 00 00 01 08 06 \
    00 01 08 00 06 04 00 01 02 00 00 00 00 01 0a 01 01 07 00 00 00 00 00 00 0a 01 01 07";
/// The same as an ARP reply, for hosts that learn from replies alone.
const ARP_REPLY: &str = "ff ff ff ff ff ff 02 00 00 00 00 01 08 06 \
    00 01 08 00 06 04 00 02 02 00 00 00 00 01 0a 01 01 07 02 00 00 00 00 01 0a 01 01 07";
/// A probe (RFC 5227): the sender address is zero.
const ARP_PROBE: &str = "ff ff ff ff ff ff 02 00 00 00 00 01 08 06 \
    00 01 08 00 06 04 00 01 02 00 00 00 00 01 00 00 00 00 00 00 00 00 00 00 0a 01 01 07";
/// An unsolicited neighbour advertisement (RFC 4861): to all nodes, override flag, hop limit 255, link-layer address.
const ADVERTISEMENT: &str = "33 33 00 00 00 01 02 00 00 00 00 01 86 dd \
    60 00 00 00 00 20 3a ff 20 01 0d b8 00 00 00 00 00 00 00 00 00 00 00 07 \
    ff 02 00 00 00 00 00 00 00 00 00 00 00 00 00 01 \
    88 00 CHECKSUM 20 00 00 00 20 01 0d b8 00 00 00 00 00 00 00 00 00 00 00 07 02 01 02 00 00 00 00 01";

fn arp(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&[8, 6])
        && frame.get(6..12) == Some(&lan::MAC_ADDRESS)
        && frame.get(38..42) == Some(&[10, 1, 1, 7])
}

fn advertisement(frame: &[u8]) -> bool {
    // An advertisement of the kernel would match too, but differ in its bytes.
    frame.get(12..14) == Some(&[0x86, 0xdd]) && frame.get(54) == Some(&136)
}

/// Whether the checksum (RFC 1071) of a whole ICMPv6 packet is valid.
fn has_valid_checksum(frame: &[u8]) -> bool {
    let pseudo = [&frame[22..54], &[0, 0, 0, 32, 0, 0, 0, 58], &frame[54..]].concat();
    let sum: u32 = pseudo.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    (sum & 0xffff) + (sum >> 16) == 0xffff
}

fn offsets(frames: &[Frame]) -> Vec<u128> {
    frames.iter().map(|frame| frame.at.duration_since(frames[0].at).as_millis()).collect()
}

/// Asserts that frames arrived at these times, in milliseconds, with a tolerance for a busy machine.
#[track_caller]
fn arrived_at(frames: &[Frame], times: &[u128]) {
    let found = offsets(frames);
    assert_eq!(found.len(), times.len(), "{found:?}");
    for (found, expected) in found.iter().zip(times) {
        assert!(
            (expected.saturating_sub(100)..expected + 500).contains(found),
            "{found} ms, not {expected} ms"
        );
    }
}

#[test]
fn an_ipv4_address_is_probed_and_announced_as_the_rfcs_require() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let mut peer = broker.peer();
        let mut wire = PacketCapture::on("far");
        // Send without waiting for the reply: the frames must be timed as they arrive.
        peer.send(&AddAddress {
            addresses: one_address("10.1.1.7"),
            lease: Some(10),
            probes: 3,
            announce: true,
            ..AddAddress::default()
        });
        let frames = wire.collect(Duration::from_secs(10), arp, |frames| frames.len() == 13);
        let (probes, rest) = frames.split_at(3);
        probes.iter().for_each(|probe| assert_eq!(probe.bytes, hex(ARP_PROBE)));
        arrived_at(probes, &[0, 200, 400]);
        for pair in rest.chunks(2) {
            assert_eq!((&pair[0].bytes, &pair[1].bytes), (&hex(ARP_REQUEST), &hex(ARP_REPLY)));
        }
        arrived_at(&rest.iter().step_by(2).cloned().collect::<Vec<_>>(), &[0, 250, 1_100, 2_200, 4_400]);
        assert!(offsets(&frames)[3] >= 590, "announced before the end of the probes: {:?}", offsets(&frames));
        assert!(wire.collect(Duration::from_millis(300), arp, |_| false).is_empty());
    });
}

#[test]
fn an_ipv6_address_is_announced_by_unsolicited_advertisements() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let mut peer = broker.peer();
        let mut wire = PacketCapture::on("far");
        peer.add_address("2001:db8::7", |add| add.announce = true).unwrap();
        let frames = wire.collect(Duration::from_secs(10), advertisement, |frames| frames.len() == 5);
        arrived_at(&frames, &[0, 250, 1_100, 2_200, 4_400]);
        for frame in &frames {
            let sum = format!("{:02x} {:02x}", frame.bytes[56], frame.bytes[57]);
            assert_eq!(frame.bytes, hex(&ADVERTISEMENT.replace("CHECKSUM", &sum)));
            assert!(has_valid_checksum(&frame.bytes));
        }
    });
}

#[test]
fn an_address_is_announced_again_when_its_link_regains_its_carrier() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let mut peer = broker.peer();
        let mut wire = PacketCapture::on("far");
        peer.add_address("10.1.1.7", |add| (add.announce, add.lease) = (true, Some(60))).unwrap();
        wire.collect(Duration::from_secs(10), arp, |frames| frames.len() == 10);
        lan::ip("-n switch link set port1 down");
        peer.request(&Announce { addresses: one_address("10.1.1.7"), epoch: 0 }).unwrap();
        assert!(
            wire.collect(Duration::from_millis(600), arp, |_| false).is_empty(),
            "sent without a carrier"
        );
        lan::ip("-n switch link set port1 up");
        let again = wire.collect(Duration::from_secs(10), arp, |frames| frames.len() == 5);
        let again: Vec<_> = again.into_iter().map(|frame| frame.bytes).collect();
        // First it is probed for, because another host may have taken it meanwhile.
        assert_eq!(again[0].get(28..32), Some(&[0; 4][..]));
        assert_eq!(again[1..3], [hex(ARP_REQUEST), hex(ARP_REPLY)]);
    });
}

#[test]
fn addresses_are_announced_again_after_link_up_or_a_new_hardware_address() {
    isolated(|host| {
        lan::create(&["far", "rival", "third"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let mut peer = broker.peer();
        let mut wire = PacketCapture::on("third");
        let is_from = |hardware: [u8; 6]| move |frame: &[u8]| frame.get(6..12) == Some(&hardware);
        let is_ours = |frame: &[u8]| arp(frame) || (is_from(lan::MAC_ADDRESS)(frame) && advertisement(frame));
        let both = |frames: &[Frame]| {
            frames.iter().any(|frame| frame.bytes == hex(ARP_REQUEST))
                && frames.iter().any(|frame| frame.bytes == hex(ARP_REPLY))
                && frames.iter().any(|frame| advertisement(&frame.bytes))
        };
        for address in ["10.1.1.7", "2001:db8::7"] {
            peer.add_address(address, |add| (add.announce, add.lease) = (true, Some(60))).unwrap();
        }
        let whole = |frames: &[Frame]| frames.len() == 15;
        assert!(both(&wire.collect(Duration::from_secs(10), is_ours, whole)));
        lan::ip("link set eth1 down");
        peer.request(&Announce { addresses: one_address("10.1.1.7"), epoch: 0 }).unwrap();
        let quiet = wire.collect(Duration::from_millis(600), is_ours, |_| false);
        assert!(quiet.is_empty(), "sent while the link was down: {quiet:?}");
        lan::ip("link set eth1 up");
        assert!(both(&wire.collect(Duration::from_secs(10), is_ours, both)), "not announced after link-up");

        let other = [2, 0, 0, 0, 0, 0x77];
        lan::ip("link set eth1 address 02:00:00:00:00:77");
        let from_other = |frame: &[u8]| is_from(other)(frame) && frame.get(38..42) == Some(&[10, 1, 1, 7]);
        let again = wire.collect(Duration::from_secs(10), from_other, |frames| frames.len() == 2);
        let rewritten = |words: &str| hex(&words.replace("02 00 00 00 00 01", "02 00 00 00 00 77"));
        let again: Vec<_> = again.into_iter().map(|frame| frame.bytes).collect();
        assert_eq!(again, [rewritten(ARP_REQUEST), rewritten(ARP_REPLY)]);
    });
}

#[test]
fn a_host_that_answers_a_probe_is_named_and_no_address_is_added() {
    isolated(|host| {
        lan::create(&["far"]);
        lan::ip("-n far addr add 10.1.1.7/32 dev eth1");
        lan::ip("-n far addr add 2001:db8::7/128 dev eth1 nodad");
        let broker = Broker::start(host, &sample::addresses(""));
        let before = lan::addresses();
        let mut peer = broker.peer();
        let fault = peer.add_address("10.1.1.7", |add| (add.probes, add.announce) = (3, true)).unwrap_err();
        assert_eq!((fault.code, &*fault.subject), (FaultCode::Conflict, "02:00:00:00:00:02"));
        let fault =
            peer.add_address("2001:db8::7", |add| (add.probes, add.announce) = (1, true)).unwrap_err();
        assert_eq!(fault.code, FaultCode::Conflict);
        assert_eq!(lan::addresses(), before);
        lan::ip("-n far addr del 10.1.1.7/32 dev eth1");
        lan::ip("-n far addr del 2001:db8::7/128 dev eth1");
        peer.add_address("10.1.1.7", |add| add.probes = 3).unwrap();
        peer.add_address("2001:db8::7", |add| add.probes = 1).unwrap();
        // Binding an IPv6 address succeeds as soon as the address is added.
        peer.listen("[2001:db8::7]:25").unwrap();
    });
}

#[test]
fn a_later_conflict_is_logged_and_the_address_is_defended() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let mut peer = broker.peer();
        let mut wire = PacketCapture::on("far");
        peer.add_address("10.1.1.7", |add| add.lease = Some(60)).unwrap();
        let rival = ARP_REQUEST.replace("02 00 00 00 00 01", "02 00 00 00 00 02");
        wire.send(&hex(&rival));
        broker.log.wait_for(&["another host uses this address too", "02:00:00:00:00:02"]);
        let answer = wire.collect(Duration::from_secs(5), arp, |frames| !frames.is_empty());
        assert_eq!(answer[0].bytes, hex(ARP_REQUEST));
        eventually("the address", || lan::show_address("10.1.1.7"));
    });
}
