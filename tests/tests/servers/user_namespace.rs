//! Servers of Debian that demand root, as workers in a user namespace: in a root directory whose files have the ids of the
//! namespace, with Debian's configuration and the changes that the page on servers shows.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use portreeve_tests::broker::{self, SOCKET};
use portreeve_tests::kernel::command_denying;
use portreeve_tests::namespaces::{run, unused_ids};
use portreeve_tests::smtp_load::ALWAYS_STABLE;
use portreeve_tests::{Broker, Host, binaries, debian, eventually, isolated, process, resources};
use rustix::mount::mount_bind;
use rustix::process::{Signal, kill_process};

use crate::by_descriptor::shown;
use crate::clients::{deliver, greeting, kill_under_steady_connections, smtp};
use crate::privileges::processes;
use crate::programs::{pid, server};

/// cap_chown to cap_setuid, and cap_sys_chroot: those of a program in the namespace.
const OF_PROGRAM: u64 = 0x400ff;
/// Its supervisor has cap_sys_ptrace too.
const OF_SUPERVISOR: u64 = 0xc00ff;

/// The system user of Postfix, in the namespace.
const POSTFIX: u32 = 100;
/// The user whose mailbox the tests look at, in the namespace.
const ALICE: u32 = 1000;

/// The root directory of a server: `/srv/mail` on the page.
struct Root<'h> {
    host: &'h Host,
    path: PathBuf,
}

impl<'h> Root<'h> {
    /// Debian's files of a package below the programs and libraries of this host, with these system accounts and a user alice.
    fn new(host: &'h Host, package: &str, accounts: &[(&str, u32)]) -> Self {
        debian::install(host, package);
        let root = Self { host, path: host.path("mail") };
        for directory in ["dev", "etc", "home/alice", "root", "run", "tmp", "usr", "var/mail", "var/spool"] {
            fs::create_dir_all(root.path.join(directory)).unwrap();
        }
        for link in ["bin", "lib", "lib64", "sbin"] {
            symlink(format!("usr/{link}"), root.path.join(link)).unwrap();
        }
        symlink("../run", root.path.join("var/run")).unwrap();
        mount_bind("/usr", root.path.join("usr")).unwrap();
        for device in ["null", "urandom"] {
            let here = root.path.join("dev").join(device);
            fs::write(&here, "").unwrap();
            mount_bind(format!("/dev/{device}"), &here).unwrap();
        }
        let unpacked = host.path("debian").join(package);
        for directory in ["etc", "var"] {
            let from = unpacked.join(directory).join(".");
            run(Command::new("cp").arg("-r").arg(from).arg(root.path.join(directory)), "coreutils");
        }
        let (mut users, mut groups) = (String::new(), String::from("mail:x:8:\n"));
        let others =
            [("root", 0, "/root"), ("nobody", 65534, "/nonexistent"), ("alice", ALICE, "/home/alice")];
        let system = accounts.iter().map(|(name, id)| (*name, *id, "/var/lib/opensmtpd/empty"));
        for (name, id, home) in others.into_iter().chain(system) {
            users += &format!("{name}:x:{id}:{id}::{home}:/bin/sh\n");
            groups += &format!("{name}:x:{id}:\n");
        }
        root.write("etc/passwd", &users);
        root.write("etc/group", &groups);
        root.write("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n");
        root.write("etc/aliases", "postmaster: root\nroot: alice\n");
        // For programs that the server's scripts call, all addresses of localhost, and the number of the port "smtp".
        for name in ["/etc/alternatives", "/etc/host.conf", "/etc/services"] {
            run(Command::new("cp").arg("-a").arg(name).arg(root.path.join("etc")), "coreutils");
        }
        lchown(root.path.join("home/alice"), Some(ALICE), Some(ALICE)).unwrap();
        root
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path.join(name), text).unwrap();
    }

    /// Runs a command in the root directory, before its files have the ids of the namespace.
    fn prepare(&self, command: &[&str]) {
        run(Command::new("chroot").arg(&self.path).args(command), "coreutils");
    }

    /// Starts the broker with the server of the page as its worker, and these system calls denied.
    fn start(&self, server: &str, denied: &[&str]) -> Broker {
        for directory in ["etc", "home", "root", "run", "tmp", "var"] {
            shift(&self.path.join(directory), unused_ids());
        }
        let (first, count) = unused_ids();
        let mut text = shown(&format!("/etc/portreeve/{server}-portreeve.conf")).to_owned();
        for (of_page, here) in
            [("/srv/mail", self.path.to_str().unwrap()), ("200000:65536", &format!("{first}:{count}"))]
        {
            assert!(text.contains(of_page), "{of_page}");
            text = text.replace(of_page, here);
        }
        let text = format!("{text}{ALWAYS_STABLE} broker {{ socket = {SOCKET} }}");
        let config = broker::config(self.host, &text);
        Broker::start_command(self.host, command_denying(self.host, denied, binaries::BROKER, &config))
    }

    /// Waits for a message with this subject in a file, or in a file of a directory, that alice owns.
    fn await_message(&self, mailbox: &str, subject: &str) {
        let mailbox = self.path.join(mailbox);
        let message = eventually("the delivery", || {
            let files = match mailbox.is_dir() {
                true => fs::read_dir(&mailbox).ok()?.filter_map(|entry| Some(entry.ok()?.path())).collect(),
                false => vec![mailbox.clone()],
            };
            let has = |file: &PathBuf| {
                let text = fs::read_to_string(file).unwrap_or_default();
                text.contains(&format!("\nSubject: {subject}\n"))
            };
            files.into_iter().find(has)
        });
        assert_eq!(message.metadata().unwrap().uid(), unused_ids().0 + ALICE);
    }
}

