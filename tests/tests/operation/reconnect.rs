//! A standalone program after its broker has ended: it keeps serving, finds the next broker by itself, and regains its
//! listeners and leases.

use std::future::Future;
use std::io::Read as _;
use std::net::{IpAddr, TcpStream};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::Duration;

use portreeve::{AddressOptions, Channel, Client, Error, ListenOptions};
use portreeve_protocol::FaultCode;
use portreeve_protocol::address::ListAddresses;
use portreeve_tests::broker::SOCKET;
use portreeve_tests::scripted_worker::WorkerSetup;
use portreeve_tests::smtp_load::SmtpLoad;
use portreeve_tests::wait::TIMEOUT;
use portreeve_tests::{Broker, eventually, isolated, lan, sample};
use rustix::process::Signal;
use tokio::io::AsyncWriteExt as _;

/// Runs a future on a new runtime.
fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(future)
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(TIMEOUT, future).await.unwrap_or_else(|_| panic!("{what} took too long"))
}

async fn reconnecting_client() -> Client {
    let channel = Channel::connect(SOCKET).unwrap().reconnect_through(SOCKET);
    Client::open(channel, "lasting").await.unwrap()
}

/// Serves on port 25 until the test stops it. Reports each loss of the listener, and requests it again.
fn serve(stop_receiver: Receiver<()>, losses: Sender<Error>) {
    run(async {
        let client = reconnecting_client().await;
        let endpoint = "127.0.0.1:25".parse().unwrap();
        'again: loop {
            let listener = client.listen(&endpoint, &ListenOptions::default()).await.unwrap();
            let listener = listener.into_tcp().unwrap();
            loop {
                if stop_receiver.try_recv().is_ok() {
                    return soon("the stop", listener.stop()).await.unwrap();
                }
                let tick = Duration::from_millis(20);
                if let Ok(Ok((mut guest, _))) = tokio::time::timeout(tick, listener.accept()).await {
                    // The client may have disconnected already.
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

/// Waits until the program serves. A greeted connection has been accepted; one that is only established may still wait
/// on a socket that has not reached the program.
fn await_greeting() {
    eventually("a greeting", || {
        let mut guest = TcpStream::connect("127.0.0.1:25").ok()?;
        guest.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        guest.read_exact(&mut [0; 4]).ok()
    });
}

/// Waits until this broker has a session of the program again.
fn await_session(broker: &Broker) {
    eventually("the program's session", || {
        broker.peer().status().sessions.iter().any(|session| &*session.client == "lasting").then_some(())
    });
}

#[test]
fn a_program_keeps_serving_and_reconnects_after_each_killed_broker() {
    isolated(|host| {
        let text = sample::control(r#"( "127.0.0.1:1-65535" )"#);
        let mut broker = Broker::start(host, &text);
        let (stop_sender, stop_receiver) = channel();
        let (losses, lost) = channel();
        let load = SmtpLoad::default();
        std::thread::scope(|scope| {
            let server = scope.spawn(move || serve(stop_receiver, losses));
            await_greeting();
            let clients: Vec<_> = (0..2).map(|_| scope.spawn(|| load.run_client())).collect();
            let more = |what: &str| {
                let greeted = load.greeted();
                eventually(what, || {
                    let failed = clients.iter().any(std::thread::ScopedJoinHandle::is_finished);
                    (failed || load.greeted() > greeted + 100).then_some(())
                });
            };
            for _ in 0..3 {
                more("clients of a broker");
                broker.signal(Signal::KILL);
                broker.wait_for_exit();
                more("clients without a broker");
                broker = Broker::start(host, &text);
                await_session(&broker);
                more("clients of the next one");
                // The program's own socket occupies the port; it is not lost.
                assert!(broker.peer().status().listeners.is_empty());
            }
            load.stop();
            clients.into_iter().for_each(|client| client.join().unwrap());
            stop_sender.send(()).unwrap();
            server.join().unwrap();
        });
        assert_eq!((load.disconnected(), lost.try_iter().count()), (0, 0));
        assert!(TcpStream::connect("127.0.0.1:25").is_err());
        println!("{} clients, none refused", load.greeted());
    });
}

#[test]
fn a_program_adopts_its_listeners_after_every_takeover_and_refuses_no_client() {
    isolated(|host| {
        let text = sample::control(r#"( "127.0.0.1:1-65535" )"#);
        let mut broker = Broker::start(host, &text);
        let (stop_sender, stop_receiver) = channel();
        let (losses, lost) = channel();
        let load = SmtpLoad::default();
        std::thread::scope(|scope| {
            let server = scope.spawn(move || serve(stop_receiver, losses));
            let id = eventually("the listener", || Some(broker.peer().status().listeners.first()?.id));
            let clients: Vec<_> = (0..2).map(|_| scope.spawn(|| load.run_client())).collect();
            for _ in 0..3 {
                broker.replace(host, &text);
                eventually("the adoption", || {
                    let rows = broker.peer().status().listeners;
                    (rows.len() == 1 && rows[0].id == id && !rows[0].retained).then_some(())
                });
            }
            let greeted = load.greeted();
            eventually("clients that are greeted", || {
                let failed = clients.iter().any(std::thread::ScopedJoinHandle::is_finished);
                (failed || load.greeted() > greeted + 100).then_some(())
            });
            load.stop();
            clients.into_iter().for_each(|client| client.join().unwrap());
            stop_sender.send(()).unwrap();
            server.join().unwrap();
        });
        assert_eq!((load.disconnected(), lost.try_iter().count()), (0, 0));
        assert!(broker.peer().status().listeners.is_empty());
        assert!(TcpStream::connect("127.0.0.1:25").is_err());
    });
}

#[test]
fn a_listener_that_its_broker_disabled_is_reported_as_lost_and_can_be_requested_again() {
    isolated(|host| {
        let text = sample::control(r#"( "127.0.0.1:25" )"#);
        let mut broker = Broker::start(host, &text);
        let (stop_sender, stop_receiver) = channel();
        let (losses, lost) = channel();
        std::thread::scope(|scope| {
            let server = scope.spawn(move || serve(stop_receiver, losses));
            await_greeting();
            assert!(broker.terminate().success());
            let next = Broker::start(host, &text);
            let why = lost.recv_timeout(TIMEOUT).unwrap();
            assert!(matches!(&why, Error::Fault(fault) if fault.code == FaultCode::NotFound), "{why}");
            await_greeting();
            stop_sender.send(()).unwrap();
            server.join().unwrap();
            assert!(next.is_running());
        });
    });
}

#[test]
fn a_lease_survives_a_takeover_and_a_killed_broker_or_reports_its_loss() {
    isolated(|host| {
        lan::create(&["far"]);
        let text = sample::addresses("");
        let mut broker = Broker::start(host, &text);
        let address: IpAddr = "10.1.1.7".parse().unwrap();
        let (stop_sender, stop_receiver) = channel();
        let (ready, held) = channel();
        let why = std::thread::scope(|scope| {
            let stop_sender = stop_sender;
            let holder = scope.spawn(move || {
                run(async move {
                    let client = reconnecting_client().await;
                    let options = AddressOptions::new().lease(20).epoch(5).probes(0);
                    let mut lease = client.hold_address(address, &options).await.unwrap();
                    ready.send(()).unwrap();
                    let why = loop {
                        match tokio::time::timeout(Duration::from_millis(50), lease.lost()).await {
                            Ok(why) => break Some(why),
                            // Also if the test has panicked and dropped the sender.
                            Err(_) if stop_receiver.try_recv() != Err(TryRecvError::Empty) => break None,
                            Err(_) => {}
                        }
                    };
                    lease.let_expire();
                    why
                })
            });
            held.recv_timeout(TIMEOUT).unwrap();
            broker.replace(host, &text);
            await_session(&broker);
            assert!(lan::show_address("10.1.1.7").is_some());
            // A starting broker removes the addresses of a killed one, so the holder must add its address again.
            broker.signal(Signal::KILL);
            broker.wait_for_exit();
            broker = Broker::start(host, &text);
            eventually("the address again", || {
                let rows = broker.peer().request(&ListAddresses { after: None }).unwrap().0.addresses;
                rows.iter().any(|row| row.lease.address == address && row.lease.epoch == 5).then_some(())
            });
            assert!(lan::show_address("10.1.1.7").is_some());
            assert!(!holder.is_finished());
            broker.signal(Signal::KILL);
            broker.wait_for_exit();
            // The next configuration does not permit the address.
            broker = Broker::start(host, &text.replace("\"10.0.0.0/8\"", "\"10.77.0.0/16\""));
            eventually("the loss", || holder.is_finished().then_some(()));
            let _ = stop_sender.send(()); // the holder may have ended
            holder.join().unwrap()
        });
        assert!(matches!(&why, Some(Error::Fault(fault)) if fault.code == FaultCode::Denied), "{why:?}");
        assert!(broker.is_running());
    });
}

#[test]
fn a_worker_reconnects_through_the_control_socket_after_its_broker_was_killed() {
    isolated(|host| {
        let setup = WorkerSetup::new(host, "chroot");
        let control = sample::socket(r#"( "127.0.0.1:1-65535" )"#);
        let text = sample::worker(&setup.chroot, "( /run/host/bin/scripted_worker )", &control);
        let mut broker = Broker::start(host, &text);
        let (_scripted, peer) = setup.accept();
        let inherited = Channel::from(peer.channel.try_clone().unwrap());
        drop(peer);
        run(async {
            let client = Client::open(inherited.reconnect_through(SOCKET), "worker").await.unwrap();
            assert_eq!(client.welcome().unwrap().peer.as_str(), "the worker");
            let listener = client.listen(&"127.0.0.1:25".parse().unwrap(), &ListenOptions::default()).await;
            let listener = listener.unwrap();
            broker.signal(Signal::KILL);
            broker.wait_for_exit();
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
