//! One host of the cluster: its processes, which can be killed, stopped and started one by one.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use portreeve_protocol::reload::Reload;
use rustix::process::{Pid, Signal, kill_process};

use super::{ADDRESSES, FOLLOWER, GROUP, MORE, NODES, Settings, engine_address, more_addresses};
use crate::broker::Log;
use crate::certificates::Issued;
use crate::chroot::Chroot;
use crate::etcd::Member;
use crate::{Broker, Host, Peer, binaries, eventually, lan, namespaces, process};

/// The user id and group id of the coordinators.
pub const COORDINATOR: u32 = 3;
/// The program of a node's check, which succeeds while a file exists.
const CHECK: &str = "/usr/bin/test";

/// See the module.
pub struct ClusterHost {
    /// Its place in [`NODES`].
    pub node: usize,
    /// Its member of the engine.
    pub member: Member,
    /// Its broker, unless it was killed.
    pub broker: Option<Broker>,
    /// Its coordinator, unless it was killed.
    pub coordinator: Option<Coordinator>,
    config: PathBuf,
    /// The text of its configuration when the cluster starts.
    pub text: String,
    programs: [PathBuf; 2],
    notify: PathBuf,
    /// What further environment variables the coordinator is started with.
    pub environment: Vec<(String, String)>,
    /// By how much the coordinator's monotonic clock and boot clock are ahead of those of the kernel.
    pub clocks_ahead: Duration,
}

/// A coordinator's process.
pub struct Coordinator {
    child: Child,
    name: &'static str,
    /// What it prints.
    pub log: Log,
}

fn socket(node: usize) -> PathBuf {
    PathBuf::from(format!("/run/host/{}.sock", NODES[node]))
}

/// A node's check succeeds while this file exists.
pub fn health_file(node: usize) -> PathBuf {
    PathBuf::from(format!("/run/host/{}.healthy", NODES[node]))
}

/// The control socket of a node's coordinator.
pub fn control_socket(node: usize) -> PathBuf {
    PathBuf::from(format!("/run/host/{}.control/control.sock", NODES[node]))
}

/// The node that the configuration prefers for an address.
fn preference(place: usize) -> Option<&'static str> {
    [Some("n1"), Some("n2"), Some("n3"), Some("n1"), None, None][place]
}

/// The configuration of a node's broker.
fn config(node: usize, settings: &Settings, chroot: &Chroot, issued: &Issued, authority: &Path) -> String {
    let Settings { lease, failback, on_engine_loss, more, .. } = settings;
    let peer = engine_address(node);
    let (name, socket, healthy) = (NODES[node], socket(node), health_file(node));
    let endpoints: String =
        (0..NODES.len()).map(|node| format!("\"https://{}:2379\" ", engine_address(node))).collect();
    let mut listeners = String::new();
    for (place, address) in ADDRESSES.iter().enumerate() {
        let endpoint = if address.contains(':') { format!("[{address}]") } else { (*address).to_owned() };
        let preferred =
            preference(place).map(|node| format!("duravip_preference = {node}")).unwrap_or_default();
        listeners += &if *address == FOLLOWER.0 {
            format!("Listen \"{endpoint}:25\" {{ duravip_follow = \"leader\" }}\n")
        } else {
            format!("Listen \"{endpoint}:25\" {{ enable_duravip = true {preferred} }}\n")
        };
    }
    let bindings: String = more_addresses(*more)
        .map(|address| {
            format!("binding \"{address}\" {{ bind_address = {address} enable_duravip = true }}\n")
        })
        .collect();
    format!(
        r#"
        security {{
            user = nobody
            group = nogroup
            chroot = "{chroot}"
            capabilities = "cap_net_admin,cap_net_bind_service,cap_net_raw+ep"
        }}
        cluster {{
            nodename = {name}
            cluster_group = {GROUP}
            topology "10.1.1.0/24" {{ interface = eth1 cidrmask = 32 }}
            topology "2001:db8::/64" {{ interface = eth1 cidrmask = 128 }}
            topology "{MORE}" {{ interface = eth1 cidrmask = 32 }}
            lease = {lease}
            failback = {failback}
            on_engine_loss = {on_engine_loss}
            peer_listen = "{peer}:7400"
            view_mature_time = 0
            view_balance_interval = 1
            engine {{
                endpoints = ( {endpoints} )
                ca = "{authority}"
                certificate = "{certificate}"
                key = "{key}"
            }}
            check "healthy" {{
                command = ( {CHECK} "-e" "{healthy}" )
                interval = 1
                fall = 1
                rise = 1
            }}
        }}
        binding "leader" {{ bind_address = {leader} enable_duravip = true }}
        {bindings}
        ESMTP_Listener {{
            {listeners}
        }}
        broker {{
            socket = "{socket}"
            socket_mode = 0666
            max_addresses = 10240
            permit "service-addresses" {{ address = ( "10.1.1.0/24" "2001:db8::/64" "{MORE}" ) }}
            peer {COORDINATOR} {{
                allow = ( address cluster events policy status )
                permit = ( service-addresses )
            }}
            peer root {{ allow = ( address policy reload status subscribe ) permit = ( service-addresses ) }}
        }}
        worker {{ command = ( /run/host/bin/{greeter} "{name}" ) stable_after = 0 }}"#,
        chroot = chroot.path.display(),
        authority = authority.display(),
        certificate = issued.certificate.display(),
        key = issued.key.display(),
        healthy = healthy.display(),
        socket = socket.display(),
        leader = FOLLOWER.1,
        greeter = binaries::FLOATING_GREETER,
    )
}

