//! Socket activation: how a process passes listeners to a program that it starts. See sd_listen_fds(3).
//!
//! The variables name the process that the sockets are for. Its id and the inode number of its pidfd survive exec(2), so the
//! process itself sets the variables, and then executes the program.

use rustix::fs::{fstat, fstatfs};
use rustix::process::{PidfdFlags, getpid, pidfd_open};

/// The first descriptor that is passed: SD_LISTEN_FDS_START.
pub const FIRST_DESCRIPTOR: i32 = 3;

/// The variables. A process that passes sockets removes those that it inherited itself: they name another process.
pub const VARIABLES: [&str; 4] = ["LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// File systems of this type have the pidfds of Linux 6.9 and later. Earlier ones have one inode number for all processes.
const PID_FS_MAGIC: u32 = 0x5049_4446;

/// The variables for sockets with these names, passed to this process and the program that it executes.
pub fn variables<N: AsRef<str>>(names: &[N]) -> Vec<(&'static str, String)> {
    let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
    let mut variables = vec![
        ("LISTEN_PID", std::process::id().to_string()),
        ("LISTEN_FDS", names.len().to_string()),
        ("LISTEN_FDNAMES", names.join(":")),
    ];
    variables.extend(pidfd_id().map(|id| ("LISTEN_PIDFDID", id.to_string())));
    variables
}

/// The inode number of a pidfd of this process, which no other process of this boot has. `None` if this kernel has no such
/// number, or on a machine whose inode numbers are shorter.
fn pidfd_id() -> Option<u64> {
    let pidfd = pidfd_open(getpid(), PidfdFlags::empty()).ok()?;
    let is_unique = cfg!(target_pointer_width = "64")
        && fstatfs(&pidfd).is_ok_and(|system| u32::try_from(system.f_type) == Ok(PID_FS_MAGIC));
    is_unique.then(|| fstat(&pidfd).ok())?.map(|file| file.st_ino)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variables_name_this_process_and_every_socket() {
        let set = variables(&["smtp", "submission"]);
        let value = |name| set.iter().find(|(set, _)| *set == name).map(|(_, value)| value.as_str());
        assert_eq!(value("LISTEN_PID"), Some(std::process::id().to_string().as_str()));
        assert_eq!(value("LISTEN_FDS"), Some("2"));
        assert_eq!(value("LISTEN_FDNAMES"), Some("smtp:submission"));
        assert!(set.iter().all(|(name, _)| VARIABLES.contains(name)), "{set:?}");
    }
}
