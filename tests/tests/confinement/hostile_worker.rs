//! A compromised worker, in the chroot of a careless operator: no attack succeeds, and neither the broker nor its other
//! peers are affected.

use std::ffi::CStr;
use std::fs::{self, File, Permissions};
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::process::Command;

use portreeve_tests::chroot::Chroot;
use portreeve_tests::kernel::landlock_abi;
use portreeve_tests::namespaces::unused_ids;
use portreeve_tests::{
    Broker, Host, Kernel, Peer, binaries, broker, eventually, isolated, namespaces, process,
};
use rustix::mount::mount_bind_recursive;
use rustix::process::{Pid, Signal, kill_process};

/// Every attack of the hostile worker that must fail. The test also fails if the worker no longer tries one of them.
const BLOCKED: &[&str] = &[
    "setresuid",
    "setresgid",
    "setfsuid",
    "setgroups",
    "setuid-program",
    "file-capabilities",
    "capset-each",
    "ambient-each",
    "securebits",
    "keep-capabilities",
    "no-new-privs-off",
    "limits",
    "priority",
    "chroot",
    "nested-chroot",
    "dot-dot",
    "directory-descriptors",
    "unshare-each",
    "user-namespace",
    "clone-user-namespace",
    "mount",
    "new-mount-calls",
    "unmount",
    "pivot-root",
    "mknod",
    "open-by-handle",
    "write-root",
    "trace-broker",
    "trace-launcher",
    "read-memory-of-broker",
    "read-memory-of-launcher",
    "proc-of-broker",
    "proc-of-launcher",
    "proc-of-process-1",
    "descriptors-of-broker",
    "descriptors-of-launcher",
    "namespaces-of-broker",
    "signal-broker",
    "limits-of-broker",
    "scheduling-of-broker",
    "write-sysctl",
    "write-own-program",
    "kernel-module",
    "tracing-program",
    "perf-events",
    "reboot",
    "kernel-image",
    "swap",
    "clock",
    "host-name",
    "kernel-log",
    "session-keyring",
    "terminal",
    "standard-descriptors",
    "raw-sockets",
    "privileged-ports",
    "interfaces",
    "marks",
    "denied-endpoints",
    "descriptors-with-a-request",
    "malformed-frames",
    "listen-after-stop",
    "stop-foreign-listener",
    "descriptor-limit",
    "sessions-without-hello",
];

/// Actions that the kernel allows to any process; SECURITY.md describes the consequences.
const ALLOWED: &[&str] = &["limits-of-launcher", "io-uring"];
/// What the root of a user namespace may do besides, with an effect in that namespace only.
const ALLOWED_IN_A_NAMESPACE: &[&str] =
    &["setresuid", "setresgid", "setfsuid", "setgroups", "keep-capabilities", "chroot", "nested-chroot"];
/// What Landlock's signal scope prevents, see landlock(7): only from Linux 6.12 on.
const SIGNAL_SCOPE: &str = "signal-launcher";
/// The first version of Landlock that has it.
const SIGNAL_SCOPE_ABI: u32 = 6;

const SOCKET: &str = "/run/host/chroot/run/broker.sock";

/// A chroot with everything in it that a chroot must not contain.
fn careless(host: &Host) -> Chroot {
    let chroot = Chroot::new(host, "chroot");
    for (name, mode) in [("hostile_worker", 0o755), ("setuid", 0o6755), ("capable", 0o755)] {
        let copy = chroot.path.join(name);
        fs::copy(host.binary(binaries::HOSTILE_WORKER), &copy).unwrap();
        fs::set_permissions(&copy, Permissions::from_mode(mode)).unwrap();
    }
    let capable = chroot.path.join("capable");
    namespaces::run(Command::new("setcap").arg("cap_setuid,cap_sys_admin+ep").arg(&capable), "libcap2-bin");
    for name in ["proc", "run"] {
        fs::create_dir(chroot.path.join(name)).unwrap();
    }
    mount_bind_recursive("/proc", chroot.path.join("proc")).unwrap();
    chroot.worker_directory("/writable");
    chroot
}

/// With cap_net_admin the broker can attach filters even where it cannot load an eBPF program, as in a user namespace.
fn text(chroot: &Chroot, program: &str) -> String {
    format!(
        r#"
        security {{
            user = nobody
            group = nogroup
            chroot = "{}"
            capabilities = "cap_net_bind_service,cap_net_admin+ep"
        }}
        worker {{ command = ( {program} ) restart = false }}
        broker {{
            socket = "{SOCKET}"
            socket_mode = 0666
            permit "some" {{ listen = ( "127.0.0.1:2525-2530" ) }}
            peer root {{ allow = ( status listen ) permit = ( some ) }}
            peer nobody {{ allow = ( status listen ) permit = ( some ) }}
        }}"#,
        chroot.path.display()
    )
}

/// Adds a key to the session keyring, which processes inherit.
fn add_a_key() {
    const JOIN_SESSION_KEYRING: libc::c_long = 1;
    const SESSION: libc::c_long = -3;
    let (kind, name): (&CStr, &CStr) = (c"user", c"portreeve-test");
    // SAFETY: the strings end in NUL and outlive the calls; the secret has the stated length.
    let added = unsafe {
        libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, std::ptr::null::<u8>());
        libc::syscall(libc::SYS_add_key, kind.as_ptr(), name.as_ptr(), c"secret".as_ptr(), 6_usize, SESSION)
    };
    assert!(added > 0, "no key could be added: {}", std::io::Error::last_os_error());
}

