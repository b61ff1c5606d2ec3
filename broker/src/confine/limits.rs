//! Resource limits. See setrlimit(2).

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, rlim_t, setrlimit};

use crate::config;
use crate::failure::{Exit, Failure};

const STEP: &str = "limits";

/// A soft and a hard limit.
pub type Limit = (rlim_t, rlim_t);

/// Stands for the descriptor limit at the start in `check` and `explain`, where nothing is started.
pub const AS_STARTED: Limit = (0, 0);

/// Protects this process's memory: no core file and not dumpable (PR_SET_DUMPABLE 0, see prctl(2)). New files get no
/// permissions for group and others.
pub fn make_private() -> Result<(), Failure> {
    make_private_with(0)
}

/// The same for a process that starts the worker: the hard limit of core files stays as it is, for the worker.
pub fn make_private_before_the_worker() -> Result<(), Failure> {
    let (_, hard) =
        getrlimit(Resource::RLIMIT_CORE).map_err(|e| Failure::os(STEP, "getrlimit RLIMIT_CORE", e))?;
    make_private_with(hard)
}

fn make_private_with(core_hard: rlim_t) -> Result<(), Failure> {
    setrlimit(Resource::RLIMIT_CORE, 0, core_hard)
        .map_err(|e| Failure::os(STEP, "setrlimit RLIMIT_CORE 0", e))?;
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(|e| Failure::os(STEP, "prctl PR_SET_DUMPABLE 0", e))?;
    if !matches!(rustix::process::dumpable_behavior(), Ok(rustix::process::DumpableBehavior::NotDumpable)) {
        return Err(Failure::os(STEP, "reading PR_GET_DUMPABLE back", "this process is still dumpable"));
    }
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    Ok(())
}

/// Raises this process's soft limit of open descriptors to the hard limit and returns the limit before and after. The
/// number of possible listeners follows from it.
pub fn raise_descriptors() -> Result<(Limit, rlim_t), Failure> {
    let before =
        getrlimit(Resource::RLIMIT_NOFILE).map_err(|e| Failure::os(STEP, "getrlimit RLIMIT_NOFILE", e))?;
    setrlimit(Resource::RLIMIT_NOFILE, before.1, before.1)
        .map_err(|e| Failure::os(STEP, "setrlimit RLIMIT_NOFILE", e))?;
    Ok((before, before.1))
}

/// Sets one of the worker's limits, both soft and hard, and reads it back.
pub fn set(limit: &config::Limit) -> Result<(), Failure> {
    let (name, value) = (limit.resource.name(), limit.value.unwrap_or(RLIM_INFINITY));
    let Some(resource) = resource(name) else {
        return Err(Failure::new(Exit::Config, STEP, format_args!("{name} cannot be set here"), "remove it"));
    };
    setrlimit(resource, value, value).map_err(|error| {
        Failure::new(
            Exit::NoPermission,
            STEP,
            format_args!("cannot set worker.limit {name} = {value}: {error}"),
            "lower it, or start portreeved with a higher hard limit (LimitNOFILE= and similar in the unit, ulimit -H)",
        )
    })?;
    match getrlimit(resource) {
        Ok(limits) if limits == (value, value) => Ok(()),
        other => Err(Failure::os(STEP, "reading the limit back", format_args!("{name} is {other:?}"))),
    }
}

/// Raises the soft limit of core files to the hard limit. A process that becomes the worker calls it, at the last moment.
pub fn allow_core_files() -> nix::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_CORE)?;
    setrlimit(Resource::RLIMIT_CORE, hard, hard)
}

/// Why this process cannot set a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsettable {
    /// More open files than the kernel allows: fs.nr_open, see proc_sys_fs(5).
    AboveKernel(u64),
    /// More than the hard limit of this process, which it may not raise.
    AboveHard(rlim_t),
}

/// Tries whether this process can set a limit. Its limits stay as they are.
pub fn probe(limit: &config::Limit) -> Result<(), Unsettable> {
    let value = limit.value.unwrap_or(RLIM_INFINITY);
    let Some(resource) = resource(limit.resource.name()) else { return Ok(()) };
    if resource == Resource::RLIMIT_NOFILE
        && let Some(most) =
            std::fs::read_to_string("/proc/sys/fs/nr_open").ok().and_then(|text| text.trim().parse().ok())
        && value > most
    {
        return Err(Unsettable::AboveKernel(most));
    }
    let Ok((soft, hard)) = getrlimit(resource) else { return Ok(()) };
    if value <= hard {
        return Ok(());
    }
    setrlimit(resource, soft, value).map_err(|_| Unsettable::AboveHard(hard))?;
    let _ = setrlimit(resource, soft, hard); // a limit can always be lowered
    Ok(())
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

/// Restores the descriptor limit of the start for the worker; the broker has raised its own.
pub fn restore_descriptors(before: Limit) -> Result<(), Failure> {
    setrlimit(Resource::RLIMIT_NOFILE, before.0, before.1)
        .map_err(|e| Failure::os(STEP, "setrlimit RLIMIT_NOFILE", e))
}
