//! Effects of a reload on listeners: those outside the new policy, new ones, and those that replace others.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use portreeve_protocol::message::Hello;
use portreeve_protocol::reload::Reload;
use portreeve_protocol::{FaultCode, Text};
use portreeve_tests::kernel::landlock_abi;
use portreeve_tests::reload::{reload, rows};
use portreeve_tests::scripted_worker::{ScriptedWorker, WorkerSetup};
use portreeve_tests::wait::TIMEOUT;
use portreeve_tests::{Broker, Host, Peer, broker, eventually, isolated, sample};

fn is_free(endpoint: &str) -> bool {
    TcpListener::bind(endpoint).is_ok()
}

#[test]
fn a_narrowing_reload_names_and_closes_the_listeners_outside_the_policy() {
    isolated(|host| {
        let broker = Broker::start(host, &sample::control(r#"( "127.0.0.1:2000-2100" )"#));
        let mut peer = broker.peer();
        let (_, inside) = peer.listen("127.0.0.1:2001").unwrap();
        let (_, outside) = peer.listen("127.0.0.1:2002").unwrap();
        let before = broker.descriptors();
        let reloaded = reload(host, &broker, &sample::control(r#"( "127.0.0.1:2000-2001" )"#));
        assert_eq!(rows(&reloaded, "closed"), ["listener 127.0.0.1:2002"], "{reloaded:?}");
        broker.log.wait_for(&["127.0.0.1:2002", "closing it"]);
        eventually("the port to be free of clients", || {
            TcpStream::connect("127.0.0.1:2002").is_err().then_some(())
        });
        drop(outside);
        eventually("the port to be free", || is_free("127.0.0.1:2002").then_some(()));
        TcpStream::connect("127.0.0.1:2001").unwrap();
        assert_eq!(peer.listen("127.0.0.1:2002").unwrap_err().code, FaultCode::Denied);
        drop(inside);
        broker.await_no_leak(&before);
    });
}

#[test]
fn with_on_narrow_keep_a_reload_keeps_the_listeners_outside_the_policy() {
    isolated(|host| {
        let keep = "broker { on_narrow = keep }";
        let broker = Broker::start(host, &sample::control(r#"( "127.0.0.1:2000-2100" )"#));
        let mut peer = broker.peer();
        let (id, _outside) = peer.listen("127.0.0.1:2002").unwrap();
        let narrow = sample::control(r#"( "127.0.0.1:2000-2001" )"#);
        let reloaded = reload(host, &broker, &format!("{narrow}{keep}"));
        assert_eq!(rows(&reloaded, "kept"), ["listener 127.0.0.1:2002"], "{reloaded:?}");
        broker.log.wait_for(&["127.0.0.1:2002", "stays until its owner stops it"]);
        TcpStream::connect("127.0.0.1:2002").unwrap();
        peer.stop(&[id]);
        assert_eq!(peer.listen("127.0.0.1:2002").unwrap_err().code, FaultCode::Denied);
    });
}

/// The setup of a worker that the test controls, and a function that makes a configuration with these listeners.
fn worker(host: &Host) -> (WorkerSetup, impl Fn(&str) -> String + use<>) {
    let setup = WorkerSetup::new(host, "chroot");
    let broker = sample::socket(r#"( "127.0.0.9:9" )"#);
    let path = setup.chroot.path.display().to_string();
    let text = move |listeners: &str| {
        format!(
            r#"
            security {{
                user = nobody
                group = nogroup
                chroot = "{path}"
                capabilities = "cap_net_bind_service+ep"
            }}
            worker {{ command = ( /run/host/bin/scripted_worker ) }}
            {broker}
            ESMTP_Listener {{ {listeners} }}"#
        )
    };
    (setup, text)
}

fn started(host: &Host, setup: &WorkerSetup, text: &str) -> (Broker, ScriptedWorker, Peer) {
    let broker = Broker::start(host, text);
    let (scripted, mut peer) = setup.accept();
    peer.hello();
    (broker, scripted, peer)
}

#[test]
fn a_new_static_listener_is_bound_at_once_and_the_worker_can_request_it() {
    isolated(|host| {
        let (setup, text) = worker(host);
        let permit = r#"} broker { permit "later" { listen = ( "127.0.0.1:2525-2530" ) } "#;
        let one = format!(r#"Listen "127.0.0.1:2525" {{}}{permit}"#);
        let (broker, _scripted, mut peer) = started(host, &setup, &text(&one));
        let two = format!(r#"Listen "127.0.0.1:2526" {{}} Listen "127.0.0.1:9999" {{}}{permit}"#);
        let reloaded = reload(host, &broker, &text(&two));
        // The Landlock rules of the start are permanent, if the kernel's Landlock limits TCP ports.
        let ports_are_fixed = landlock_abi() >= 4;
        if ports_are_fixed {
            assert_eq!(rows(&reloaded, "opened"), ["listener 127.0.0.1:2526"], "{reloaded:?}");
            assert!(rows(&reloaded, "needs-restart").contains(&"listener 127.0.0.1:9999"), "{reloaded:?}");
            assert!(rows(&reloaded, "needs-restart").contains(&"TCP ports 9999"), "{reloaded:?}");
        } else {
            let both = ["listener 127.0.0.1:2526", "listener 127.0.0.1:9999"];
            assert_eq!(rows(&reloaded, "opened"), both, "{reloaded:?}");
        }
        // The old listener is still permitted, so the worker keeps it.
        assert_eq!(rows(&reloaded, "released"), ["listener 127.0.0.1:2525"], "{reloaded:?}");
        let client = thread::spawn(|| TcpStream::connect("127.0.0.1:2526").unwrap());
        let (_, socket) = peer.listen("127.0.0.1:2526").unwrap();
        TcpListener::from(socket).accept().unwrap();
        client.join().unwrap();
        match peer.listen("127.0.0.1:9999") {
            Ok(_) => assert!(!ports_are_fixed),
            Err(fault) => {
                assert!(ports_are_fixed, "{fault}");
                assert_eq!(fault.code, FaultCode::NotRetained);
                assert!(fault.message.contains("9999") && fault.remedy.contains("restart"), "{fault}");
            }
        }
    });
}

#[test]
fn static_unix_sockets_change_in_known_directories_and_others_need_a_restart() {
    isolated(|host| {
        let (setup, text) = worker(host);
        fs::create_dir(host.path("known")).unwrap();
        fs::create_dir(host.path("unknown")).unwrap();
        let (first, second) = (host.path("known/first.sock"), host.path("known/second.sock"));
        let elsewhere = host.path("unknown/third.sock");
        let one = format!("Listen {} {{ file_mode = 0600 }}", first.display());
        let (broker, _scripted, mut peer) = started(host, &setup, &text(&one));
        drop(UnixStream::connect(&first).unwrap());
        let two = format!("Listen {} {{}} Listen {} {{}}", second.display(), elsewhere.display());
        let reloaded = reload(host, &broker, &text(&two));
        assert_eq!(rows(&reloaded, "opened"), [format!("listener {}", second.display())], "{reloaded:?}");
        assert_eq!(rows(&reloaded, "closed"), [format!("listener {}", first.display())], "{reloaded:?}");
        let restart = format!("listener {}", elsewhere.display());
        assert!(rows(&reloaded, "needs-restart").contains(&restart.as_str()), "{reloaded:?}");
        assert!(!elsewhere.exists());
        eventually("the file of the closed listener to be removed", || (!first.exists()).then_some(()));
        // The broker leaves it to the worker to listen.
        UnixStream::connect(&second).unwrap_err();
        let (_, socket) = peer.listen(&second.display().to_string()).unwrap();
        rustix::net::listen(&socket, 5).unwrap();
        let client = UnixStream::connect(&second).unwrap();
        UnixListener::from(socket).accept().unwrap();
        drop(client);
        // Adds the first one again, beside the second.
        let both = format!("{one} Listen {} {{}}", second.display());
        let reloaded = reload(host, &broker, &text(&both));
        assert_eq!(rows(&reloaded, "opened"), [format!("listener {}", first.display())], "{reloaded:?}");
        rustix::net::listen(peer.listen(&first.display().to_string()).unwrap().1, 5).unwrap();
        drop(UnixStream::connect(&first).unwrap());
        drop(UnixStream::connect(&second).unwrap());
    });
}

#[test]
fn a_port_held_by_another_program_makes_the_whole_reload_fail() {
    isolated(|host| {
        let (setup, text) = worker(host);
        let permit = r#"} broker { permit "later" { listen = ( "127.0.0.1:2525-2530" ) } "#;
        let (broker, _scripted, mut peer) =
            started(host, &setup, &text(&format!(r#"Listen "127.0.0.1:2525" {{}}{permit}"#)));
        let _other = TcpListener::bind("127.0.0.1:2527").unwrap();
        let listeners = r#"Listen "127.0.0.1:2525" {} Listen "127.0.0.1:2526" {} Listen "127.0.0.1:2527" {}"#;
        let path = broker::config(host, &text(listeners));
        let fault = broker.peer().request(&Reload::default()).unwrap_err();
        assert_eq!(fault.code, FaultCode::InUse);
        assert!(fault.message.starts_with(&format!("{}:", path.display())), "{fault}");
        assert!(fault.message.contains("127.0.0.1:2527"), "{fault}");
        eventually("the port that was bound before the failure to be free", || {
            is_free("127.0.0.1:2526").then_some(())
        });
        // The old permit is still in force.
        peer.listen("127.0.0.1:2530").unwrap();
    });
}

/// Serves on a socket, one byte for each client, until the socket is disabled.
fn serve(socket: OwnedFd) {
    let listener = TcpListener::from(socket);
    thread::spawn(move || {
        while let Ok((mut client, _)) = listener.accept() {
            // A client may have disconnected at the end of the test.
            let _ = client.write_all(b"x");
        }
    });
}

#[test]
fn reloads_between_specific_and_wildcard_refuse_no_client_under_load() {
    isolated(|host| {
        let (setup, text) = worker(host);
        let (specific, wildcard) = (text(r#"Listen "127.0.0.1:2525" {}"#), text(r#"Listen "*:2525" {}"#));
        let (broker, _scripted, mut peer) = started(host, &setup, &specific);
        serve(peer.listen("127.0.0.1:2525").unwrap().1);
        let (over, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let clients: Vec<_> = (0..4)
            .map(|_| {
                let (over, served) = (over.clone(), served.clone());
                thread::spawn(move || {
                    while !over.load(Ordering::Relaxed) {
                        let mut client = TcpStream::connect("127.0.0.1:2525").unwrap();
                        client.set_read_timeout(Some(TIMEOUT)).unwrap();
                        let mut byte = [0];
                        client.read_exact(&mut byte).unwrap();
                        served.fetch_add(1, Ordering::Relaxed);
                        // On a single processor, clients without a pause would starve the reader process for seconds.
                        thread::sleep(Duration::from_millis(1));
                    }
                })
            })
            .collect();
        for _ in 0..3 {
            for (text, opened, closed) in
                [(&wildcard, "*:2525", "127.0.0.1:2525"), (&specific, "127.0.0.1:2525", "*:2525")]
            {
                let reloaded = reload(host, &broker, text);
                assert_eq!(rows(&reloaded, "opened"), [format!("listener {opened}")], "{reloaded:?}");
                assert_eq!(rows(&reloaded, "closed"), [format!("listener {closed}")], "{reloaded:?}");
                serve(peer.listen(opened).unwrap().1);
                let before = served.load(Ordering::Relaxed);
                eventually("more clients", || (served.load(Ordering::Relaxed) > before + 50).then_some(()));
                // The closed listener ends a moment later; the next reload may be before or after that.
                thread::sleep(Duration::from_millis(50));
            }
        }
        over.store(true, Ordering::Relaxed);
        clients.into_iter().for_each(|client| client.join().unwrap());
        eventually("one listener", || (broker.peer().status().listeners_held == 1).then_some(()));
    });
}

/// A configuration that names these accounts.
fn naming(accounts: &[&str]) -> String {
    let scope = |account| format!("peer {account:?} {{ allow = ( status listen ) permit = ( any ) }} ");
    let scopes: String = accounts.iter().map(scope).collect();
    sample::control(r#"( "127.0.0.1:2000-2100" )"#) + &format!("broker {{ {scopes} }}")
}

/// Whether the broker allows a user nothing, not even a session.
fn is_nobody(uid: u32) -> bool {
    let mut peer = Peer::connect_as(std::path::Path::new(broker::SOCKET), uid, uid).unwrap();
    let hello = Hello { client: Text::new("test").unwrap(), features: 0 };
    peer.request(&hello).is_err_and(|fault| fault.code == FaultCode::Denied)
}

#[test]
fn a_deleted_account_loses_its_permit_and_its_listeners_at_a_reload() {
    isolated(|host| {
        host.add_user("alice", 1001);
        host.add_user("bob", 1002);
        host.add_group("mailers", 1003);
        let text = naming(&["alice", "bob", "@mailers", "1004"]);
        let broker = Broker::start(host, &text);
        let mut peers = [
            Peer::of_user(1001, 1001),
            Peer::of_user(1002, 1002),
            Peer::of_user(65533, 1003),
            Peer::of_user(1004, 1004),
        ];
        let sockets: Vec<OwnedFd> = (2001..)
            .zip(&mut peers)
            .map(|(port, peer)| peer.listen(&format!("127.0.0.1:{port}")).unwrap().1)
            .collect();
        let [alice, bob, mailer, numeric] = &mut peers;
        host.delete_user("alice");
        host.delete_group("mailers");
        let reloaded = reload(host, &broker, &text);
        let closed = ["listener 127.0.0.1:2001", "listener 127.0.0.1:2003"];
        assert_eq!(rows(&reloaded, "closed"), closed, "{reloaded:?}");
        let findings = format!("{:?}", reloaded.findings);
        for word in ["alice", "mailers"] {
            assert!(findings.contains(&format!("{word}\\\" has been deleted")), "{findings}");
            broker.log.wait_for(&["WARN", word, "has been deleted"]);
        }
        eventually("the end of service", || TcpStream::connect("127.0.0.1:2001").is_err().then_some(()));
        for peer in [alice, mailer] {
            assert_eq!(peer.listen("127.0.0.1:2010").unwrap_err().code, FaultCode::Denied);
        }
        assert!(is_nobody(1001));
        for (peer, port) in [(bob, 2012), (numeric, 2014)] {
            peer.listen(&format!("127.0.0.1:{port}")).unwrap();
        }
        // Again a warning, not an error, until the scope is removed.
        assert!(format!("{:?}", reload(host, &broker, &text).findings).contains("has been deleted"));
        // Somebody else got the number; the new account of that name has another one.
        host.add_user("mallory", 1001);
        host.add_user("alice", 1005);
        reload(host, &broker, &text);
        assert!(is_nobody(1001));
        Peer::of_user(1005, 1005).listen("127.0.0.1:2015").unwrap();
        drop(sockets);
    });
}

#[test]
fn an_account_that_no_configuration_named_before_is_still_a_mistake() {
    isolated(|host| {
        let broker = Broker::start(host, &naming(&[]));
        broker::config(host, &naming(&["alice"]));
        let fault = broker.peer().request(&Reload::default()).unwrap_err();
        assert!(fault.code == FaultCode::Invalid && fault.message.contains("alice"), "{fault}");
    });
}

#[test]
fn an_unreadable_file_of_accounts_deletes_no_account() {
    isolated(|host| {
        host.add_user("alice", 1001);
        let text = naming(&["alice"]);
        let broker = Broker::start(host, &text);
        let mut alice = Peer::of_user(1001, 1001);
        let (_, socket) = alice.listen("127.0.0.1:2001").unwrap();
        // The reader has no capability that overrides the mode.
        std::os::unix::fs::chown("/etc/passwd", Some(1001), Some(1001)).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions("/etc/passwd", mode).unwrap();
        broker::config(host, &text);
        let fault = broker.peer().request(&Reload::default()).unwrap_err();
        assert!(fault.code == FaultCode::Invalid && fault.message.contains("/etc/passwd"), "{fault}");
        TcpStream::connect("127.0.0.1:2001").unwrap();
        alice.listen("127.0.0.1:2002").unwrap();
        drop(socket);
    });
}
