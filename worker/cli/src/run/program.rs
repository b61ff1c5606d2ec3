//! Starting the program, with the filter and without what belongs to its supervisor.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use portreeve::socket_activation::VARIABLES;
use portreeve::{CHANNEL_VARIABLE, listeners_from_environment};
use portreeve_intercept::{Notifications, filter, notifications};
use rustix::fs::{Mode, stat};
use rustix::process::{getegid, geteuid};

use crate::failure::Failure;

/// Starts the program.
pub fn start(words: &[OsString], ignore_set_id: bool) -> Result<(Child, Notifications), Failure> {
    let Some((program, arguments)) = words.split_first() else {
        return Err(Failure::System("cannot run the program".to_owned(), io::ErrorKind::InvalidInput.into()));
    };
    let name = program.to_string_lossy().into_owned();
    if !ignore_set_id {
        refuse_set_id(program, &name)?;
    }
    if let Some(level) = notifications::obstructing_yama_level(notifications::has_sys_ptrace()) {
        let what = format!(
            "cannot intercept bind(2) of {name:?}: kernel.yama.ptrace_scope is {level}, and portreeve has to look into the \
             program's processes. Set it to 0 or 1"
        );
        return Err(Failure::System(what, io::ErrorKind::PermissionDenied.into()));
    }
    // Listeners of the configuration are requested again when the program binds them. This process has taken its channel already.
    let inherited = listeners_from_environment().map_err(portreeve::Error::from)?;
    let mut command = Command::new(program);
    command.args(arguments).env_remove(CHANNEL_VARIABLE);
    for variable in VARIABLES {
        command.env_remove(variable);
    }
    let failed = |error| Failure::System(format!("cannot start {name:?}"), error);
    let channel = filter::intercept(&mut command).map_err(failed)?;
    let spawned = command.spawn();
    drop((command, inherited));
    let cannot =
        |error: filter::InstallError| Failure::System(error.to_string(), io::ErrorKind::Unsupported.into());
    match (spawned, filter::receive(&channel)) {
        (Ok(child), Ok(Some(notifications))) => Ok((child, notifications)),
        (Ok(mut child), Ok(None)) => {
            let _ = child.kill(); // it may have ended
            Err(failed(io::ErrorKind::UnexpectedEof.into()))
        }
        (Err(error), Ok(_)) => Err(Failure::Program(name, error)),
        (spawned, Err(error)) => {
            if let Ok(mut child) = spawned {
                let _ = child.kill(); // it may have ended
            }
            Err(cannot(error))
        }
    }
}

/// A set-user-id program would run without the privileges of its owner, because a program with a filter can gain none.
fn refuse_set_id(program: &OsStr, name: &str) -> Result<(), Failure> {
    let Some(status) = find(program).and_then(|path| stat(&path).ok()) else { return Ok(()) };
    let mode = Mode::from_raw_mode(status.st_mode);
    let user = mode.contains(Mode::SUID) && status.st_uid != geteuid().as_raw();
    let group = mode.contains(Mode::SGID | Mode::XGRP) && status.st_gid != getegid().as_raw();
    if !user && !group {
        return Ok(());
    }
    let kind = if user { "set-user-id" } else { "set-group-id" };
    let why = format!(
        "it is a {kind} program, which gets no privileges under portreeve run. Run it without portreeve, \
         or as this user with --ignore-set-id"
    );
    Err(Failure::Program(name.to_owned(), io::Error::new(io::ErrorKind::PermissionDenied, why)))
}

/// The file that execvp(3) executes.
fn find(program: &OsStr) -> Option<PathBuf> {
    if program.as_bytes().contains(&b'/') {
        return Some(PathBuf::from(program));
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/bin:/usr/bin"));
    let is_executable =
        |path: &Path| rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok() && path.is_file();
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|path| is_executable(path))
}
