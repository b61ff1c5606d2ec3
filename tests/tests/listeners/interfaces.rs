//! Listeners that serve one interface follow it when it is deleted and made again, or the broker says that they cannot.

use std::net::{Ipv6Addr, SocketAddrV6, TcpStream};
use std::time::Duration;

use portreeve_protocol::message::{Listen, ListenOptions};
use portreeve_protocol::{Endpoint, EventCode, Text};
use portreeve_tests::broker::{self, SOCKET};
use portreeve_tests::reload::{reload, rows};
use portreeve_tests::service_manager::ServiceManager;
use portreeve_tests::{Broker, Peer, binaries, eventually, isolated, lan, sample};
use rustix::process::Signal;

const LINK_LOCAL: &str = "[fe80::25%eth1]:25";

/// A static link-local listener, and what root may request, in a broker that retains these capabilities.
fn config(capabilities: &str) -> String {
    format!(
        r#"security {{ user = nobody group = nogroup capabilities = "{capabilities}+ep" }}
        {}
        ESMTP_Listener {{ Listen "{LINK_LOCAL}" {{ }} }}"#,
        sample::socket(r#"( "*:587" )"#)
    )
}

fn create_network() {
    lan::create(&["b"]);
    lan::ip("addr add fe80::25/64 dev eth1 nodad");
}

fn delete_interface() {
    lan::ip("link del eth1");
}

fn create_interface_again() {
    lan::create_interface_again();
    lan::ip("addr add fe80::25/64 dev eth1 nodad");
}

/// Whether a client of host b reaches the link-local listener.
fn is_reached() -> bool {
    let line = lan::ip("-n b -o link show eth1");
    let index = line.split(':').next().unwrap().trim().parse().unwrap();
    let address: Ipv6Addr = "fe80::25".parse().unwrap();
    let to = SocketAddrV6::new(address, 25, 0, index).into();
    lan::in_host("b", || TcpStream::connect_timeout(&to, Duration::from_millis(500)).is_ok())
}

#[track_caller]
fn await_reached() {
    eventually("the link-local listener", || is_reached().then_some(()));
}

fn warnings(peer: &mut Peer) -> Vec<String> {
    let warnings = peer.status().warnings;
    warnings.iter().filter(|line| line.contains("receives nothing")).map(ToString::to_string).collect()
}

#[test]
fn listeners_follow_an_interface_that_is_made_again() {
    isolated(|host| {
        create_network();
        let broker = Broker::start(host, &config("cap_net_bind_service,cap_net_raw"));
        let mut peer = broker.peer();
        let options = ListenOptions { device: Text::new("eth1").unwrap(), ..ListenOptions::default() };
        let endpoint: Endpoint = "*:587".parse().unwrap();
        let (_, _held) = peer.request(&Listen::new(endpoint.clone(), options.clone())).unwrap();
        await_reached();
        let mut watcher = broker.peer();
        watcher.subscribe(true);
        for _ in 0..2 {
            delete_interface();
            let lost =
                [watcher.await_event(EventCode::ListenerLost), watcher.await_event(EventCode::ListenerLost)];
            assert!(lost.iter().all(|event| &*event.interface == "eth1"), "{lost:?}");
            assert!(lost.iter().any(|event| &*event.detail == LINK_LOCAL), "{lost:?}");
            let gone = warnings(&mut peer);
            assert!(gone.len() == 2 && gone[0].contains("does not exist"), "{gone:?}");
            create_interface_again();
            watcher.await_event(EventCode::ListenerRestored);
            eventually("no warning", || warnings(&mut peer).is_empty().then_some(()));
            await_reached();
            let submission = "10.1.1.1:587".parse().unwrap();
            lan::in_host("b", || TcpStream::connect_timeout(&submission, Duration::from_secs(5)).unwrap());
        }
        broker.log.wait_for(&["bound a listener to its interface", LINK_LOCAL]);
        // A name is only a name.
        lan::ip("link set eth1 down");
        lan::ip("link set eth1 name eth9 up");
        assert!(warnings(&mut peer).is_empty());
        // The same request still gets the same listener.
        let before = peer.status().listeners_held;
        peer.request(&Listen::new(endpoint, options)).unwrap();
        assert_eq!(peer.status().listeners_held, before);
    });
}

#[test]
fn without_the_capability_log_status_and_reload_name_a_listener_that_cannot_follow_its_interface() {
    isolated(|host| {
        create_network();
        let text = config("cap_net_bind_service");
        let mut broker = Broker::start(host, &text);
        await_reached();
        delete_interface();
        create_interface_again();
        broker.log.wait_for(&["ERROR", LINK_LOCAL, "deleted and made again", "cap_net_raw"]);
        let lost = warnings(&mut broker.peer());
        assert!(lost.len() == 1 && lost[0].contains("restart portreeved"), "{lost:?}");
        let reloaded = reload(host, &broker, &text);
        assert_eq!(rows(&reloaded, "needs-restart"), [format!("listener {LINK_LOCAL}")]);
        assert!(!is_reached());
        assert!(broker.terminate().success());
        let broker = Broker::start(host, &text);
        await_reached();
        assert!(warnings(&mut broker.peer()).is_empty());
    });
}

#[test]
fn a_restart_with_the_descriptor_store_serves_an_interface_that_was_made_again() {
    isolated(|host| {
        create_network();
        let file = broker::config(host, &config("cap_net_bind_service"));
        let mut manager = ServiceManager::new(host);
        let program = host.binary(binaries::BROKER);
        let mut service = manager.start(&program, &file, 8);
        manager.receive_until("the listener", |manager| manager.fdstore.len() == 1);
        await_reached();
        service.signal(Signal::TERM);
        assert!(service.wait_for_exit().success());
        delete_interface();
        create_interface_again();
        manager.notifications.clear();
        let _service = manager.start(&program, &file, 8);
        manager.await_notification("READY=1");
        await_reached();
        let mut peer = Peer::connect(std::path::Path::new(SOCKET)).unwrap();
        peer.hello();
        assert!(warnings(&mut peer).is_empty());
    });
}
