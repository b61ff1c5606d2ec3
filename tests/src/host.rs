//! The host of a test: its own namespaces, with empty and private /tmp and /run.
//!
//! [`isolated`] runs the test program again inside new namespaces, for that one test. There the test is root, the loopback
//! interface is up, the binaries are at [`Host::binary`], and the test can use any path and port.

use std::any::type_name;
use std::fs;
use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::{Condvar, Mutex, PoisonError, RwLock, mpsc};
use std::time::Duration;

use rustix::mount::{MountFlags, mount, mount_bind};

use crate::wait::scaled;
use crate::{binaries, debian, in_flight_limit, namespaces};

/// How long a test may take inside the namespaces, on a machine of ordinary speed.
const DEADLINE: Duration = Duration::from_secs(180);
const INSIDE: &str = "PORTREEVE_TEST_INSIDE";
const ENTERED: &str = "[the test is in its namespaces]";
const PASSED: &str = "[the test has passed in its namespaces]";

/// The host of one test. See the module.
pub struct Host {
    directory: PathBuf,
}

/// Locked by every running test: shared by [`isolated`], exclusively by [`exclusive`].
static MACHINE: RwLock<()> = RwLock::new(());

/// Runs a test on a host of its own. The call must be the test function's only statement.
pub fn isolated<T: FnOnce(&Host)>(test: T) {
    run(test, || MACHINE.read().unwrap_or_else(PoisonError::into_inner), Vec::new);
}

/// Like [`isolated`], with the programs in Go among the binaries.
pub fn isolated_with_go<T: FnOnce(&Host)>(test: T) {
    let wait_for_machine = || MACHINE.read().unwrap_or_else(PoisonError::into_inner);
    run(test, wait_for_machine, || binaries::go_variables().collect());
}

/// How many tests of clusters run at a time.
const CLUSTERS: usize = 3;
static FREE_CLUSTERS: (Mutex<usize>, Condvar) = (Mutex::new(CLUSTERS), Condvar::new());

/// The turn of a test of a cluster.
struct ClusterTurn;

impl ClusterTurn {
    fn wait() -> Self {
        let (free, freed) = &FREE_CLUSTERS;
        let free = free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = freed.wait_while(free, |free| *free == 0).unwrap_or_else(PoisonError::into_inner);
        *free -= 1;
        Self
    }
}

impl Drop for ClusterTurn {
    fn drop(&mut self) {
        let (free, freed) = &FREE_CLUSTERS;
        *free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        freed.notify_one();
    }
}

/// Like [`isolated`], for a test with three hosts that must keep their deadlines: few of them run at a time.
pub fn isolated_cluster<T: FnOnce(&Host)>(test: T) {
    // The turn comes first: whoever waits for it must not delay a test that runs alone.
    let wait_for_machine = || (ClusterTurn::wait(), MACHINE.read().unwrap_or_else(PoisonError::into_inner));
    run(test, wait_for_machine, Vec::new);
}

/// Like [`isolated`], while no other test of this program runs: for tests that measure milliseconds or that exhaust a
/// resource which namespaces do not separate.
pub fn exclusive<T: FnOnce(&Host)>(test: T) {
    run(test, || MACHINE.write().unwrap_or_else(PoisonError::into_inner), Vec::new);
}

/// `more` returns the environment variables of further binaries.
fn run<T: FnOnce(&Host), G>(
    test: T,
    wait_for_machine: impl FnOnce() -> G,
    more: impl FnOnce() -> Vec<(String, PathBuf)>,
) {
    if std::env::var_os(INSIDE).is_some() {
        let host = Host::prepare();
        println!("{ENTERED}");
        test(&host);
        println!("{PASSED}");
    } else {
        let _machine = wait_for_machine();
        enter(test_name::<T>(), more());
    }
}

/// The test's name for the test runner. The thread's name is not usable: with one test thread it is `main`.
fn test_name<T>() -> &'static str {
    let path = type_name::<T>();
    let function = path.split_once("::{{closure}}").map_or(path, |(function, _)| function);
    function.split_once("::").map_or(function, |(_, name)| name)
}