/// Gives files the ids of the namespace. Files of the host's root seem to be nobody's to an ordinary user's root: they become root's.
fn shift(path: &Path, (first, count): (u32, u32)) {
    let metadata = path.symlink_metadata().unwrap();
    let [user, group] = [metadata.uid(), metadata.gid()].map(|id| first + if id < count { id } else { 0 });
    lchown(path, Some(user), Some(group)).unwrap();
    if metadata.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| shift(&entry.unwrap().path(), (first, count)));
    }
}

/// Every process of the worker has ids of the range only, and capabilities over the namespace only; at least `users` different
/// users run.
#[track_caller]
fn assert_confined(broker: &Broker, users: usize) {
    let (first, count) = unused_ids();
    let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/user"));
    let (worker, of_host) = (broker.worker(), namespace(std::process::id()).unwrap());
    let of_worker = namespace(worker).unwrap();
    assert_ne!(of_worker, of_host);
    let mut found = std::collections::BTreeSet::new();
    for (pid, status) in processes(worker) {
        let ids = status.uid.iter().chain(&status.gid).chain(&status.groups);
        assert!(ids.clone().all(|id| (first..first + count).contains(id)), "process {pid}: {status:?}");
        let most = if pid == worker { OF_SUPERVISOR } else { OF_PROGRAM };
        let held = status.permitted | status.effective | status.inheritable | status.ambient;
        assert!(held & !most == 0 && status.bounding == OF_SUPERVISOR, "process {pid}: {status:?}");
        assert!(status.no_new_privs, "process {pid}");
        // One that has ended meanwhile has none.
        if let (Ok(namespace), Ok(map)) = (namespace(pid), fs::read_to_string(format!("/proc/{pid}/uid_map")))
        {
            assert_eq!(namespace, of_worker, "process {pid}");
            let map: Vec<&str> = map.split_whitespace().collect();
            assert_eq!(map, ["0", &first.to_string(), &count.to_string()], "process {pid}");
        }
        found.insert(status.uid[1]);
    }
    assert!(found.len() >= users && process::is_running(worker), "{found:?}");
}

#[test]
fn postfix_delivers_reloads_by_sighup_and_is_killed_without_a_refused_client() {
    isolated(|host| {
        let root = Root::new(host, "postfix", &[("postfix", POSTFIX), ("postdrop", 103)]);
        for (name, of_debian) in [("main.cf", "main.cf.debian"), ("master.cf", "master.cf.dist")] {
            fs::copy(format!("/usr/share/postfix/{of_debian}"), root.path.join("etc/postfix").join(name))
                .unwrap();
        }
        let defaults = fs::read_to_string(root.path.join("etc/postfix/main.cf")).unwrap();
        let configure = |name: &str| {
            // What the package asks at its installation.
            let answers = format!(
                "myhostname = {name}\nmydestination = $myhostname, mx.example, localhost\nalias_maps = hash:/etc/aliases\nalias_database = hash:/etc/aliases\n"
            );
            root.write(
                "etc/postfix/main.cf",
                &(defaults.clone() + &answers + shown("/srv/mail/etc/postfix/main.cf")),
            );
        };
        configure("first.example");
        root.write("etc/postfix/dynamicmaps.cf", "");
        lchown(root.path.join("var/lib/postfix"), Some(POSTFIX), Some(POSTFIX)).unwrap();
        root.prepare(&["/usr/sbin/postfix", "check"]);
        root.prepare(&["/usr/sbin/postalias", "/etc/aliases"]);
        root.prepare(&["/usr/lib/postfix/configure-instance.sh", "-"]);
        let broker = root.start("postfix", &[]);
        eventually("the first name", || {
            greeting(25).filter(|line| line.starts_with("220 first.example ESMTP Postfix"))
        });
        deliver(25, "root@mx.example", "before");
        root.await_message("var/mail/alice", "before");
        eventually("the log", || {
            let log = fs::read_to_string(root.path.join("var/log/mail.log")).ok()?;
            log.contains("status=sent (delivered to mailbox)").then_some(())
        });
        assert_confined(&broker, 2);

        configure("second.example");
        let master = server(&broker);
        kill_process(pid(master), Signal::HUP).unwrap();
        eventually("the second name", || greeting(25).filter(|line| line.starts_with("220 second.example ")));
        assert_eq!(server(&broker), master);

        let endpoints = ["127.0.0.1:25", "[::1]:25"];
        kill_under_steady_connections(&broker, Broker::worker, &endpoints, smtp);
        kill_under_steady_connections(&broker, server, &endpoints, smtp);
        deliver(25, "alice@mx.example", "after");
        root.await_message("var/mail/alice", "after");
        assert_confined(&broker, 2);
        assert_eq!(resources::tcp_listeners().len(), 2);
    });
}

