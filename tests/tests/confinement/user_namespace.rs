//! A worker in a user namespace: it is root there, and on the host it owns nothing and has no capability.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::process::Command;

use portreeve_tests::kernel::command_denying;
use portreeve_tests::namespaces::unused_ids;
use portreeve_tests::{Broker, Host, binaries, broker, eventually, isolated, process};
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};

fn text(options: &str, command: &str, rest: &str) -> String {
    let (first, count) = unused_ids();
    format!(
        r#"
        security {{ user_namespace = "{first}:{count}" {options} capabilities = "cap_net_bind_service+ep" }}
        worker {{ command = {command} restart = false }}
        broker {{
            socket = "{}"
            permit "some" {{ listen = ( "127.0.0.1:2525" ) }}
            peer root {{ allow = ( status listen ) permit = ( some ) }}
        }}
        {rest}"#,
        broker::SOCKET
    )
}

/// A configuration whose worker runs this Python program on the host's root.
fn python(host: &Host, program: &str) -> String {
    let path = host.file("worker.py", program);
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    let python = fs::canonicalize("/usr/bin/python3").unwrap();
    let command = format!("( {} {} )", python.display(), path.display());
    text("", &command, r#"ESMTP_Listener { Listen "127.0.0.1:25" {} }"#)
}

const WORKER: &str = r#"
import ctypes, os, socket, time
libc = ctypes.CDLL(None, use_errno=True)
def say(name, value):
    print("worker:", name, value, flush=True)
def attempt(name, call):
    try:
        say(name, call())
    except OSError as error:
        say(name, error.strerror)
def unshare(flag):
    if libc.unshare(flag) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return "done"
def in_child(call):
    child = os.fork()
    if child == 0:
        try:
            call()
            os._exit(0)
        except OSError as error:
            os._exit(error.errno)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
def become_mail():
    os.setgroups([8])
    os.setgid(8)
    os.setuid(100)
    assert os.getresuid() == (100, 100, 100)
    try:
        os.setuid(0)
    except PermissionError:
        return
    os._exit(99)
say("ids", (os.getresuid(), os.getresgid(), os.getgroups()))
say("listener", socket.socket(fileno=3).getsockname())
say("becomes", in_child(become_mail))
attempt("bind", lambda: socket.socket().bind(("127.0.0.1", 26)))
attempt("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
attempt("secret", lambda: open("/run/host/secret").read())
attempt("steal", lambda: os.chown("/run/host/secret", 0, 0))
attempt("own", lambda: (os.chown("/run/host/own/file", 100, 8), os.stat("/run/host/own/file").st_uid))
attempt("user-namespace", lambda: unshare(0x10000000))
attempt("mount-namespace", lambda: unshare(0x00020000))
attempt("network-namespace", lambda: unshare(0x40000000))
attempt("limit", lambda: open("/proc/sys/user/max_user_namespaces", "w").write("9"))
attempt("signal", lambda: os.kill(os.getppid(), 0))
attempt("reboot-file", lambda: open("/proc/sys/kernel/hostname", "w").write("x"))
attempt("priority", lambda: os.setpriority(os.PRIO_PROCESS, 0, -5))
if os.fork() == 0:
    os.setuid(100)
    say("descendant", os.getpid())
    time.sleep(1000)
say("end", "")
time.sleep(1000)
"#;

#[test]
fn the_worker_is_root_of_its_namespace_and_owns_nothing_of_the_host() {
    isolated(|host| {
        let (first, count) = unused_ids();
        let secret = host.file("secret", "s");
        fs::set_permissions(&secret, Permissions::from_mode(0o600)).unwrap();
        let own = host.path("own");
        fs::create_dir(&own).unwrap();
        fs::write(own.join("file"), "").unwrap();
        for path in [own.clone(), own.join("file")] {
            chown(path, Some(first), Some(first)).unwrap();
        }
        let mut broker = Broker::start(host, &python(host, WORKER));
        broker.log.wait_for(&["worker: descendant"]);
        broker.log.wait_for(&["worker: end"]);
        let lines = broker.log.lines();
        let said: Vec<&str> = lines.iter().filter_map(|line| line.strip_prefix("worker: ")).collect();
        for expected in [
            "ids ((0, 0, 0), (0, 0, 0), [])",
            "listener ('127.0.0.1', 25)",
            "becomes 0",
            "bind Permission denied",
            "raw Operation not permitted",
            "secret Permission denied",
            "steal Operation not permitted",
            "own (None, 100)",
            "user-namespace No space left on device",
            "mount-namespace Operation not permitted",
            "network-namespace Operation not permitted",
            "limit Permission denied",
            "reboot-file Permission denied",
            "priority Permission denied",
        ] {
            assert!(said.contains(&expected), "{expected}: {said:#?}");
        }
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&own.join("file").metadata().unwrap()), first + 100);
        let status = broker.peer().status();
        for role in ["launcher", "worker"] {
            let process = status.processes.iter().find(|process| process.role.as_str() == role).unwrap();
            let credentials = &process.credentials;
            assert_eq!((credentials.uid, credentials.gid), ([first; 4], [first; 4]), "{role}");
            // cap_chown to cap_setuid, cap_sys_chroot and cap_sys_ptrace.
            let expected = 0xc00ff;
            let sets = [credentials.permitted, credentials.effective, credentials.bounding];
            assert_eq!((sets, credentials.inheritable, credentials.ambient), ([expected; 3], 0, 0), "{role}");
            assert!(credentials.no_new_privs);
            let last = count - 1;
            let lock = format!(
                "user namespace: ids 0-{last} are {first}-{} of the host; no capability over the host",
                first + last
            );
            assert_eq!(
                process.locks.iter().map(|lock| lock.to_string()).collect::<Vec<_>>(),
                [lock],
                "{role}"
            );
            let map = fs::read_to_string(format!("/proc/{}/uid_map", process.pid)).unwrap();
            assert_eq!(map.split_whitespace().collect::<Vec<_>>().join(" "), format!("0 {first} {count}"));
        }
        // Its descendants under other users end with it.
        let descendant =
            said.iter().find_map(|line| line.strip_prefix("descendant ")).unwrap().parse().unwrap();
        assert!(process::is_running(descendant));
        assert!(broker.terminate().success());
        eventually("the end of the descendant", || (!process::is_running(descendant)).then_some(()));
    });
}

