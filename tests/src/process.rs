//! The state of processes, read from /proc; see proc_pid_status(5).

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;

use rustix::process::{Pid, Signal, kill_process};

use crate::eventually;

/// The identity and confinement of one thread.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Real, effective, saved and file system user ids.
    pub uid: Vec<u32>,
    /// Real, effective, saved and file system group ids.
    pub gid: Vec<u32>,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// CapInh.
    pub inheritable: u64,
    /// CapPrm.
    pub permitted: u64,
    /// CapEff.
    pub effective: u64,
    /// CapBnd.
    pub bounding: u64,
    /// CapAmb.
    pub ambient: u64,
    /// NoNewPrivs.
    pub no_new_privs: bool,
    /// Seccomp: 0 none, 2 filter.
    pub seccomp: u8,
}

impl Status {
    /// Reads the text of a status file.
    pub fn parse(text: &str) -> Self {
        let fields: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once(':')).collect();
        let field = |name: &str| fields.get(name).unwrap_or_else(|| panic!("no {name} in {text}")).trim();
        let numbers = |name: &str| field(name).split_whitespace().map(|word| word.parse().unwrap()).collect();
        let set = |name: &str| u64::from_str_radix(field(name), 16).unwrap();
        Self {
            uid: numbers("Uid"),
            gid: numbers("Gid"),
            groups: numbers("Groups"),
            inheritable: set("CapInh"),
            permitted: set("CapPrm"),
            effective: set("CapEff"),
            bounding: set("CapBnd"),
            ambient: set("CapAmb"),
            no_new_privs: field("NoNewPrivs") == "1",
            seccomp: field("Seccomp").parse().unwrap(),
        }
    }
}

/// The status of every thread of a process.
pub fn threads(pid: u32) -> Vec<Status> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks
        .map(|task| Status::parse(&fs::read_to_string(task.unwrap().path().join("status")).unwrap()))
        .collect()
}

/// A field of the status file that [`Status`] does not have, such as `VmRSS`.
pub fn status_field(pid: u32, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.unwrap_or_else(|| panic!("no {name} in {text}")).trim().to_owned()
}

/// A field of the status file in kB, such as `VmRSS`.
pub fn status_kilobytes(pid: u32, name: &str) -> u64 {
    kilobytes(&status_field(pid, name))
}

/// A field of a process's smaps_rollup file in kB, such as `Pss`; see proc_pid_smaps(5).
pub fn rollup_kilobytes(pid: u32, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    kilobytes(value.unwrap_or_else(|| panic!("no {name} in {text}")))
}

fn kilobytes(value: &str) -> u64 {
    value.strip_suffix("kB").unwrap().trim().parse().unwrap()
}

/// The root directory of a process.
pub fn root(pid: u32) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/root")).unwrap()
}

/// Whether a process exists and is not a zombie.
pub fn is_running(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| state != "Z" && state != "X")
}

/// Sends SIGKILL to a process that exists.
#[track_caller]
pub fn kill(pid: u32) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
}

/// Sends SIGSTOP and returns when the process has stopped. The kernel delivers the pending signal with the lowest number
/// first, so a signal sent right after SIGSTOP might otherwise arrive before it.
#[track_caller]
pub fn suspend(pid: u32) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::STOP).unwrap();
    let still = || matches!(stat(pid)?.0.as_str(), "T" | "t").then_some(());
    eventually("the process to stop", still);
}

/// The running children of a process, sorted by id.
pub fn children(parent: u32) -> Vec<u32> {
    let mut children: Vec<u32> = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| stat(*pid).is_some_and(|(state, of)| of == parent && state != "Z"))
        .collect();
    children.sort_unstable();
    children
}

/// The running descendants of a process.
pub fn descendants(ancestor: u32) -> Vec<u32> {
    let children = children(ancestor);
    let further: Vec<u32> = children.iter().flat_map(|child| descendants(*child)).collect();
    children.into_iter().chain(further).collect()
}

/// The running processes of this PID namespace, except process 1 and the test.
pub fn other_processes() -> Vec<u32> {
    let own = std::process::id();
    descendants(1).into_iter().filter(|pid| *pid != own).collect()
}

/// Kills processes and their descendants. Each is stopped first, so that it cannot start others meanwhile.
pub fn kill_trees(roots: &[u32]) {
    for root in roots.iter().filter(|root| is_running(**root)) {
        let pid = Pid::from_raw(root.cast_signed()).unwrap();
        let _ = kill_process(pid, Signal::STOP); // it may have exited
        eventually("the process to stop or exit", || {
            stat(*root).is_none_or(|(state, _)| matches!(state.as_str(), "T" | "t" | "X" | "Z")).then_some(())
        });
        kill_trees(&children(*root));
        let _ = kill_process(pid, Signal::KILL); // it may have exited
    }
}

/// The processes of a service. The children of a killed process get another parent, so they are recorded while it runs.
pub struct ProcessTree {
    root: u32,
    noted: Mutex<Vec<u32>>,
}

impl ProcessTree {
    /// The tree with this root process.
    pub fn of(root: u32) -> Self {
        Self { root, noted: Mutex::default() }
    }

    /// Records the current descendants of the root. Called before the root is killed.
    pub fn record(&self) {
        self.noted.lock().unwrap().extend(descendants(self.root));
    }

    /// Kills the recorded descendants.
    pub fn kill_descendants(&self) {
        kill_trees(&self.noted.lock().unwrap().split_off(0));
    }
}

/// State and parent; see proc_pid_stat(5). The name before them may contain spaces and parentheses.
fn stat(pid: u32) -> Option<(String, u32)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
}
