//! Whose a listener is: one of a user never becomes the worker's or another user's, and no two of them share an endpoint.

use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;

use portreeve_protocol::message::{Listen, ListenOptions, ListenerId};
use portreeve_protocol::reload::Reload;
use portreeve_protocol::{Fault, FaultCode, Text};
use portreeve_tests::broker::{self, SOCKET};
use portreeve_tests::chroot::WORKER;
use portreeve_tests::reload::{reload, rows};
use portreeve_tests::scripted_worker::{ScriptedWorker, WorkerSetup};
use portreeve_tests::service_manager::ServiceManager;
use portreeve_tests::{Broker, Peer, binaries, eventually, isolated, lan, resources, sample};
use rustix::process::Signal;

/// The users `daemon` and `bin` of every Linux host.
const DAEMON: u32 = 1;
const BIN: u32 = 2;

fn user(uid: u32) -> Peer {
    Peer::of_user(uid, uid)
}

/// A configuration with a worker that the test controls. Peers are allowed what `broker` says; `listeners` are those of the
/// configuration.
fn with_worker(setup: &WorkerSetup, broker: &str, listeners: &str) -> String {
    let rest = format!(
        r#"
        broker {{
            socket = "{SOCKET}"
            socket_mode = 0666
            permit "nothing" {{ listen = ( "127.0.0.9:9" ) }}
            {broker}
        }}
        {listeners}"#
    );
    sample::worker(&setup.chroot, "( /run/host/bin/scripted_worker )", &rest)
}

/// The worker's listener is static at `*:25`, and the user `daemon` is allowed nothing of it.
fn static_25(setup: &WorkerSetup) -> String {
    with_worker(
        setup,
        "peer daemon { allow = ( status ) permit = ( nothing ) }",
        r#"ESMTP_Listener { Listen "*:25" {} }"#,
    )
}

/// What allows the user `daemon` `*:25`.
const DAEMON_25: &str = r#"
    permit "smtp" { listen = ( "*:25" "127.0.0.1:2527" ) }
    peer daemon { allow = ( listen status ) permit = ( smtp ) }"#;

