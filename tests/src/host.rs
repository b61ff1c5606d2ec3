//! The host of a test: namespaces of its own, with /tmp and /run empty and private to it.
//!
//! [`isolated`] runs the test's own binary again for exactly that test inside fresh namespaces; there the test
//! is root, loopback is up, the binaries lie in [`Host::binary`], and paths and ports are its own to fix.

use std::any::type_name;
use std::fs;
use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::{PoisonError, RwLock, mpsc};
use std::time::Duration;

use rustix::mount::{MountFlags, mount, mount_bind};

use crate::wait::scaled;
use crate::{binaries, in_flight_limit, namespaces};

/// How long a test may take inside, on a machine of ordinary speed.
const DEADLINE: Duration = Duration::from_secs(180);
const INSIDE: &str = "PORTREEVE_TEST_INSIDE";
const ENTERED: &str = "[the test is in its namespaces]";
const LEFT: &str = "[the test has passed in its namespaces]";

/// The host of one test. See the module.
pub struct Host {
    directory: PathBuf,
}

/// Held by every test that runs: shared by [`isolated`], for itself by [`exclusive`].
static MACHINE: RwLock<()> = RwLock::new(());

/// Runs a test on a host of its own. Called first and as the only statement by a function that is a test.
pub fn isolated<T: FnOnce(&Host)>(test: T) {
    run(test, || MACHINE.read().unwrap_or_else(PoisonError::into_inner));
}

/// Like [`isolated`], while no other test of this program runs: for a test that measures time in milliseconds, or that
/// uses up what namespaces do not separate.
pub fn exclusive<T: FnOnce(&Host)>(test: T) {
    run(test, || MACHINE.write().unwrap_or_else(PoisonError::into_inner));
}

fn run<T: FnOnce(&Host), G>(test: T, wait_for_machine: impl FnOnce() -> G) {
    if std::env::var_os(INSIDE).is_some() {
        let host = Host::prepare();
        println!("{ENTERED}");
        test(&host);
        println!("{LEFT}");
    } else {
        let _machine = wait_for_machine();
        enter(test_name::<T>());
    }
}

/// The test's name as the test runner knows it. The thread's name would do, but not with one test thread.
fn test_name<T>() -> &'static str {
    let path = type_name::<T>();
    let function = path.split_once("::{{closure}}").map_or(path, |(function, _)| function);
    function.split_once("::").map_or(function, |(_, name)| name)
}

fn enter(test: &str) {
    let mut command = namespaces::command(&std::env::current_exe().unwrap());
    command
        .args(["--exact", test, "--include-ignored", "--nocapture", "--test-threads=1"])
        .env(INSIDE, test)
        .envs(binaries::variables());
    let (mut reader, writer) = io::pipe().unwrap();
    command.stdout(writer.try_clone().unwrap()).stderr(writer);
    let mut child = command
        .spawn()
        .unwrap_or_else(|error| panic!("unshare cannot be run: {error}; it is in the package util-linux"));
    // The command holds the pipe's other end, and only its end ends the reading.
    drop(command);
    let (sender, finished) = mpsc::channel();
    std::thread::spawn(move || {
        let mut output = Vec::new();
        let _ = reader.read_to_end(&mut output);
        let _ = sender.send(output);
    });
    let deadline = scaled(DEADLINE);
    let in_time = finished.recv_timeout(deadline);
    let late = in_time.is_err();
    if late {
        let _ = child.kill();
    }
    let output = in_time.or_else(|_| finished.recv_timeout(deadline)).unwrap_or_default();
    let status = child.wait().unwrap();
    judge(&String::from_utf8_lossy(&output), late.then_some(deadline), status);
}

/// Passes the test's verdict on: `late` is the time limit of a test that had to be killed.
fn judge(output: &str, late: Option<Duration>, status: ExitStatus) {
    let passed = output.contains(LEFT) && status.success();
    if passed && late.is_none() {
        print!("{output}");
        return;
    }
    let exhausted = in_flight_limit::diagnose(output).unwrap_or_default();
    if let Some(limit) = late {
        panic!("{output}\nthe test was not over after {} s and was killed{exhausted}", limit.as_secs());
    }
    assert!(
        output.contains(ENTERED),
        "{output}\nthe test could not be run in namespaces of its own ({status}): {}{exhausted}",
        namespaces::NEEDS
    );
    panic!("{output}\nthe test failed in its namespaces ({status}){exhausted}");
}

impl Host {
    /// Makes the namespaces of this process, which are fresh, into a host. [`isolated`] does it for tests.
    pub fn prepare() -> Self {
        namespaces::end_with_parent();
        namespaces::raise_loopback();
        // Opened before their paths may vanish under the new /tmp.
        let binaries = binaries::given();
        for (place, mode) in [("/tmp", c"mode=1777"), ("/run", c"mode=0755")] {
            mount("tmpfs", place, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(mode))
                .unwrap_or_else(|error| panic!("mounting a private {place} failed: {error}"));
        }
        let host = Self { directory: PathBuf::from("/run/host") };
        fs::create_dir_all(host.path("bin")).unwrap();
        // The directory that the test runner chose may just have vanished under the new /tmp.
        std::env::set_current_dir(&host.directory).unwrap();
        for (name, file) in binaries {
            // By descriptor, so that other users need no way through the build's own directories.
            let here = host.binary(name);
            fs::write(&here, "").unwrap();
            mount_bind(format!("/proc/self/fd/{}", file.as_raw_fd()), &here)
                .unwrap_or_else(|error| panic!("placing {name} at {here:?} failed: {error}"));
        }
        host
    }

    /// A path in the test's own directory, which every user can enter and only root can write.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory.join(name)
    }

    /// Writes a file into the test's own directory and gives its path.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// One of the binaries under test, by name.
    pub fn binary(&self, name: &str) -> PathBuf {
        self.path("bin").join(name)
    }

    /// Makes a user and a group of the same name and id known to this host.
    pub fn add_user(&self, name: &str, id: u32) {
        let line = format!("{name}:x:{id}:{id}:{name}:/nonexistent:/usr/sbin/nologin\n");
        self.append("/etc/passwd", &line);
        self.add_group(name, id);
    }

    /// Makes a group known to this host.
    pub fn add_group(&self, name: &str, id: u32) {
        self.append("/etc/group", &format!("{name}:x:{id}:\n"));
    }

    fn append(&self, place: &str, line: &str) {
        let text = fs::read_to_string(place).unwrap();
        let copy = self.path(place.replace('/', "_"));
        fs::write(&copy, text + line).unwrap();
        mount_bind(&copy, place).unwrap();
    }
}
