//! Options of a socket that its last holder has set: the next worker gets the socket as the broker promises it.

use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use portreeve_tests::broker::SOCKET;
use portreeve_tests::process::kill;
use portreeve_tests::scripted_worker::WorkerSetup;
use portreeve_tests::{Broker, Host, eventually, isolated, process, sample};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::net::sockopt::{self, Timeout};

/// Sets what would make the next holder fail.
fn spoil(socket: &OwnedFd) {
    fcntl_setfl(socket, OFlags::NONBLOCK | OFlags::from_bits_retain(libc::O_ASYNC.cast_unsigned())).unwrap();
    sockopt::set_socket_timeout(socket, Timeout::Recv, Some(Duration::from_millis(1))).unwrap();
    sockopt::set_socket_timeout(socket, Timeout::Send, Some(Duration::from_millis(1))).unwrap();
    sockopt::set_socket_linger(socket, Some(Duration::from_secs(9))).unwrap();
    sockopt::set_socket_reuseport(socket, true).unwrap();
    rustix::net::listen(socket, 0).unwrap();
}

#[track_caller]
fn assert_unspoiled(socket: impl AsFd) {
    let flags = fcntl_getfl(&socket).unwrap();
    let signals = OFlags::from_bits_retain(libc::O_ASYNC.cast_unsigned());
    assert!(!flags.intersects(OFlags::NONBLOCK | signals), "{flags:?}");
    assert_eq!(sockopt::socket_timeout(&socket, Timeout::Recv).unwrap(), None);
    assert_eq!(sockopt::socket_timeout(&socket, Timeout::Send).unwrap(), None);
    assert_eq!(sockopt::socket_linger(&socket).unwrap(), None);
    assert!(!sockopt::socket_reuseport(&socket).unwrap());
}

fn setup(host: &Host) -> (WorkerSetup, String) {
    let setup = WorkerSetup::new(host, "chroot");
    let rest = format!(
        r#"
        broker {{
            socket = "{SOCKET}"
            permit "any" {{ listen = ( "127.0.0.1:2000" ) }}
            peer root {{ allow = ( status ) permit = ( any ) }}
        }}
        ESMTP_Listener {{ Listen "127.0.0.1:2525" {{}} }}
        worker {{ stable_after = 0 }}"#
    );
    let text = sample::worker(&setup.chroot, "( /run/host/bin/scripted_worker )", &rest);
    (setup, text)
}

#[test]
fn the_next_worker_gets_blocking_sockets_whatever_the_last_one_set() {
    isolated(|host| {
        let (setup, text) = setup(host);
        let mut broker = Broker::start(host, &text);
        let (mut scripted, mut worker) = setup.accept();
        worker.hello();
        for round in ["the next worker", "the worker of the next broker"] {
            let sockets = ["127.0.0.1:2000", "127.0.0.1:2525"].map(|at| worker.listen(at).unwrap().1);
            sockets.iter().for_each(spoil);
            if round == "the next worker" {
                kill(broker.worker());
            } else {
                broker.replace(host, &text);
            }
            drop((scripted, worker));
            (scripted, worker) = setup.accept();
            worker.hello();
            for at in ["127.0.0.1:2525", "127.0.0.1:2000"] {
                let (_, socket) = worker.listen(at).unwrap();
                assert_unspoiled(&socket);
                // The backlog has room again.
                let clients = [(); 4].map(|()| TcpStream::connect(at).unwrap());
                let listener = TcpListener::from(socket);
                clients.iter().for_each(|_| drop(listener.accept().unwrap()));
            }
            // The same worker still uses it, so a repeated request changes nothing.
            let (_, socket) = worker.listen("127.0.0.1:2000").unwrap();
            fcntl_setfl(&socket, OFlags::NONBLOCK).unwrap();
            worker.listen("127.0.0.1:2000").unwrap();
            assert!(fcntl_getfl(&socket).unwrap().contains(OFlags::NONBLOCK));
        }
    });
}

#[test]
fn sockets_that_a_process_of_the_last_worker_may_use_stay_non_blocking() {
    isolated(|host| {
        let (setup, text) = setup(host);
        let broker = Broker::start(host, &text);
        let (mut scripted, mut worker) = setup.accept();
        worker.hello();
        let endpoints = ["127.0.0.1:2000", "127.0.0.1:2525"];
        endpoints.iter().for_each(|at| spoil(&worker.listen(at).unwrap().1));
        let descendant = scripted.run("daemonize").parse().unwrap();
        kill(broker.worker());
        drop((scripted, worker));
        let (scripted, mut worker) = setup.accept();
        worker.hello();
        for at in endpoints {
            let (_, socket) = worker.listen(at).unwrap();
            assert!(fcntl_getfl(&socket).unwrap().contains(OFlags::NONBLOCK), "{at}");
            assert_eq!(sockopt::socket_timeout(&socket, Timeout::Recv).unwrap(), None, "{at}");
        }
        kill(descendant);
        eventually("the end of the process", || (!process::is_running(descendant)).then_some(()));
        kill(broker.worker());
        drop((scripted, worker));
        let (_scripted, mut worker) = setup.accept();
        worker.hello();
        endpoints.iter().for_each(|at| assert_unspoiled(worker.listen(at).unwrap().1));
    });
}
