//! The host on which tricks are played, and the checks of the invariants.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use portreeve_protocol::address::ListAddresses;
use portreeve_protocol::message::StatusRequest;
use portreeve_protocol::reload::Reload;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};

use super::attacker::{Attacker, GROUP, Released, Shared, Targets, Who, as_user};
use super::latency::{Latencies, PATIENCE};
use super::log_reader::{LogReader, is_forged};
use super::session::Session;
use super::victim::{self, OtherClient, Victim, Worker, resident, root_commands};
use crate::broker::{self, SOCKET};
use crate::random::Random;
use crate::resources::Descriptors;
use crate::scripted_worker::{ScriptedWorker, WorkerSetup};
use crate::wait::TIMEOUT;
use crate::{Broker, Host, binaries, lan, process};

/// How many users attack at the same time.
const USERS: u32 = 3;
/// How long the idle latency is measured.
const IDLE: Duration = Duration::from_millis(400);
/// How long the latency is measured during a trick, and how often at most: a violation is one that is there each time.
const WINDOW: Duration = Duration::from_millis(400);
const WINDOWS: usize = 10;
/// On a machine so busy that few rounds fit into a window it takes longer: one delayed wake-up is not a tenth of less.
const MIN_ROUNDS: u32 = 10;
/// How long the well-behaved peers wait between two rounds.
const PACE: Duration = Duration::from_millis(10);
/// By how much the broker's memory may grow during a trick, in kB: each of 256 sessions may leave a reply of 64 kB unread, and
/// the memory allocator does not return everything.
const MEMORY: u64 = 32 * 1024;
/// How long the listeners of a worker that has ended are retained, and those of users after a takeover.
const RETAIN: Duration = Duration::from_secs(5);
/// How long requests in flight may keep the descriptors of a session whose peer has hung up.
const IN_FLIGHT: Duration = Duration::from_secs(60);
/// How long after a stop the endpoint must be free although the former holder listens again: so long the broker keeps a copy for
/// certain. Later, such a former holder is named.
const TAKEN_BACK: Duration = Duration::from_secs(1);
/// The brokers' limit of open files, and of descriptors in flight.
const OPEN_FILES: u32 = 4096;

/// What happens to the broker while hostile peers attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amid {
    /// Nothing.
    Nothing,
    /// Another broker takes over.
    Takeover,
    /// The configuration is reloaded.
    Reload,
}

/// The usual hostile peers: several users and a member of a group at the same time.
pub fn users() -> Vec<Who> {
    (0..USERS).map(Who::User).chain([Who::GroupMember]).collect()
}

/// See the module.
pub struct Scene<'h> {
    host: &'h Host,
    broker: Broker,
    _second: Broker,
    setup: WorkerSetup,
    _scripted: ScriptedWorker,
    worker: Worker,
    victim: Victim,
    other: OtherClient,
    log: LogReader,
    targets: Targets,
    idle: Latencies,
    reloads: u32,
    plays: u64,
}

/// Ends the attacks of a trick.
struct StopOnDrop<'s>(&'s Shared);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

fn configuration(chroot: &Path, version: u32) -> String {
    let users: String = users()
        .into_iter()
        .map(|who| match who {
            Who::GroupMember => "\"@hostiles\"".to_owned(),
            who => who.uid().to_string(),
        })
        .chain([victim::USER.to_string(), "root".to_owned()])
        .map(|user| {
            format!(
                "peer {user} {{ allow = ( status listen address limit policy cluster metrics subscribe ) permit = ( shared ) }}\n"
            )
        })
        .collect();
    format!(
        r#"# {version}
        security {{
            user = nobody
            group = nogroup
            chroot = "{chroot}"
            capabilities = "cap_net_admin,cap_net_raw,cap_net_bind_service+ep"
        }}
        cluster {{ topology "10.2.0.0/15" {{ interface = eth1 }} }}
        worker {{ command = ( /run/host/bin/scripted_worker ) stable_after = 0 stop_timeout = 1 }}
        ESMTP_Listener {{ Listen "127.0.0.1:25" {{}} Listen "127.0.0.1:26" {{}} }}
        broker {{
            socket = "{SOCKET}"
            socket_mode = 0666
            retain = {retain}
            permit "shared" {{
                listen = ( "*:1024-65535" "*:1024-65535/udp" "[::]:1024-65535" "/run/host/peers/*" )
                address = ( "10.2.0.0/15" )
                limit = ( "nofile=4096" )
            }}
            {users}
        }}"#,
        chroot = chroot.display(),
        retain = RETAIN.as_secs(),
    )
}

