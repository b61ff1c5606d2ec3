//! Runs a program in new network, mount, PID, IPC and UTS namespaces.
//!
//! Without CAP_SYS_ADMIN, the namespaces are created in a user namespace in which newuidmap(1) maps a range of ids, so that
//! the program is root there and can change its user. When the program ends, so do all processes in the namespaces; the
//! program ends when its standard input is closed.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::thread::{UnshareFlags, gettid, unshare_unsafe};

/// The prerequisites, for error messages.
pub const NEEDS: &str = "namespaces need either CAP_SYS_ADMIN, or as an ordinary user: the programs newuidmap and \
    newgidmap (Debian: package uidmap), 65536 ids for the user in /etc/subuid and in /etc/subgid, and \
    user.max_user_namespaces above 0 (on Ubuntu also kernel.apparmor_restrict_unprivileged_userns=0)";

const SYS_ADMIN: u32 = 21;

fn is_administrator() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    crate::process::Status::parse(&status).effective & (1 << SYS_ADMIN) != 0
}

/// Process 1: a shell that runs the program, waits, and reaps orphans as process 1 of a host does. Until they are reaped,
/// ended processes count towards limits of their user, such as kernel.keys.maxkeys.
const FIRST_PROCESS: &str = r#"exec 3<&0; "$@" <&3 3<&- & wait $!"#;

/// A command that runs `program` in new namespaces, with a pipe as standard input. When the pipe is closed, for example
/// because this process ends, all processes end, provided that the program has called [`end_with_parent`].
pub fn command(program: &Path) -> Command {
    let mut command = Command::new("unshare");
    if !is_administrator() {
        command.args(["--user", "--map-root-user", "--map-auto"]);
    }
    command
        .args(["--net", "--mount", "--ipc", "--uts", "--pid"])
        .args(["--fork", "--kill-child", "--mount-proc", "--"])
        .args(["sh", "-c", FIRST_PROCESS, "sh"])
        .arg(program)
        .stdin(Stdio::piped());
    command
}

/// Ends this process, and with it the namespaces, as soon as standard input is closed.
pub fn end_with_parent() {
    std::thread::spawn(|| {
        let mut byte = [0];
        // Nothing is ever written to the pipe, so this returns when the parent has closed it.
        let _ = rustix::io::read(rustix::stdio::stdin(), &mut byte);
        std::process::exit(70);
    });
}

/// Puts the processes that this thread starts from now on into a time namespace whose monotonic clock and boot clock are ahead;
/// see time_namespaces(7). This thread must not start threads any more, and the processes must be started by fork(2).
#[track_caller]
pub fn advance_clocks(ahead: Duration) {
    // SAFETY: the new namespace is that of future children; nothing that this process has depends on it.
    unsafe { unshare_unsafe(UnshareFlags::NEWTIME) }
        .unwrap_or_else(|error| panic!("cannot create a time namespace: {error}. {NEEDS}"));
    let seconds = ahead.as_secs();
    let path = format!("/proc/{}/timens_offsets", gettid());
    std::fs::write(&path, format!("monotonic {seconds} 0\nboottime {seconds} 0\n"))
        .unwrap_or_else(|error| panic!("cannot write {path}: {error}"));
}

/// Brings the loopback interface up: in a new network namespace it is down.
pub fn raise_loopback() {
    run(Command::new("ip").args(["link", "set", "lo", "up"]), "iproute2");
}

/// Runs a program that must succeed, and returns its standard output. `package` is the package that contains it.
pub fn run(command: &mut Command, package: &str) -> String {
    let name = command.get_program().to_owned();
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("cannot run {name:?}: {error}. Install the package {package}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?} failed: {}\n{text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// The first of some ids that nobody has, and their number: of the host, or of the namespace of an ordinary user who runs the
/// tests.
pub fn unused_ids() -> (u32, u32) {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap();
    let last =
        |line: &str| line.split_whitespace().map(|word| word.parse::<u64>().unwrap()).collect::<Vec<_>>();
    let is_host = map.lines().map(last).any(|line| line[0] + line[2] > 4_000_000);
    if is_host { (3_000_000, 65_536) } else { (20_000, 30_000) }
}
