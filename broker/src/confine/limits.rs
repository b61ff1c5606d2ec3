//! Resource limits. See setrlimit(2).

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, rlim_t, setrlimit};

use crate::config;
use crate::failure::{Exit, Failure};

const STEP: &str = "limits";

/// A soft and a hard limit.
pub type Limit = (rlim_t, rlim_t);

/// The descriptor limit of whoever starts the broker, where nobody has started it.
pub const AS_STARTED: Limit = (0, 0);

/// Makes this process one whose memory nobody may look at: no core file, not dumpable (PR_SET_DUMPABLE 0, see
/// prctl(2)), new files for nobody else.
pub fn make_private() -> Result<(), Failure> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(|e| Failure::os(STEP, "setrlimit RLIMIT_CORE 0", e))?;
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(|e| Failure::os(STEP, "prctl PR_SET_DUMPABLE 0", e))?;
    if !matches!(rustix::process::dumpable_behavior(), Ok(rustix::process::DumpableBehavior::NotDumpable)) {
        return Err(Failure::os(STEP, "reading PR_GET_DUMPABLE back", "this process is dumpable still"));
    }
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    Ok(())
}

/// Raises this process's soft limit of open descriptors to its hard limit and tells what it was before and is
/// now: how many listeners can be held follows from it.
pub fn raise_descriptors() -> Result<(Limit, rlim_t), Failure> {
    let before =
        getrlimit(Resource::RLIMIT_NOFILE).map_err(|e| Failure::os(STEP, "getrlimit RLIMIT_NOFILE", e))?;
    setrlimit(Resource::RLIMIT_NOFILE, before.1, before.1)
        .map_err(|e| Failure::os(STEP, "setrlimit RLIMIT_NOFILE", e))?;
    Ok((before, before.1))
}

/// Sets one of the worker's limits, soft and hard alike, and reads it back.
pub fn set(limit: &config::Limit) -> Result<(), Failure> {
    let (name, value) = (limit.resource.name(), limit.value.unwrap_or(RLIM_INFINITY));
    let Some(resource) = resource(name) else {
        return Err(Failure::new(Exit::Config, STEP, format_args!("{name} cannot be set here"), "remove it"));
    };
    setrlimit(resource, value, value).map_err(|error| {
        Failure::new(
            Exit::NoPermission,
            STEP,
            format_args!("worker.limit {name} = {value} cannot be set: {error}"),
            "lower it, or start portreeved with a hard limit that allows it (LimitNOFILE= and its like, ulimit -H)",
        )
    })?;
    match getrlimit(resource) {
        Ok(limits) if limits == (value, value) => Ok(()),
        other => Err(Failure::os(STEP, "reading the limit back", format_args!("{name} is {other:?}"))),
    }
}

fn resource(name: &str) -> Option<Resource> {
    Some(match name {
        "cpu" => Resource::RLIMIT_CPU,
        "fsize" => Resource::RLIMIT_FSIZE,
        "data" => Resource::RLIMIT_DATA,
        "stack" => Resource::RLIMIT_STACK,
        "core" => Resource::RLIMIT_CORE,
        "rss" => Resource::RLIMIT_RSS,
        "nproc" => Resource::RLIMIT_NPROC,
        "nofile" => Resource::RLIMIT_NOFILE,
        "memlock" => Resource::RLIMIT_MEMLOCK,
        "as" => Resource::RLIMIT_AS,
        "locks" => Resource::RLIMIT_LOCKS,
        "sigpending" => Resource::RLIMIT_SIGPENDING,
        "msgqueue" => Resource::RLIMIT_MSGQUEUE,
        "nice" => Resource::RLIMIT_NICE,
        "rtprio" => Resource::RLIMIT_RTPRIO,
        "rttime" => Resource::RLIMIT_RTTIME,
        _ => return None,
    })
}

/// Gives the worker the descriptor limit that the broker was started with, not the one it raised for itself.
pub fn restore_descriptors(before: Limit) -> Result<(), Failure> {
    setrlimit(Resource::RLIMIT_NOFILE, before.0, before.1)
        .map_err(|e| Failure::os(STEP, "setrlimit RLIMIT_NOFILE", e))
}
