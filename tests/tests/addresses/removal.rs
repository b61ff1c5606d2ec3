//! Removal: the holder of an address first gets a notice, and the reply reports whether the address is removed.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use portreeve_protocol::EventCode;
use portreeve_tests::scripted_worker::WorkerSetup;
use portreeve_tests::{Broker, Host, Peer, eventually, isolated, lan, resources, sample};
use rustix::process::Signal;

const NOBODY: u32 = 65_534;
/// The time that the holder of an address has to stop using it.
const NOTICE: Duration = Duration::from_secs(1);
/// How long the broker checks whether the host still has a removed address.
const VERIFICATION: Duration = Duration::from_secs(2);

fn start(host: &Host) -> Broker {
    lan::create(&["far"]);
    let more = "broker { peer nobody { allow = ( address subscribe ) permit = ( any ) } }";
    Broker::start(host, &sample::addresses(more))
}

fn nobody() -> Peer {
    Peer::of_user(NOBODY, NOBODY)
}

/// Removes the peer's address as root, and returns how long that took.
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
fn the_holder_gets_a_notice_before_another_peer_removes_its_address() {
    isolated(|host| {
        let broker = start(host);
        let (mut owner, mut watcher) = (nobody(), nobody());
        let add = |owner: &mut Peer| owner.add_address("10.1.1.7", |add| add.lease = Some(60)).unwrap();
        // The shortest of three runs, because the machine may be busy.
        let unheard = (0..3).map(|_| {
            add(&mut owner);
            removed_by_root(&broker, || {})
        });
        let unheard = unheard.min().unwrap();
        assert!(unheard < NOTICE, "without a subscriber the removal took {unheard:?}");

        watcher.subscribe(false);
        add(&mut owner);
        let ignored = removed_by_root(&broker, || {
            let notice = watcher.await_event(EventCode::AddressLeaving);
            assert_eq!((notice.address, notice.count), ("10.1.1.7".parse().ok(), 1_000));
            assert!(lan::show_address("10.1.1.7").is_some(), "the notice must arrive before the removal");
            watcher.await_event(EventCode::AddressRemoved);
        });
        assert!(ignored >= NOTICE, "{ignored:?}");
        add(&mut owner);
        removed_by_root(&broker, || {
            watcher.await_event(EventCode::AddressLeaving);
            assert!(owner.remove_address("10.1.1.7").unwrap().verified, "the owner removes it");
        });
        assert_eq!(lan::show_address("10.1.1.7"), None);
    });
}

#[test]
fn the_holder_gets_a_notice_a_second_before_expiry_and_can_renew() {
    isolated(|host| {
        let broker = start(host);
        let (mut owner, mut watcher) = (broker.peer(), broker.peer());
        watcher.subscribe(false);
        owner.add_address("10.1.1.7", |add| add.lease = Some(4)).unwrap();
        for _ in 0..2 {
            let notice = watcher.await_event(EventCode::AddressLeaving);
            assert!(notice.count <= 1_000, "{notice:?}");
            owner.renew_address("10.1.1.7").unwrap();
        }
        watcher.await_event(EventCode::AddressLeaving);
        watcher.await_event(EventCode::AddressExpired);
    });
}

#[test]
fn the_holder_gets_a_notice_before_the_broker_ends() {
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
fn a_copy_by_another_program_is_fenced_and_not_reported_as_removed() {
    isolated(|host| {
        let broker = start(host);
        let mut peer = broker.peer();
        let reach = || {
            let at = "10.1.1.7:9".parse().unwrap();
            lan::in_host("far", || TcpStream::connect_timeout(&at, Duration::from_millis(500)))
        };
        peer.add_address("10.1.1.7", |_| {}).unwrap();
        lan::ip("addr add 10.1.1.7/32 dev lo");
        assert_eq!(reach().unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused, "the address answers");
        let begin = Instant::now();
        assert!(!peer.remove_address("10.1.1.7").unwrap().verified);
        assert!(begin.elapsed() >= VERIFICATION, "{:?}", begin.elapsed());
        assert_ne!(
            reach().unwrap_err().kind(),
            std::io::ErrorKind::ConnectionRefused,
            "the address is fenced"
        );
        lan::ip("addr del 10.1.1.7/32 dev lo");

        peer.add_address("10.1.1.7", |_| {}).unwrap();
        lan::ip("addr add 10.1.1.7/32 dev lo");
        std::thread::scope(|scope| {
            let removal = scope.spawn(|| peer.remove_address("10.1.1.7").unwrap().verified);
            let is_removed =
                || lan::show_address("10.1.1.7").is_none_or(|line| line.contains(" lo ")).then_some(());
            eventually("the removal of the broker's own address", is_removed);
            lan::ip("addr del 10.1.1.7/32 dev lo");
            assert!(removal.join().unwrap(), "the broker checks until the copy is removed");
        });
    });
}

#[test]
fn the_worker_gets_events_when_its_floating_listeners_start_and_stop() {
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
