//! Static listeners reach a third-party worker by socket activation, the protocol of service managers, and come from a `.socket`
//! unit by it.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path;

use portreeve_tests::broker::{self, SOCKET};
use portreeve_tests::service_manager::ServiceManager;
use portreeve_tests::startup_failure::exit;
use portreeve_tests::{Broker, Peer, binaries, isolated, process, resources, sample};
use rustix::process::Signal;

/// The name that systemd gives to the sockets of portreeved.socket.
const UNIT: &str = "portreeved.socket";

fn with_static(endpoint: &str) -> String {
    format!("{} ESMTP_Listener {{ Listen \"{endpoint}\" {{ }} }}", sample::control(r#"( "127.0.0.1:25" )"#))
}

#[test]
fn a_web_server_with_socket_activation_serves_port_80_without_privileges() {
    isolated(|host| {
        let server = Path::new("/usr/sbin/lighttpd");
        assert!(server.exists(), "{server:?} is missing; it is in the package lighttpd");
        let www = host.path("www");
        std::fs::create_dir(&www).unwrap();
        std::fs::write(www.join("index.html"), "served without a privilege\n").unwrap();
        let config = host.file(
            "lighttpd.conf",
            r#"
            server.systemd-socket-activation = "enable"
            server.document-root = "/run/host/www"
            server.bind = "127.0.0.1"
            server.port = 80
            index-file.names = ( "index.html" )
            mimetype.assign = ( ".html" => "text/html" )
            "#,
        );
        let text = format!(
            r#"
            security {{ user = nobody group = nogroup capabilities = "" }}
            worker {{ command = ( {} "-D" "-f" {} ) }}
            HTTP_Listener {{ Listen "127.0.0.1:80" {{}} }}
            "#,
            server.display(),
            config.display()
        );
        let broker = Broker::start(host, &text);
        let before = broker.descriptors();
        for _ in 0..3 {
            let mut client = TcpStream::connect("127.0.0.1:80").unwrap();
            client.set_read_timeout(Some(portreeve_tests::wait::TIMEOUT)).unwrap();
            client.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
            assert!(answer.ends_with("\r\n\r\nserved without a privilege\n"), "{answer}");
        }
        assert_eq!(resources::tcp_listeners().len(), 1);
        for thread in process::threads(broker.worker()) {
            assert_eq!((thread.permitted, thread.bounding, thread.uid), (0, 0, vec![65534; 4]));
        }
        broker.await_no_leak(&before);
    });
}

#[test]
fn a_listener_of_a_socket_unit_is_adopted_if_it_is_a_static_one() {
    isolated(|host| {
        let config = broker::config(host, &with_static("127.0.0.1:25"));
        let kept = TcpListener::bind("127.0.0.1:25").unwrap();
        let other = TcpListener::bind("127.0.0.1:26").unwrap();
        let mut manager = ServiceManager::new(host);
        // Connects before the broker starts, and waits in the queue.
        let _client = TcpStream::connect("127.0.0.1:25").unwrap();
        for start in 0..2 {
            // The service manager passes its own sockets at every start, and from the second on those of the store too.
            manager.fdstore.insert(UNIT.to_owned(), OwnedFd::from(kept.try_clone().unwrap()));
            manager.fdstore.insert("other.socket".to_owned(), OwnedFd::from(other.try_clone().unwrap()));
            let mut service = manager.start(&host.binary(binaries::BROKER), &config, 8);
            manager.await_notification("READY=1");
            if start == 0 {
                service.log.wait_for(&["adopted a listener", "127.0.0.1:25", UNIT]);
            }
            service.log.wait_for(&[
                "closed a descriptor",
                "other.socket",
                "no static listener on 127.0.0.1:26",
            ]);
            let mut peer = Peer::connect(Path::new(SOCKET)).unwrap();
            peer.hello();
            let listeners = peer.status().listeners;
            assert!(listeners.len() == 1 && listeners[0].owner.starts_with("static"), "{listeners:?}");
            manager.receive_until("the listener", |manager| {
                manager.fdstore.keys().any(|name| name.starts_with("portreeve-1-"))
            });
            service.signal(Signal::TERM);
            assert!(service.wait_for_exit().success());
        }
        TcpStream::connect("127.0.0.1:25").unwrap();
    });
}

#[test]
fn a_listener_of_a_socket_unit_that_differs_from_the_static_one_is_named_with_the_option_of_the_unit() {
    isolated(|host| {
        let config = broker::config(host, &with_static("[::]:25"));
        let dual_stack = TcpListener::bind("[::]:25").unwrap();
        let mut manager = ServiceManager::new(host);
        manager.fdstore.insert(UNIT.to_owned(), OwnedFd::from(dual_stack));
        let mut service = manager.start(&host.binary(binaries::BROKER), &config, 8);
        assert_eq!(service.wait_for_exit().code(), Some(exit::UNAVAILABLE));
        service.log.wait_for(&["descriptor 3", UNIT, "[::]:25", "IPv4 too", "BindIPv6Only=ipv6-only"]);
    });
}
