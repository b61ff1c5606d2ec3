//! Starting a program in fresh network, mount, process, IPC and host-name namespaces.
//!
//! With CAP_SYS_ADMIN they are plain ones; without it they are made in a user namespace that maps every id, by
//! newuidmap(1), so that the program is root there and can become anyone. All processes in them end with the
//! program, and the program ends when whoever holds its standard input does.

use std::path::Path;
use std::process::{Command, Stdio};

/// What is needed, for the message when it cannot be had.
pub const NEEDS: &str = "namespaces need either CAP_SYS_ADMIN, or as an ordinary user: the programs newuidmap and \
    newgidmap (Debian: package uidmap), 65536 ids for the user in /etc/subuid and in /etc/subgid, and \
    user.max_user_namespaces above 0 (on Ubuntu also kernel.apparmor_restrict_unprivileged_userns=0)";

const SYS_ADMIN: u32 = 21;

fn is_administrator() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    crate::process::Status::parse(&status).effective & (1 << SYS_ADMIN) != 0
}

/// Process 1 runs the program and waits. The shell takes the exit status of every orphan meanwhile, as process 1 does on a
/// host: until then ended processes count against what a user may have, such as kernel.keys.maxkeys.
const FIRST_PROCESS: &str = r#"exec 3<&0; "$@" <&3 3<&- & wait $!"#;

/// A command that runs `program` in namespaces of its own, with a pipe for standard input: closing it, as
/// ending this process does, ends all of them once the program has called [`end_with_parent`].
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
        // Nothing is ever written there: a return is the end of the parent.
        let _ = rustix::io::read(rustix::stdio::stdin(), &mut byte);
        std::process::exit(70);
    });
}

/// Brings the loopback interface up; a new network namespace has it down.
pub fn raise_loopback() {
    run(Command::new("ip").args(["link", "set", "lo", "up"]), "iproute2");
}

/// Runs a program that must succeed, and gives its standard output; `package` is where it comes from.
pub fn run(command: &mut Command, package: &str) -> String {
    let name = command.get_program().to_owned();
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{name:?} cannot be run: {error}; it is in the package {package}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?} failed: {}\n{text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    text
}
