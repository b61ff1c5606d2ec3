//! Each lock of the confined broker, put on a process of its own: what must fail fails, what is needed works.
//! Touches namespaces that it makes itself, loopback, and directories of its own.
//!
//! The locks are for a process with one thread, so each test runs as this binary again, before any harness starts.
// A test may end by a panic anywhere; clippy.toml says so for test functions, these have no such mark.
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
    if let Some(name) = child::asked_for() {
        let test = tests.iter().find(|test| test.name == name).expect("a test by that name");
        (test.body)();
        return ExitCode::SUCCESS;
    }
    let trials = tests.into_iter().map(child::Test::in_a_process_of_its_own).collect();
    libtest_mimic::run(&libtest_mimic::Arguments::from_args(), trials).exit_code()
}
