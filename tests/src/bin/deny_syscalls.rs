//! Runs a program as if the kernel refused some system calls: `deny_syscalls CALL=ERRNO... -- PROGRAM ARGUMENT...`
//!
//! `prctl:22=EPERM` refuses a call for one value of its first argument only, `socket:12@2=EPERM` for one of its third. Needs CAP_SYS_ADMIN, because it does not set
//! no_new_privs: a program under test that does is to be seen doing it.

use std::os::unix::process::CommandExt as _;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

const CALLS: &[(&str, libc::c_long)] = &[
    ("bind", libc::SYS_bind),
    ("capset", libc::SYS_capset),
    ("chroot", libc::SYS_chroot),
    ("clone", libc::SYS_clone),
    ("close_range", libc::SYS_close_range),
    ("epoll_create1", libc::SYS_epoll_create1),
    ("fsmount", libc::SYS_fsmount),
    ("fsopen", libc::SYS_fsopen),
    ("keyctl", libc::SYS_keyctl),
    ("landlock_add_rule", libc::SYS_landlock_add_rule),
    ("landlock_create_ruleset", libc::SYS_landlock_create_ruleset),
    ("landlock_restrict_self", libc::SYS_landlock_restrict_self),
    ("mount", libc::SYS_mount),
    ("move_mount", libc::SYS_move_mount),
    ("open_tree", libc::SYS_open_tree),
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
    ("EDQUOT", libc::EDQUOT),
    ("EINVAL", libc::EINVAL),
    ("EMFILE", libc::EMFILE),
    ("ENOMEM", libc::ENOMEM),
    ("ENOSYS", libc::ENOSYS),
    ("EPERM", libc::EPERM),
    ("EPROTONOSUPPORT", libc::EPROTONOSUPPORT),
];

fn main() {
    let mut arguments = std::env::args().skip(1);
    let refusals: Vec<String> = arguments.by_ref().take_while(|argument| argument != "--").collect();
    for refusal in &refusals {
        refuse(refusal);
    }
    let program = arguments.next().expect("a program after --");
    let error = std::process::Command::new(&program).args(arguments).exec();
    panic!("{program} cannot be run: {error}");
}

fn find<T: Copy>(table: &[(&str, T)], name: &str) -> T {
    table.iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("{name} is not in the table")).1
}

/// Every filter stays in force beside those that come after it, so each refusal is one.
fn refuse(refusal: &str) {
    let (call, error) = refusal.split_once('=').expect("CALL=ERRNO");
    let (call, argument) = match call.split_once(':') {
        Some((call, argument)) => {
            let (value, place) = argument.split_once('@').unwrap_or((argument, "0"));
            (call, Some((value.parse().expect("a number"), place.parse().expect("a number"))))
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
    // SAFETY: the program lives as long as the call; its instructions are laid out as the kernel's are.
    let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) };
    assert_eq!(result, 0, "a filter cannot be installed: {}", std::io::Error::last_os_error());
}
