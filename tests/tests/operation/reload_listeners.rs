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

use portreeve_protocol::FaultCode;
use portreeve_protocol::reload::Reload;
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
        let client = UnixStream::connect(&second).unwrap();
        let (_, socket) = peer.listen(&second.display().to_string()).unwrap();
        UnixListener::from(socket).accept().unwrap();
        drop(client);
        // Adds the first one again, beside the second.
        let both = format!("{one} Listen {} {{}}", second.display());
        let reloaded = reload(host, &broker, &text(&both));
        assert_eq!(rows(&reloaded, "opened"), [format!("listener {}", first.display())], "{reloaded:?}");
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
        let fault = broker.peer().request(&Reload { last: false }).unwrap_err();
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
