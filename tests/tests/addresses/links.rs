//! Interfaces that a peer may set up, down or to another MTU, and interfaces that it may not change.

use std::path::Path;
use std::process::Command;

use portreeve::{Channel, blocking};
use portreeve_protocol::address::SetLink;
use portreeve_protocol::{Fault, FaultCode, Text};
use portreeve_tests::broker::SOCKET;
use portreeve_tests::{Broker, Peer, binaries, isolated, lan, sample};

fn set(peer: &mut Peer, interface: &str, up: Option<bool>, mtu: Option<u32>) -> Result<(bool, u32), Fault> {
    let interface = Text::new(interface).unwrap();
    let link = peer.request(&SetLink { interface: interface.clone(), up, mtu })?.0;
    assert_eq!(link.interface, interface);
    Ok((link.up, link.mtu))
}

#[test]
fn an_interface_is_set_as_requested_and_its_new_state_is_returned() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let mut peer = broker.peer();
        let shown = || lan::ip("-o link show dev eth1");
        assert_eq!(
            set(&mut peer, "eth1", None, None).unwrap(),
            (true, 1500),
            "an empty request changes nothing"
        );
        assert_eq!(set(&mut peer, "eth1", None, Some(1400)).unwrap(), (true, 1400));
        assert!(shown().contains("mtu 1400"), "{}", shown());
        assert_eq!(set(&mut peer, "eth1", Some(false), None).unwrap(), (false, 1400));
        assert!(!shown().contains(",UP"), "{}", shown());
        assert_eq!(set(&mut peer, "eth1", Some(true), Some(1500)).unwrap(), (true, 1500));
        assert!(shown().contains(",UP") && shown().contains("mtu 1500"), "{}", shown());
    });
}

#[test]
fn a_denied_or_failed_request_leaves_the_interface_unchanged() {
    isolated(|host| {
        lan::create(&["far"]);
        lan::add_second_interface();
        let more = "broker {
            permit absent { interface = ( nowhere0 ) }
            peer 2 { allow = ( link ) permit = ( absent ) }
        }";
        let broker = Broker::start(host, &sample::addresses(more));
        let mut peer = broker.peer();
        let before = lan::ip("-o link show");
        for (interface, mtu, code) in [
            ("eth2", 1400, FaultCode::Denied),
            ("lo", 1400, FaultCode::Denied),
            ("", 1400, FaultCode::Denied),
            ("eth1\n", 1400, FaultCode::Denied),
            ("nowhere0", 1400, FaultCode::UnknownInterface),
            ("eth1", 10, FaultCode::Os),
            ("eth1", u32::MAX, FaultCode::Os),
        ] {
            let fault = set(&mut peer, interface, None, Some(mtu)).unwrap_err();
            assert_eq!(fault.code, code, "{interface:?} {mtu}: {fault}");
        }
        let down = |user: u32| {
            let mut peer = Peer::of_user(user, user);
            set(&mut peer, "eth1", Some(false), None).unwrap_err().code
        };
        assert_eq!([down(2), down(65_534)], [FaultCode::Denied, FaultCode::Denied]);
        assert_eq!(lan::ip("-o link show"), before);
    });
}

#[test]
fn the_command_and_the_blocking_client_set_interfaces() {
    isolated(|host| {
        lan::create(&["far"]);
        let _broker = Broker::start(host, &sample::addresses(""));
        let command = |words: &str| {
            let mut command = Command::new(host.binary(binaries::CLIENT));
            let output = command.args(["--socket", SOCKET]).args(words.split(' ')).output().unwrap();
            (output.status.code(), String::from_utf8(output.stdout).unwrap())
        };
        assert_eq!(command("link eth1 mtu 1400"), (Some(0), "eth1: up, carrier, MTU 1400\n".to_owned()));
        let (code, down) = command("--json link eth1 down");
        let down: serde_json::Value = serde_json::from_str(&down).unwrap();
        assert_eq!((code, &down["up"], &down["mtu"]), (Some(0), &false.into(), &1400.into()));
        assert_eq!(command("link lo down"), (Some(77), String::new()));
        let client = blocking::Client::open(Channel::connect(Path::new(SOCKET)).unwrap(), "test").unwrap();
        let link = client.set_link("eth1", Some(true), Some(1500)).unwrap();
        assert!(link.up && link.mtu == 1500, "{link:?}");
    });
}
