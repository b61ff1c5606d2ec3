//! Members of an etcd cluster, from Debian's packages.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::broker::Log;
use crate::certificates::Issued;
use crate::{Host, binaries, debian, lan, namespaces, process};

/// How a member is started.
#[derive(Clone, Default)]
pub struct MemberSettings {
    /// Its name in the cluster.
    pub name: String,
    /// The network namespace that it runs in, such as a host of [`lan`]; `None`: that of this process.
    pub host: Option<String>,
    /// Where it listens for clients, such as `https://127.0.0.1:2379`.
    pub client: String,
    /// Where it listens for the other members.
    pub peer: String,
    /// All members, as [`initial_cluster`] returns them.
    pub cluster: String,
    /// TLS for clients; the URL of `client` must begin with `https`.
    pub tls: Option<Tls>,
    /// How often the leader sends heartbeats, and after how long without one the others elect another; 0:
    /// etcd's default, 100 and 1000.
    pub heartbeat_ms: u32,
    /// See `heartbeat_ms`. etcd requires at least five times as much.
    pub election_ms: u32,
    /// The limit of its database in bytes; 0: etcd's default.
    pub quota: u64,
    /// Further arguments.
    pub arguments: Vec<String>,
}

/// The TLS settings of a member.
#[derive(Clone)]
pub struct Tls {
    /// Its own certificate.
    pub server: Issued,
    /// The authority whose certificates clients must have; `None`: clients need no certificate.
    pub client_authority: Option<PathBuf>,
    /// The authority of `server`, and a certificate, for [`Member::etcdctl`].
    pub etcdctl: (PathBuf, Issued),
}

/// The value of `cluster` for these members.
pub fn initial_cluster<'a>(members: impl IntoIterator<Item = &'a MemberSettings>) -> String {
    let members: Vec<String> =
        members.into_iter().map(|member| format!("{}={}", member.name, member.peer)).collect();
    members.join(",")
}

/// Settings of `count` members on loopback addresses of this host, with plain HTTP and short elections.
pub fn loopback(count: u8) -> Vec<MemberSettings> {
    let member = |number: u8| MemberSettings {
        name: format!("m{number}"),
        client: format!("http://127.0.0.{number}:2379"),
        peer: format!("http://127.0.0.{number}:2380"),
        heartbeat_ms: 50,
        election_ms: 500,
        ..MemberSettings::default()
    };
    let mut members: Vec<MemberSettings> = (1..=count).map(member).collect();
    let cluster = initial_cluster(&members);
    members.iter_mut().for_each(|member| member.cluster.clone_from(&cluster));
    members
}

/// Starts all members, and returns when all are ready.
#[track_caller]
pub fn start_all(host: &Host, members: Vec<MemberSettings>) -> Vec<Member> {
    // Before any is awaited: the first is ready only when it has a majority.
    let members: Vec<Member> = members.into_iter().map(|settings| Member::start(host, settings)).collect();
    members.iter().for_each(Member::await_ready);
    members
}

/// A member: a process, unless it has been killed, and its directory.
pub struct Member {
    /// How it is started the next time.
    pub settings: MemberSettings,
    directory: PathBuf,
    programs: [PathBuf; 2],
    child: Child,
    /// What it prints.
    pub log: Log,
}

/// The path of a program from a package that is unpacked, or installed on this host.
#[track_caller]
pub fn program(host: &Host, package: &str, name: &str) -> PathBuf {
    let unpacked = host.path(debian::DIRECTORY).join(package).join("usr/bin").join(name);
    let installed = PathBuf::from("/usr/bin").join(name);
    let found = [unpacked, installed].into_iter().find(|path| path.exists());
    found.unwrap_or_else(|| {
        let directory = binaries::target_directory().join(debian::DIRECTORY);
        panic!("no {name}: run tests/run, or tests/debian/unpack {}", directory.display())
    })
}

impl Member {
    /// Starts a member with an empty directory. It is not ready before a majority of the cluster is.
    #[track_caller]
    pub fn start(host: &Host, settings: MemberSettings) -> Self {
        let directory = host.path(format!("etcd-{}", settings.name));
        let programs = [program(host, "etcd-server", "etcd"), program(host, "etcd-client", "etcdctl")];
        let (child, log) = spawn(&programs[0], &directory, &settings);
        Self { settings, directory, programs, child, log }
    }

