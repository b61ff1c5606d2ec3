//! Unix listeners: their clients see the holder's credentials, never the broker's.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use portreeve_tests::broker::SOCKET;
use portreeve_tests::chroot::WORKER;
use portreeve_tests::reload::{reload, rows};
use portreeve_tests::scripted_worker::WorkerSetup;
use portreeve_tests::startup_failure::exit;
use portreeve_tests::{Broker, Host, StartupFailure, binaries, broker, eventually, isolated, sample};
use rustix::net::{AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid, Signal, kill_process};

/// The user `daemon` of every Linux host.
const DAEMON: u32 = 1;

/// Connects a socket of this type to a path.
fn connect(path: &Path, kind: SocketType) -> rustix::io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// The process and user that a client of this path sees: SO_PEERCRED.
#[track_caller]
fn seen(path: &Path, kind: SocketType) -> (u32, u32) {
    let client = connect(path, kind).unwrap();
    let credentials = rustix::net::sockopt::socket_peercred(&client).unwrap();
    (credentials.pid.as_raw_nonzero().get().cast_unsigned(), credentials.uid.as_raw())
}

/// `portreeve listen`.
struct Listening {
    process: Child,
    _output: BufReader<ChildStdout>,
}

impl Listening {
    fn end(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// `portreeve listen` as the user `daemon`, once it listens.
fn listening_as_daemon(host: &Host, endpoint: &str) -> Listening {
    let mut command = Command::new(host.binary(binaries::CLIENT));
    command.args(["--socket", SOCKET, "listen", endpoint]).uid(DAEMON).gid(DAEMON);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let (mut output, mut line) = (BufReader::new(child.stdout.take().unwrap()), String::new());
    output.read_line(&mut line).unwrap();
    assert!(!line.is_empty(), "the client did not listen");
    Listening { process: child, _output: output }
}

/// A worker that the test controls, with a static Unix listener, and `daemon` with a permit for others.
fn with_static(setup: &WorkerSetup, more: &str) -> String {
    let rest = format!(
        r#"
        broker {{
            socket = "{SOCKET}"
            socket_mode = 0666
            permit "any" {{ listen = ( "/run/host/*" ) }}
            peer daemon {{ allow = ( status listen ) permit = ( any ) }}
        }}
        ESMTP_Listener {{ Listen "/run/host/static.sock" {{ file_mode = 0666 listen_backlog = 7 }} {more} }}
        worker {{ stable_after = 0 }}"#
    );
    sample::worker(&setup.chroot, "( /run/host/bin/scripted_worker )", &rest)
}

#[test]
fn clients_of_a_static_unix_listener_see_the_worker() {
    isolated(|host| {
        let setup = WorkerSetup::new(host, "chroot");
        let (path, text) = (host.path("static.sock"), with_static(&setup, ""));
        let mut first = Broker::start(host, &text);
        let _first_worker = setup.accept();
        assert_eq!(seen(&path, SocketType::STREAM), (first.worker(), WORKER));
        // The next worker, of this broker and of the next one.
        let worker = first.worker();
        kill_process(Pid::from_raw(worker.cast_signed()).unwrap(), Signal::KILL).unwrap();
        let _second_worker = setup.accept();
        eventually("the next worker", || (first.worker() != worker).then_some(()));
        assert_eq!(seen(&path, SocketType::STREAM), (first.worker(), WORKER));
        let mut second = first.start_successor(host, &text);
        let _third_worker = setup.accept();
        assert!(first.wait_for_exit().success());
        assert_eq!(seen(&path, SocketType::STREAM), (second.worker(), WORKER));
        // Neither does a reload make the broker listen.
        reload(host, &second, &text.replace("listen_backlog = 7", "listen_backlog = 8"));
        assert_eq!(seen(&path, SocketType::STREAM), (second.worker(), WORKER));
        assert!(second.terminate().success());
    });
}

#[test]
fn a_static_unix_listener_of_a_reload_refuses_clients_until_the_worker_listens() {
    isolated(|host| {
        let setup = WorkerSetup::new(host, "chroot");
        let broker = Broker::start(host, &with_static(&setup, ""));
        let (_scripted, mut worker) = setup.accept();
        worker.hello();
        let reloaded = reload(host, &broker, &with_static(&setup, r#"Listen "/run/host/new.sock" {}"#));
        assert_eq!(rows(&reloaded, "opened"), ["listener /run/host/new.sock"], "{reloaded:?}");
        let refused = connect(&host.path("new.sock"), SocketType::STREAM).unwrap_err();
        assert_eq!(refused, rustix::io::Errno::CONNREFUSED);
        let (_, socket) = worker.listen("/run/host/new.sock").unwrap();
        rustix::net::listen(&socket, 5).unwrap();
        connect(&host.path("new.sock"), SocketType::STREAM).unwrap();
    });
}

#[test]
fn clients_of_a_requested_unix_listener_see_the_peer_that_requested_it() {
    isolated(|host| {
        let any = r#"( "/run/host/*" )"#;
        let text = sample::control(any)
            + r#"broker { retain = 1 peer daemon { allow = ( listen ) permit = ( any ) } }"#;
        let mut first = Broker::start(host, &text);
        let kinds =
            [("stream.sock", "", SocketType::STREAM), ("packets.sock", "seqpacket:", SocketType::SEQPACKET)];
        for (name, prefix, kind) in kinds {
            let endpoint = format!("{prefix}/run/host/{name}");
            let client = listening_as_daemon(host, &endpoint);
            let expected = (client.process.id(), DAEMON);
            assert_eq!(seen(&host.path(name), kind), expected);
            let second = first.start_successor(host, &text);
            assert!(first.wait_for_exit().success());
            assert_eq!(seen(&host.path(name), kind), expected, "after a takeover");
            first = second;
            client.end();
            eventually("the end of the listener", || (!host.path(name).exists()).then_some(()));
        }
    });
}

#[test]
fn a_unix_listener_refuses_clients_before_its_holder_listens_and_after_its_stop() {
    isolated(|host| {
        let broker = Broker::start(host, &sample::control(r#"( "/run/host/*" )"#));
        let mut peer = broker.peer();
        let before = broker.descriptors();
        let kinds =
            [("stream.sock", "", SocketType::STREAM), ("packets.sock", "seqpacket:", SocketType::SEQPACKET)];
        for (name, prefix, kind) in kinds {
            for listens_before in [false, true] {
                let (path, kept) = (host.path(name), host.path("kept.sock"));
                let (id, socket) = peer.listen(&format!("{prefix}{}", path.display())).unwrap();
                assert_eq!(connect(&path, kind).unwrap_err(), rustix::io::Errno::CONNREFUSED);
                // Its path counts as used meanwhile.
                let other = if prefix.is_empty() { "seqpacket:" } else { "" };
                peer.listen(&format!("{other}{}", path.display())).unwrap_err();
                if listens_before {
                    rustix::net::listen(&socket, 5).unwrap();
                    connect(&path, kind).unwrap();
                }
                // A second name of the socket's file, which the broker does not remove.
                fs::hard_link(&path, &kept).unwrap();
                peer.stop(&[id]);
                let _ = rustix::net::listen(&socket, 5); // either result is fine: no client may be served
                assert_eq!(connect(&kept, kind).unwrap_err(), rustix::io::Errno::CONNREFUSED, "{name}");
                fs::remove_file(&kept).unwrap();
            }
        }
        broker.await_no_leak(&before);
    });
}

/// The failure of a broker that takes over from whoever serves at this path.
fn taking_over(host: &Host, socket: &Path) -> StartupFailure {
    let text = sample::control(r#"( "127.0.0.1:25" )"#).replace(SOCKET, &socket.display().to_string());
    let path = host.file("other.conf", &text);
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let mut command = broker::command(host, &path);
    command.arg("--takeover");
    StartupFailure::of_command(command)
}

#[track_caller]
fn assert_refused(failure: &StartupFailure, words: &[&str]) {
    assert_eq!(failure.code, Some(exit::NO_PERMISSION), "{}", failure.message);
    for word in words {
        assert!(failure.message.contains(word), "{word:?} is not in: {}", failure.message);
    }
}

#[test]
fn a_takeover_from_a_path_that_a_peer_holds_is_refused_and_names_the_user() {
    isolated(|host| {
        let any = r#"( "/run/host/*" )"#;
        let text = sample::control(any) + r#"broker { peer daemon { allow = ( listen ) permit = ( any ) } }"#;
        let broker = Broker::start(host, &text);
        let client = listening_as_daemon(host, "seqpacket:/run/host/peer.sock");
        let path = host.path("peer.sock");
        assert_refused(&taking_over(host, &path), &["user 1 listens at", "peer.sock", "not root"]);
        // Also through a link, and if the file itself is the user's.
        std::os::unix::fs::symlink(SOCKET, host.path("link.sock")).unwrap();
        assert_refused(&taking_over(host, &host.path("link.sock")), &["link.sock", "is a symbolic link"]);
        std::os::unix::fs::chown(&path, Some(DAEMON), None).unwrap();
        assert_refused(&taking_over(host, &path), &["peer.sock", "belongs to user 1"]);
        client.end();
        broker.peer().ping();
    });
}

#[test]
fn a_takeover_from_a_user_that_serves_on_a_socket_of_root_is_refused_and_names_the_user() {
    isolated(|host| {
        let path: PathBuf = host.path("inherited.sock");
        let kind = SocketType::SEQPACKET;
        let listener =
            rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
        rustix::net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        // As a service manager does for a service without privileges.
        rustix::net::listen(&listener, 5).unwrap();
        let server = std::thread::spawn(move || {
            rustix::thread::set_thread_groups(&[]).unwrap();
            rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(DAEMON)).unwrap();
            let channel = rustix::net::accept(&listener).unwrap();
            let mut packet = [0; 4096];
            rustix::net::recv(&channel, &mut packet, RecvFlags::empty()).unwrap();
            rustix::net::send(&channel, b"anything", rustix::net::SendFlags::NOSIGNAL).unwrap();
            let _ = rustix::net::recv(&channel, &mut packet, RecvFlags::empty()); // the end of the channel
        });
        assert_refused(&taking_over(host, &path), &["user 1 serves there", "not root"]);
        server.join().unwrap();
    });
}