/// How long an endpoint may remain in use after its holder has stopped it, or hung up. A takeover retains it for its user.
fn free_after(at_once: bool, amid: Amid) -> Duration {
    match (at_once, amid) {
        (true, _) => Duration::ZERO,
        (false, Amid::Takeover) => RETAIN + PATIENCE,
        (false, _) => PATIENCE,
    }
}

fn second_configuration() -> String {
    format!(
        r#"
        security {{ user = nobody group = nogroup }}
        broker {{
            socket = "/run/host/second.sock"
            socket_mode = 0666
            permit "own" {{ listen = ( "127.0.0.1:9000-9999" ) }}
            peer {user} {{ allow = ( listen ) permit = ( own ) }}
        }}"#,
        user = victim::USER
    )
}

/// A command for a broker with a low limit of open files, which is also the kernel's limit of descriptors in flight.
fn command(host: &Host, config: &Path, log: &LogReader) -> Command {
    let mut command = Command::new("prlimit");
    command.arg(format!("--nofile={OPEN_FILES}:{OPEN_FILES}")).arg("--");
    command.arg(host.binary(binaries::BROKER)).arg("--config").arg(config).stdin(Stdio::null());
    command.stdout(log.writer()).stderr(log.writer());
    command
}

impl<'h> Scene<'h> {
    /// Starts the brokers and the well-behaved peers, and measures the idle latency.
    pub fn start(host: &'h Host) -> Self {
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
        lan::ip("link add eth1 type veth peer name eth1-far");
        lan::ip("link set eth1-far up");
        lan::ip("link set eth1 up");
        host.add_group("hostiles", GROUP);
        let directory = host.path("peers");
        std::fs::create_dir(&directory).unwrap();
        let log = LogReader::start();
        let second = host.file("second.conf", &second_configuration());
        std::fs::set_permissions(&second, Permissions::from_mode(0o600)).unwrap();
        let second_log = LogReader::start();
        let second = Broker::launch(host, command(host, &second, &second_log));
        let setup = WorkerSetup::new(host, "chroot");
        let config = broker::config(host, &configuration(&setup.chroot.path, 0));
        let broker = Broker::launch(host, command(host, &config, &log));
        let (scripted, peer) = setup.accept();
        let worker = Worker::new(peer.channel, None).unwrap();
        let other_control = PathBuf::from("/run/host/second.sock");
        let victim = Victim::new(Path::new(SOCKET), &directory).unwrap();
        let own = |name: &str| directory.join(name).to_string_lossy().into_owned();
        let targets = Targets {
            control: PathBuf::from(SOCKET),
            other_control: Some(other_control.clone()),
            endpoints: [
                victim::STREAM,
                victim::WILDCARD,
                "127.0.0.1:2003",
                "[::]:2003",
                victim::DATAGRAM,
                "*:2004/udp",
                victim::WORKER,
                victim::WORKER_WILDCARD,
                "127.0.0.1:2525",
            ]
            .map(str::to_owned)
            .into_iter()
            .chain([own("victim.sock")])
            .collect(),
            addresses: [victim::ADDRESS, victim::SECOND_ADDRESS, victim::REMOVED_ADDRESS]
                .map(str::to_owned)
                .to_vec(),
            directory: directory.clone(),
            ports: 20_000,
            broker: broker.pid(),
        };
        let mut scene = Self {
            host,
            broker,
            _second: second,
            setup,
            _scripted: scripted,
            worker,
            victim,
            other: OtherClient::new(&other_control).unwrap(),
            log,
            targets,
            idle: Latencies::default(),
            reloads: 0,
            plays: 0,
        };
        scene.idle = scene
            .measure(IDLE, &[], Amid::Nothing, &Shared::default())
            .unwrap_or_else(|why| panic!("idle: {why}"));
        scene
    }

