//! Static listeners reach a third-party worker by socket activation, the protocol of service managers.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;

use portreeve_tests::{Broker, isolated, process, resources};

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
