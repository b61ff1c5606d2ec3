//! Removing: whoever holds an address is told before it goes, and the reply says whether it is gone.

use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use portreeve_protocol::EventCode;
use portreeve_tests::broker::SOCKET;
use portreeve_tests::scripted_worker::WorkerSetup;
use portreeve_tests::{Broker, Host, Peer, eventually, isolated, lan, resources, sample};
use rustix::process::Signal;

const NOBODY: u32 = 65_534;
/// How long who holds an address has to let go of it.
const NOTICE: Duration = Duration::from_secs(1);
/// How long the broker looks for what should be gone.
const LOOKING: Duration = Duration::from_secs(2);

fn start(host: &Host) -> Broker {
    lan::create(&["far"]);
    let more = "broker { peer nobody { allow = ( address subscribe ) permit = ( any ) } }";
    Broker::start(host, &sample::addresses(more))
}

fn nobody() -> Peer {
    let mut peer = Peer::connect_as(Path::new(SOCKET), NOBODY, NOBODY).unwrap();
    peer.hello();
    peer
}

/// Has the peer's address removed by root, and gives how long that took.
fn removed_by_root(broker: &Broker, meanwhile: impl FnOnce()) -> Duration {
    let mut root = broker.peer();
    std::thread::scope(|scope| {
        let removal = scope.spawn(move || {
            let begin = Instant::now();
            assert!(root.remove_address("10.1.1.7").unwrap().verified);
            begin.elapsed()
        });
        meanwhile();
        removal.join().unwrap()
    })
}

#[test]
fn who_holds_an_address_is_told_before_another_has_it_removed() {
    isolated(|host| {
        let broker = start(host);
        let (mut owner, mut watcher) = (nobody(), nobody());
        let add = |owner: &mut Peer| owner.add_address("10.1.1.7", |add| add.lease = Some(60)).unwrap();
        // Of three times the shortest, for a busy machine.
        let unheard = (0..3).map(|_| {
            add(&mut owner);
            removed_by_root(&broker, || {})
        });
        let unheard = unheard.min().unwrap();
        assert!(unheard < NOTICE, "nobody listens, and the removal took {unheard:?}");

        watcher.subscribe(false);
        add(&mut owner);
        let ignored = removed_by_root(&broker, || {
            let told = watcher.await_event(EventCode::AddressLeaving);
            assert_eq!((told.address, told.count), ("10.1.1.7".parse().ok(), 1_000));
            assert!(lan::show_address("10.1.1.7").is_some(), "it is told before it goes");
            watcher.await_event(EventCode::AddressRemoved);
        });
        assert!(ignored >= NOTICE, "{ignored:?}");
        add(&mut owner);
        removed_by_root(&broker, || {
            watcher.await_event(EventCode::AddressLeaving);
            assert!(owner.remove_address("10.1.1.7").unwrap().verified, "its owner lets go of it");
        });
        assert_eq!(lan::show_address("10.1.1.7"), None);
    });
}

#[test]
fn who_does_not_renew_an_address_is_told_a_second_before_it_goes_and_may_renew_it() {
    isolated(|host| {
        let broker = start(host);
        let (mut owner, mut watcher) = (broker.peer(), broker.peer());
        watcher.subscribe(false);
        owner.add_address("10.1.1.7", |add| add.lease = Some(4)).unwrap();
        for _ in 0..2 {
            let told = watcher.await_event(EventCode::AddressLeaving);
            assert!(told.count <= 1_000, "{told:?}");
            owner.renew_address("10.1.1.7").unwrap();
        }
        watcher.await_event(EventCode::AddressLeaving);
        watcher.await_event(EventCode::AddressExpired);
    });
}

#[test]
fn who_holds_an_address_is_told_before_the_broker_ends() {
    isolated(|host| {
        let mut broker = start(host);
        let (mut owner, mut watcher) = (nobody(), nobody());
        watcher.subscribe(false);
        owner.add_address("10.1.1.7", |add| add.lease = Some(60)).unwrap();
        broker.signal(Signal::TERM);
        watcher.await_event(EventCode::AddressLeaving);
        assert!(owner.remove_address("10.1.1.7").unwrap().verified);
        assert!(broker.wait_for_exit().success());
    });
}

#[test]
fn an_address_that_somebody_else_put_elsewhere_too_is_silent_and_not_called_gone() {
    isolated(|host| {
        let broker = start(host);
        let mut peer = broker.peer();
        let reach = || {
            let at = "10.1.1.7:9".parse().unwrap();
            lan::in_host("far", || TcpStream::connect_timeout(&at, Duration::from_millis(500)))
        };
        peer.add_address("10.1.1.7", |_| {}).unwrap();
        lan::ip("addr add 10.1.1.7/32 dev lo");
        assert_eq!(reach().unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused, "it is there");
        let begin = Instant::now();
        assert!(!peer.remove_address("10.1.1.7").unwrap().verified);
        assert!(begin.elapsed() >= LOOKING, "{:?}", begin.elapsed());
        assert_ne!(reach().unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused, "it is silent");
        lan::ip("addr del 10.1.1.7/32 dev lo");

        peer.add_address("10.1.1.7", |_| {}).unwrap();
        lan::ip("addr add 10.1.1.7/32 dev lo");
        std::thread::scope(|scope| {
            let removal = scope.spawn(|| peer.remove_address("10.1.1.7").unwrap().verified);
            let gone =
                || lan::show_address("10.1.1.7").is_none_or(|line| line.contains(" lo ")).then_some(());
            eventually("the end of the broker's own", gone);
            lan::ip("addr del 10.1.1.7/32 dev lo");
            assert!(removal.join().unwrap(), "it was looked for until it was gone");
        });
    });
}

#[test]
fn the_worker_is_told_when_its_listeners_come_and_go_with_their_address() {
    isolated(|host| {
        lan::create(&["far"]);
        let setup = WorkerSetup::new(host, "chroot");
        let listener = r#"ESMTP_Listener { Listen "10.1.1.7:25" { enable_duravip = true } }"#;
        let text =
            sample::worker(&setup.chroot, "( /run/host/bin/scripted_worker )", &sample::addresses(listener));
        let broker = Broker::start(host, &text);
        let (_scripted, mut worker) = setup.accept();
        worker.hello();
        worker.subscribe(false);
        let mut cluster = broker.peer();
        cluster.add_address("10.1.1.7", |_| {}).unwrap();
        let started = worker.await_event(EventCode::ListenerStarted);
        assert_eq!((started.address, &*started.detail), ("10.1.1.7".parse().ok(), "10.1.1.7:25"));
        let (id, _socket) = worker.listen("10.1.1.7:25").unwrap();
        assert_eq!(id.0, started.count);
        cluster.remove_address("10.1.1.7").unwrap();
        let stopping = worker.await_event(EventCode::ListenerStopping);
        assert_eq!((stopping.count, &*stopping.detail), (id.0, "10.1.1.7:25"));
        assert!(resources::tcp_listeners().is_empty());
    });
}