    /// Plays every trick that needs no exclusive machine, as long as the well-behaved peers are served. See [`Scene::play`].
    pub fn play_all(&mut self, by: &[Who]) -> Vec<String> {
        let mut violations = Vec::new();
        for row in super::TRICKS.iter().filter(|row| !row.exclusive) {
            violations.extend(self.play(row.name, row.trick, by, Amid::Nothing));
            if !violations.is_empty() && self.victim.round(&mut Latencies::default()).is_err() {
                break;
            }
        }
        violations
    }

    /// Lets these peers perform a trick at the same time, prints one line, and returns the violations.
    pub fn play(&mut self, name: &str, trick: &dyn super::Trick, by: &[Who], amid: Amid) -> Vec<String> {
        let by: Vec<Who> = by.iter().copied().filter(|who| trick.suits(*who)).collect();
        if by.is_empty() {
            return Vec::new();
        }
        self.plays += 1;
        let (shared, targets, start) = (Shared::default(), self.targets.clone(), self.log.count());
        self.victim.granted.clear();
        let before = (self.state(), self.broker.descriptors(), resident(self.broker.pid()));
        let mut attackers: Vec<Attacker<'_>> = by
            .iter()
            .map(|who| {
                let channel = (*who == Who::Worker).then(|| self.worker.session.channel.try_clone().unwrap());
                let random = Random::new(self.plays * 97 + u64::from(who.number()));
                Attacker::new(*who, &targets, &shared, random, channel)
            })
            .collect();
        let measured = std::thread::scope(|scope| {
            // Also if this thread panics: the scope waits for the hostile peers.
            let stop = StopOnDrop(&shared);
            for attacker in &mut attackers {
                scope.spawn(move || {
                    let groups = if attacker.who == Who::GroupMember { &[GROUP][..] } else { &[] };
                    as_user(attacker.who.uid(), groups, || attacker.perform(name, trick, None));
                });
            }
            let measured = self.during(&by, amid, &shared);
            drop(stop);
            measured
        });
        drop(attackers);
        let (slowest, mut violations) = match measured {
            Ok((latencies, late)) => (latencies.slowest(), late),
            Err(why) => (String::new(), vec![why]),
        };
        violations.extend(shared.harms.lock().unwrap().drain(..));
        let released: Vec<Released> = shared.released.lock().unwrap().drain(..).collect();
        violations.extend(self.afterwards(&by, amid, &released, before, start));
        violations.sort();
        violations.dedup();
        let who: Vec<String> = by.iter().map(|who| format!("{who:?}")).collect();
        println!(
            "{name}: {} rounds by {}{}; slowest {slowest}; {}",
            shared.rounds.load(Ordering::Relaxed),
            who.join(", "),
            if amid == Amid::Nothing { String::new() } else { format!(" amid a {amid:?}") },
            if violations.is_empty() {
                "no violation".to_owned()
            } else {
                format!("VIOLATED: {}", violations.join("; "))
            },
        );
        violations
    }

    /// What happens while the hostile peers attack: the latencies, and those that are beyond their bound.
    fn during(
        &mut self,
        by: &[Who],
        amid: Amid,
        shared: &Shared,
    ) -> Result<(Latencies, Vec<String>), String> {
        let begun = Instant::now();
        let rounds = 2 * by.len() as u64;
        while shared.rounds.load(Ordering::Relaxed) < rounds && begun.elapsed() < Duration::from_millis(300) {
            std::thread::sleep(Duration::from_millis(2));
        }
        match amid {
            Amid::Nothing => {}
            Amid::Takeover => self.take_over()?,
            Amid::Reload => self.reload()?,
        }
        let mut last = (Latencies::default(), Vec::new());
        for _ in 0..WINDOWS {
            let latencies = self.measure(WINDOW, by, amid, shared)?;
            let late = latencies.beyond(&self.idle);
            last = (latencies, late);
            if last.1.is_empty() {
                break;
            }
        }
        Ok(last)
    }

