//! Runs a program with some system calls denied: `deny_syscalls CALL=ERRNO... -- PROGRAM ARGUMENT...`
//!
//! `prctl:22=EPERM` denies a call only if its first argument is 22, `socket:12@2=EPERM` only if its third is 12. It needs
//! CAP_SYS_ADMIN, because it does not set no_new_privs: tests observe whether the program under test sets it.

use std::os::unix::process::CommandExt as _;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

const CALLS: &[(&str, libc::c_long)] = &[
    ("bind", libc::SYS_bind),
    ("bpf", libc::SYS_bpf),
    ("capset", libc::SYS_capset),
    ("chroot", libc::SYS_chroot),
    ("clone", libc::SYS_clone),
    ("close_range", libc::SYS_close_range),
    ("epoll_create1", libc::SYS_epoll_create1),
    ("fsmount", libc::SYS_fsmount),
    ("fsopen", libc::SYS_fsopen),
    ("ioctl", libc::SYS_ioctl),
    ("keyctl", libc::SYS_keyctl),
    ("landlock_add_rule", libc::SYS_landlock_add_rule),
    ("landlock_create_ruleset", libc::SYS_landlock_create_ruleset),
    ("landlock_restrict_self", libc::SYS_landlock_restrict_self),
    ("mount", libc::SYS_mount),
    ("move_mount", libc::SYS_move_mount),
    ("open_tree", libc::SYS_open_tree),
    ("pidfd_open", libc::SYS_pidfd_open),
    ("pivot_root", libc::SYS_pivot_root),
    ("prctl", libc::SYS_prctl),
    ("prlimit64", libc::SYS_prlimit64),
    ("seccomp", libc::SYS_seccomp),
    ("setgroups", libc::SYS_setgroups),
    ("setresgid", libc::SYS_setresgid),
    ("setresuid", libc::SYS_setresuid),
    ("setsid", libc::SYS_setsid),
    ("socket", libc::SYS_socket),
    ("socketpair", libc::SYS_socketpair),
    ("umount2", libc::SYS_umount2),
    ("unshare", libc::SYS_unshare),
];

const ERRORS: &[(&str, i32)] = &[
    ("EAFNOSUPPORT", libc::EAFNOSUPPORT),
    ("EDQUOT", libc::EDQUOT),
    ("EINVAL", libc::EINVAL),
    ("EMFILE", libc::EMFILE),
    ("ENOMEM", libc::ENOMEM),
    ("ENOSPC", libc::ENOSPC),
    ("ENOSYS", libc::ENOSYS),
    ("ENOTTY", libc::ENOTTY),
    ("EPERM", libc::EPERM),
    ("EPROTONOSUPPORT", libc::EPROTONOSUPPORT),
];

fn main() {
    let mut arguments = std::env::args().skip(1);
    let denials: Vec<String> = arguments.by_ref().take_while(|argument| argument != "--").collect();
    for denial in &denials {
        deny(denial);
    }
    let program = arguments.next().expect("no program after --");
    let error = std::process::Command::new(&program).args(arguments).exec();
    panic!("cannot run {program}: {error}");
}

fn find<T: Copy>(table: &[(&str, T)], name: &str) -> T {
    table.iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("unknown name: {name}")).1
}

/// Installs a filter for one denial. Filters add up, so each denial gets its own.
fn deny(denial: &str) {
    let (call, error) = denial.split_once('=').expect("the argument must be CALL=ERRNO");
    let (call, argument) = match call.split_once(':') {
        Some((call, argument)) => {
            let (value, place) = argument.split_once('@').unwrap_or((argument, "0"));
            (
                call,
                Some((
                    value.parse().expect("VALUE must be a number"),
                    place.parse().expect("INDEX must be a number"),
                )),
            )
        }
        None => (call, None),
    };
    let condition = |(value, place)| {
        let is = SeccompCondition::new(place, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value).unwrap();
        SeccompRule::new(vec![is]).unwrap()
    };
    let rules = [(find(CALLS, call), argument.map(condition).into_iter().collect())].into();
    let error = SeccompAction::Errno(find(ERRORS, error).unsigned_abs());
    let architecture = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, error, architecture).unwrap();
    install(&filter.try_into().unwrap());
}

fn install(program: &BpfProgram) {
    let length = u16::try_from(program.len()).unwrap();
    let filter = program.as_ptr().cast_mut().cast();
    let program = libc::sock_fprog { len: length, filter };
    // SAFETY: the program outlives the call; its instructions have the kernel's layout.
    let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) };
    assert_eq!(result, 0, "cannot install a filter: {}", std::io::Error::last_os_error());
}
