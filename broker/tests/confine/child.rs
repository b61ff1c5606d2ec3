//! A test in a process of its own: the test binary again, with one test and no second thread, so that what the test
//! does to its process ends with it.

use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;

use libtest_mimic::{Failed, Trial};

const NAME: &str = "PORTREEVE_TEST_CHILD";

/// How a test's process must end.
#[derive(Clone, Copy, PartialEq)]
pub enum End {
    /// With success.
    Success,
    /// By this signal, after it printed [`CONFINED`].
    Signal(i32),
}

/// What a process prints that reached the point after which it must end.
pub const CONFINED: &str = "confined";

/// One test.
pub struct Test {
    pub name: String,
    pub body: fn(),
    pub end: End,
}

/// The tests of a module: each end, and the functions that must end so.
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

/// The test that this process is for, if it is such a process.
pub fn asked_for() -> Option<String> {
    std::env::var(NAME).ok()
}

impl Test {
    pub fn in_a_process_of_its_own(self) -> Trial {
        let Self { name, end, .. } = self;
        Trial::test(name.clone(), move || {
            // The process cannot remove its files once it is locked up; they go with this directory.
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

/// Makes one system call fail with ENOSYS from now on, as on a kernel that does not have it.
pub fn take_away(call: libc::c_long) {
    use seccompiler::{SeccompAction, SeccompFilter, apply_filter};
    let missing = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let architecture = std::env::consts::ARCH.try_into().unwrap();
    let filter =
        SeccompFilter::new([(call, vec![])].into(), SeccompAction::Allow, missing, architecture).unwrap();
    let program: seccompiler::BpfProgram = filter.try_into().unwrap();
    apply_filter(&program).unwrap();
}
