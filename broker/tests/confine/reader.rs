//! The reader process: what it can read, and what it cannot do.

use std::fs::{self, File};
use std::io::ErrorKind::PermissionDenied;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;

use portreeve_broker::confine::landlock::{Landlock, Listed, restrict_to_reading};
use portreeve_broker::confine::seccomp::{Seccomp, Support, allowed_to_reader, install_for_reader};

use crate::child::{self, End};

/// Applies the reader's two locks that need no privilege. The process can read beneath this directory.
fn confine(directory: &std::path::Path) {
    let status = restrict_to_reading(&[File::open(directory).unwrap()], Listed::Unknown).unwrap();
    assert!(matches!(status, Landlock::Enforced { abi: 6.., .. }), "this test needs Linux 6.12: {status:?}");
    assert_eq!(
        install_for_reader(Support::Present).unwrap(),
        Seccomp::Enforced { calls: allowed_to_reader().count() }
    );
    println!("{}", child::CONFINED);
}

fn a_reader_can_only_read_beneath_its_directories() {
    let directory = tempfile::tempdir().unwrap();
    let (inside, below) = (directory.path().join("inside"), directory.path().join("below"));
    fs::create_dir(&below).unwrap();
    for file in [inside.clone(), below.join("file")] {
        fs::write(file, "x = 1").unwrap();
    }
    confine(directory.path());
    assert_eq!(fs::read_to_string(&inside).unwrap(), "x = 1");
    assert_eq!(fs::read_to_string(below.join("file")).unwrap(), "x = 1");
    assert_eq!(fs::read_dir(&below).unwrap().count(), 1);
    for beyond in ["/etc/passwd", "/proc/self/status", "/"] {
        assert_eq!(File::open(beyond).unwrap_err().kind(), PermissionDenied, "{beyond}");
    }
    assert_eq!(UnixStream::connect("/run/nothing.sock").unwrap_err().kind(), PermissionDenied);
    assert_eq!(TcpListener::bind("127.0.0.1:0").unwrap_err().kind(), PermissionDenied);
    std::mem::forget(directory);
}

fn writing_to_a_file_kills_a_reader() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    confine(directory.path());
    let _ = fs::write(file, "x"); // must not return
}

fn starting_a_program_kills_a_reader() {
    confine(std::path::Path::new("/"));
    let _ = std::process::Command::new("/bin/true").spawn(); // must not return
}

fn signalling_another_process_kills_a_reader() {
    confine(std::path::Path::new("/"));
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(1), None); // must not return
}

child::tests! {
    End::Success => [a_reader_can_only_read_beneath_its_directories],
    End::Signal(libc::SIGSYS) => [
        writing_to_a_file_kills_a_reader,
        starting_a_program_kills_a_reader,
        signalling_another_process_kills_a_reader,
    ],
}
