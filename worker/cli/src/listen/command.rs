//! Runs a command with listeners: starts it, forwards signals to it, and takes its exit status.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, ExitCode};

use command_fds::{CommandFdExt as _, FdMapping};
use portreeve::Listener;
use portreeve::socket_activation::{FIRST_DESCRIPTOR, VARIABLES};
use rustix::process::{Pid, getpid};

use crate::failure::Failure;
use crate::forward::Signals;
use crate::output::Output;

/// Starts the command with the sockets as descriptors from 3 on, or as its standard input, and waits until it ends.
pub async fn run(
    listeners: &[Listener],
    stdin: bool,
    command: &[OsString],
    out: Output,
) -> Result<ExitCode, Failure> {
    let program = command.first().map(|program| program.to_string_lossy()).unwrap_or_default();
    let failed = |error| Failure::System(format!("cannot run {program:?}"), error);
    let mut exec = Command::new("/proc/self/exe");
    exec.arg0("portreeve").args(out.json.then_some("--json"));
    exec.args(["exec", "--parent", &getpid().to_string()]);
    for name in VARIABLES {
        exec.env_remove(name);
    }
    let mut sockets = Vec::new();
    for (listener, child_fd) in listeners.iter().zip(FIRST_DESCRIPTOR..) {
        let parent_fd: OwnedFd = listener.try_clone().map_err(failed)?;
        if stdin {
            exec.stdin(parent_fd);
            break;
        }
        sockets.push(FdMapping { parent_fd, child_fd });
        exec.arg("--name").arg(listener.endpoint().to_string().replace(':', "_"));
    }
    exec.arg("--").args(command);
    exec.fd_mappings(sockets).map_err(|error| failed(io::Error::other(error.to_string())))?;
    let signals = Signals::block()?;
    let mut child = tokio::process::Command::from(exec).spawn().map_err(failed)?;
    let process = child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?));
    let status = loop {
        tokio::select! {
            status = child.wait() => break status.map_err(failed)?,
            signal = signals.next() => signal?.forward(process),
        }
    };
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    Ok(code.and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}
