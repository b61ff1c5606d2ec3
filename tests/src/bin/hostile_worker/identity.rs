//! Attacks on the worker's own identity and capabilities.

use std::process::{Command, Stdio};

use crate::attack::{
    Attack, Outcome, Word, address, all_refused, call, is_root_of_a_namespace, refused,
    refused_outside_a_namespace as inside,
};

pub const ATTACKS: &[Attack] = &[
    Attack { name: "setresuid", attempt: || inside(call(libc::SYS_setresuid, [0, 0, 0])) },
    Attack { name: "setresgid", attempt: || inside(call(libc::SYS_setresgid, [0, 0, 0])) },
    Attack { name: "setfsuid", attempt: setfsuid },
    Attack { name: "setgroups", attempt: || inside(call(libc::SYS_setgroups, [1, address(&42_u32)])) },
    Attack { name: "setuid-program", attempt: || run_as("/setuid") },
    Attack { name: "file-capabilities", attempt: || run_as("/capable") },
    Attack { name: "capset-each", attempt: capset_each },
    Attack { name: "ambient-each", attempt: ambient_each },
    Attack { name: "securebits", attempt: || refused(prctl(libc::PR_SET_SECUREBITS, 0)) },
    Attack { name: "keep-capabilities", attempt: || inside(prctl(libc::PR_SET_KEEPCAPS, 1)) },
    Attack { name: "no-new-privs-off", attempt: no_new_privs_off },
    Attack { name: "limits", attempt: raise_limits },
    Attack { name: "priority", attempt: raise_priority },
];

fn prctl(option: i32, value: Word) -> std::io::Result<Word> {
    call(libc::SYS_prctl, [Word::from(option), value, 0, 0, 0])
}

fn setfsuid() -> Outcome {
    // setfsuid never fails: it returns the previous id, so a second call returns the current one.
    let _ = call(libc::SYS_setfsuid, [0]); // the next call shows its effect
    match call(libc::SYS_setfsuid, [-1]) {
        Ok(0) if is_root_of_a_namespace() => Outcome::Allowed("inside its namespace".to_owned()),
        Ok(0) => Outcome::Escaped("the file system user id is 0".to_owned()),
        Ok(id) => Outcome::Blocked(format!("it stays {id}")),
        Err(error) => Outcome::Blocked(error.to_string()),
    }
}

/// Runs a copy of this program in the chroot, with a file mode or file capabilities that a careless operator set. The exit status
/// shows whether it gained any.
fn run_as(path: &str) -> Outcome {
    let mut command = Command::new(path);
    command.args(["--as-program", "identity"]);
    if is_root_of_a_namespace() {
        // As another user of the namespace, who could gain its root.
        std::os::unix::process::CommandExt::uid(&mut command, 100);
        std::os::unix::process::CommandExt::gid(&mut command, 100);
    }
    match command.stdin(Stdio::inherit()).stdout(Stdio::inherit()).stderr(Stdio::inherit()).status() {
        Ok(status) if status.success() => Outcome::Blocked("it ran without additional privileges".to_owned()),
        Ok(status) => Outcome::Escaped(format!("it ran with additional privileges: {status}")),
        Err(error) => Outcome::Escaped(format!("not tried: cannot run it: {error}")),
    }
}

fn capset_each() -> Outcome {
    let one = |number: u32| {
        let header = [0x2008_0522_u32, 0];
        let bit = |word: u32| if number / 32 == word { 1 << (number % 32) } else { 0 };
        let data = [[bit(0), bit(0), 0_u32], [bit(1), bit(1), 0]];
        (format!("capability {number}"), call(libc::SYS_capset, [address(&header), address(&data)]))
    };
    // Those that it has are those over its namespace.
    let [[_, low, _], [_, high, _]] = crate::payload::capabilities();
    let held = u64::from(high) << 32 | u64::from(low);
    all_refused((0..=40).filter(|number| held & 1 << number == 0).map(one))
}

fn ambient_each() -> Outcome {
    let option = Word::from(libc::PR_CAP_AMBIENT);
    let raise = Word::from(libc::PR_CAP_AMBIENT_RAISE);
    let one = |number| (format!("capability {number}"), call(libc::SYS_prctl, [option, raise, number, 0, 0]));
    all_refused((0..=40).map(one))
}

fn no_new_privs_off() -> Outcome {
    let _ = prctl(libc::PR_SET_NO_NEW_PRIVS, 0); // the next call shows its effect
    match prctl(libc::PR_GET_NO_NEW_PRIVS, 0) {
        Ok(1) => Outcome::Blocked("it stays set".to_owned()),
        other => Outcome::Escaped(format!("{other:?}")),
    }
}

fn raise_limits() -> Outcome {
    let one = |resource: u32| {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        let number = Word::from(resource);
        call(libc::SYS_prlimit64, [0, number, 0, crate::attack::address_mut(&mut limit)]).unwrap();
        if limit.rlim_max == libc::RLIM_INFINITY {
            return None;
        }
        limit.rlim_max += 1;
        Some((format!("limit {resource}"), call(libc::SYS_prlimit64, [0, number, address(&limit), 0])))
    };
    all_refused((0..16).filter_map(one))
}

fn raise_priority() -> Outcome {
    const FIFO: Word = 1;
    let nice = call(libc::SYS_setpriority, [0, 0, -20]);
    let real_time = call(libc::SYS_sched_setscheduler, [0, FIFO, address(&1_i32)]);
    all_refused([("nice -20".to_owned(), nice), ("SCHED_FIFO".to_owned(), real_time)])
}
