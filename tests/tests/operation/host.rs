//! The host that every other test relies on.

use std::fs;
use std::net::{TcpListener, TcpStream};

use portreeve_tests::{binaries, census, isolated, process};

#[test]
fn a_host_has_loopback_and_ports_of_its_own() {
    isolated(|_host| {
        let listener = TcpListener::bind("127.0.0.1:25").unwrap();
        TcpStream::connect("127.0.0.1:25").unwrap();
        assert_eq!(census::listening(), [listener.local_addr().unwrap()]);
        drop(listener);
        assert_eq!(census::listening(), []);
        TcpListener::bind("[::1]:25").unwrap();
    });
}

#[test]
fn a_host_has_processes_and_temporary_files_of_its_own() {
    isolated(|_host| {
        assert_eq!(std::process::id(), 1);
        assert_eq!(fs::read_dir("/tmp").unwrap().count(), 0);
        assert!(process::children(1).is_empty());
    });
}

#[test]
fn a_host_has_users_of_its_own() {
    isolated(|host| {
        host.add_user("ecuser", 1234);
        assert!(fs::read_to_string("/etc/passwd").unwrap().contains("\necuser:x:1234:1234:"));
        assert!(fs::read_to_string("/etc/group").unwrap().contains("\necuser:x:1234:"));
    });
}

#[test]
fn a_host_has_the_binaries_where_every_user_can_run_them() {
    isolated(|host| {
        let nobody = rustix::process::Uid::from_raw(65534);
        let name = host.binary(binaries::PUPPET);
        let run = std::thread::spawn(move || {
            rustix::thread::set_thread_uid(nobody).unwrap();
            rustix::fs::access(&name, rustix::fs::Access::EXEC_OK)
        });
        assert_eq!(run.join().unwrap(), Ok(()));
    });
}

#[test]
#[should_panic(expected = "a reason that the host must pass on")]
fn a_failure_inside_is_told_outside() {
    isolated(|_host| panic!("a reason that the host must pass on"));
}