    fn measure(
        &mut self,
        time: Duration,
        by: &[Who],
        amid: Amid,
        shared: &Shared,
    ) -> Result<Latencies, String> {
        let (mut latencies, end) = (Latencies::default(), Instant::now() + time);
        let (worker, root) = (!by.contains(&Who::Worker), !by.contains(&Who::Root));
        if worker {
            latencies.measure("worker: restart", || self.restart_worker())?;
        }
        for round in 0_u32.. {
            self.victim.round(&mut latencies)?;
            let released = shared.released.lock().unwrap().pop();
            if let Some(Released { endpoint, at_once, since }) = released {
                match at_once && since.elapsed() > TAKEN_BACK {
                    true => self.victim.succeed_or_learn(&endpoint)?,
                    false => self.victim.succeed(&endpoint, free_after(at_once, amid))?,
                }
            }
            let occupied = shared.occupied.lock().unwrap().pop();
            occupied.map_or(Ok(()), |endpoint| self.victim.succeed_or_learn(&endpoint))?;
            if worker {
                self.worker.round(&mut latencies)?;
            }
            self.other.round(&mut latencies)?;
            if round % 2 == 0 {
                latencies.measure_control();
            }
            if root && round % 4 == 0 {
                root_commands(&self.host.binary(binaries::CLIENT), &self.targets.control, &mut latencies)?;
            }
            if round + 1 >= MIN_ROUNDS && Instant::now() > end {
                break;
            }
            std::thread::sleep(PACE);
        }
        Ok(latencies)
    }

    /// Checks that nothing is left of the hostile peers.
    fn afterwards(
        &mut self,
        by: &[Who],
        amid: Amid,
        released: &[Released],
        (state, descriptors, memory): (BTreeMap<String, String>, Descriptors, u64),
        start: usize,
    ) -> Vec<String> {
        if !self.broker.is_running() {
            return vec!["the broker has ended".to_owned()];
        }
        let mut violations = Vec::new();
        let mut check = |result: Result<(), String>| violations.extend(result.err());
        if by.contains(&Who::Worker) {
            check(self.restart_worker());
        }
        for Released { endpoint, at_once, .. } in released.iter().rev().take(4) {
            check(self.victim.succeed(endpoint, free_after(*at_once, amid)));
        }
        check(self.victim.round(&mut Latencies::default()));
        check(self.victim.check_epochs());
        check(self.worker.round(&mut Latencies::default()));
        if amid != Amid::Takeover {
            check(self.await_descriptors(&descriptors));
            let now = resident(self.broker.pid());
            if now > memory + MEMORY {
                check(Err(format!("the broker's memory grew from {memory} kB to {now} kB")));
            }
        }
        let now = self.state();
        for (what, before) in state.iter().filter(|(what, before)| now.get(*what) != Some(before)) {
            check(Err(format!("{what} was {before}, and is {:?}", now.get(what))));
        }
        check(self.check_log(start));
        violations
    }

