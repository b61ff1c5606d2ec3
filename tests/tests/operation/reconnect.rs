//! A program of its own whose broker goes away: it serves on, finds the next broker by itself, and has again what it had.

use std::future::Future;
use std::io::Read as _;
use std::net::{IpAddr, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use portreeve::{AddressOptions, Channel, Client, Error, ListenOptions};
use portreeve_protocol::FaultCode;
use portreeve_protocol::address::ListAddresses;
use portreeve_tests::broker::SOCKET;
use portreeve_tests::crowd::Tally;
use portreeve_tests::puppet::Stage;
use portreeve_tests::wait::PATIENCE;
use portreeve_tests::{Broker, eventually, isolated, lan, sample};
use rustix::process::Signal;
use tokio::io::AsyncWriteExt as _;

/// Runs something asynchronous, within the patience of tests.
fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(future)
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what} took too long"))
}

async fn lasting() -> Client {
    let channel = Channel::connect(SOCKET).unwrap().reconnect_through(SOCKET);
    Client::open(channel, "lasting").await.unwrap()
}

/// Serves on port 25 until it is told to stop, or its listener is lost; then it asks for it again and says so.
fn serve(told: Receiver<()>, losses: Sender<Error>) {
    run(async {
        let client = lasting().await;
        let endpoint = "127.0.0.1:25".parse().unwrap();
        'again: loop {
            let listener = client.listen(&endpoint, &ListenOptions::default()).await.unwrap();
            let listener = listener.into_tcp().unwrap();
            loop {
                if told.try_recv().is_ok() {
                    return soon("the stop", listener.stop()).await.unwrap();
                }
                let tick = Duration::from_millis(20);
                if let Ok(Ok((mut guest, _))) = tokio::time::timeout(tick, listener.accept()).await {
                    // It may have gone already.
                    let _ = guest.write_all(b"220 ready\r\n").await;
                }
                if let Ok(why) = tokio::time::timeout(Duration::ZERO, listener.lost()).await {
                    losses.send(why).unwrap();
                    continue 'again;
                }
            }
        }
    });
}

/// Returns when the program serves: a connection that is greeted has been accepted on the socket that it was given, where
/// one that is only made may wait on a socket that is still on its way.
fn await_greeting() {
    eventually("a greeting", || {
        let mut guest = TcpStream::connect("127.0.0.1:25").ok()?;
        guest.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        guest.read_exact(&mut [0; 4]).ok()
    });
}

/// Returns when this broker has a session of the program again.
fn await_session(broker: &Broker) {
    eventually("the program's session", || {
        broker.peer().status().sessions.iter().any(|session| &*session.client == "lasting").then_some(())
    });
}

