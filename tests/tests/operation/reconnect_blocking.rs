//! A program without a runtime after its broker has ended: as in `reconnect`, by the blocking client.

use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use portreeve::blocking::{Client, Listener};
use portreeve::{AddressOptions, Channel, Error, EventCode, ListenOptions};
use portreeve_protocol::FaultCode;
use portreeve_tests::broker::SOCKET;
use portreeve_tests::{Broker, eventually, isolated, lan, sample};
use rustix::process::Signal;

fn reconnecting_client() -> Client {
    Client::open(Channel::connect(SOCKET).unwrap().reconnect_through(SOCKET), "lasting").unwrap()
}

fn listen(client: &Client, endpoint: &str) -> Listener<TcpListener> {
    client.listen(&endpoint.parse().unwrap(), &ListenOptions::default()).unwrap().into_tcp().unwrap()
}

/// Whether the program serves a client.
fn serves(listener: &TcpListener) -> bool {
    let guest = TcpStream::connect(listener.local_addr().unwrap());
    guest.is_ok() && listener.accept().is_ok()
}

/// Waits until this broker has a session of the program.
fn await_session(broker: &Broker) {
    eventually("the program's session", || {
        broker.peer().status().sessions.iter().any(|session| &*session.client == "lasting").then_some(())
    });
}

fn kill(broker: &mut Broker) {
    broker.signal(Signal::KILL);
    broker.wait_for_exit();
}

#[test]
fn a_blocking_program_keeps_serving_and_reconnects_after_each_broker() {
    isolated(|host| {
        let text = sample::control(r#"( "127.0.0.1:1-65535" )"#);
        let mut broker = Broker::start(host, &text);
        let client = reconnecting_client();
        let listener = listen(&client, "127.0.0.1:25");
        // A takeover: the next broker has the listener.
        for _ in 0..2 {
            let before = broker.pid();
            broker.replace(host, &text);
            eventually("the adoption", || {
                let rows = broker.peer().status().listeners;
                (rows.len() == 1 && !rows[0].retained && rows[0].id == listener.id()).then_some(())
            });
            client.ping().unwrap();
            assert!(client.welcome().unwrap().broker != before && serves(&listener));
        }
        // A killed broker: the program's own socket occupies the endpoint.
        for _ in 0..2 {
            kill(&mut broker);
            assert!(serves(&listener));
            broker = Broker::start(host, &text);
            await_session(&broker);
            client.ping().unwrap();
            assert_eq!(client.welcome().unwrap().broker, broker.pid());
            assert!(serves(&listener) && listener.lost().is_none());
        }
        listener.stop().unwrap();
        assert!(TcpStream::connect("127.0.0.1:25").is_err());
    });
}

#[test]
fn a_blocking_program_reports_a_listener_that_was_stopped_and_requests_it_again() {
    isolated(|host| {
        let text = sample::control(r#"( "127.0.0.1:25-26" )"#);
        let mut broker = Broker::start(host, &text);
        let client = reconnecting_client();
        let (listener, dropped) = (listen(&client, "127.0.0.1:25"), listen(&client, "127.0.0.1:26"));
        assert!(broker.terminate().success());
        // Without a broker, a guard is dropped at once.
        let before = Instant::now();
        drop(dropped);
        assert!(before.elapsed() < Duration::from_secs(1));
        let broker = Broker::start(host, &text);
        let why = eventually("the loss", || listener.lost());
        assert!(matches!(&why, Error::Fault(fault) if fault.code == FaultCode::NotFound), "{why}");
        drop(listener);
        let listener = listen(&client, "127.0.0.1:25");
        assert!(serves(&listener));
        let rows = broker.peer().status().listeners;
        assert!(rows.len() == 1 && rows[0].id == listener.id(), "{rows:?}");
    });
}

#[test]
fn requests_and_events_of_a_blocking_program_wait_for_the_next_broker() {
    isolated(|host| {
        lan::create(&["far"]);
        let text = sample::addresses("");
        let mut broker = Broker::start(host, &text);
        let client = reconnecting_client();
        let mut events = client.events(false).unwrap();
        let address = ["10.1.1.7".parse().unwrap()];
        let options = AddressOptions::new().lease(60).probes(0);
        client.add_addresses(&address, &options).unwrap()[0].as_ref().unwrap();
        let receiver = std::thread::spawn(move || {
            let codes = events.by_ref().map(|event| event.unwrap().code);
            codes.skip_while(|code| *code != EventCode::Gap).take(2).collect::<Vec<_>>()
        });
        kill(&mut broker);
        let waiting = {
            let client = client.clone();
            std::thread::spawn(move || client.add_addresses(&address, &options).unwrap().remove(0))
        };
        let mut broker = Broker::start(host, &text);
        assert_eq!(waiting.join().unwrap().unwrap().address, address[0]);
        assert_eq!(receiver.join().unwrap(), [EventCode::Gap, EventCode::AddressAdded]);
        assert!(lan::show_address("10.1.1.7").is_some());
        // Without reconnection, the session ends with its broker.
        let plain = Client::open(Channel::connect(SOCKET).unwrap(), "plain").unwrap();
        kill(&mut broker);
        assert!(matches!(plain.ping(), Err(Error::Closed)));
    });
}
