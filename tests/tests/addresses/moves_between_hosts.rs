//! Two hosts, each with a broker: addresses move between them, and a third host observes who answers.

use std::path::Path;
use std::time::{Duration, Instant};

use portreeve_protocol::FaultCode;
use portreeve_tests::neighbour::{self, MacAddress, Neighbour};
use portreeve_tests::packet_capture::{Frame, PacketCapture, TICK};
use portreeve_tests::{Broker, Host, Peer, broker, eventually, isolated, lan, sample};

/// How often the addresses move to the other host and back.
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

/// The addresses of the other host, without the state of duplicate address detection.
fn at_other() -> String {
    lan::ip("-n other -o addr show").replace(" tentative", "")
}

/// Every host that answers for an address. Repeats the question until one answers, as neighbours do: the kernel does
/// not answer during duplicate address detection.
fn hosts_that_answer(wire: &mut PacketCapture, neighbour: Neighbour, address: &str) -> Vec<MacAddress> {
    let address = address.parse().unwrap();
    let about = |frame: &[u8]| neighbour::parse_reply(frame).is_some_and(|(resolved, _)| resolved == address);
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
fn addresses_that_move_between_hosts_have_one_owner_at_a_time_and_leave_no_trace() {
    isolated(|host| {
        lan::create(&["other", "third", "fourth"]);
        let (mut first, mut wire) = (Broker::start(host, &sample::addresses("")), PacketCapture::on("third"));
        let (mut second, mut remote) = other(host);
        let mut local = first.peer();
        let before = (lan::addresses(), at_other(), first.descriptors(), second.descriptors());
        let begun = Instant::now();
        for epoch in 1..=2 * TIMES {
            let ours = epoch % 2 == 1;
            // A different sender each time, so that no late answer to an earlier question is counted.
            let neighbour = Neighbour::number(usize::try_from(4 + epoch % 40).unwrap());
            let (owner, rival) = if ours { (&mut local, &mut remote) } else { (&mut remote, &mut local) };
            for address in BOTH {
                owner.add_address(address, |add| (add.epoch, add.announce) = (epoch, true)).unwrap();
                let hardware = [2, 0, 0, 0, 0, if ours { 1 } else { 2 }];
                assert_eq!(
                    hosts_that_answer(&mut wire, neighbour, address),
                    [hardware],
                    "{address}, epoch {epoch}"
                );
            }
            for address in BOTH {
                // An older epoch has expired, even for the owner itself.
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
fn fast_additions_and_removals_send_a_limited_number_of_frames_a_second() {
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
        // Frames arrive with some delay, so a second of the sender may appear this much shorter here.
        let second = Duration::from_secs(1) - 2 * TICK;
        let most = (0..frames.len()).map(|first| {
            let within = |frame: &&Frame| frame.at.duration_since(frames[first].at) < second;
            frames[first..].iter().take_while(within).count()
        });
        let most = most.max().unwrap();
        println!("{} frames, at most {most} in a second", frames.len());
        assert!((1..=500).contains(&most), "{most} frames in a second");
        eventually("the removal of the addresses", || {
            BOTH.iter().all(|address| lan::show_address(address).is_none()).then_some(())
        });
    });
}