/// Binds as root of the namespace, in a child, and as a process that has become another user.
const BROKERED: &str = r#"
import os, signal, socket
def bind(name):
    one = socket.socket()
    try:
        one.bind(("127.0.0.1", 25))
        print("worker:", name, one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN), flush=True)
    except OSError as error:
        print("worker:", name, error.strerror, flush=True)
bind("root")
if os.fork() == 0:
    bind("child")
    os.setgroups([])
    os.setgid(8)
    os.setuid(100)
    bind("mail")
    os._exit(0)
os.wait()
print("worker: end", flush=True)
signal.pause()
"#;

#[test]
fn a_server_that_needs_root_binds_its_port_itself_also_after_it_became_another_user() {
    isolated(|host| {
        let text = python(host, BROKERED).replace("restart = false", "restart = false bind = brokered");
        let broker = Broker::start(host, &text);
        broker.log.wait_for(&["worker: end"]);
        let lines = broker.log.lines();
        let said: Vec<&str> = lines.iter().filter_map(|line| line.strip_prefix("worker: ")).collect();
        assert_eq!(said, ["root 1", "child 1", "mail 1", "end"]);
    });
}

/// The classic escape by chroot(2), which needs the capability that this worker has: a directory outside of the new root is open.
const ESCAPE: &str = r#"
import os
def root():
    return (os.stat("/").st_dev, os.stat("/").st_ino)
before = root()
outside = os.open("/", os.O_RDONLY)
os.mkdir("/own/nested")
os.chroot("/own/nested")
nested = root()
os.fchdir(outside)
for _ in range(64):
    os.chdir("..")
os.chroot(".")
print("worker:", nested != before, root() == before, sorted(os.listdir("/")), flush=True)
"#;

#[test]
fn a_worker_in_a_user_namespace_cannot_leave_its_root() {
    isolated(|host| {
        // As systemd does on a host and for a service.
        mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC).unwrap();
        let (first, _) = unused_ids();
        let root = host.path("chroot");
        // The directories of the host that Python needs, and one that the worker owns.
        for name in ["own", "usr", "lib", "lib64", "run/host"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        for path in
            ["/usr", "/lib", "/lib64"].map(std::path::Path::new).into_iter().filter(|path| path.exists())
        {
            mount_bind(path, root.join(path.strip_prefix("/").unwrap())).unwrap();
        }
        chown(root.join("own"), Some(first), Some(first)).unwrap();
        fs::write(root.join("worker.py"), ESCAPE).unwrap();
        fs::set_permissions(&root, Permissions::from_mode(0o755)).unwrap();
        let python = fs::canonicalize("/usr/bin/python3").unwrap();
        let options = format!("chroot = \"{}\"", root.display());
        let text = text(&options, &format!("( {} /worker.py )", python.display()), "");
        let broker = Broker::start(host, &text);
        let line = broker.log.wait_for(&["worker:"]);
        assert_eq!(line, "worker: True True ['lib', 'lib64', 'own', 'run', 'usr', 'worker.py']");
        assert!(!std::path::Path::new("/own").exists(), "the mounts of the host are as before");
    });
}

