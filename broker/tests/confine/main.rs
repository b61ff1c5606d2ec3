//! Each lock of the confined broker, applied to a test process: forbidden calls fail, and needed calls work.
//! Touches only namespaces and directories that it creates, and loopback.
//!
//! The locks need a single-threaded process, so each test runs in this binary again, before any harness starts.
// Tests may panic. clippy.toml allows that in test functions; the functions here carry no `#[test]`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod child;
mod landlock;
mod reader;
mod root;
mod seccomp;

use std::process::ExitCode;

fn main() -> ExitCode {
    let tests: Vec<child::Test> =
        [landlock::tests(), reader::tests(), root::tests(), seccomp::tests()].into_iter().flatten().collect();
    if let Some(name) = child::requested_test() {
        let test = tests.iter().find(|test| test.name == name).expect("a test by that name");
        (test.body)();
        return ExitCode::SUCCESS;
    }
    let trials = tests.into_iter().map(child::Test::into_trial).collect();
    libtest_mimic::run(&libtest_mimic::Arguments::from_args(), trials).exit_code()
}