/// The user `daemon` is allowed `*:25`.
fn daemon_25(setup: &WorkerSetup) -> String {
    with_worker(setup, DAEMON_25, r#"ESMTP_Listener { Listen "127.0.0.1:2525" {} }"#)
}

/// The worker's listener is static at `*:25`, which the user `daemon` is still allowed.
fn static_and_daemon_25(setup: &WorkerSetup) -> String {
    with_worker(setup, DAEMON_25, r#"ESMTP_Listener { Listen "*:25" {} }"#)
}

/// Asserts that 60 clients of port 25 all reach the worker, that none reaches `holder`, and that `status` says whose the
/// listener is.
#[track_caller]
fn assert_the_workers(worker: &mut Peer, holder: OwnedFd) {
    let listener = TcpListener::from(worker.listen("*:25").unwrap().1);
    for _ in 0..60 {
        let client = TcpStream::connect("127.0.0.1:25").unwrap();
        let (_, from) = listener.accept().unwrap();
        assert_eq!(from, client.local_addr().unwrap());
    }
    let holder = TcpListener::from(holder);
    holder.set_nonblocking(true).unwrap();
    assert!(holder.accept().is_err(), "the user accepted a connection");
    let rows = worker.status().listeners.into_vec();
    let at_25: Vec<&str> =
        rows.iter().filter(|row| &*row.endpoint == "*:25").map(|row| &*row.owner).collect();
    assert_eq!(at_25, ["static ESMTP_Listener"]);
    assert_eq!(resources::tcp_listeners().iter().filter(|at| at.port() == 25).count(), 1);
}

fn greeted(setup: &WorkerSetup) -> (ScriptedWorker, Peer) {
    let (scripted, mut peer) = setup.accept();
    peer.hello();
    (scripted, peer)
}

#[test]
fn in_a_takeover_a_new_socket_replaces_a_users_listener_that_becomes_static() {
    isolated(|host| {
        for (text, why) in [
            (static_25 as fn(&WorkerSetup) -> String, "no longer permitted"),
            (static_and_daemon_25, "makes its endpoint a static listener"),
        ] {
            let setup = WorkerSetup::new(host, why);
            let mut first = Broker::start(host, &daemon_25(&setup));
            let (_scripted, _first_worker) = greeted(&setup);
            let mut peer = user(DAEMON);
            let (_, socket) = peer.listen("*:25").unwrap();
            let mut second = first.start_successor(host, &text(&setup));
            let (_scripted, mut worker) = greeted(&setup);
            assert!(first.wait_for_exit().success());
            assert_the_workers(&mut worker, socket);
            second.log.wait_for(&["stopped a listener", why, "*:25", "user=1"]);
            assert!(second.terminate().success());
        }
    });
}

#[test]
fn after_a_restart_from_the_fdstore_a_new_socket_replaces_a_users_listener_that_becomes_static() {
    isolated(|host| {
        let program = host.binary(binaries::BROKER);
        for (text, why) in [
            (static_25 as fn(&WorkerSetup) -> String, "no longer permitted"),
            (static_and_daemon_25, "makes its endpoint a static listener"),
        ] {
            let setup = WorkerSetup::new(host, why);
            let mut manager = ServiceManager::new(host);
            let mut first = manager.start(&program, &broker::config(host, &daemon_25(&setup)), 64);
            manager.await_notification("READY=1");
            let (_scripted, _first_worker) = greeted(&setup);
            let mut peer = user(DAEMON);
            let (_, socket) = peer.listen("*:25").unwrap();
            let has = |manager: &ServiceManager, port| {
                manager.fdstore.values().filter(|socket| local_port(socket) == Some(port)).count()
            };
            manager.receive_until("the listener", |manager| has(manager, 25) == 1);
            first.signal(Signal::KILL);
            first.kill_all();
            let mut second = manager.start(&program, &broker::config(host, &text(&setup)), 64);
            manager.await_notification("READY=1");
            let (_scripted, mut worker) = greeted(&setup);
            assert_the_workers(&mut worker, socket);
            second.log.wait_for(&["*:25", why]);
            second.kill_all();
            std::fs::remove_file(host.path("manager.sock")).unwrap();
        }
    });
}

/// The port of a stored socket; `None` for another descriptor.
fn local_port(socket: &OwnedFd) -> Option<u16> {
    let address = rustix::net::getsockname(socket).ok()?;
    std::net::SocketAddr::try_from(address).ok().map(|address| address.port())
}

#[test]
fn in_a_reload_a_new_socket_replaces_a_users_listener_that_becomes_static() {
    isolated(|host| {
        let setup = WorkerSetup::new(host, "chroot");
        let first = Broker::start(host, &daemon_25(&setup));
        let (_scripted, mut worker) = greeted(&setup);
        let mut peer = user(DAEMON);
        let (_, socket) = peer.listen("*:25").unwrap();
        let reloaded = reload(host, &first, &static_25(&setup));
        assert_eq!(rows(&reloaded, "opened"), ["listener *:25"], "{reloaded:?}");
        assert!(rows(&reloaded, "closed").contains(&"listener *:25"), "{reloaded:?}");
        eventually("the end of the user's listener", || {
            (resources::tcp_listeners().iter().filter(|at| at.port() == 25).count() == 1).then_some(())
        });
        assert_the_workers(&mut worker, socket);
    });
}

#[test]
fn a_reload_that_fails_later_leaves_a_users_listener_as_it_was() {
    isolated(|host| {
        let setup = WorkerSetup::new(host, "chroot");
        let first = Broker::start(host, &daemon_25(&setup));
        let (_scripted, _worker) = greeted(&setup);
        let mut peer = user(DAEMON);
        let (id, socket) = peer.listen("*:25").unwrap();
        let _other = TcpListener::bind("127.0.0.1:2527").unwrap();
        let text = static_25(&setup)
            .replace(r#"Listen "*:25" {}"#, r#"Listen "*:25" {} Listen "127.0.0.1:2527" {}"#);
        broker::config(host, &text);
        let fault = first.peer().request(&Reload::default()).unwrap_err();
        assert_eq!(fault.code, FaultCode::InUse, "{fault}");
        assert_eq!(peer.listen("*:25").unwrap().0, id, "the same listener is found at the endpoint");
        assert!(!rustix::net::sockopt::socket_reuseport(&socket).unwrap());
        let client = TcpStream::connect("127.0.0.1:25").unwrap();
        assert_eq!(TcpListener::from(socket).accept().unwrap().1, client.local_addr().unwrap());
    });
}

#[test]
fn a_users_unix_listener_that_becomes_static_is_replaced_in_a_takeover() {
    isolated(|host| {
        let setup = WorkerSetup::new(host, "chroot");
        let broker = r#"
            permit "file" { listen = ( "/run/host/mail.sock" ) }
            peer daemon { allow = ( listen status ) permit = ( file ) }"#;
        let mut first = Broker::start(host, &with_worker(&setup, broker, ""));
        let (_scripted, _first_worker) = greeted(&setup);
        let mut peer = user(DAEMON);
        let (_, socket) = peer.listen("/run/host/mail.sock").unwrap();
        rustix::net::listen(&socket, 5).unwrap();
        let listeners = r#"ESMTP_Listener { Listen "/run/host/mail.sock" {} }"#;
        let second = first.start_successor(host, &with_worker(&setup, "", listeners));
        let (_scripted, mut worker) = greeted(&setup);
        assert!(first.wait_for_exit().success());
        second.log.wait_for(&["stopped a listener", "/run/host/mail.sock", "user=1"]);
        let listener =
            std::os::unix::net::UnixListener::from(worker.listen("/run/host/mail.sock").unwrap().1);
        let _client = std::os::unix::net::UnixStream::connect("/run/host/mail.sock").unwrap();
        listener.accept().unwrap();
    });
}

#[test]
fn a_user_cannot_prevent_a_takeover_by_what_it_does_to_its_sockets() {
    isolated(|host| {
        let any = sample::control(r#"( "127.0.0.1:1-65535" "*:53/udp" "/run/host/*" )"#);
        let mut first = Broker::start(host, &any);
        let mut peer = user(WORKER);
        let (_, shut_down) = peer.listen("127.0.0.1:25").unwrap();
        let (_, connected) = peer.listen("*:53/udp").unwrap();
        let (_, never_listened) = peer.listen("/run/host/quiet.sock").unwrap();
        let (_, dialled) = peer.listen("/run/host/dialled.sock").unwrap();
        rustix::net::shutdown(&shut_down, rustix::net::Shutdown::Both).unwrap();
        std::net::UdpSocket::from(connected.try_clone().unwrap()).connect("127.0.0.1:9").unwrap();
        let server = std::os::unix::net::UnixListener::bind(host.path("server.sock")).unwrap();
        let address = rustix::net::SocketAddrUnix::new(host.path("server.sock")).unwrap();
        rustix::net::connect(&dialled, &address).unwrap();
        // Even if the configuration makes them static.
        let statics = r#"ESMTP_Listener { Listen "127.0.0.1:25" {} Listen "/run/host/dialled.sock" {} }"#;
        let mut second = first.start_successor(host, &(any + statics));
        assert!(first.wait_for_exit().success());
        second.log.wait_for(&["closed a listener of the predecessor", "127.0.0.1:25"]);
        second.log.wait_for(&["closed a listener of the predecessor", "/run/host/dialled.sock"]);
        let rows = second.peer().status().listeners.into_vec();
        let shown: Vec<&str> = rows.iter().map(|row| &*row.endpoint).collect();
        assert_eq!(shown, ["*:53/udp", "/run/host/quiet.sock", "127.0.0.1:25", "/run/host/dialled.sock"]);
        assert!(second.terminate().success());
        drop((never_listened, server));
    });
}

#[test]
fn after_a_takeover_a_user_keeps_only_listeners_that_the_policy_can_permit_to_that_user() {
    isolated(|host| {
        // Ports 2001 to 2004: of the user, of nobody's permit, of a group's permit, of the worker's own scope.
        let config = |daemon: &str| {
            format!(
                r#"
                security {{ user = nobody group = nogroup capabilities = "cap_net_bind_service+ep" }}
                broker {{
                    socket = "{SOCKET}" socket_mode = 0666 retain = 60
                    permit "all" {{ listen = ( "127.0.0.1:2001-2004" ) }}
                    permit "own" {{ listen = ( "127.0.0.1:2001" ) }}
                    permit "other" {{ listen = ( "127.0.0.1:2002" ) }}
                    permit "group" {{ listen = ( "127.0.0.1:2003" ) }}
                    peer daemon {{ allow = ( listen status ) permit = ( {daemon} ) }}
                    peer bin {{ allow = ( listen ) permit = ( other ) }}
                    peer "@mail" {{ allow = ( listen ) permit = ( group ) }}
                }}"#
            )
        };
        let mut first = Broker::start(host, &config("all"));
        let mut peer = user(DAEMON);
        for port in 2001..=2004 {
            peer.listen(&format!("127.0.0.1:{port}")).unwrap();
        }
        let second = first.start_successor(host, &config("own"));
        assert!(first.wait_for_exit().success());
        let listening: Vec<u16> = resources::tcp_listeners().iter().map(std::net::SocketAddr::port).collect();
        assert_eq!(listening, [2001, 2003]);
        second.log.wait_for(&["no longer permitted", "127.0.0.1:2002", "user=1"]);
        // The group's is adopted by a member only.
        let mut again = user(DAEMON);
        again.listen("127.0.0.1:2001").unwrap();
        assert_eq!(again.listen("127.0.0.1:2003").unwrap_err().code, FaultCode::Denied);
    });
}

fn request(peer: &mut Peer, endpoint: &str, options: ListenOptions) -> Result<ListenerId, Fault> {
    let listen = Listen::new(endpoint.parse().unwrap(), options);
    peer.request(&listen).map(|(listening, _)| listening.id)
}

/// Options that would let the kernel share every endpoint between sockets of one user.
fn sharing(endpoint: &str) -> (&str, ListenOptions) {
    let (endpoint, dual_stack) =
        endpoint.strip_suffix(" dual").map_or((endpoint, false), |endpoint| (endpoint, true));
    let (endpoint, device) = endpoint.split_once(" on ").unwrap_or((endpoint, ""));
    let device = Text::new(device).unwrap();
    (
        endpoint,
        ListenOptions { reuse_port: true, free_bind: true, dual_stack, device, ..ListenOptions::default() },
    )
}

/// Pairs of endpoints at which a client of the one could reach the other.
const OVERLAPPING: [(&str, &str); 9] = [
    ("*:443", "127.0.0.1:443"),
    ("*:443", "*:443"),
    ("*:443/udp", "127.0.0.1:443/udp"),
    ("[::]:443", "[::1]:443"),
    ("[::]:443 dual", "*:443"),
    ("[::]:443 dual", "127.0.0.1:443"),
    ("[::]:443/udp dual", "192.0.2.1:443/udp"),
    ("*:443 on lo", "127.0.0.1:443"),
    ("/run/host/a.sock", "seqpacket:/run/host/a.sock"),
];

/// Pairs of endpoints that have no client in common.
const SEPARATE: [(&str, &str); 6] = [
    ("127.0.0.1:443", "127.0.0.2:443"),
    ("*:443", "*:443/udp"),
    ("*:443", "[::]:443"),
    ("*:443", "*:444"),
    ("*:443 on lo", "127.0.0.1:443 on eth1"),
    ("[fe80::1%lo]:443", "[fe80::1%eth1]:443"),
];

/// A worker and two users, each allowed every endpoint.
fn everybody(setup: &WorkerSetup) -> String {
    let broker = r#"
        permit "any" { listen = ( "*:1-65535" "0.0.0.0/0:1-65535" "[::]:1-65535" "[::/0]:1-65535" "*:1-65535/udp"
            "0.0.0.0/0:1-65535/udp" "[::]:1-65535/udp" "[fe80::1%lo]:1-65535" "[fe80::1%eth1]:1-65535" "/run/host/*" ) }
        peer daemon { allow = ( listen status ) permit = ( any ) }
        peer bin { allow = ( listen status ) permit = ( any ) }"#;
    with_worker(setup, broker, "")
}

#[test]
fn an_endpoint_that_overlaps_with_another_holders_is_refused_whatever_the_options() {
    isolated(|host| {
        lan::create(&[]);
        let setup = WorkerSetup::new(host, "chroot");
        let broker = Broker::start(host, &everybody(&setup));
        let (_scripted, worker) = greeted(&setup);
        let mut peers = [("the worker", worker), ("session", user(DAEMON)), ("session", user(BIN))];
        for (first, second) in OVERLAPPING.into_iter().chain(OVERLAPPING.map(|(one, other)| (other, one))) {
            let ((first, first_options), (second, second_options)) = (sharing(first), sharing(second));
            for holder in 0..peers.len() {
                let (owner, peer) = &mut peers[holder];
                let owner = *owner;
                let id = request(peer, first, first_options.clone()).unwrap();
                for other in (0..peers.len()).filter(|other| *other != holder) {
                    let fault = request(&mut peers[other].1, second, second_options.clone()).unwrap_err();
                    assert_eq!(fault.code, FaultCode::InUse, "{first} then {second}: {fault}");
                    assert!(fault.message.contains(owner) && fault.subject.contains(owner), "{fault}");
                    assert!(fault.message.contains(first), "{fault}");
                    assert_eq!(fault.errno, 0, "the broker refuses before it binds: {fault}");
                }
                assert!(peers[holder].1.stop(&[id]).unknown.is_empty());
            }
        }
        assert_eq!(broker.peer().status().listeners_held, 0);
    });
}

#[test]
fn endpoints_without_a_common_client_are_independent_and_one_holder_may_share_its_own() {
    isolated(|host| {
        lan::create(&[]);
        let setup = WorkerSetup::new(host, "chroot");
        let _broker = Broker::start(host, &everybody(&setup));
        let (_scripted, mut worker) = greeted(&setup);
        let mut peer = user(DAEMON);
        for (first, second) in SEPARATE.into_iter().chain(SEPARATE.map(|(one, other)| (other, one))) {
            let ((first, first_options), (second, second_options)) = (sharing(first), sharing(second));
            let id = request(&mut peer, first, first_options).unwrap();
            let other =
                request(&mut worker, second, second_options).unwrap_or_else(|fault| panic!("{fault}"));
            peer.stop(&[id]);
            worker.stop(&[other]);
        }
        // Another session of the same user counts as the same holder.
        let (_, options) = sharing("*:443");
        request(&mut peer, "*:443", options.clone()).unwrap();
        request(&mut user(DAEMON), "127.0.0.1:443", options).unwrap();
        let fault = request(&mut peer, "127.0.0.2:443", ListenOptions::default()).unwrap_err();
        assert_eq!(fault.code, FaultCode::InUse, "{fault}");
        assert!(fault.message.contains("of this broker, which listens on *:443"), "{fault}");
    });
}

#[test]
fn a_listener_of_a_former_session_keeps_its_endpoint_from_other_users() {
    isolated(|host| {
        let setup = WorkerSetup::new(host, "chroot");
        let text = everybody(&setup).replace(r#""[fe80::1%eth1]:1-65535""#, "");
        let mut first = Broker::start(host, &text);
        let (_scripted, _first_worker) = greeted(&setup);
        let (_, options) = sharing("*:443");
        let mut peer = user(DAEMON);
        request(&mut peer, "*:443", options.clone()).unwrap();
        let _second = first.start_successor(host, &text);
        let (_scripted, mut worker) = greeted(&setup);
        assert!(first.wait_for_exit().success());
        for peer in [&mut worker, &mut user(BIN)] {
            let fault = request(peer, "127.0.0.1:443", options.clone()).unwrap_err();
            assert!(fault.message.contains("a former session of user 1 of this broker"), "{fault}");
        }
        request(&mut user(DAEMON), "127.0.0.1:443", options).unwrap();
    });
}
