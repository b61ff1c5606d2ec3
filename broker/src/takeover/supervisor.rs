//! Whether another program supervises the predecessor. A successor that an operator starts by hand is not that program's
//! child: a supervisor would start another broker beside it, and the successor would leave the unit or the container.

use std::fs;
use std::path::Path;

use super::request::failed;
use crate::failure::Failure;

/// The first processes of containers; such a container ends with its only child.
const CONTAINER_INITS: [&str; 4] = ["catatonit", "docker-init", "dumb-init", "tini"];

/// A supervisor of the predecessor.
#[derive(Debug, PartialEq, Eq)]
struct Supervisor {
    /// What it is.
    name: String,
    /// How to restart the predecessor.
    restart: String,
}

/// Refuses a takeover that leaves a supervisor. A process that `/proc` does not show has none.
pub(super) fn refuse_supervised(predecessor: u32) -> Result<(), Failure> {
    let Some(Supervisor { name, restart }) = find(Path::new("/proc"), predecessor) else {
        return Ok(());
    };
    Err(failed(
        format_args!("it is supervised by {name}, which this broker would leave"),
        format_args!("{restart}, or use --takeover=force"),
    ))
}

fn find(proc: &Path, pid: u32) -> Option<Supervisor> {
    let of = |pid: u32, file: &str| proc.join(pid.to_string()).join(file);
    let container = |name: String| Supervisor { name, restart: "restart the container".to_owned() };
    if pid == 1 {
        return Some(container("its container, of which it is process 1".to_owned()));
    }
    let status = fs::read_to_string(of(pid, "status")).ok()?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()?;
    let comm = fs::read_to_string(of(parent, "comm")).ok()?;
    let directory = || {
        let directory = fs::read_link(of(parent, "cwd")).unwrap_or_default();
        directory.display().to_string()
    };
    let program = |name: &str, restart: String| {
        Some(Supervisor { name: format!("{name} (pid {parent})"), restart: format!("run {restart}") })
    };
    match comm.trim_end() {
        "systemd" => {
            let cgroup = |pid: &str| fs::read_to_string(proc.join(pid).join("cgroup")).ok();
            let unit = cgroup(&pid.to_string()).as_deref().and_then(service)?;
            let own = cgroup("self").as_deref().and_then(service);
            let supervisor = Supervisor {
                name: format!("systemd as {unit}"),
                restart: format!("run systemctl restart {unit}, which keeps its listeners"),
            };
            (own.as_deref() != Some(unit.as_str())).then_some(supervisor)
        }
        "s6-supervise" => program("s6-supervise", format!("s6-svc -r {}", directory())),
        "runsv" => program("runsv", format!("sv restart {}", directory())),
        "supervise" => program("supervise", format!("svc -t {}", directory())),
        // The kernel keeps 15 bytes.
        "supervise-daemo" => {
            let line = fs::read(of(parent, "cmdline")).unwrap_or_default();
            let service = line.split(|byte| *byte == 0).nth(1).map(String::from_utf8_lossy);
            let service = service.filter(|word| !word.is_empty()).unwrap_or("portreeved".into());
            program("OpenRC's supervise-daemon", format!("rc-service {service} restart"))
        }
        name if CONTAINER_INITS.contains(&name) => Some(container(format!("{name} of its container"))),
        _ => None,
    }
}

/// The systemd service of a process by its cgroups: of version 2, or of systemd's own hierarchy of version 1.
fn service(cgroups: &str) -> Option<String> {
    let paths = cgroups.lines().filter_map(|line| {
        let (hierarchy, path) = line.split_once(':')?.1.split_once(':')?;
        matches!(hierarchy, "" | "name=systemd").then_some(path)
    });
    let units = paths.filter_map(|path| path.split('/').rfind(|part| part.ends_with(".service")));
    units.map(str::to_owned).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A /proc with a broker of number 20 whose parent is 10.
    fn proc(comm: &str, cgroup: &str, own: &str) -> tempfile::TempDir {
        let proc = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| {
            let path = proc.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("20/status", "Name:\tportreeved\nPid:\t20\nPPid:\t10\n");
        write("20/cgroup", cgroup);
        write("self/cgroup", own);
        write("10/comm", &format!("{comm}\n"));
        write("10/cmdline", "supervise-daemon\0relay\0--start\0");
        std::os::unix::fs::symlink("/run/service/relay", proc.path().join("10/cwd")).unwrap();
        proc
    }

    #[test]
    fn each_supervisor_is_named_with_its_command() {
        let unit = "0::/system.slice/relay.service\n";
        let shell = "0::/user.slice/user-0.slice/session-1.scope\n";
        for (comm, cgroup, own, command) in [
            ("systemd", unit, shell, Some("run systemctl restart relay.service, which keeps its listeners")),
            (
                "systemd",
                "1:name=systemd:/system.slice/relay.service\n0::/\n",
                shell,
                Some("run systemctl restart relay.service, which keeps its listeners"),
            ),
            ("systemd", unit, unit, None),
            ("systemd", shell, shell, None),
            ("s6-supervise", shell, shell, Some("run s6-svc -r /run/service/relay")),
            ("runsv", shell, shell, Some("run sv restart /run/service/relay")),
            ("supervise-daemo", shell, shell, Some("run rc-service relay restart")),
            ("tini", shell, shell, Some("restart the container")),
            ("bash", unit, shell, None),
        ] {
            let proc = proc(comm, cgroup, own);
            let found = find(proc.path(), 20).map(|supervisor| supervisor.restart);
            assert_eq!(found.as_deref(), command, "{comm} {cgroup}");
        }
        assert!(find(proc("bash", "", "").path(), 1).is_some());
        assert_eq!(find(proc("runsv", "", "").path(), 21), None);
    }
}
