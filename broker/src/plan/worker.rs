//! `worker.command`: opens and checks the program, and prepares arguments and environment for exec(3).

use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;

use portreeve_intercept::notifications::obstructing_yama_level;

use super::Root;
use super::finding::{Findings, is_permission_denied};
use crate::config::{Bind, Config, Span, Worker};
use crate::confine::identity::Identity;
use crate::failure::Exit;
use crate::launcher::program::{self, Unusable};
use crate::launcher::{Command, ProgramName};

const STEP: &str = "worker.command";

/// The command that the launcher starts in this root; `None` if there is an error or something could not be examined.
pub fn command(
    config: &Config,
    worker: &Worker,
    root: &Root,
    identity: Option<&Identity>,
    findings: &mut Findings,
) -> Option<Command> {
    let Some(name) = worker.command.first() else {
        let diagnostic = config.error(worker.span, "the command is empty", "name a program");
        findings.error(STEP, Exit::Config, diagnostic);
        return None;
    };
    check_yama(config, worker, findings);
    let mut c_string = |text: String, span: Span| {
        CString::new(text)
            .map_err(|_| {
                let diagnostic = config.error(span, "it contains a NUL byte", "remove it");
                findings.error(STEP, Exit::Config, diagnostic);
            })
            .ok()
    };
    let arguments: Vec<_> = worker
        .command
        .iter()
        .enumerate()
        .map(|(place, word)| {
            let text = if place == 0 { path_in_chroot(config, &word.value) } else { &word.value };
            c_string(text.to_owned(), word.span)
        })
        .collect();
    let environment = worker.environment.iter();
    let environment: Vec<_> = environment
        .map(|(name, value)| c_string(format!("{}={}", name.value, value.value), value.span))
        .collect();
    let checked = program::open(&name.value).and_then(|program| {
        check_mode(config, name.span, &program, identity, findings);
        let complete = match root {
            Root::Host => program::complete(&program, None),
            Root::Chroot(directory) => program::complete(&program, Some(directory.as_fd())),
            Root::Unknown => Ok(()),
        };
        complete.map(|()| program)
    });
    let program = match checked {
        Ok(program) => Some(program.into()),
        Err(Unusable::Open(error)) if is_permission_denied(&error) => {
            findings.no_permission(config, name.span, &format!("the program {:?}", name.value));
            None
        }
        Err(unusable) => {
            let message = format!("{:?} {unusable}", name.value);
            findings.error(STEP, Exit::OsFile, config.error(name.span, message, unusable.remedy()));
            None
        }
    };
    Some(Command {
        program: program?,
        name: ProgramName { path: name.value.clone(), place: config.place(name.span) },
        arguments: arguments.into_iter().collect::<Option<_>>()?,
        environment: environment.into_iter().collect::<Option<_>>()?,
        umask: worker.umask,
        bind: worker.bind,
    })
}

/// The path by which the worker can find its program, for example to execute itself: that in its chroot, if the program is there.
fn path_in_chroot<'p>(config: &Config, path: &'p str) -> &'p str {
    let chroot = config.security.chroot.as_ref().and_then(|chroot| chroot.value.to_str());
    let inside = chroot.and_then(|chroot| path.strip_prefix(chroot.trim_end_matches('/')));
    inside.filter(|inside| inside.starts_with('/')).unwrap_or(path)
}

/// The supervisor of a worker whose binds are intercepted has to look into the worker's processes. In a user namespace it has
/// CAP_SYS_PTRACE.
fn check_yama(config: &Config, worker: &Worker, findings: &mut Findings) {
    if worker.bind != Bind::Brokered {
        return;
    }
    let level = obstructing_yama_level(config.security.user_namespace.is_some());
    let Some(level) = level else { return };
    let message = format!(
        "bind = brokered cannot work: kernel.yama.ptrace_scope is {level}, and the worker's supervisor has to look into its processes"
    );
    let help = "set kernel.yama.ptrace_scope to 0 or 1 with sysctl(8), or write bind = direct";
    findings.error("worker.bind", Exit::Unavailable, config.error(worker.span, message, help));
}

/// Checks owner and mode. An access control list may decide otherwise, so uncertain cases are warnings.
fn check_mode(
    config: &Config,
    span: Span,
    program: &File,
    identity: Option<&Identity>,
    findings: &mut Findings,
) {
    let (Some(identity), Ok(metadata)) = (identity, program.metadata()) else {
        return;
    };
    let groups = || identity.groups.iter().chain([&identity.group]);
    let bit = match metadata.uid() == identity.user.as_raw() {
        true => 0o100,
        false if groups().any(|group| group.as_raw() == metadata.gid()) => 0o010,
        false => 0o001,
    };
    // This holds for a worker with uid 0 too: it has no capability.
    if metadata.mode() & bit == 0 && metadata.mode() & 0o111 != 0 {
        let message = format!("the file's mode does not let user {} execute it", identity.user);
        let help = "chmod o+x it or change its group, unless an access control list allows it";
        findings.add(config.warning(span, message, help));
    }
}
