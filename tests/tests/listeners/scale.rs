//! Ten thousand listeners, as on a large host.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use portreeve_tests::peer::listen;
use portreeve_tests::{Broker, isolated, process, resources, sample};

#[test]
fn ten_thousand_listeners_are_started_and_stopped_at_run_time() {
    isolated(|host| {
        let broker = Broker::start(host, &sample::control(r#"( "127.0.0.1:1-65535" )"#));
        let mut peer = broker.peer();
        let before = broker.descriptors();
        let figure = |when: &str| {
            let rss = process::status_field(broker.pid(), "VmRSS");
            println!("{when}: broker holds {} descriptors, VmRSS {rss}", broker.descriptors().0.len());
        };
        figure("idle");
        let mut held = Vec::new();
        for first in (10_000..20_000u16).step_by(200) {
            held.extend(
                peer.listen_many((first..first + 200).map(|port| listen(&format!("127.0.0.1:{port}")))),
            );
        }
        assert_eq!(peer.status().listeners_held, 10_000);
        assert_eq!(resources::tcp_listeners().len(), 10_000);
        figure("10,000 listeners");
        for some in held.chunks(200) {
            peer.stop(some);
        }
        assert_eq!(peer.status().listeners_held, 0);
        assert!(resources::tcp_listeners().is_empty());
        broker.await_no_leak(&before);
        figure("released");
    });
}

#[test]
fn ten_thousand_endpoints_serve_once_and_leave_nothing_behind() {
    isolated(|host| {
        let broker = Broker::start(host, &sample::control(r#"( "127.0.0.1:1-65535" )"#));
        let mut peer = broker.peer();
        let before = broker.descriptors();
        let started = Instant::now();
        for port in 10_000..20_000u16 {
            let (id, socket) = peer.listen(&format!("127.0.0.1:{port}")).unwrap();
            let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
            let (mut served, _) = TcpListener::from(socket).accept().unwrap();
            served.write_all(b"2").unwrap();
            client.read_exact(&mut [0]).unwrap();
            assert!(peer.stop(&[id]).unknown.is_empty());
        }
        println!("10,000 endpoints started, served once and stopped in {:?}", started.elapsed());
        assert_eq!(peer.status().listeners_held, 0);
        assert!(resources::tcp_listeners().is_empty());
        broker.await_no_leak(&before);
    });
}