impl ClusterHost {
    /// Prepares a host whose member runs.
    pub fn new(host: &Host, node: usize, member: Member, settings: &Settings) -> Self {
        let name = NODES[node];
        let tls = member.settings.tls.as_ref().expect("members with TLS");
        let (authority, issued) = &tls.etcdctl;
        let chroot = Chroot::new(host, &format!("{name}.chroot"));
        let text = config(node, settings, &chroot, issued, authority);
        let config = host.file(&format!("{name}.conf"), &text);
        fs::set_permissions(&config, Permissions::from_mode(0o600)).unwrap();
        fs::write(health_file(node), "").unwrap();
        let control = control_socket(node);
        let directory = control.parent().unwrap();
        fs::create_dir(directory).unwrap();
        chown(directory, Some(COORDINATOR), Some(COORDINATOR)).unwrap();
        Self {
            node,
            member,
            broker: None,
            coordinator: None,
            config,
            text,
            programs: [host.binary(binaries::BROKER), host.binary(binaries::COORDINATOR)],
            notify: host.path("notify.sock"),
            environment: Vec::new(),
            clocks_ahead: Duration::ZERO,
        }
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        NODES[self.node]
    }

    /// Gives it another configuration, which its broker loads if it runs.
    #[track_caller]
    pub fn configure(&mut self, text: &str) {
        fs::write(&self.config, text).unwrap();
        if self.broker.is_some() {
            self.peer().request(&Reload::default()).unwrap();
        }
    }

    /// Starts its broker, unless it runs, and returns when it is ready.
    #[track_caller]
    pub fn start_broker(&mut self) {
        if self.broker.is_some() {
            return;
        }
        let mut command = Command::new(&self.programs[0]);
        command.arg("--config").arg(&self.config).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let broker = lan::in_host(self.name(), || Broker::launch_notifying(&self.notify, command));
        self.broker = Some(broker);
    }

    /// Kills its broker with the worker.
    pub fn kill_broker(&mut self) {
        self.broker = None;
    }

    /// Begins a session with its broker, as root.
    #[track_caller]
    pub fn peer(&self) -> Peer {
        let mut peer = Peer::connect(&socket(self.node)).unwrap();
        peer.hello();
        peer
    }

    /// Starts its coordinator, unless it runs.
    pub fn start_coordinator(&mut self, impatient: bool) {
        if self.coordinator.is_some() {
            return;
        }
        let mut command = Command::new(&self.programs[1]);
        command.arg("--socket").arg(socket(self.node)).arg("--control").arg(control_socket(self.node));
        command.uid(COORDINATOR).gid(COORDINATOR).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        if impatient {
            command.env("PORTREEVE_TEST_IMPATIENT", "1");
        }
        let mut child = lan::in_host(self.name(), || {
            if !self.clocks_ahead.is_zero() {
                namespaces::advance_clocks(self.clocks_ahead);
            }
            command.spawn().unwrap()
        });
        let log = Log::default();
        log.follow(child.stdout.take().unwrap());
        log.follow(child.stderr.take().unwrap());
        self.coordinator = Some(Coordinator { child, name: self.name(), log });
    }

    /// Kills its coordinator.
    pub fn kill_coordinator(&mut self) {
        self.coordinator = None;
    }

    /// Sends all its processes a signal, such as SIGSTOP and SIGCONT.
    pub fn signal_all(&self, signal: Signal) {
        let broker = self.broker.as_ref().map(Broker::pid);
        let coordinator = self.coordinator.as_ref().map(Coordinator::pid);
        for root in broker.into_iter().chain(coordinator).chain([self.member.pid()]) {
            for pid in process::descendants(root).into_iter().chain([root]) {
                // It may have ended.
                let _ = kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal);
            }
        }
    }

    /// Kills all its processes.
    pub fn kill_all(&mut self) {
        self.signal_all(Signal::STOP);
        self.member.kill();
        self.kill_coordinator();
        self.kill_broker();
    }
}

impl Coordinator {
    /// The id of its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Sends it SIGTERM, and waits until it has handed its addresses over and ended.
    #[track_caller]
    pub fn terminate(mut self) {
        self.signal(Signal::TERM);
        let status = eventually("the coordinator to end", || self.child.try_wait().unwrap());
        assert!(status.success(), "{}: {status}", self.name);
    }

    /// Why it has ended, if it has.
    pub fn ended(&mut self) -> Option<String> {
        let status = self.child.try_wait().unwrap()?;
        Some(format!("the coordinator of {} ended: {status}", self.name))
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
        if std::thread::panicking() {
            let lines = self.log.lines();
            lines.iter().for_each(|line| eprintln!("{}: {line:.500}", self.name));
        }
    }
}