#[test]
fn a_program_serves_on_and_reconnects_while_brokers_are_killed_and_taken_over() {
    isolated(|host| {
        let text = sample::control(r#"( "127.0.0.1:1-65535" )"#);
        let mut broker = Broker::start(host, &text);
        let (tell, told) = channel();
        let (losses, lost) = channel();
        let tally = Tally::default();
        std::thread::scope(|scope| {
            let server = scope.spawn(move || serve(told, losses));
            await_greeting();
            let clients: Vec<_> = (0..2).map(|_| scope.spawn(|| tally.come())).collect();
            let more = |what: &str| {
                let greeted = tally.greeted();
                eventually(what, || {
                    let failed = clients.iter().any(std::thread::ScopedJoinHandle::is_finished);
                    (failed || tally.greeted() > greeted + 100).then_some(())
                });
            };
            for _ in 0..3 {
                more("clients of a broker");
                broker.signal(Signal::KILL);
                broker.ended();
                more("clients of none");
                broker = Broker::start(host, &text);
                await_session(&broker);
                more("clients of the next one");
                // Its own socket has the port, so nobody else can; it is not lost.
                assert!(broker.peer().status().listeners.is_empty());
            }
            tally.enough();
            clients.into_iter().for_each(|client| client.join().unwrap());
            tell.send(()).unwrap();
            server.join().unwrap();
        });
        assert_eq!((tally.cut_off(), lost.try_iter().count()), (0, 0));
        assert!(TcpStream::connect("127.0.0.1:25").is_err());
        println!("{} clients, none refused", tally.greeted());
    });
}

#[test]
fn a_program_adopts_its_listeners_after_every_takeover_and_refuses_no_client() {
    isolated(|host| {
        let text = sample::control(r#"( "127.0.0.1:1-65535" )"#);
        let mut broker = Broker::start(host, &text);
        let (tell, told) = channel();
        let (losses, lost) = channel();
        let tally = Tally::default();
        std::thread::scope(|scope| {
            let server = scope.spawn(move || serve(told, losses));
            let id = eventually("the listener", || Some(broker.peer().status().listeners.first()?.id));
            let clients: Vec<_> = (0..2).map(|_| scope.spawn(|| tally.come())).collect();
            for _ in 0..3 {
                let next = broker.succeeded_by(host, &text);
                assert!(broker.ended().success());
                broker = next;
                eventually("the adoption", || {
                    let rows = broker.peer().status().listeners;
                    (rows.len() == 1 && rows[0].id == id && !rows[0].retained).then_some(())
                });
            }
            let greeted = tally.greeted();
            eventually("clients that are greeted", || {
                let failed = clients.iter().any(std::thread::ScopedJoinHandle::is_finished);
                (failed || tally.greeted() > greeted + 100).then_some(())
            });
            tally.enough();
            clients.into_iter().for_each(|client| client.join().unwrap());
            tell.send(()).unwrap();
            server.join().unwrap();
        });
        assert_eq!((tally.cut_off(), lost.try_iter().count()), (0, 0));
        assert!(broker.peer().status().listeners.is_empty());
        assert!(TcpStream::connect("127.0.0.1:25").is_err());
    });
}

#[test]
fn a_listener_that_its_broker_took_out_of_service_is_told_as_lost_and_can_be_had_again() {
    isolated(|host| {
        let text = sample::control(r#"( "127.0.0.1:25" )"#);
        let mut broker = Broker::start(host, &text);
        let (tell, told) = channel();
        let (losses, lost) = channel();
        std::thread::scope(|scope| {
            let server = scope.spawn(move || serve(told, losses));
            await_greeting();
            assert!(broker.terminate().success());
            let next = Broker::start(host, &text);
            let why = lost.recv_timeout(PATIENCE).unwrap();
            assert!(matches!(&why, Error::Fault(fault) if fault.code == FaultCode::NotFound), "{why}");
            await_greeting();
            tell.send(()).unwrap();
            server.join().unwrap();
            assert!(next.runs());
        });
    });
}

#[test]
fn a_lease_outlives_a_takeover_and_a_killed_broker_and_says_why_where_it_cannot() {
    isolated(|host| {
        lan::join(&["far"]);
        let text = sample::addresses("");
        let mut broker = Broker::start(host, &text);
        let address: IpAddr = "10.1.1.7".parse().unwrap();
        let (tell, told) = channel();
        let (ready, held) = channel();
        let why = std::thread::scope(|scope| {
            let holder = scope.spawn(move || {
                run(async move {
                    let client = lasting().await;
                    let options = AddressOptions::new().lease(20).epoch(5).probes(0);
                    let mut lease = client.hold_address(address, &options).await.unwrap();
                    ready.send(()).unwrap();
                    let why = loop {
                        match tokio::time::timeout(Duration::from_millis(50), lease.lost()).await {
                            Ok(why) => break Some(why),
                            Err(_) if told.try_recv().is_ok() => break None,
                            Err(_) => {}
                        }
                    };
                    lease.let_expire();
                    why
                })
            });
            held.recv_timeout(PATIENCE).unwrap();
            let next = broker.succeeded_by(host, &text);
            assert!(broker.ended().success());
            broker = next;
            await_session(&broker);
            assert!(lan::shown("10.1.1.7").is_some());
            // Of the next one's own accord nothing is left of a broker that was killed.
            broker.signal(Signal::KILL);
            broker.ended();
            broker = Broker::start(host, &text);
            eventually("the address again", || {
                let rows = broker.peer().ask(&ListAddresses { after: None }).unwrap().0.addresses;
                rows.iter().any(|row| row.lease.address == address && row.lease.epoch == 5).then_some(())
            });
            assert!(lan::shown("10.1.1.7").is_some());
            assert!(!holder.is_finished());
            broker.signal(Signal::KILL);
            broker.ended();
            // Where the address is nobody's to ask for.
            broker = Broker::start(host, &text.replace("\"10.0.0.0/8\"", "\"10.77.0.0/16\""));
            eventually("the loss", || holder.is_finished().then_some(()));
            let _it_is_over = tell.send(());
            holder.join().unwrap()
        });
        assert!(matches!(&why, Some(Error::Fault(fault)) if fault.code == FaultCode::Denied), "{why:?}");
        assert!(broker.runs());
    });
}

#[test]
fn a_worker_whose_broker_is_gone_goes_on_through_the_control_socket_where_it_was_told_to() {
    isolated(|host| {
        let stage = Stage::new(host, "chroot");
        let control = sample::socket(r#"( "127.0.0.1:1-65535" )"#);
        let text = sample::worker(&stage.chroot, "( /run/host/bin/puppet )", &control);
        let mut broker = Broker::start(host, &text);
        let (_puppet, peer) = stage.enter();
        let inherited = Channel::from(peer.channel.try_clone().unwrap());
        drop(peer);
        run(async {
            let client = Client::open(inherited.reconnect_through(SOCKET), "worker").await.unwrap();
            assert_eq!(client.welcome().unwrap().peer.as_str(), "the worker");
            let listener = client.listen(&"127.0.0.1:25".parse().unwrap(), &ListenOptions::default()).await;
            let listener = listener.unwrap();
            broker.signal(Signal::KILL);
            broker.ended();
            let next = Broker::start(host, &text);
            soon("the next broker", client.ping()).await.unwrap();
            assert_eq!(client.welcome().unwrap().peer.as_str(), "user 0");
            assert_eq!(client.welcome().unwrap().broker, next.pid());
            TcpStream::connect("127.0.0.1:25").unwrap();
            soon("the stop", listener.stop()).await.unwrap();
            assert!(TcpStream::connect("127.0.0.1:25").is_err());
        });
    });
}
