//! Revocation: whatever the holder of a listener does with its copy of the socket, the end of the listener ends service,
//! and the endpoint is free for the next peer at once.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use portreeve_protocol::FaultCode;
use portreeve_protocol::message::ListenerId;
use portreeve_tests::chroot::WORKER;
use portreeve_tests::kernel::command_denying;
use portreeve_tests::reload::reload;
use portreeve_tests::service_manager::ServiceManager;
use portreeve_tests::{Broker, Peer, binaries, broker, eventually, exclusive, isolated, sample};
use rustix::net::Shutdown;
use rustix::process::Signal;

/// The user of the peer that takes the endpoint next.
pub(super) const NEXT: u32 = 4242;
/// How long a client may wait for an answer that should be immediate.
const AT_ONCE: Duration = Duration::from_secs(2);
/// How long a test waits for a packet that must not arrive.
const NEVER: Duration = Duration::from_millis(50);
/// An endpoint of each kind of socket.
const ENDPOINTS: [&str; 5] = ["127.0.0.1:25", "[::1]:25", "*:26", "127.0.0.1:53/udp", "[::]:54/udp"];
pub(super) const ANYWHERE: &str = r#"( "*:1-65535" "[::]:1-65535" "*:1-65535/udp" "[::]:1-65535/udp" )"#;

/// A configuration that permits these endpoints to root, to the worker's user and to [`NEXT`].
fn config(permits: &str) -> String {
    let next = format!("broker {{ retain = 1 peer \"{NEXT}\" {{ allow = ( listen ) permit = ( any ) }}");
    sample::control(permits).replace("broker {", &next)
}

/// The same, after a reload that permits the endpoints to [`NEXT`] alone.
fn narrowed() -> String {
    config(ANYWHERE).replace("peer nobody { allow = ( status listen ) permit = ( any ) }", "")
}

/// The endpoints and preparations that the broker can revoke on this kernel. Without an allowlist these are TCP listeners that
/// their holders have not bound to an interface.
fn revocable(broker: &Broker) -> (Vec<&'static str>, Vec<(&'static str, Preparation)>) {
    let (mut endpoints, mut preparations) = (ENDPOINTS.to_vec(), PREPARATIONS.to_vec());
    if !broker.has_allowlist() {
        endpoints.retain(|endpoint| !is_udp(endpoint));
        preparations.retain(|(what, _)| *what != "bind to an interface");
    }
    (endpoints, preparations)
}

fn connect(user: u32) -> Peer {
    Peer::of_user(user, user)
}

fn set(socket: &OwnedFd, option: i32, value: i32) -> std::io::Result<()> {
    set_bytes(socket, option, &value.to_ne_bytes())
}

fn set_bytes(socket: &OwnedFd, option: i32, value: &[u8]) -> std::io::Result<()> {
    let length = value.len().try_into().unwrap();
    // SAFETY: the kernel reads `length` bytes at `value`, which has that many.
    match unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, value.as_ptr().cast(), length)
    } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

pub(super) type Preparation = fn(&OwnedFd);

/// What a holder does with its copy before its listener ends.
pub(super) const PREPARATIONS: [(&str, Preparation); 4] = [
    ("nothing", |_| {}),
    ("lock the filter", |socket| set(socket, libc::SO_LOCK_FILTER, 1).unwrap()),
    ("bind to an interface", |socket| set_bytes(socket, libc::SO_BINDTODEVICE, b"lo").unwrap()),
    ("clear SO_REUSEADDR and listen again", |socket| {
        let _ = rustix::net::shutdown(socket, Shutdown::Both);
        set(socket, libc::SO_REUSEADDR, 0).unwrap();
        let _ = rustix::net::listen(socket, 5);
    }),
];

/// What it does afterwards to get service or to keep the endpoint.
pub(super) fn misuse(socket: &OwnedFd) {
    let _ = set(socket, libc::SO_DETACH_FILTER, 0);
    let _ = set(socket, libc::SO_REUSEADDR, 0);
    let _ = set(socket, libc::SO_REUSEPORT, 0);
    let _ = rustix::net::listen(socket, 5);
}

pub(super) fn is_udp(endpoint: &str) -> bool {
    endpoint.ends_with("/udp")
}