#[test]
fn what_explain_shows_is_what_the_kernel_reports() {
    isolated(|host| {
        let path = broker::config(host, &python(host, "import time; time.sleep(1000)"));
        let explain = Command::new(host.binary(binaries::BROKER)).arg("explain").arg(&path).output().unwrap();
        let explained = String::from_utf8(explain.stdout).unwrap();
        let section =
            explained.split("launcher and worker\n").nth(1).unwrap_or_else(|| panic!("{explained}"));
        let row = |name: &str| {
            let row = section.lines().find_map(|line| line.trim().strip_prefix(name)).unwrap();
            row.trim().to_owned()
        };
        let broker = Broker::start(host, &fs::read_to_string(&path).unwrap());
        let status = broker.peer().status();
        let worker = status.processes.iter().find(|process| process.role.as_str() == "worker").unwrap();
        let credentials = &worker.credentials;
        assert_eq!(row("user "), credentials.uid[0].to_string());
        for (name, set) in [("permitted", credentials.permitted), ("bounding", credentials.bounding)] {
            assert!(row(name).starts_with(&format!("{set:016x}")), "{name}: {section}");
        }
        assert_eq!(row("securebits"), "0x0");
        assert_eq!(row("locks"), worker.locks[0].to_string());
    });
}

#[test]
fn ids_of_others_are_refused() {
    isolated(|host| {
        let check = |text: &str| {
            let path = broker::config(host, text);
            let output =
                Command::new(host.binary(binaries::BROKER)).arg("check").arg(&path).output().unwrap();
            let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            (output.status.success(), text)
        };
        let configured = |range: &str| {
            format!("security {{ user_namespace = \"{range}\" }} worker {{ command = /bin/true }}")
        };
        let subuid = host.file("subuid", "root:3000000:65536\n0:3100000:10\nmail:3200000:65536\n");
        let empty = host.file("subgid", "");
        let passwd = host.file("passwd", "root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n");
        for (file, path) in [(&subuid, "/etc/subuid"), (&empty, "/etc/subgid"), (&passwd, "/etc/passwd")] {
            if !std::path::Path::new(path).exists() {
                continue;
            }
            mount_bind(file, path).unwrap();
        }
        for free in ["3000000:65536", "3100000:100000", "3265536:10", "65535:10"] {
            let (valid, output) = check(&configured(free));
            assert!(valid, "{free}: {output}");
        }
        for (taken, why) in [
            ("65534:1", "65534 is the id of the user \"nobody\""),
            ("60000:65536", "65534 is the id of the user \"nobody\""),
            ("3199999:2", "/etc/subuid delegates the ids 3200000:65536 to \"mail\""),
            ("3265535:5", "/etc/subuid delegates the ids 3200000:65536 to \"mail\""),
            ("3210000:5", "/etc/subuid delegates the ids 3200000:65536 to \"mail\""),
        ] {
            let (valid, output) = check(&configured(taken));
            assert!(!valid && output.contains(why), "{taken}: {output}");
        }
    });
}

#[test]
fn a_kernel_that_refuses_the_namespace_is_named_and_nothing_is_served() {
    isolated(|host| {
        let path = broker::config(host, &python(host, "import time; time.sleep(1000)"));
        for (errno, remedy) in [
            ("ENOSPC", "raise the sysctl user.max_user_namespaces"),
            ("EINVAL", "use a kernel with user namespaces (CONFIG_USER_NS)"),
            ("EPERM", "check whether a container, a security module or a sysctl"),
        ] {
            // CLONE_NEWUSER
            let denied = format!("unshare:268435456={errno}");
            let mut command = command_denying(host, &[&denied], binaries::BROKER, &path);
            let output = command.output().unwrap();
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success(), "{text}");
            assert!(text.contains("security.user_namespace: unshare CLONE_NEWUSER failed"), "{text}");
            assert!(text.contains(remedy), "{text}");
            assert!(portreeve_tests::resources::tcp_listeners().is_empty());
        }
    });
}
