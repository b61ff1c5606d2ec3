//! The isolated host that every other test uses.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixDatagram;
use std::process::Command;

use portreeve_protocol::channel;
use portreeve_tests::process::ProcessTree;
use portreeve_tests::{binaries, eventually, exclusive, in_flight_limit, isolated, process, resources};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

#[test]
fn a_host_has_its_own_loopback_and_ports() {
    isolated(|_host| {
        let listener = TcpListener::bind("127.0.0.1:25").unwrap();
        TcpStream::connect("127.0.0.1:25").unwrap();
        assert_eq!(resources::tcp_listeners(), [listener.local_addr().unwrap()]);
        drop(listener);
        assert_eq!(resources::tcp_listeners(), []);
        TcpListener::bind("[::1]:25").unwrap();
    });
}

#[test]
fn a_host_has_its_own_processes_and_temporary_files() {
    isolated(|_host| {
        assert_eq!(std::process::id(), 2);
        assert_eq!(fs::read_dir("/tmp").unwrap().count(), 0);
        assert!(process::other_processes().is_empty());
    });
}

#[test]
fn a_host_has_its_own_users() {
    isolated(|host| {
        host.add_user("ecuser", 1234);
        assert!(fs::read_to_string("/etc/passwd").unwrap().contains("\necuser:x:1234:1234:"));
        assert!(fs::read_to_string("/etc/group").unwrap().contains("\necuser:x:1234:"));
    });
}

#[test]
fn every_user_can_run_the_binaries_of_a_host() {
    isolated(|host| {
        let nobody = rustix::process::Uid::from_raw(65534);
        let name = host.binary(binaries::SCRIPTED_WORKER);
        let run = std::thread::spawn(move || {
            rustix::thread::set_thread_uid(nobody).unwrap();
            rustix::fs::access(&name, rustix::fs::Access::EXEC_OK)
        });
        assert_eq!(run.join().unwrap(), Ok(()));
    });
}

#[test]
fn a_failure_with_too_many_descriptors_in_flight_names_the_cause() {
    exclusive(|_host| {
        assert_eq!(in_flight_limit::diagnose("another failure"), None);
        let (sender, receiver) = UnixDatagram::pair().unwrap();
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(200), ..limit }).unwrap();
        channel::send(&sender, b"?", &[sender.as_fd(); 253]).unwrap();
        assert!(in_flight_limit::diagnose("another failure").unwrap().contains("ETOOMANYREFS"));
        drop(receiver);
        eventually("the end of the descriptors in flight", || (!in_flight_limit::is_reached()).then_some(()));
    });
}

#[test]
fn the_holder_of_a_listening_socket_is_named() {
    isolated(|_host| {
        let _listener = TcpListener::bind("127.0.0.1:25").unwrap();
        let holders = resources::tcp_listener_holders();
        assert!(
            holders.contains("127.0.0.1:25 is held by ") && holders.contains("(pid 2, parent 1)"),
            "{holders}"
        );
    });
}

#[test]
fn the_processes_of_a_service_end_even_if_its_main_process_was_killed() {
    isolated(|_host| {
        let mut shell = Command::new("sh").args(["-c", "sh -c 'sleep 1000 & wait' & wait"]).spawn().unwrap();
        let tree = ProcessTree::of(shell.id());
        let all = eventually("a grandchild", || {
            let all = process::descendants(shell.id());
            (all.len() == 2).then_some(all)
        });
        tree.record();
        shell.kill().unwrap();
        shell.wait().unwrap();
        assert!(all.iter().all(|pid| process::is_running(*pid)));
        tree.kill_descendants();
        eventually("the end of both processes", || {
            all.iter().all(|pid| !process::is_running(*pid)).then_some(())
        });
    });
}

#[test]
#[should_panic(expected = "a reason that the host must report")]
fn a_panic_on_a_host_reaches_the_test() {
    isolated(|_host| panic!("a reason that the host must report"));
}
