//! Effects of a reload on held addresses and on their listeners.

use std::net::{SocketAddr, TcpListener, TcpStream};

use portreeve_protocol::address::AddAddress;
use portreeve_protocol::limit::SetLimit;
use portreeve_protocol::reload::Reload;
use portreeve_protocol::{EventCode, FaultCode, Text};
use portreeve_tests::broker::config;
use portreeve_tests::peer::one_address;
use portreeve_tests::reload::{reload, rows};
use portreeve_tests::scripted_worker::WorkerSetup;
use portreeve_tests::{Broker, Host, eventually, isolated, lan, resources, sample};

fn at(endpoint: &str) -> SocketAddr {
    endpoint.parse().unwrap()
}

/// A configuration that permits only 10.1.1.8.
fn narrow(more: &str) -> String {
    sample::addresses(more).replace(r#"( "10.0.0.0/8" "2001:db8::/64" )"#, r#"( "10.1.1.8" )"#)
}

#[test]
fn a_narrowing_reload_removes_and_names_the_addresses_outside_the_policy() {
    isolated(|host| {
        lan::create(&[]);
        let broker = Broker::start(host, &sample::addresses(""));
        let (mut peer, mut holder) = (broker.peer(), broker.peer());
        holder.subscribe(false);
        for address in ["10.1.1.7", "10.1.1.8", "2001:db8::7"] {
            peer.add_address(address, |add| add.lease = Some(600)).unwrap();
        }
        let (_, _listener) = peer.listen("10.1.1.7:2525").unwrap();
        let reloaded = reload(host, &broker, &narrow(""));
        assert_eq!(rows(&reloaded, "closed"), ["address 10.1.1.7", "address 2001:db8::7"], "{reloaded:?}");
        broker.log.wait_for(&["10.1.1.7", "removing it"]);
        assert!(lan::show_address("10.1.1.7").is_none() && lan::show_address("2001:db8::7").is_none());
        assert!(lan::show_address("10.1.1.8").is_some());
        assert!(resources::tcp_listeners().is_empty(), "{:?}", resources::tcp_listeners());
        assert_eq!(holder.await_event(EventCode::AddressRemoved).address, Some("10.1.1.7".parse().unwrap()));
        peer.renew_address("10.1.1.8").unwrap();
        assert_eq!(peer.add_address("10.1.1.7", |_| {}).unwrap_err().code, FaultCode::Denied);
        // The next reload does not report them again.
        assert_eq!(rows(&reload(host, &broker, &narrow("")), "closed"), [""; 0]);
    });
}

#[test]
fn with_on_narrow_keep_a_reload_keeps_the_addresses_outside_the_policy() {
    isolated(|host| {
        lan::create(&[]);
        let broker = Broker::start(host, &sample::addresses(""));
        let mut peer = broker.peer();
        peer.add_address("10.1.1.7", |add| add.lease = Some(3)).unwrap();
        let reloaded = reload(host, &broker, &narrow("broker { on_narrow = keep }"));
        assert_eq!(rows(&reloaded, "kept"), ["address 10.1.1.7"], "{reloaded:?}");
        // The address can no longer be renewed, so it ends with its lease.
        assert_eq!(peer.renew_address("10.1.1.7").unwrap_err().code, FaultCode::Denied);
        eventually("the end of the lease", || lan::show_address("10.1.1.7").is_none().then_some(()));
    });
}

#[test]
fn an_addition_that_a_reload_overtakes_is_audited_with_the_rule_that_allowed_it() {
    isolated(|host| {
        lan::create(&["far"]);
        let text = sample::addresses("");
        let broker = Broker::start(host, &text);
        let (mut adder, mut reloader) = (broker.peer(), broker.peer());
        let addresses = one_address("10.1.1.7");
        adder.send(&AddAddress {
            addresses,
            lease: None,
            epoch: 0,
            probes: 3,
            announce: false,
            ..AddAddress::default()
        });
        // The same rules, a hundred lines further down.
        config(host, &format!("{}{text}", "\n".repeat(100)));
        reloader.request(&Reload::default()).unwrap();
        adder.receive().unwrap().reply::<AddAddress>().unwrap();
        broker.log.wait_for(&["done", "add-address", "rules="]);
        let lines = broker.log.lines();
        let at = |words: [&str; 2]| {
            lines.iter().position(|line| words.iter().all(|word| line.contains(word))).unwrap()
        };
        let (reloaded, added) = (at(["audit", "reloaded"]), at(["done", "add-address"]));
        assert!(reloaded < added, "the reload was meant to come first: {lines:?}");
        let rules = lines[added].split_once("portreeve.conf:").unwrap().1;
        let line: u32 = rules.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap();
        assert!(line < 100, "{}", lines[added]);
    });
}

const LEADER: &str = r#"binding "out" { bind_address = 10.1.1.7 enable_duravip = true }"#;
const FOLLOWER: &str = r#"ESMTP_Listener { Listen "10.1.1.8:25" { duravip_follow = "out" } }"#;

#[test]
fn a_reload_keeps_followers_with_their_leader_and_reports_a_new_follower() {
    isolated(|host| {
        lan::create(&[]);
        let broker = Broker::start(host, &sample::addresses(LEADER));
        let mut peer = broker.peer();
        peer.add_address("10.1.1.7", |add| add.lease = Some(600)).unwrap();
        let both = format!("{LEADER}{FOLLOWER}");
        let reloaded = reload(host, &broker, &sample::addresses(&both));
        assert!(rows(&reloaded, "applied").contains(&"address 10.1.1.8"), "{reloaded:?}");
        assert!(lan::show_address("10.1.1.8").is_none());
        peer.renew_address("10.1.1.7").unwrap();
        peer.remove_address("10.1.1.7").unwrap();
        let add = AddAddress { addresses: one_address("10.1.1.7"), lease: Some(600), ..Default::default() };
        assert_eq!(peer.request(&add).unwrap().0.results.len(), 2);
        let reloaded = reload(host, &broker, &sample::addresses(&both));
        assert_eq!(rows(&reloaded, "closed"), [""; 0], "{reloaded:?}");
        assert!(lan::show_address("10.1.1.7").is_some() && lan::show_address("10.1.1.8").is_some());
        // Both are removed if neither is permitted.
        let reloaded = reload(host, &broker, &narrow(""));
        assert_eq!(rows(&reloaded, "closed"), ["address 10.1.1.7"], "{reloaded:?}");
        assert!(lan::show_address("10.1.1.7").is_none());
    });
}

fn with_worker(setup: &WorkerSetup, more: &str) -> String {
    sample::worker(&setup.chroot, "( /run/host/bin/scripted_worker )", &sample::addresses(more))
}

fn started(host: &Host, more: &str) -> (WorkerSetup, Broker) {
    lan::create(&[]);
    let setup = WorkerSetup::new(host, "chroot");
    let broker = Broker::start(host, &with_worker(&setup, more));
    (setup, broker)
}

#[test]
fn a_held_address_that_becomes_floating_starts_its_listener() {
    isolated(|host| {
        let (setup, broker) = started(host, "");
        let (_scripted, mut worker) = setup.accept();
        worker.hello();
        broker.peer().add_address("10.1.1.7", |add| add.lease = Some(600)).unwrap();
        let listeners = r#"ESMTP_Listener {
            Listen "10.1.1.7:25" { enable_duravip = true } Listen "10.1.1.9:25" { enable_duravip = true } }"#;
        let reloaded = reload(host, &broker, &with_worker(&setup, listeners));
        assert_eq!(rows(&reloaded, "opened"), ["listener 10.1.1.7:25"], "{reloaded:?}");
        assert_eq!(resources::tcp_listeners(), [at("10.1.1.7:25")]);
        let client = TcpStream::connect("10.1.1.7:25").unwrap();
        let (_, socket) = worker.listen("10.1.1.7:25").unwrap();
        let (_served, from) = TcpListener::from(socket).accept().unwrap();
        assert_eq!(from, client.local_addr().unwrap());
        broker.peer().remove_address("10.1.1.7").unwrap();
        assert!(resources::tcp_listeners().is_empty(), "the listener stops with its address");
    });
}

