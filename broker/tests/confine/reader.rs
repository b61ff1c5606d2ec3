//! The reader: what it reads, and what it cannot do.

use std::fs::{self, File};
use std::io::ErrorKind::PermissionDenied;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;

use portreeve_broker::confine::landlock::{Landlock, restrict_to_reading};
use portreeve_broker::confine::seccomp::{Seccomp, allowed_to_reader, install_for_reader};

use crate::child::{self, End};

/// Puts on the reader's two locks that need no privilege; it may read beneath this directory.
fn confine(directory: &std::path::Path) {
    let told = restrict_to_reading(&[File::open(directory).unwrap()]).unwrap();
    assert!(matches!(told, Landlock::Enforced { abi: 6.., .. }), "this test needs Linux 6.12: {told:?}");
    assert_eq!(install_for_reader().unwrap(), Seccomp::Enforced { calls: allowed_to_reader().count() });
    println!("{}", child::CONFINED);
}

fn a_reader_reads_beneath_its_directories_and_does_nothing_else() {
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

fn writing_to_a_file_ends_a_reader() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    confine(directory.path());
    let _ended = fs::write(file, "x");
}

fn starting_a_program_ends_a_reader() {
    confine(std::path::Path::new("/"));
    let _ended = std::process::Command::new("/bin/true").spawn();
}

fn signalling_another_process_ends_a_reader() {
    confine(std::path::Path::new("/"));
    let _ended = nix::sys::signal::kill(nix::unistd::Pid::from_raw(1), None);
}

child::tests! {
    End::Success => [a_reader_reads_beneath_its_directories_and_does_nothing_else],
    End::Signal(libc::SIGSYS) => [
        writing_to_a_file_ends_a_reader,
        starting_a_program_ends_a_reader,
        signalling_another_process_ends_a_reader,
    ],
}
