//! Runs a test in its own process: the test binary again, with one test and no second thread. Whatever the test does to
//! its process ends with that process.

use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;

use libtest_mimic::{Failed, Trial};

const NAME: &str = "PORTREEVE_TEST_CHILD";

/// How a test's process must end.
#[derive(Clone, Copy, PartialEq)]
pub enum End {
    /// Exit code 0.
    Success,
    /// Killed by this signal, after it printed [`CONFINED`].
    Signal(i32),
}

/// Printed by a process that has reached the point after which it must be killed.
pub const CONFINED: &str = "confined";

/// A test: its name, its body, and how its process must end.
pub struct Test {
    pub name: String,
    pub body: fn(),
    pub end: End,
}

/// Declares the tests of a module: for each expected end, the functions.
macro_rules! tests {
    ($($end:expr => [$($body:ident),* $(,)?]),* $(,)?) => {
        pub fn tests() -> Vec<crate::child::Test> {
            vec![$($(crate::child::Test {
                name: format!("{}::{}", module_path!(), stringify!($body)),
                body: $body,
                end: $end,
            },)*)*]
        }
    };
}
pub(crate) use tests;

/// The name of the test that this process must run, if it is a child process.
pub fn requested_test() -> Option<String> {
    std::env::var(NAME).ok()
}

impl Test {
    pub fn into_trial(self) -> Trial {
        let Self { name, end, .. } = self;
        Trial::test(name.clone(), move || {
            // A confined process cannot remove its files; dropping this directory removes them.
            let directory = tempfile::tempdir()?;
            let output = Command::new(std::env::current_exe()?)
                .env(NAME, name)
                .env("TMPDIR", directory.path())
                .env_remove("RUST_BACKTRACE")
                .output()?;
            let printed = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            let is_right = match end {
                End::Success => output.status.success(),
                End::Signal(signal) => output.status.signal() == Some(signal) && printed.contains(CONFINED),
            };
            if is_right { Ok(()) } else { Err(Failed::from(format!("{}: {printed}", output.status))) }
        })
    }
}

/// Makes one system call fail with ENOSYS from now on, as on a kernel without it.
pub fn make_unavailable(call: libc::c_long) {
    use seccompiler::{SeccompAction, SeccompFilter, apply_filter};
    let missing = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let architecture = std::env::consts::ARCH.try_into().unwrap();
    let filter =
        SeccompFilter::new([(call, vec![])].into(), SeccompAction::Allow, missing, architecture).unwrap();
    let program: seccompiler::BpfProgram = filter.try_into().unwrap();
    apply_filter(&program).unwrap();
}