#[test]
fn a_static_listener_becomes_floating_and_static_again() {
    isolated(|host| {
        let (setup, broker) = started(host, "");
        let mut cluster = broker.peer();
        cluster.add_address("10.1.1.7", |add| add.lease = Some(600)).unwrap();
        let stays = with_worker(&setup, r#"ESMTP_Listener { Listen "10.1.1.7:25" {} }"#);
        let moves = stays.replace("25\" {}", "25\" { enable_duravip = true }");
        let reloaded = reload(host, &broker, &stays);
        assert_eq!(rows(&reloaded, "opened"), ["listener 10.1.1.7:25"], "{reloaded:?}");
        for (text, owner) in [(&moves, "duravip ESMTP_Listener"), (&stays, "static ESMTP_Listener")] {
            let reloaded = reload(host, &broker, text);
            assert!(rows(&reloaded, "applied").contains(&"listener 10.1.1.7:25"), "{reloaded:?}");
            assert_eq!(rows(&reloaded, "opened"), [""; 0], "{reloaded:?}");
            assert_eq!(&*broker.peer().status().listeners[0].owner, owner);
        }
        // If another program occupies the port of a listener, the reload fails.
        let _other = TcpListener::bind("10.1.1.7:26").unwrap();
        config(host, &moves.replace("10.1.1.7:25", "10.1.1.7:26"));
        let fault = broker.peer().request(&Reload::default()).unwrap_err();
        assert!(fault.code == FaultCode::InUse && fault.message.contains("10.1.1.7:26"), "{fault}");
        cluster.renew_address("10.1.1.7").unwrap();
    });
}

#[test]
fn a_limit_first_permitted_by_a_reload_needs_a_restart() {
    isolated(|host| {
        let text = sample::control(r#"( "127.0.0.1:2525" )"#);
        let broker = Broker::start(host, &text);
        let permit = r#"broker { permit more { limit = ( "nofile=2000" ) }
            peer root { allow = ( status listen limit ) permit = ( any more ) } }"#;
        let reloaded = reload(host, &broker, &format!("{text}{permit}"));
        assert_eq!(rows(&reloaded, "needs-restart"), ["limits of peers: nofile"], "{reloaded:?}");
        let mut peer = broker.peer();
        let nofile = |soft| SetLimit { resource: Text::new("nofile").unwrap(), soft, hard: None };
        let fault = peer.request(&nofile(Some(1000))).unwrap_err();
        assert_eq!(fault.code, FaultCode::NotRetained, "{fault}");
        assert!(fault.remedy.contains("restart"), "{fault}");
        // A limit above the permitted one is denied as before, and the broker keeps running.
        assert_eq!(peer.request(&nofile(Some(3000))).unwrap_err().code, FaultCode::Denied);
        peer.listen("127.0.0.1:2525").unwrap();
    });
}

#[test]
fn a_limit_of_another_resource_first_permitted_by_a_reload_needs_a_restart() {
    isolated(|host| {
        let text = |limits: &str| {
            sample::control(r#"( "127.0.0.1:2525" )"#)
                + &format!(
                    "broker {{ permit more {{ limit = ( {limits} ) }}
                    peer root {{ allow = ( status limit ) permit = ( more ) }} }}"
                )
        };
        let broker = Broker::start(host, &text(r#""nofile=2000""#));
        let reloaded = reload(host, &broker, &text(r#""nofile=3000" "core=unlimited""#));
        assert_eq!(rows(&reloaded, "needs-restart"), ["limits of peers: core"], "{reloaded:?}");
        let mut peer = broker.peer();
        let limit = |resource, soft| SetLimit { resource: Text::new(resource).unwrap(), soft, hard: None };
        // The seccomp filter, which would end the broker, allows this resource only for the permits of the start.
        let fault = peer.request(&limit("core", Some(0))).unwrap_err();
        assert!(fault.code == FaultCode::NotRetained && fault.remedy.contains("restart"), "{fault}");
        peer.request(&limit("core", None)).unwrap();
        peer.request(&limit("nofile", Some(512))).unwrap();
    });
}
