//! Endpoints that a policy does not permit, kind by kind: denied although a similar endpoint is permitted, and nothing
//! is left behind.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};

use portreeve_protocol::endpoint::InetEndpoint;
use portreeve_protocol::message::{Listen, ListenOptions};
use portreeve_protocol::{Endpoint, Fault, FaultCode, Text};
use portreeve_tests::startup_failure::exit;
use portreeve_tests::{Broker, Host, Peer, StartupFailure, isolated, resources, sample};

/// Requests endpoints that the broker does not permit, and returns the faults.
#[track_caller]
fn refused(host: &Host, permits: &str, endpoints: &[Endpoint]) -> Vec<Fault> {
    let broker = Broker::start(host, &sample::control(permits));
    let mut peer = broker.peer();
    let before = broker.descriptors();
    let refused = endpoints.iter().map(|endpoint| refusal(&mut peer, endpoint)).collect();
    assert!(resources::tcp_listeners().is_empty(), "{:?}", resources::tcp_listeners());
    assert_eq!(peer.status().listeners_held, 0);
    broker.await_no_leak(&before);
    refused
}

#[track_caller]
fn refusal(peer: &mut Peer, endpoint: &Endpoint) -> Fault {
    let request = Listen::new(endpoint.clone(), ListenOptions::default());
    let Err(fault) = peer.request(&request) else { panic!("{endpoint} was granted") };
    assert!(matches!(fault.code, FaultCode::Denied | FaultCode::Invalid), "{endpoint}: {fault}");
    assert!(!fault.remedy.is_empty(), "{endpoint}: {fault}");
    fault
}

fn all(endpoints: &[&str]) -> Vec<Endpoint> {
    endpoints.iter().map(|endpoint| endpoint.parse().unwrap()).collect()
}

/// An endpoint with these parts, even if it is not valid.
fn raw(address: &str, port: u16, scope: &str) -> Endpoint {
    let scope = Text::new(scope).unwrap();
    Endpoint::Tcp(InetEndpoint { address: address.parse().unwrap(), port, scope })
}

fn path(path: &str) -> Endpoint {
    Endpoint::UnixStream(Text::new(path).unwrap())
}

#[test]
fn another_port_is_denied() {
    isolated(|host| {
        let others =
            all(&["127.0.0.1:24", "127.0.0.1:26", "127.0.0.1:999", "127.0.0.1:1011", "127.0.0.1:65535"]);
        refused(host, r#"( "127.0.0.1:25" "127.0.0.1:1000-1010" )"#, &others);
    });
}

#[test]
fn another_family_is_denied() {
    isolated(|host| {
        refused(host, r#"( "*:25" )"#, &all(&["[::]:25", "[::1]:25"]));
        refused(host, r#"( "[::]:25" )"#, &all(&["*:25", "127.0.0.1:25"]));
    });
}

#[test]
fn a_wrong_missing_or_superfluous_interface_is_denied() {
    isolated(|host| {
        let mut others = all(&["[fe80::1%eth1]:25", "[fe80::2%lo]:25"]);
        others.extend([raw("fe80::1", 25, ""), raw("::1", 25, "lo"), raw("127.0.0.1", 25, "lo")]);
        refused(host, r#"( "[fe80::1%lo]:25" "[::1]:25" "127.0.0.1:25" )"#, &others);
    });
}

#[test]
fn an_ipv4_mapped_address_is_denied() {
    isolated(|host| {
        let mapped = ["::ffff:127.0.0.1", "::ffff:0.0.0.0"].map(|address| raw(address, 25, ""));
        for fault in refused(host, r#"( "*:25" "[::]:25" "[::/0]:25" )"#, &mapped) {
            assert!(fault.remedy.contains("IPv4-mapped"), "{fault}");
        }
    });
}

#[test]
fn port_zero_is_denied() {
    isolated(|host| {
        let zero = [raw("127.0.0.1", 0, ""), raw("::1", 0, ""), raw("0.0.0.0", 0, "")];
        for fault in refused(host, r#"( "*:1-65535" "[::]:1-65535" )"#, &zero) {
            assert!(fault.remedy.contains("port 0"), "{fault}");
        }
    });
}

#[test]
fn another_transport_is_denied() {
    isolated(|host| {
        let others = all(&["127.0.0.1:25/udp", "*:25/udp", "*:53", "127.0.0.1:53"]);
        refused(host, r#"( "*:25" "127.0.0.1:25/tcp" "*:53/udp" )"#, &others);
        assert_eq!(resources::sockets_on_port("udp", 25), 0);
    });
}

#[test]
fn the_wildcard_is_denied_where_only_addresses_are_permitted() {
    isolated(|host| {
        refused(
            host,
            r#"( "127.0.0.0/8:25" "0.0.0.0/0:26" "[::/0]:25" )"#,
            &all(&["*:25", "*:26", "[::]:25"]),
        );
    });
}

#[test]
fn a_path_with_dots_or_outside_the_pattern_is_denied() {
    isolated(|host| {
        fs::create_dir_all(host.path("sockets/deep")).unwrap();
        let others = [
            "/run/host/sockets/../escaped",
            "/run/host/sockets/deep/../../escaped",
            "/run/host/sockets/..",
            "/run/host/sockets/./a",
            "/run/host/sockets//a",
            "/run/host/sockets/deep/a",
            "/run/host/sockets",
            "/run/host/escaped",
            "run/host/sockets/a",
            "@abstract",
            "",
        ];
        refused(host, r#"( "/run/host/sockets/*" )"#, &others.map(path));
        assert!(!host.path("escaped").exists());
    });
}

#[test]
fn a_path_through_a_symbolic_link_is_refused() {
    isolated(|host| {
        fs::create_dir_all(host.path("sockets")).unwrap();
        fs::create_dir_all(host.path("elsewhere")).unwrap();
        symlink("../elsewhere", host.path("sockets/folder")).unwrap();
        symlink("../elsewhere/made", host.path("sockets/file")).unwrap();
        let broker = Broker::start(host, &sample::control(r#"( "/run/host/sockets/*" )"#));
        let mut peer = broker.peer();
        refusal(&mut peer, &path("/run/host/sockets/folder/a"));
        // The link occupies the path of the socket, and is not followed.
        let fault = peer.listen("/run/host/sockets/file").unwrap_err();
        assert_eq!(fault.code, FaultCode::InUse, "{fault}");
        // The broker uses the directory that it opened at start, even if another one now has its name.
        fs::rename(host.path("sockets"), host.path("moved")).unwrap();
        symlink("elsewhere", host.path("sockets")).unwrap();
        let (_, socket) = peer.listen("/run/host/sockets/a").unwrap();
        assert_eq!(fs::read_dir(host.path("elsewhere")).unwrap().count(), 0);
        rustix::net::listen(&socket, 5).unwrap();
        let client = UnixStream::connect(host.path("moved/a")).unwrap();
        UnixListener::from(socket).accept().unwrap();
        drop(client);
    });
}

#[test]
fn a_socket_directory_that_is_a_symbolic_link_is_refused() {
    isolated(|host| {
        fs::create_dir_all(host.path("elsewhere")).unwrap();
        symlink("elsewhere", host.path("sockets")).unwrap();
        let refusal = StartupFailure::of(host, &sample::control(r#"( "/run/host/sockets/*" )"#));
        refusal.assert_reports(exit::CANNOT_CREATE, &["/run/host/sockets", "symbolic link"]);
    });
}
