//! Two hosts with a broker each, between which addresses go back and forth, and a third that watches who answers.

use std::path::Path;
use std::time::{Duration, Instant};

use portreeve_protocol::FaultCode;
use portreeve_tests::neighbour::{self, MacAddress, Neighbour};
use portreeve_tests::packet_capture::{Frame, PacketCapture, TICK};
use portreeve_tests::{Broker, Host, Peer, broker, eventually, isolated, lan, sample};

/// How often the addresses go to the other host and back.
const TIMES: u64 = 40;
const OTHER_SOCKET: &str = "/run/host/other.sock";
const BOTH: [&str; 2] = ["10.1.1.7", "2001:db8::7"];

/// A broker on another host, and a peer of it.
fn other(host: &Host) -> (Broker, Peer) {
    let text = sample::addresses("").replace(broker::SOCKET, OTHER_SOCKET);
    let command = broker::command(host, &broker::config(host, &text));
    let broker = lan::in_host("other", || Broker::start_command(host, command));
    let mut peer = Peer::connect(Path::new(OTHER_SOCKET)).unwrap();
    peer.hello();
    (broker, peer)
}

/// Its addresses, but for what the kernel is about to make sure of.
fn at_other() -> String {
    lan::ip("-n other -o addr show").replace(" tentative", "")
}

/// Who answers for an address, every host that does. It asks again until somebody does, as neighbours do: the kernel
/// leaves a question unanswered while it takes an IPv6 address in.
fn who_answers(wire: &mut PacketCapture, neighbour: Neighbour, address: &str) -> Vec<MacAddress> {
    let address = address.parse().unwrap();
    let about = |frame: &[u8]| neighbour::parse_reply(frame).is_some_and(|(whose, _)| whose == address);
    let ours = |frame: &[u8]| neighbour.is_recipient_of(frame) && about(frame);
    let mut frames = eventually("an answer", || {
        wire.send(&neighbour.request_for(address));
        let frames = wire.collect(Duration::from_millis(200), ours, |frames| !frames.is_empty());
        (!frames.is_empty()).then_some(frames)
    });
    frames.extend(wire.collect(Duration::from_millis(20), ours, |_| false));
    let mut answers: Vec<MacAddress> =
        frames.iter().map(|frame| neighbour::parse_reply(&frame.bytes).unwrap().1).collect();
    answers.dedup();
    answers
}

#[test]
fn addresses_that_go_back_and_forth_have_one_owner_at_a_time_and_leave_no_trace() {
    isolated(|host| {
        lan::create(&["other", "third", "fourth"]);
        let (mut first, mut wire) = (Broker::start(host, &sample::addresses("")), PacketCapture::on("third"));
        let (mut second, mut there) = other(host);
        let mut here = first.peer();
        let before = (lan::addresses(), at_other(), first.descriptors(), second.descriptors());
        let begun = Instant::now();
        for epoch in 1..=2 * TIMES {
            let ours = epoch % 2 == 1;
            // Another each time, so that no answer to an earlier question is taken for one to this.
            let neighbour = Neighbour::number(usize::try_from(4 + epoch % 40).unwrap());
            let (owner, rival) = if ours { (&mut here, &mut there) } else { (&mut there, &mut here) };
            for address in BOTH {
                owner.add_address(address, |add| (add.epoch, add.announce) = (epoch, true)).unwrap();
                let hardware = [2, 0, 0, 0, 0, if ours { 1 } else { 2 }];
                assert_eq!(
                    who_answers(&mut wire, neighbour, address),
                    [hardware],
                    "{address}, epoch {epoch}"
                );
            }
            for address in BOTH {
                // Its own older ownership is over, whatever a host still believes.
                let stale = owner.add_address(address, |add| add.epoch = epoch - 1).unwrap_err();
                assert_eq!(stale.code, FaultCode::Expired);
                let lost = rival.renew_address(address).unwrap_err().code;
                assert!(matches!(lost, FaultCode::NotFound | FaultCode::Expired), "{lost:?}");
                owner.request(&remove(address, epoch)).unwrap();
            }
        }
        println!("{} moves of two addresses in {:?}", 2 * TIMES, begun.elapsed());
        assert_eq!(lan::addresses(), before.0);
        assert_eq!(at_other(), before.1);
        first.await_no_leak(&before.2);
        second.await_no_leak(&before.3);
        assert!(first.terminate().success() && second.terminate().success());
    });
}

fn remove(address: &str, epoch: u64) -> portreeve_protocol::address::RemoveAddress {
    portreeve_protocol::address::RemoveAddress {
        addresses: portreeve_tests::peer::one_address(address),
        epoch,
    }
}

#[test]
fn however_fast_addresses_come_and_go_no_second_has_more_frames_than_a_switch_bears() {
    isolated(|host| {
        lan::create(&["other", "third", "fourth"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let mut peer = broker.peer();
        let mut wire = PacketCapture::on("third");
        let announced = |frame: &[u8]| frame.get(6..12) == Some(&lan::MAC_ADDRESS);
        let mut frames: Vec<Frame> = Vec::new();
        let end = Instant::now() + Duration::from_secs(3);
        while Instant::now() < end {
            for address in BOTH {
                peer.add_address(address, |add| add.announce = true).unwrap();
                peer.remove_address(address).unwrap();
            }
            frames.extend(wire.collect(Duration::from_millis(1), announced, |_| false));
        }
        frames.extend(wire.collect(Duration::from_secs(1), announced, |_| false));
        // A frame arrives some time after it was sent, so a second of the sender may look this much shorter here.
        let second = Duration::from_secs(1) - 2 * TICK;
        let most = (0..frames.len()).map(|first| {
            let within = |frame: &&Frame| frame.at.duration_since(frames[first].at) < second;
            frames[first..].iter().take_while(within).count()
        });
        let most = most.max().unwrap();
        println!("{} frames, at most {most} in a second", frames.len());
        assert!((1..=500).contains(&most), "{most} frames in a second");
        eventually("the end of the addresses", || {
            BOTH.iter().all(|address| lan::show_address(address).is_none()).then_some(())
        });
    });
}
