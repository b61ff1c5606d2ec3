//! Who this process is: a user without privileges, on one boot of one host.

use std::fs;

use super::failure::Failure;

/// Fails if the process has a privilege: a fault in it must not become one of root's.
pub fn require_no_privilege() -> Result<(), Failure> {
    let remedy = "Start it as a user of its own, as portreeve-coordinator.service does";
    if nix::unistd::geteuid().is_root() || nix::unistd::getuid().is_root() {
        return Err(Failure::NoPermission(format!("this program refuses to run as root. {remedy}")));
    }
    let path = "/proc/self/status";
    let status = fs::read_to_string(path)
        .map_err(|error| Failure::System(format!("cannot read the capabilities in {path}"), error))?;
    for name in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        if line.is_none_or(|set| set.trim().bytes().any(|digit| digit != b'0')) {
            let set = line.map_or("unknown", str::trim);
            return Err(Failure::NoPermission(format!(
                "this program refuses to run with capabilities ({name} is {set}). {remedy}"
            )));
        }
    }
    Ok(())
}

/// Tells the boots of all hosts apart, and the network namespaces of one.
pub fn boot() -> Result<String, Failure> {
    let path = "/proc/sys/kernel/random/boot_id";
    let boot = fs::read_to_string(path)
        .map_err(|error| Failure::System(format!("cannot read the boot's number in {path}"), error))?;
    let path = "/proc/self/ns/net";
    let namespace = fs::read_link(path)
        .map_err(|error| Failure::System(format!("cannot read the network namespace in {path}"), error))?;
    let namespace = namespace.to_string_lossy();
    let number = namespace.trim_start_matches("net:[").trim_end_matches(']');
    Ok(format!("{}/{number}", boot.trim()))
}

/// A number that no other process of the cluster has.
pub fn nonce() -> Result<u64, Failure> {
    // JSON programs such as jq keep 53 bits of an integer.
    getrandom::u64().map(|number| number >> 11).map_err(|error| {
        Failure::System("cannot get a random number".to_owned(), std::io::Error::other(error.to_string()))
    })
}