    /// Waits until it serves clients.
    #[track_caller]
    pub fn await_ready(&self) {
        self.log.wait_for(&["ready to serve client requests"]);
    }

    /// The id of its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends its process a signal, such as SIGSTOP and SIGCONT. Returns when it has been stopped.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        if signal == Signal::STOP {
            process::suspend(self.pid());
        } else {
            kill_process(Pid::from_child(&self.child), signal).unwrap();
        }
    }

    /// Kills its process. Its directory stays.
    pub fn kill(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }

    /// Kills its process and deletes its directory. If the other members keep theirs, the cluster takes it back
    /// only as a new member.
    pub fn wipe(&mut self) {
        self.kill();
        fs::remove_dir_all(&self.directory).unwrap();
    }

    /// Starts it again after [`Member::kill`] or [`Member::wipe`]. It is not ready before a majority of the
    /// cluster is.
    #[track_caller]
    pub fn restart(&mut self) {
        self.kill();
        (self.child, self.log) = spawn(&self.programs[0], &self.directory, &self.settings);
    }

    /// Runs etcdctl with these arguments on this member, and returns its output. It must succeed.
    #[track_caller]
    pub fn etcdctl(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(&self.programs[1]);
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.settings.client]).args(arguments);
        if let Some(Tls { etcdctl: (authority, issued), .. }) = &self.settings.tls {
            command.arg("--cacert").arg(authority);
            command.arg("--cert").arg(&issued.certificate).arg("--key").arg(&issued.key);
        }
        in_namespace(&self.settings, move || namespaces::run(&mut command, "etcd-client"))
    }

    /// Whether it is the leader of its cluster.
    #[track_caller]
    pub fn is_leader(&self) -> bool {
        let text = self.etcdctl(&["endpoint", "status", "--write-out", "json"]);
        let status: serde_json::Value = serde_json::from_str(&text).unwrap();
        let status = &status[0]["Status"];
        status["leader"] == status["header"]["member_id"]
    }

    /// Creates user `root`, a role limited to the keys of a group, a user of that role, and demands passwords
    /// from then on. Each user's password is its name.
    #[track_caller]
    pub fn enable_auth(&self, user: &str, group: &str) {
        let prefix = format!("/portreeve/{group}/");
        self.etcdctl(&["user", "add", "root:root"]);
        self.etcdctl(&["user", "grant-role", "root", "root"]);
        self.etcdctl(&["role", "add", "coordinator"]);
        self.etcdctl(&["role", "grant-permission", "coordinator", "readwrite", "--prefix", &prefix]);
        self.etcdctl(&["user", "add", &format!("{user}:{user}")]);
        self.etcdctl(&["user", "grant-role", user, "coordinator"]);
        self.etcdctl(&["auth", "enable"]);
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let lines = self.log.lines();
            let last = lines.iter().skip(lines.len().saturating_sub(20));
            last.for_each(|line| eprintln!("{}: {line}", self.settings.name));
        }
    }
}

fn in_namespace<T: Send>(settings: &MemberSettings, act: impl FnOnce() -> T + Send) -> T {
    match &settings.host {
        Some(host) => lan::in_host(host, act),
        None => act(),
    }
}

fn spawn(etcd: &PathBuf, directory: &PathBuf, settings: &MemberSettings) -> (Child, Log) {
    let MemberSettings { name, client, peer, cluster, .. } = settings;
    let mut command = Command::new(etcd);
    command.arg("--data-dir").arg(directory).args(["--name", name, "--initial-cluster", cluster]);
    command.args(["--listen-client-urls", client, "--advertise-client-urls", client]);
    command.args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]);
    let mut number = |option: &str, value: u64| {
        if value != 0 {
            command.arg(option).arg(value.to_string());
        }
    };
    number("--heartbeat-interval", settings.heartbeat_ms.into());
    number("--election-timeout", settings.election_ms.into());
    number("--quota-backend-bytes", settings.quota);
    if let Some(tls) = &settings.tls {
        command.arg("--cert-file").arg(&tls.server.certificate).arg("--key-file").arg(&tls.server.key);
        if let Some(authority) = &tls.client_authority {
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(authority);
        }
    }
    command.args(&settings.arguments);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = in_namespace(settings, || command.spawn().unwrap());
    let log = Log::default();
    log.follow(child.stdout.take().unwrap());
    log.follow(child.stderr.take().unwrap());
    (child, log)
}