    fn await_descriptors(&self, before: &Descriptors) -> Result<(), String> {
        let end = Instant::now() + IN_FLIGHT;
        loop {
            let mut more = self.broker.descriptors().not_in(before);
            if more.is_empty() {
                return Ok(());
            }
            if Instant::now() > end {
                let count = more.len();
                more.dedup();
                return Err(format!("the broker has {count} descriptors more: {more:?}"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Each grant of the victim has its line, no line is forged, and the fence was not built again: no other program changes it.
    fn check_log(&mut self, start: usize) -> Result<(), String> {
        let granted = std::mem::take(&mut self.victim.granted);
        let peer = format!("user {}", victim::USER);
        let end = Instant::now() + TIMEOUT;
        loop {
            let lines = self.log.lines_from(start);
            let about: String = lines
                .iter()
                .filter(|line| line.contains("done") && line.contains(&peer) && line.contains("listen"))
                .map(|line| format!("{line}\n"))
                .collect();
            let missing = granted.iter().filter(|endpoint| !about.contains(endpoint.as_str())).count();
            if missing == 0 {
                let forged = lines.iter().find(|line| is_forged(line)).map(|line| ("is forged", line));
                let about_fence = |line: &&String| line.contains("parts of the fence");
                let wrong = forged.or(lines.iter().find(about_fence).map(|line| ("is wrong", line)));
                return wrong
                    .map_or(Ok(()), |(what, line)| Err(format!("a line of the log {what}: {line:.300?}")));
            }
            if Instant::now() > end {
                return Err(format!("the log lacks {missing} of the victim's {} grants", granted.len()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The listeners and addresses of the well-behaved peers, as the broker reports them to root.
    fn state(&self) -> BTreeMap<String, String> {
        let mut root =
            Session::open(&self.targets.control, PATIENCE).unwrap_or_else(|why| panic!("root: {why}"));
        let (mut state, mut after) = (BTreeMap::new(), 0);
        loop {
            let (page, _) = root.ask(&StatusRequest { after }).unwrap_or_else(|why| panic!("status: {why}"));
            for row in page.listeners.into_vec() {
                let endpoint = row.endpoint.to_string();
                if self.targets.endpoints.contains(&endpoint) || endpoint == "127.0.0.1:26" {
                    // The session of a client changes with a takeover, its listener's number does not.
                    let owner = if row.owner.starts_with("session") { "a session" } else { &row.owner };
                    state.insert(endpoint, format!("listener {} of {owner}", row.id.0));
                }
            }
            after = page.next;
            if after == 0 {
                break;
            }
        }
        let mut last = None;
        loop {
            let request = ListAddresses { after: last };
            let (page, _) = root.ask(&request).unwrap_or_else(|why| panic!("list-addresses: {why}"));
            for row in &*page.addresses {
                let address = row.lease.address.to_string();
                last = Some(row.lease.address);
                if self.targets.addresses.contains(&address) {
                    state.insert(address, format!("held by {} with epoch {}", row.holder, row.lease.epoch));
                }
            }
            if !page.more {
                return state;
            }
        }
    }

    /// Kills the worker. The launcher must start the next one, and that one must get the same listeners.
    fn restart_worker(&mut self) -> Result<(), String> {
        // A hostile worker may have ended, and the next one may have started.
        for pid in process::children(self.broker.launcher()) {
            let _ = kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL);
        }
        self.accept_worker()
    }

    fn accept_worker(&mut self) -> Result<(), String> {
        let mut why = String::new();
        // A worker that ended early may have connected before.
        for _ in 0..3 {
            let accept = AssertUnwindSafe(|| self.setup.accept());
            let Ok((scripted, peer)) = catch_unwind(accept) else {
                return Err("the launcher started no worker".to_owned());
            };
            match Worker::new(peer.channel, Some(&self.worker)) {
                Ok(worker) => {
                    (self.worker, self._scripted) = (worker, scripted);
                    return Ok(());
                }
                Err(error) => why = error,
            }
        }
        Err(format!("the next worker: {why}"))
    }

    /// Replaces the broker.
    fn take_over(&mut self) -> Result<(), String> {
        let config = self.host.path("portreeve.conf");
        let mut command = command(self.host, &config, &self.log);
        command.arg("--takeover");
        let next = Broker::launch(self.host, command);
        let mut old = std::mem::replace(&mut self.broker, next);
        let status = old.wait_for_exit();
        self.targets.broker = self.broker.pid();
        self.accept_worker()?;
        self.victim.reconnect().map_err(|why| format!("after the takeover: {why}"))?;
        if status.success() { Ok(()) } else { Err(format!("the old broker ended with {status}")) }
    }

    /// Changes the configuration in force.
    fn reload(&mut self) -> Result<(), String> {
        self.reloads += 1;
        broker::config(self.host, &configuration(&self.setup.chroot.path, self.reloads));
        let mut root =
            Session::open(&self.targets.control, PATIENCE).map_err(|why| format!("root: {why}"))?;
        match root.ask(&Reload::default()) {
            Ok((reloaded, _)) if reloaded.accepted => Ok(()),
            Ok((reloaded, _)) => Err(format!("the reload was refused: {reloaded:?}")),
            Err(why) => Err(format!("reload: {why}")),
        }
    }
}