/// Where a client of this host reaches an endpoint.
pub(super) fn target(endpoint: &str) -> SocketAddr {
    let text = endpoint.trim_end_matches("/udp").replace('*', "127.0.0.1").replace("[::]", "[::1]");
    text.parse().unwrap()
}

pub(super) fn udp_client(endpoint: &str) -> UdpSocket {
    let client = UdpSocket::bind(if target(endpoint).is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" }).unwrap();
    client.connect(target(endpoint)).unwrap();
    client
}

/// Whether a client that connects, or sends a packet, reaches this socket.
pub(super) fn is_reached(socket: &OwnedFd, endpoint: &str) -> bool {
    let copy = socket.try_clone().unwrap();
    if is_udp(endpoint) {
        let receiver = UdpSocket::from(copy);
        let _ = udp_client(endpoint).send(b"?"); // it may be refused
        receiver.set_read_timeout(Some(NEVER)).unwrap();
        return receiver.recv(&mut [0]).is_ok_and(|length| length == 1);
    }
    let listener = TcpListener::from(copy);
    listener.set_nonblocking(true).unwrap();
    let client = TcpStream::connect_timeout(&target(endpoint), NEVER);
    let accepted = listener.accept().is_ok();
    listener.set_nonblocking(false).unwrap();
    client.is_ok() || accepted
}

/// The next peer gets the endpoint, and clients reach it and not the former holder.
#[track_caller]
fn is_free_for_the_next_peer(endpoint: &str, kept: &OwnedFd, what: &str) {
    let mut next = connect(NEXT);
    let (id, socket) =
        next.listen(endpoint).unwrap_or_else(|fault| panic!("{endpoint} after {what}: {fault}"));
    if is_udp(endpoint) {
        let receiver = UdpSocket::from(socket);
        receiver.set_read_timeout(Some(AT_ONCE)).unwrap();
        for _ in 0..10 {
            udp_client(endpoint).send(b"?").unwrap();
            receiver.recv(&mut [0]).unwrap_or_else(|error| panic!("{endpoint} after {what}: {error}"));
        }
    } else {
        let listener = TcpListener::from(socket);
        let mut client = TcpStream::connect_timeout(&target(endpoint), AT_ONCE)
            .unwrap_or_else(|error| panic!("{endpoint} after {what}: {error}"));
        let (mut served, _) = listener.accept().unwrap();
        served.write_all(b"2").unwrap();
        client.read_exact(&mut [0]).unwrap();
    }
    misuse(kept);
    assert!(next.stop(&[id]).unknown.is_empty());
}

/// Whatever the former holder does now, it gets no service, and the next peer gets the endpoint.
#[track_caller]
fn has_lost_its_listener(kept: &OwnedFd, endpoint: &str, what: &str) {
    misuse(kept);
    assert!(!is_reached(kept, endpoint), "{endpoint} after {what}");
    is_free_for_the_next_peer(endpoint, kept, what);
}

/// Sockets of listeners at these endpoints, after a preparation.
fn listen_at(holder: &mut Peer, endpoints: &[&str], prepare: Preparation) -> Vec<OwnedFd> {
    let sockets: Vec<_> = endpoints.iter().map(|endpoint| holder.listen(endpoint).unwrap().1).collect();
    sockets.iter().for_each(prepare);
    sockets
}

fn await_no_listener(broker: &Broker) {
    eventually("the end of the listeners", || (broker.peer().status().listeners_held == 0).then_some(()));
}

#[test]
fn a_holder_cannot_remove_or_replace_the_filter_of_its_listener() {
    isolated(|host| {
        let broker = Broker::start(host, &config(ANYWHERE));
        // Without an allowlist there is no filter before the listener stops.
        let expected = if broker.has_allowlist() { ErrorKind::PermissionDenied } else { ErrorKind::NotFound };
        let mut holder = connect(WORKER);
        for endpoint in ENDPOINTS {
            let (_, socket) = holder.listen(endpoint).unwrap();
            let refused = |option| set(&socket, option, 0).unwrap_err().kind();
            assert_eq!(refused(libc::SO_DETACH_FILTER), expected, "{endpoint}");
            let is_locked = expected == ErrorKind::PermissionDenied;
            assert_eq!(set(&socket, libc::SO_LOCK_FILTER, 0).is_err(), is_locked, "{endpoint}");
            assert!(is_reached(&socket, endpoint), "{endpoint}");
        }
    });
}

#[test]
fn nothing_that_a_holder_does_prevents_a_stop_or_keeps_the_endpoint() {
    isolated(|host| {
        let broker = Broker::start(host, &config(ANYWHERE));
        let before = broker.descriptors();
        let mut holder = connect(WORKER);
        let (endpoints, preparations) = revocable(&broker);
        for endpoint in endpoints {
            for (what, prepare) in preparations.clone() {
                let (id, socket) = holder.listen(endpoint).unwrap();
                prepare(&socket);
                let stopped = holder.stop(&[id]);
                assert!(stopped.unknown.is_empty() && stopped.not_revoked.is_empty(), "{what}: {stopped:?}");
                misuse(&socket);
                assert!(!is_reached(&socket, endpoint), "{endpoint} after {what}");
                assert_eq!(broker.peer().status().listeners_held, 0);
                // The holder of a UDP socket that stops its own listener and keeps the socket still occupies the endpoint, as
                // it could without stopping it.
                match is_udp(endpoint) {
                    true => {
                        let fault = connect(NEXT).listen(endpoint).unwrap_err();
                        assert_eq!(
                            (fault.code, &*fault.subject),
                            (FaultCode::InUse, &*format!("user {WORKER}"))
                        );
                    }
                    false => is_free_for_the_next_peer(endpoint, &socket, what),
                }
            }
        }
        drop(holder);
        broker.await_no_leak(&before);
    });
}

#[test]
fn nothing_that_a_holder_does_keeps_its_listener_after_its_session() {
    isolated(|host| {
        let broker = Broker::start(host, &config(ANYWHERE));
        let (endpoints, preparations) = revocable(&broker);
        for endpoint in endpoints {
            for (what, prepare) in preparations.clone() {
                let mut holder = connect(WORKER);
                let (_, socket) = holder.listen(endpoint).unwrap();
                prepare(&socket);
                drop(holder);
                await_no_listener(&broker);
                has_lost_its_listener(&socket, endpoint, what);
            }
        }
    });
}

#[test]
fn nothing_that_a_holder_does_keeps_its_listener_after_root_stops_it() {
    isolated(|host| {
        let broker = Broker::start(host, &config(ANYWHERE));
        let mut holder = connect(WORKER);
        let (endpoints, preparations) = revocable(&broker);
        for endpoint in endpoints {
            for (what, prepare) in preparations.clone() {
                let (id, socket) = holder.listen(endpoint).unwrap();
                prepare(&socket);
                broker.peer().stop(&[id]);
                has_lost_its_listener(&socket, endpoint, what);
            }
        }
    });
}

#[test]
fn nothing_that_a_holder_does_keeps_its_listener_after_a_reload() {
    isolated(|host| {
        let broker = Broker::start(host, &config(ANYWHERE));
        let (endpoints, mut preparations) = revocable(&broker);
        let at_once = broker.has_allowlist();
        if !at_once {
            // A holder that undoes the sharing keeps the endpoint until it has accepted the connections in its queue.
            preparations.truncate(1);
        }
        for (what, prepare) in preparations {
            let mut holder = connect(WORKER);
            let sockets = listen_at(&mut holder, &endpoints, prepare);
            reload(host, &broker, &narrowed());
            // At once, and while the holder could still accept connections that wait in its queue.
            for (endpoint, socket) in endpoints.iter().zip(&sockets) {
                is_free_for_the_next_peer(endpoint, socket, what);
                misuse(socket);
                // Without any filter, connections still arrive while the holder may accept those in its queue.
                let is_reached = || is_reached(socket, endpoint);
                assert!(!at_once || !is_reached(), "{endpoint} after {what}");
                eventually("the end of service", || (!is_reached()).then_some(()));
            }
            reload(host, &broker, &config(ANYWHERE));
        }
    });
}

#[test]
fn nothing_that_a_holder_does_keeps_its_listener_after_a_takeover() {
    isolated(|host| {
        let mut broker = Broker::start(host, &config(ANYWHERE));
        let (endpoints, preparations) = revocable(&broker);
        for (what, prepare) in preparations {
            let mut holder = connect(WORKER);
            let sockets = listen_at(&mut holder, &endpoints, prepare);
            broker = broker.start_successor(host, &narrowed());
            drop(holder);
            await_no_listener(&broker);
            for (endpoint, socket) in endpoints.iter().zip(&sockets) {
                has_lost_its_listener(socket, endpoint, what);
            }
            broker = broker.start_successor(host, &config(ANYWHERE));
        }
    });
}

#[test]
fn listeners_that_were_taken_over_can_be_revoked() {
    isolated(|host| {
        let first = Broker::start(host, &config(ANYWHERE));
        let mut holder = connect(WORKER);
        let sockets = ENDPOINTS.map(|endpoint| holder.listen(endpoint).unwrap().1);
        let second = first.start_successor(host, &config(ANYWHERE));
        let third = second.start_successor(host, &config(ANYWHERE));
        let mut holder = connect(WORKER);
        for (endpoint, socket) in ENDPOINTS.iter().zip(&sockets) {
            let (id, _) = holder.listen(endpoint).unwrap();
            assert!(is_reached(socket, endpoint), "{endpoint}");
            third.peer().stop(&[id]);
            has_lost_its_listener(socket, endpoint, "two takeovers");
        }
        assert!(third.peer().status().warnings.iter().all(|warning| !warning.contains("revoke")));
    });
}

#[test]
fn a_takeover_that_fails_leaves_nothing_in_the_allowlist() {
    isolated(|host| {
        let _broker = Broker::start(host, &config(ANYWHERE));
        let mut holder = connect(WORKER);
        let (id, socket) = holder.listen("127.0.0.1:25").unwrap();
        // The successor binds its static listener, and fails because another one is in use.
        let _taken = TcpListener::bind("127.0.0.1:2001").unwrap();
        let listeners = r#"ESMTP_Listener { Listen "127.0.0.1:2000" { } Listen "127.0.0.1:2001" { } }"#;
        let text = config(ANYWHERE) + listeners;
        let mut command = broker::command(host, &broker::config(host, &text));
        let status = command.arg("--takeover").stderr(std::process::Stdio::null()).status().unwrap();
        assert!(!status.success());
        assert!(is_reached(&socket, "127.0.0.1:25"));
        holder.stop(&[id]);
        misuse(&socket);
        assert!(!is_reached(&socket, "127.0.0.1:25"));
    });
}

#[test]
fn listeners_of_the_descriptor_store_can_be_revoked() {
    isolated(|host| {
        let path = broker::config(host, &config(ANYWHERE));
        let mut manager = ServiceManager::new(host);
        let mut service = manager.start(&host.binary(binaries::BROKER), &path, 64);
        manager.await_notification("READY=1");
        let mut holder = connect(WORKER);
        let (_, socket) = holder.listen("127.0.0.1:25").unwrap();
        let (_, udp) = holder.listen("127.0.0.1:53/udp").unwrap();
        manager.receive_until("the listeners", |manager| manager.fdstore.len() == 2);
        service.signal(Signal::KILL);
        service.wait_for_exit();
        let _next = manager.start(&host.binary(binaries::BROKER), &path, 64);
        manager.await_notification("READY=1");
        let mut holder = connect(WORKER);
        for (endpoint, socket) in [("127.0.0.1:25", &socket), ("127.0.0.1:53/udp", &udp)] {
            let (id, _) = holder.listen(endpoint).unwrap();
            assert!(is_reached(socket, endpoint));
            connect(0).stop(&[id]);
            has_lost_its_listener(socket, endpoint, "a restart");
        }
    });
}

#[test]
fn a_connection_that_was_accepted_outlives_its_listener() {
    isolated(|host| {
        let _broker = Broker::start(host, &config(ANYWHERE));
        let mut holder = connect(WORKER);
        let (id, socket) = holder.listen("127.0.0.1:25").unwrap();
        let mut client = TcpStream::connect(target("127.0.0.1:25")).unwrap();
        let listener = TcpListener::from(socket);
        let (mut served, _) = listener.accept().unwrap();
        holder.stop(&[id]);
        for _ in 0..3 {
            client.write_all(b"?").unwrap();
            served.read_exact(&mut [0]).unwrap();
            served.write_all(b"!").unwrap();
            client.read_exact(&mut [0]).unwrap();
        }
    });
}

#[test]
fn a_revoked_socket_cannot_connect_either() {
    isolated(|host| {
        let _broker = Broker::start(host, &config(ANYWHERE));
        let server = TcpListener::bind("127.0.0.1:2000").unwrap();
        let mut holder = connect(WORKER);
        let (id, socket) = holder.listen("127.0.0.1:25").unwrap();
        holder.stop(&[id]);
        let client = std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 2000);
        rustix::io::ioctl_fionbio(&socket, true).unwrap();
        let _ = rustix::net::connect(&socket, &client);
        std::thread::sleep(NEVER);
        assert!(
            rustix::net::getpeername(&socket).is_err(),
            "the socket has connected from a privileged port"
        );
        drop(server);
    });
}