fn enter(test: &str, more: Vec<(String, PathBuf)>) {
    let mut command = namespaces::command(&std::env::current_exe().unwrap());
    command
        .args(["--exact", test, "--include-ignored", "--nocapture", "--test-threads=1"])
        .env(INSIDE, test)
        .envs(binaries::variables())
        .envs(more);
    let (mut reader, writer) = io::pipe().unwrap();
    command.stdout(writer.try_clone().unwrap()).stderr(writer);
    let mut child = command
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run unshare: {error}. Install the package util-linux"));
    // Closes this process's write end of the pipe: reading ends when the last write end is closed.
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
    report(&String::from_utf8_lossy(&output), late.then_some(deadline), status);
}

/// Reports the outcome of the test. `late` is the time limit, if the test exceeded it and was killed.
fn report(output: &str, late: Option<Duration>, status: ExitStatus) {
    let passed = output.contains(PASSED) && status.success();
    if passed && late.is_none() {
        print!("{output}");
        return;
    }
    let hint = in_flight_limit::diagnose(output).unwrap_or_default();
    if let Some(limit) = late {
        panic!("{output}\nthe test exceeded its time limit of {} s and was killed{hint}", limit.as_secs());
    }
    assert!(
        output.contains(ENTERED),
        "{output}\nthe test could not enter its namespaces ({status}): {}{hint}",
        namespaces::NEEDS
    );
    panic!("{output}\nthe test failed in its namespaces ({status}){hint}");
}

impl Host {
    /// Sets up the new namespaces of this process as a host. [`isolated`] does so for tests.
    pub fn prepare() -> Self {
        namespaces::end_with_parent();
        namespaces::raise_loopback();
        // Opened first: the new /tmp may hide their paths.
        let binaries = binaries::given();
        let servers = debian::open_directory();
        for (place, mode) in [("/tmp", c"mode=1777"), ("/run", c"mode=0755")] {
            mount("tmpfs", place, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(mode))
                .unwrap_or_else(|error| panic!("cannot mount a private {place}: {error}"));
        }
        let host = Self { directory: PathBuf::from("/run/host") };
        fs::create_dir_all(host.path("bin")).unwrap();
        // The new /tmp may hide the current directory.
        std::env::set_current_dir(&host.directory).unwrap();
        for (name, file) in binaries {
            // Mounted by descriptor: other users may not be able to traverse the directories of the build.
            let here = host.binary(name);
            fs::write(&here, "").unwrap();
            mount_bind(format!("/proc/self/fd/{}", file.as_raw_fd()), &here)
                .unwrap_or_else(|error| panic!("cannot mount {name} at {here:?}: {error}"));
        }
        if let Some(directory) = servers {
            debian::mount_directory(&host, &directory);
        }
        host
    }

    /// A path in the test's own directory, which all users can enter and only root can write.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory.join(name)
    }

    /// Writes a file into the test's own directory and returns its path.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// One of the binaries under test, by name.
    pub fn binary(&self, name: &str) -> PathBuf {
        self.path("bin").join(name)
    }

    /// Adds a user, and a group of the same name and id, to this host.
    pub fn add_user(&self, name: &str, id: u32) {
        let line = format!("{name}:x:{id}:{id}:{name}:/nonexistent:/usr/sbin/nologin\n");
        self.append("/etc/passwd", &line);
        self.add_group(name, id);
    }

    /// Deletes a user that [`Host::add_user`] added; its group stays.
    pub fn delete_user(&self, name: &str) {
        Self::edit("/etc/passwd", |line| (!line.starts_with(&format!("{name}:"))).then(|| line.to_owned()));
    }

    /// Deletes a group that [`Host::add_group`] or [`Host::add_user`] added.
    pub fn delete_group(&self, name: &str) {
        Self::edit("/etc/group", |line| (!line.starts_with(&format!("{name}:"))).then(|| line.to_owned()));
    }

    /// Changes the lines of a file that has been replaced by a copy.
    fn edit(place: &str, line: impl Fn(&str) -> Option<String>) {
        let lines: Vec<String> = fs::read_to_string(place).unwrap().lines().filter_map(line).collect();
        fs::write(place, lines.join("\n") + "\n").unwrap();
    }

    /// Adds a group to this host.
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
