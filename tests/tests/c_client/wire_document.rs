//! What WIRE.md says about sockets, and its smallest client: compiled, and run against the broker.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use portreeve_protocol::FaultCode;
use portreeve_protocol::channel::{ReceiveError, send_bytes};
use portreeve_tests::broker::SOCKET;
use portreeve_tests::chroot::WORKER;
use portreeve_tests::wait::TIMEOUT;
use portreeve_tests::{Broker, Peer, eventually, isolated, lan, sample};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use rustix::process::Signal;

use crate::compiler::compile;
use crate::greeter::Example;

const WIRE: &str = include_str!("../../../protocol/WIRE.md");
const ENDPOINT: &str = "127.0.0.1:25";

/// The program at the beginning of WIRE.md.
fn smallest_client() -> &'static str {
    let (_, rest) = WIRE.split_once("\n```c\n").unwrap();
    rest.split_once("\n```\n").unwrap().0
}

#[test]
fn the_smallest_client_of_the_document_serves_on_port_25() {
    isolated(|host| {
        let program = compile(host, "cc", "client", smallest_client(), &["-std=c99"]);
        let _broker = Broker::start(host, &sample::control(r#"( "*:25" )"#));
        let mut client = Example::start(Command::new(&program).arg(SOCKET), WORKER);
        assert_eq!(client.line(), "listening on port 25\n");
        let mut connection = TcpStream::connect(ENDPOINT).unwrap();
        connection.set_read_timeout(Some(TIMEOUT)).unwrap();
        let mut greeting = String::new();
        connection.read_to_string(&mut greeting).unwrap();
        assert_eq!(greeting, "220 ready\r\n");
        assert_eq!(client.line(), "");
    });
}

#[test]
fn the_smallest_client_of_the_document_prints_a_fault() {
    isolated(|host| {
        let program = compile(host, "cc", "client", smallest_client(), &["-std=c99"]);
        let _broker = Broker::start(host, &sample::control(r#"( "*:26" )"#));
        let output = Command::new(&program).arg(SOCKET).output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(message, "fault 1: user 0 is not allowed to listen on *:25\n");
        assert_eq!(output.status.code(), Some(1));
    });
}

fn blocks(socket: &OwnedFd) -> bool {
    !fcntl_getfl(socket).unwrap().contains(OFlags::NONBLOCK)
}

fn start(host: &portreeve_tests::Host) -> Broker {
    Broker::start(host, &control())
}

fn control() -> String {
    sample::control(r#"( "127.0.0.1:1-65535" )"#)
}

#[test]
fn a_socket_blocks_at_first_and_shares_its_flags_with_every_copy() {
    isolated(|host| {
        let mut broker = start(host);
        let mut peer = broker.peer();
        let (id, socket) = peer.listen(ENDPOINT).unwrap();
        assert!(blocks(&socket));
        fcntl_setfl(&socket, OFlags::NONBLOCK).unwrap();
        let (again, copy) = peer.listen(ENDPOINT).unwrap();
        assert!(again == id && !blocks(&copy));
        // The peer that gets it back may still use it. `inherited_options` has the test for a new worker.
        broker.replace(host, &control());
        let mut peer = broker.peer();
        let (adopted, copy) = peer.listen(ENDPOINT).unwrap();
        assert!(adopted == id && !blocks(&copy) && !blocks(&socket));
    });
}

fn connect(path: &str, kind: SocketType, flags: SocketFlags) -> Result<OwnedFd, Errno> {
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags | SocketFlags::CLOEXEC, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

#[test]
fn connect_fails_with_the_documented_errors() {
    isolated(|host| {
        let plain = SocketFlags::empty();
        let error = |kind, flags| connect(SOCKET, kind, flags).unwrap_err();
        assert_eq!(error(SocketType::SEQPACKET, plain), Errno::NOENT);
        let mut broker = start(host);
        assert_eq!(error(SocketType::STREAM, plain), Errno::PROTOTYPE);
        assert_eq!(error(SocketType::DGRAM, plain), Errno::PROTOTYPE);
        std::fs::set_permissions(SOCKET, std::fs::Permissions::from_mode(0o600)).unwrap();
        let denied = Peer::connect_as(SOCKET.as_ref(), WORKER, WORKER).map(drop).unwrap_err();
        assert_eq!(denied.kind(), ErrorKind::PermissionDenied);
        broker.suspend();
        let mut waiting = Vec::new();
        let full = loop {
            match connect(SOCKET, SocketType::SEQPACKET, SocketFlags::NONBLOCK) {
                Ok(socket) => waiting.push(socket),
                Err(error) => break error,
            }
            assert!(waiting.len() < 10_000);
        };
        assert_eq!(full, Errno::AGAIN);
        let limited = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
        let limit = Some(std::time::Duration::from_millis(50));
        sockopt::set_socket_timeout(&limited, sockopt::Timeout::Send, limit).unwrap();
        let late = rustix::net::connect(&limited, &SocketAddrUnix::new(SOCKET).unwrap()).unwrap_err();
        assert_eq!(late, Errno::AGAIN);
        broker.signal(Signal::KILL);
        broker.wait_for_exit();
        assert_eq!(error(SocketType::SEQPACKET, plain), Errno::CONNREFUSED);
        // A connection that waited in the queue ends.
        let peer = waiting.pop().unwrap();
        assert!(matches!(Peer::from_channel(peer.into()).receive(), Err(ReceiveError::Closed)));
    });
}

#[test]
fn a_send_after_the_end_fails_with_epipe_and_raises_no_signal() {
    isolated(|host| {
        let mut broker = start(host);
        let peer = broker.peer();
        broker.signal(Signal::KILL);
        broker.wait_for_exit();
        // The test fails if a SIGPIPE ends this process.
        // SAFETY: the default action of a signal runs no code of this process.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        eventually("the end of the session", || {
            rustix::net::send(&peer.channel, b"x", rustix::net::SendFlags::empty()).err()
        });
        let error = rustix::net::send(&peer.channel, b"x", rustix::net::SendFlags::empty()).unwrap_err();
        assert_eq!(error, Errno::PIPE);
        assert_eq!(send_bytes(&peer.channel, b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    });
}

#[test]
fn after_a_takeover_a_peer_gets_its_listener_back_and_after_a_restart_it_does_not() {
    isolated(|host| {
        let mut broker = start(host);
        let mut peer = broker.peer();
        let (id, socket) = peer.listen(ENDPOINT).unwrap();
        let waiting = TcpStream::connect(ENDPOINT).unwrap();

        broker.replace(host, &control());
        let mut peer = broker.peer();
        let (adopted, copy) = peer.listen(ENDPOINT).unwrap();
        assert_eq!(adopted, id);
        // The client waited in the queue meanwhile. Both copies are one socket.
        let listener = TcpListener::from(copy);
        drop(listener.accept().unwrap());
        drop((listener, waiting));

        // A killed broker: the socket serves, and occupies the endpoint until its last copy is closed.
        broker.signal(Signal::KILL);
        broker.wait_for_exit();
        let listener = TcpListener::from(socket);
        let client = TcpStream::connect(ENDPOINT).unwrap();
        drop((listener.accept().unwrap(), client));
        let mut broker = start(host);
        let mut peer = broker.peer();
        assert_eq!(peer.listen(ENDPOINT).unwrap_err().code, FaultCode::InUse);
        drop(listener);
        let (_, socket) = peer.listen(ENDPOINT).unwrap();

        // A broker that ends in order stops the listener.
        assert!(broker.terminate().success());
        assert!(matches!(peer.receive(), Err(ReceiveError::Closed)));
        let listener = TcpListener::from(socket);
        assert_eq!(listener.accept().unwrap_err().raw_os_error(), Some(libc::EINVAL));
        assert_eq!(TcpStream::connect(ENDPOINT).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        let broker = start(host);
        broker.peer().listen(ENDPOINT).unwrap();
    });
}

#[test]
fn after_a_takeover_a_peer_still_has_its_lease_and_after_a_restart_it_does_not() {
    isolated(|host| {
        lan::create(&["far"]);
        let text = sample::addresses("");
        let mut broker = Broker::start(host, &text);
        broker.peer().add_address("10.1.1.7", |add| add.lease = Some(60)).unwrap();
        broker.replace(host, &text);
        broker.peer().renew_address("10.1.1.7").unwrap();
        broker.signal(Signal::KILL);
        broker.wait_for_exit();
        assert!(lan::show_address("10.1.1.7").is_some());
        let mut broker = Broker::start(host, &text);
        assert_eq!(broker.peer().renew_address("10.1.1.7").unwrap_err().code, FaultCode::NotFound);
        assert_eq!(lan::show_address("10.1.1.7"), None);
        broker.peer().add_address("10.1.1.7", |add| add.lease = Some(60)).unwrap();
        assert!(broker.terminate().success());
        assert_eq!(lan::show_address("10.1.1.7"), None);
        // An orderly end removes the control socket too.
        assert!(!Path::new(SOCKET).exists());
    });
}

#[test]
fn accepted_connections_continue_after_a_stop_and_queued_ones_are_reset() {
    isolated(|host| {
        let broker = start(host);
        let mut peer = broker.peer();
        let (id, socket) = peer.listen(ENDPOINT).unwrap();
        let listener = TcpListener::from(socket);
        let mut accepted = TcpStream::connect(ENDPOINT).unwrap();
        let (mut served, _) = listener.accept().unwrap();
        let mut queued = TcpStream::connect(ENDPOINT).unwrap();
        assert!(peer.stop(&[id]).unknown.is_empty());
        served.write_all(b"1").unwrap();
        accepted.read_exact(&mut [0]).unwrap();
        accepted.write_all(b"2").unwrap();
        served.read_exact(&mut [0]).unwrap();
        queued.set_read_timeout(Some(TIMEOUT)).unwrap();
        assert_eq!(queued.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(listener.accept().unwrap_err().raw_os_error(), Some(libc::EINVAL));
        assert_eq!(TcpStream::connect(ENDPOINT).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        // A process that waits in poll(2) wakes up.
        let mut ready = [rustix::event::PollFd::new(&listener, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut ready, Some(&rustix::event::Timespec::default())).unwrap();
        assert!(ready[0].revents().contains(rustix::event::PollFlags::HUP), "{:?}", ready[0].revents());
    });
}

#[test]
fn copies_of_a_channel_are_one_session_which_ends_with_the_last_or_with_a_shutdown() {
    isolated(|host| {
        let broker = start(host);
        let mut peer = broker.peer();
        let sessions = || broker.peer().status().sessions.len();
        let alone = sessions();
        let copy = peer.channel.try_clone().unwrap();
        let mut other = Peer::from_channel(copy);
        // Whoever receives first gets the next frame, also the reply to a request of the other.
        let number = peer.send(&portreeve_protocol::message::Ping {});
        assert_eq!(other.receive().unwrap().header.request, number);
        drop(other);
        peer.ping();
        let copy = peer.channel.try_clone().unwrap();
        rustix::net::shutdown(peer.channel.as_fd(), rustix::net::Shutdown::Both).unwrap();
        assert!(matches!(Peer::from_channel(copy).receive(), Err(ReceiveError::Closed)));
        eventually("the end of the session", || (sessions() < alone).then_some(()));
    });
}