#[test]
fn opensmtpd_delivers_restarts_and_is_killed_without_a_refused_client() {
    isolated(|host| {
        let root = Root::new(host, "opensmtpd", &[("opensmtpd", 100), ("opensmtpq", 101)]);
        // Debian 12's kernel has no PIDFD_THREAD yet, and this root has no /proc.
        let broker = root.start("opensmtpd", &["pidfd_open:128@1=EINVAL"]);
        eventually("a greeting", || greeting(25).filter(|line| line.contains(" ESMTP OpenSMTPD")));
        deliver(25, "root@localhost", "before");
        root.await_message("home/alice/Maildir/new", "before");
        broker.log.wait_for(&["mda delivery", "result=Ok"]);
        assert_confined(&broker, 3);

        // It reads its configuration at its start only.
        let former = broker.worker();
        let file = root.path.join("etc/smtpd.conf");
        let configuration = fs::read_to_string(&file).unwrap();
        assert!(configuration.contains("\nlisten on localhost\n"));
        let changed = "\nlisten on localhost hostname second.example\n";
        fs::write(&file, configuration.replace("\nlisten on localhost\n", changed)).unwrap();
        let mut restart = Command::new(host.binary(binaries::CLIENT));
        run(restart.args(["--socket", SOCKET, "worker", "restart"]), "portreeve");
        eventually("the new name", || greeting(25).filter(|line| line.starts_with("220 second.example ")));
        assert_ne!(broker.worker(), former);

        let endpoints = ["127.0.0.1:25", "[::1]:25"];
        kill_under_steady_connections(&broker, Broker::worker, &endpoints, smtp);
        kill_under_steady_connections(&broker, server, &endpoints, smtp);
        deliver(25, "alice@localhost", "after");
        root.await_message("home/alice/Maildir/new", "after");
        assert_confined(&broker, 3);
        assert_eq!(resources::tcp_listeners().len(), 2);
    });
}

/// Tries to look into its supervisor and to get cap_sys_ptrace again, and binds after it has changed its effective ids, by which it is
/// not dumpable.
const PROGRAM: &str = r#"
import ctypes, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
def capabilities():
    return [line.split()[1] for line in open("/proc/self/status") if line[:6] in ("CapPrm", "CapEff")]
if len(sys.argv) == 1:
    print("has", capabilities(), flush=True)
    os.execv(sys.executable, [sys.executable, __file__, str(os.getppid())])
print("has again", capabilities())
libc.ptrace(0x4206, int(sys.argv[1]), 0, 0)  # PTRACE_SEIZE
print("trace:", os.strerror(ctypes.get_errno()))
try:
    os.open(f"/proc/{sys.argv[1]}/fd/0", os.O_RDONLY)
except PermissionError as error:
    print("descriptors:", error.strerror)
os.setegid(8)
os.seteuid(100)
os.seteuid(0)
print("dumpable:", libc.prctl(3))  # PR_GET_DUMPABLE
listener = socket.create_server(("127.0.0.1", 25))
print("listens", flush=True)
listener.accept()
"#;

#[test]
fn a_program_that_has_changed_its_ids_binds_and_cannot_look_into_its_supervisor() {
    isolated(|host| {
        let (first, count) = unused_ids();
        let program = host.file("program.py", PROGRAM);
        let python = fs::canonicalize("/usr/bin/python3").unwrap();
        let client = host.binary(binaries::CLIENT);
        for command in [
            format!("( {python:?} {program:?} ) bind = brokered"),
            format!("( {client:?} run \"--\" {python:?} {program:?} )"),
        ] {
            let config = format!(
                r#"
                security {{ user_namespace = "{first}:{count}" capabilities = "cap_net_bind_service+ep" }}
                worker {{ command = {command} }}
                broker {{ permit "smtp" {{ listen = ( "*:25" ) }} }}"#
            );
            let broker = Broker::start(host, &config);
            broker.log.wait_for(&["listens"]);
            let lines = broker.log.lines();
            let held = format!("['{OF_PROGRAM:016x}', '{OF_PROGRAM:016x}']");
            for expected in [
                &format!("has {held}"),
                &format!("has again {held}"),
                "trace: Operation not permitted",
                "descriptors: Permission denied",
                "dumpable: 0",
            ] {
                assert!(lines.iter().any(|line| line == expected), "{expected}: {lines:#?}");
            }
            broker.log.wait_for(&["via=\"bind\"", "arguments=127.0.0.1:25"]);
            assert_confined(&broker, 1);
        }
    });
}