/// Both ends of a terminal.
fn terminal() -> (OwnedFd, File) {
    // SAFETY: the calls work on the new descriptor alone, and the name is copied before anything else is called.
    let (owner, name) = unsafe {
        let owner = libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY);
        assert!(owner >= 0 && libc::grantpt(owner) == 0 && libc::unlockpt(owner) == 0);
        (OwnedFd::from_raw_fd(owner), CStr::from_ptr(libc::ptsname(owner)).to_str().unwrap().to_owned())
    };
    let terminal = File::options().read(true).write(true).open(name).unwrap();
    (owner, terminal)
}

/// The same, with a worker that is root of a user namespace.
fn text_of_namespace(chroot: &Chroot) -> String {
    let (first, count) = unused_ids();
    let identity = "user = nobody\n            group = nogroup";
    let text = text(chroot, "/run/host/bin/hostile_worker --root-of-a-namespace");
    assert!(text.contains(identity));
    let text = text.replace(identity, &format!("user_namespace = \"{first}:{count}\""));
    text.replace("peer nobody", &format!("peer \"{first}\""))
}

/// Runs the attacks under a broker on this kernel, as from a login: the terminal controls the broker's session.
fn gains_nothing(host: &Host, kernel: Kernel, in_namespace: bool) {
    let chroot = careless(host);
    add_a_key();
    let (_owner, terminal) = terminal();
    let text = match in_namespace {
        true => {
            let (first, _) = unused_ids();
            chown(chroot.path.join("writable"), Some(first), Some(first)).unwrap();
            text_of_namespace(&chroot)
        }
        false => text(&chroot, "/run/host/bin/hostile_worker"),
    };
    let config = broker::config(host, &text);
    let broker = kernel.command(host, &config);
    let mut command = Command::new("setsid");
    command.arg("--ctty").arg(broker.get_program()).args(broker.get_args()).stdin(terminal);
    let broker = Broker::start_command(host, command);
    let mut bystander = Peer::connect(Path::new(SOCKET)).unwrap();
    bystander.hello();
    let (_, _listener) = bystander.listen("127.0.0.1:2530").unwrap();

    broker.log.wait_for(&["attack done"]);
    let lines = broker.log.lines();
    let results: Vec<(&str, &str)> = lines
        .iter()
        .filter_map(|line| line.strip_prefix("attack ")?.split_once(' '))
        .inspect(|(name, result)| println!("{name} {result}"))
        .collect();
    let escapes: Vec<_> = results.iter().filter(|(_, result)| result.starts_with("ESCAPED")).collect();
    assert!(escapes.is_empty(), "{escapes:#?}");
    let named = |verdict: &str| -> Vec<&str> {
        results.iter().filter(|(_, result)| result.starts_with(verdict)).map(|(name, _)| *name).collect()
    };
    let (mut allowed, mut blocked) = (ALLOWED.to_vec(), BLOCKED.to_vec());
    if in_namespace {
        blocked.retain(|name| !ALLOWED_IN_A_NAMESPACE.contains(name));
        allowed.extend(ALLOWED_IN_A_NAMESPACE);
    }
    let has_scope = kernel == Kernel::Full && landlock_abi() >= SIGNAL_SCOPE_ABI;
    if has_scope { &mut blocked } else { &mut allowed }.push(SIGNAL_SCOPE);
    assert_eq!(named("allowed"), in_order(&results, &allowed));
    assert_eq!(named("blocked"), in_order(&results, &blocked));
    assert_eq!(results.len(), blocked.len() + allowed.len());

    assert!(broker.is_running());
    assert!(process::is_running(broker.launcher()));
    bystander.ping();
    std::net::TcpStream::connect("127.0.0.1:2530").unwrap();
    let mut late = Peer::connect(Path::new(SOCKET)).unwrap();
    late.hello();
    late.listen("127.0.0.1:2529").unwrap();
}

#[test]
fn a_compromised_worker_gains_nothing() {
    isolated(|host| gains_nothing(host, Kernel::Full, false));
}

#[test]
fn a_compromised_root_of_a_user_namespace_gains_nothing() {
    isolated(|host| gains_nothing(host, Kernel::Full, true));
}

#[test]
fn a_compromised_root_of_a_user_namespace_gains_nothing_without_landlock_and_seccomp() {
    isolated(|host| gains_nothing(host, Kernel::WithoutBoth, true));
}

#[test]
fn a_compromised_worker_gains_nothing_without_landlock_and_seccomp() {
    isolated(|host| gains_nothing(host, Kernel::WithoutBoth, false));
}

/// The expected names in the order of the results; missing ones come last.
fn in_order<'a>(results: &[(&str, &str)], expected: &[&'a str]) -> Vec<&'a str> {
    let mut expected = expected.to_vec();
    expected.sort_by_key(|name| results.iter().position(|(result, _)| result == name).unwrap_or(usize::MAX));
    expected
}

#[test]
fn the_broker_ends_with_an_error_if_the_worker_kills_its_launcher() {
    isolated(|host| {
        let chroot = careless(host);
        let mut broker = Broker::start(host, &text(&chroot, "/run/host/bin/hostile_worker"));
        broker.log.wait_for(&["attack done"]);
        let launcher = Pid::from_raw(broker.launcher().cast_signed()).unwrap();
        // Only root can do that, or a worker on a kernel without Landlock: see the attack signal-launcher.
        kill_process(launcher, Signal::KILL).unwrap();
        let status = broker.wait_for_exit();
        assert!(!status.success() && status.code().is_some(), "{status}");
        broker.log.wait_for(&["launcher"]);
        eventually("no listener", || portreeve_tests::resources::tcp_listeners().is_empty().then_some(()));
    });
}
