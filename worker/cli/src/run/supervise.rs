//! The supervisor: answers calls, forwards signals, and takes the exit status of the program.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd as _;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;

use portreeve_intercept::Next;
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, WaitStatus, wait};
use tokio::net::unix::pipe::Receiver;
use tokio::signal::unix::SignalKind;
use tokio::task::JoinSet;

use super::answer::Answers;
use super::program;
use crate::failure::Failure;
use crate::forward::Signals;
use crate::listen::signals;

/// How many calls are answered at the same time; the next ones wait in the kernel.
const MAX_ANSWERED: usize = 32;

/// Runs the program until it ends. A program that puts itself into the background, so that its first process ends with status 0, is
/// supervised until its last process ends: this process has adopted those whose parents have ended.
pub async fn run(command: &[OsString], ignore_set_id: bool, answers: Answers) -> Result<ExitCode, Failure> {
    let answers = Arc::new(answers);
    let mut ended = signals(SignalKind::child())?;
    let signals = Signals::block()?;
    let (child, notifications) = program::start(command, ignore_set_id)?;
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: io::Error| Failure::System(what, error)
    };
    let mut main = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let notifications = Arc::new(notifications);
    let watched = notifications.as_fd().try_clone_to_owned().and_then(Receiver::from_owned_fd_unchecked);
    let watched = watched.map_err(failed("cannot wait for the program's binds"))?;
    let mut answering = JoinSet::new();
    let mut filtered = true;
    let mut following = pin!(answers.follow_policy());
    loop {
        tokio::select! {
            _ = ended.recv() => match reap(&mut main) {
                Reaped::First(status) if status != 0 => return Ok(ExitCode::from(status)),
                Reaped::Last => return Ok(ExitCode::SUCCESS),
                Reaped::First(_) | Reaped::Others => {}
            },
            signal = signals.next() => {
                let signal = signal?;
                match main {
                    Some(_) => signal.forward(main),
                    None => adopted().into_iter().for_each(|child| signal.forward(Some(child))),
                }
            }
            Some(_) = answering.join_next() => {}
            () = &mut following => {}
            ready = watched.readable(), if filtered && answering.len() < MAX_ANSWERED => {
                ready.map_err(failed("cannot wait for the program's binds"))?;
                let received = watched.try_io(|| match notifications.next()? {
                    Next::Nothing => Err(io::ErrorKind::WouldBlock.into()),
                    Next::Call(call) => Ok(Some(call)),
                    Next::Ended => Ok(None),
                });
                match received {
                    Ok(Some(call)) => {
                        let (answers, notifications) = (answers.clone(), notifications.clone());
                        answering.spawn(async move { answers.answer(&notifications, call).await });
                    }
                    Ok(None) => filtered = false,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(failed("cannot receive the program's binds")(error)),
                }
            }
        }
    }
}

/// Which children have ended.
enum Reaped {
    /// The first process of the program, with this exit status: 128 and the number of the signal, if one ended it. Others remain, or
    /// the status is not 0.
    First(u8),
    /// Others, or none.
    Others,
    /// All: the program has ended, and its first process with status 0.
    Last,
}

/// Reaps children that have ended.
fn reap(main: &mut Option<Pid>) -> Reaped {
    let mut reaped = Reaped::Others;
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((child, status))) if Some(child) == *main => {
                *main = None;
                reaped = Reaped::First(code(status));
            }
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Err(Errno::CHILD) if matches!(reaped, Reaped::Others | Reaped::First(0)) => return Reaped::Last,
            Ok(None) | Err(_) => return reaped,
        }
    }
}

fn code(status: WaitStatus) -> u8 {
    let code = status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// The processes of a program in the background that this process has adopted.
fn adopted() -> Vec<Pid> {
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .filter_map(Pid::from_raw)
        .collect()
}
