//! Interfaces that are renamed, deleted, recreated or set down between the check and the use, and interfaces without a
//! hardware address.

use std::net::IpAddr;
use std::process::Command;

use portreeve_protocol::address::{AddAddress, Announce, Lease, ListAddresses};
use portreeve_protocol::message::Outcome;
use portreeve_protocol::{Fault, FaultCode};
use portreeve_tests::packet_capture::PacketCapture;
use portreeve_tests::peer::one_address;
use portreeve_tests::{Broker, Peer, eventually, isolated, lan, sample};

/// A request that probes the network first, for more than half a second.
fn slow(address: &str) -> AddAddress {
    AddAddress { addresses: one_address(address), lease: Some(30), probes: 3, ..AddAddress::default() }
}

/// Runs an action between the checks of a request and its use of the interface.
fn during_request(
    peer: &mut Peer,
    wire: &mut PacketCapture,
    address: &str,
    happen: impl FnOnce(),
) -> Result<Lease, Fault> {
    let IpAddr::V4(wanted) = address.parse().unwrap() else { panic!("{address} is no IPv4 address") };
    peer.send(&slow(address));
    let probe =
        |frame: &[u8]| frame.get(12..14) == Some(&[8, 6]) && frame.get(38..42) == Some(&wanted.octets());
    let probes = wire.collect(portreeve_tests::wait::TIMEOUT, probe, |frames| !frames.is_empty());
    assert_eq!(probes.len(), 1, "no probe for {address}");
    happen();
    let reply = peer.receive().unwrap().reply::<AddAddress>().unwrap().0;
    match reply.results.into_vec().remove(0) {
        Outcome::Done(lease) => Ok(lease),
        Outcome::Fault(fault) => Err(fault),
    }
}