#[test]
fn a_holder_that_listens_again_all_the_time_does_not_keep_the_endpoint() {
    exclusive(|host| {
        let broker = Broker::start(host, &config(ANYWHERE));
        let mut holder = connect(WORKER);
        let (id, socket) = holder.listen("127.0.0.1:25").unwrap();
        let (done, socket) = (AtomicBool::new(false), &socket);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let _ = set(socket, libc::SO_REUSEADDR, 0);
                    let _ = rustix::net::listen(socket, 5);
                }
            });
            broker.peer().stop(&[id]);
            let next = connect(NEXT).listen("127.0.0.1:25");
            done.store(true, Ordering::Relaxed);
            next.unwrap();
        });
    });
}

#[test]
fn a_holder_that_uses_a_stopped_socket_is_named() {
    isolated(|host| {
        let broker = Broker::start(host, &config(ANYWHERE));
        let mut holder = connect(WORKER);
        let (id, socket) = holder.listen("127.0.0.1:25").unwrap();
        holder.stop(&[id]);
        rustix::net::listen(&socket, 5).unwrap();
        broker.log.wait_for(&["uses its copy", "127.0.0.1:25", &format!("user {WORKER}")]);
        let warnings = broker.peer().status().warnings.into_vec();
        let named = |warning: &portreeve_protocol::Text<256>| {
            warning.contains("127.0.0.1:25") && warning.contains(&format!("user {WORKER}"))
        };
        assert!(warnings.iter().any(named), "{warnings:?}");
    });
}

