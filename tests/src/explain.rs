//! Compares the output of `explain --json` with the kernel's state of the running processes.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::process::{self, Status};
use crate::{Host, Peer, binaries};

/// Runs the broker's program until it exits.
pub fn run(host: &Host, arguments: &[&str]) -> Output {
    Command::new(host.binary(binaries::BROKER)).args(arguments).output().unwrap()
}

/// Parses its standard output as JSON.
pub fn json(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("{error}: {text}{}", String::from_utf8_lossy(&output.stderr)))
}

fn numbers(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|number| number.as_u64().unwrap().try_into().unwrap()).collect()
}

/// The status that `explain --json` predicts for a process.
fn status(process: &Value) -> Status {
    let set = |name: &str| {
        let hex = process["capabilities"][name]["hex"].as_str().unwrap();
        u64::from_str_radix(hex, 16).unwrap()
    };
    Status {
        uid: numbers(&process["uid"]),
        gid: numbers(&process["gid"]),
        groups: numbers(&process["groups"]),
        inheritable: set("inheritable"),
        permitted: set("permitted"),
        effective: set("effective"),
        bounding: set("bounding"),
        ambient: set("ambient"),
        no_new_privs: process["no_new_privs"].as_bool().unwrap(),
        seccomp: process["seccomp"]["mode"].as_u64().unwrap().try_into().unwrap(),
    }
}

/// The part of the document about one process.
pub fn role<'v>(explained: &'v Value, role: &str) -> &'v Value {
    let processes = explained["processes"].as_array().unwrap();
    processes
        .iter()
        .find(|process| process["role"] == role)
        .unwrap_or_else(|| panic!("no {role}: {explained}"))
}

/// Both, with one field a line.
fn side_by_side(explained: &Status, kernel: &Status) -> String {
    let lines = |status: &Status| -> Vec<String> {
        format!("{status:#?}").lines().map(|line| line.trim().to_owned()).collect()
    };
    let mut out = String::new();
    for (ours, theirs) in lines(explained).iter().zip(lines(kernel)) {
        writeln!(out, "{} {ours:<40} {theirs}", if *ours == theirs { ' ' } else { '!' }).unwrap();
    }
    out
}

/// Asserts that every thread of the process, its root and its limits are as explained.
#[track_caller]
pub fn assert_process_matches(explained: &Value, name: &str, pid: u32) {
    let process = role(explained, name);
    let expected = status(process);
    for thread in process::threads(pid) {
        assert!(
            thread == expected,
            "{name}: explained (left) and actual (right)\n{}",
            side_by_side(&expected, &thread)
        );
    }
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), process["limits"]["core"].as_str(), "{name}: {limits}");
    let root = format!("/proc/{pid}/root");
    match name {
        "broker" => {
            assert_eq!(process["root"], "empty, read-only");
            let reaches = process["root_reaches"].as_array().unwrap();
            let reaches: Vec<&Path> = reaches.iter().map(|path| Path::new(path.as_str().unwrap())).collect();
            for entry in std::fs::read_dir(&root).unwrap() {
                let path = Path::new("/").join(entry.unwrap().file_name());
                assert!(
                    reaches.iter().any(|reached| reached.starts_with(&path)),
                    "{path:?} is not in {reaches:?}"
                );
            }
        }
        _ => assert_eq!(process["root"].as_str(), std::fs::read_link(&root).unwrap().to_str(), "{name}"),
    }
}

/// Asserts that the locks which the broker reports in its status are as explained. /proc does not show Landlock, seccomp
/// filters and securebits.
#[track_caller]
pub fn assert_status_matches(explained: &Value, channel: &mut Peer) {
    let published = channel.status();
    for name in ["broker", "reader"] {
        let process = published.processes.iter().find(|process| &*process.role == name).unwrap();
        let locks: Vec<&str> = process.locks.iter().map(|lock| lock.as_str()).collect();
        let expected = role(explained, name)["locks"].as_array().unwrap();
        let expected: Vec<&str> = expected.iter().map(|lock| lock.as_str().unwrap()).collect();
        assert_eq!(expected, locks, "{name}");
    }
}