#[test]
fn a_renamed_interface_keeps_its_addresses_and_gets_no_new_ones() {
    isolated(|host| {
        lan::create(&["far", "rival", "third"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let before = lan::addresses();
        let (mut peer, mut wire) = (broker.peer(), PacketCapture::on("far"));
        std::fs::write("/proc/sys/net/ipv6/conf/eth1/keep_addr_on_down", "1").unwrap();
        peer.add_address("10.1.1.7", |_| {}).unwrap();
        rename("eth1", "mail0");
        peer.renew_address("10.1.1.7").unwrap();
        assert!(lan::show_address("10.1.1.7").unwrap().contains("mail0"));
        assert_eq!(peer.add_address("10.1.1.8", |_| {}).unwrap_err().code, FaultCode::UnknownInterface);
        // A new interface of that name is not the original one.
        lan::ip("link add eth1 type veth peer name nowhere1");
        lan::ip("link set eth1 up");
        peer.renew_address("10.1.1.7").unwrap();
        assert!(peer.remove_address("10.1.1.7").unwrap().verified);
        lan::ip("link del eth1");
        rename("mail0", "eth1");
        // An interface that is renamed during a request is still the same interface.
        let mut renamed = false;
        let attempt = || renamed = rename_while_up("eth1", "mail0");
        during_request(&mut peer, &mut wire, "10.1.1.9", attempt).unwrap();
        if !renamed {
            rename("eth1", "mail0");
        }
        eventually("the new name of its interface", || {
            let (page, _) = peer.request(&ListAddresses { after: None }).unwrap();
            page.addresses.iter().any(|row| *row.lease.interface == *"mail0").then_some(())
        });
        assert!(lan::show_address("10.1.1.9").unwrap().contains("mail0"));
        assert!(peer.remove_address("10.1.1.9").unwrap().verified);
        rename("mail0", "eth1");
        assert_eq!(lan::addresses(), before);
    });
}

/// Renames an interface that is up. Returns false if the kernel refuses that, as Linux before 6.2 does.
fn rename_while_up(from: &str, to: &str) -> bool {
    let output = Command::new("ip").args(["link", "set", from, "name", to]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() || error.contains("Device or resource busy"), "{error}");
    output.status.success()
}

/// Renames an interface. Sets it down for that time if the kernel requires it.
fn rename(from: &str, to: &str) {
    if !rename_while_up(from, to) {
        lan::ip(&format!("link set {from} down"));
        lan::ip(&format!("link set {from} name {to}"));
        lan::ip(&format!("link set {to} up"));
        eventually("a carrier", || lan::ip(&format!("link show {to}")).contains("LOWER_UP").then_some(()));
    }
}

#[test]
fn an_interface_that_goes_down_or_disappears_during_a_request_gets_no_address() {
    isolated(|host| {
        lan::create(&["far", "rival", "third"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let descriptors = broker.descriptors();
        let (mut peer, mut wire) = (broker.peer(), PacketCapture::on("far"));
        let down = || drop(lan::ip("link set eth1 down"));
        let fault = during_request(&mut peer, &mut wire, "10.1.1.7", down).unwrap_err();
        assert_eq!((fault.code, fault.errno), (FaultCode::Os, libc::ENETDOWN.unsigned_abs()));
        lan::ip("link set eth1 up");
        let vanish = || drop(lan::ip("link del eth1"));
        let fault = during_request(&mut peer, &mut wire, "10.1.1.7", vanish).unwrap_err();
        assert_eq!(fault.code, FaultCode::UnknownInterface);
        assert_eq!(peer.add_address("10.1.1.7", |_| {}).unwrap_err().code, FaultCode::UnknownInterface);
        lan::create_interface_again();
        peer.add_address("10.1.1.7", |_| {}).unwrap();
        peer.remove_address("10.1.1.7").unwrap();
        // An interface that is recreated under the same name during a request is not the one that was checked.
        let swap = || {
            lan::ip("link del eth1");
            lan::create_interface_again();
        };
        let fault = during_request(&mut peer, &mut wire, "10.1.1.8", swap).unwrap_err();
        assert_eq!(fault.code, FaultCode::UnknownInterface);
        assert_eq!((lan::show_address("10.1.1.7"), lan::show_address("10.1.1.8")), (None, None));
        drop(peer);
        broker.await_no_leak(&descriptors);
    });
}

#[test]
fn addresses_of_a_deleted_interface_are_lost_and_can_be_added_again_after_its_return() {
    isolated(|host| {
        lan::create(&["far", "rival", "third"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let mut peer = broker.peer();
        for address in ["10.1.1.7", "2001:db8::7"] {
            peer.add_address(address, |add| (add.lease, add.announce) = (Some(60), true)).unwrap();
        }
        lan::ip("link del eth1");
        for address in ["10.1.1.7", "2001:db8::7"] {
            assert_eq!(peer.renew_address(address).unwrap_err().code, FaultCode::NotLocal, "{address}");
        }
        lan::create_interface_again();
        for address in ["10.1.1.7", "2001:db8::7"] {
            assert!(peer.remove_address(address).unwrap().verified);
            peer.add_address(address, |_| {}).unwrap();
            assert!(lan::show_address(address).unwrap().contains("eth1"));
            assert!(peer.remove_address(address).unwrap().verified);
        }
    });
}

#[test]
fn probes_and_announcements_are_refused_on_an_interface_without_hardware_address() {
    isolated(|host| {
        lan::create(&["far", "rival", "third"]);
        // Like a tunnel, loopback has no hardware address for frames.
        let topology = r#"cluster {
            topology "10.8.0.0/24" { interface = lo }
            topology "2001:db8:0:0:8::/80" { interface = lo }
        }"#;
        let broker = Broker::start(host, &sample::addresses(topology));
        let before = lan::addresses();
        let mut peer = broker.peer();
        for address in ["10.8.0.1", "2001:db8::8:0:0:1"] {
            for (probes, announce) in [(1, false), (0, true)] {
                let wanted = |add: &mut AddAddress| (add.probes, add.announce) = (probes, announce);
                let fault = peer.add_address(address, wanted).unwrap_err();
                assert_eq!((fault.code, &*fault.subject), (FaultCode::Unsupported, "lo"), "{fault}");
            }
            assert_eq!(lan::addresses(), before);
            assert_eq!(&*peer.add_address(address, |_| {}).unwrap().interface, "lo");
            peer.renew_address(address).unwrap();
            let announced = peer.request(&Announce { addresses: one_address(address), epoch: 0 }).unwrap().0;
            let refused = |one: &Outcome<Lease>| one.fault().map(|fault| fault.code);
            assert_eq!(
                announced.results.iter().map(refused).collect::<Vec<_>>(),
                [Some(FaultCode::Unsupported)]
            );
            assert!(peer.remove_address(address).unwrap().verified);
        }
        assert_eq!(lan::addresses(), before);
    });
}