#[test]
fn without_an_allowlist_a_listener_that_cannot_be_revoked_leaves_the_registry_and_is_named() {
    isolated(|host| {
        let text = config(ANYWHERE).replace("service+ep", "service,cap_net_admin+ep");
        let command = command_denying(host, &["bpf=EPERM"], binaries::BROKER, &broker::config(host, &text));
        let broker = Broker::start_command(host, command);
        broker.log.wait_for(&["can prevent that its listener is revoked", "cap_bpf"]);
        let mut holder = connect(WORKER);
        for (what, prepare) in PREPARATIONS {
            let [tcp, udp] = ["127.0.0.1:25", "127.0.0.1:53/udp"].map(|at| holder.listen(at).unwrap());
            prepare(&tcp.1);
            prepare(&udp.1);
            let stopped = holder.stop(&[tcp.0, udp.0, ListenerId(99)]);
            assert_eq!(*stopped.unknown, [ListenerId(99)]);
            let status = broker.peer().status();
            assert_eq!(status.listeners_held, 0);
            // shutdown(2) and the binding to no interface revoke a TCP listener without a filter.
            let not_revoked = if what == "lock the filter" { vec![udp.0] } else { vec![] };
            assert_eq!(*stopped.not_revoked, not_revoked, "{what}");
            let named =
                status.warnings.iter().any(|warning| warning.contains("127.0.0.1:53/udp has stopped"));
            assert!(named || not_revoked.is_empty(), "{what}");
            has_lost_its_listener(&tcp.1, "127.0.0.1:25", what);
            drop(udp);
        }
        broker.log.wait_for(&["cannot revoke", "127.0.0.1:53/udp"]);
    });
}
