//! A hostile peer, and what a trick can use.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_uid};

use super::session::Session;
use crate::chroot::WORKER;
use crate::random::Random;

/// How long a hostile peer waits for the broker, which may be holding it back.
const PATIENCE: Duration = Duration::from_millis(500);

/// How many ports each hostile peer has.
const PORTS: u32 = 1000;
/// How many endpoints the hostile peers have used.
static NEXT_ENDPOINT: AtomicU32 = AtomicU32::new(0);
/// How many addresses each hostile peer has.
pub const ADDRESSES: u16 = 4096;
/// The group whose members are peers.
pub const GROUP: u32 = 4090;
const FIRST_USER: u32 = 4010;
const MEMBER: u32 = 4080;

/// The kinds of peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// One of several users with peer scopes of their own, by number from 0.
    User(u32),
    /// A user without a peer scope, member of a group that has one.
    GroupMember,
    /// The worker, on the channel that it inherits from the launcher.
    Worker,
    /// A client of user 0.
    Root,
}

impl Who {
    /// Its user id.
    pub fn uid(self) -> u32 {
        match self {
            Who::User(number) => FIRST_USER + number,
            Who::GroupMember => MEMBER,
            Who::Worker => WORKER,
            Who::Root => 0,
        }
    }

    /// A number of its own, below 8.
    pub fn number(self) -> u32 {
        match self {
            Who::User(number) => number,
            Who::GroupMember => 5,
            Who::Worker => 6,
            Who::Root => 7,
        }
    }
}

/// Runs `act` in a thread with this user, and with these supplementary groups. Only that thread changes its user, and it
/// loses its capabilities.
pub fn as_user<T: Send>(uid: u32, groups: &[u32], act: impl FnOnce() -> T + Send) -> T {
    let groups: Vec<Gid> = groups.iter().map(|group| Gid::from_raw(*group)).collect();
    let enter = || {
        if uid != 0 {
            set_thread_groups(&groups).unwrap();
            set_thread_gid(Gid::from_raw(uid)).unwrap();
            set_thread_uid(Uid::from_raw(uid)).unwrap();
        }
        act()
    };
    std::thread::scope(|scope| match scope.spawn(enter).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// The objects of others that tricks aim at.
#[derive(Clone, Debug, Default)]
pub struct Targets {
    /// The control socket.
    pub control: PathBuf,
    /// The control socket of another broker.
    pub other_control: Option<PathBuf>,
    /// Endpoints that others hold. Those with an address of their own overlap with a wildcard endpoint.
    pub endpoints: Vec<String>,
    /// Addresses that others hold or will add.
    pub addresses: Vec<String>,
    /// A directory in which each peer is allowed Unix listeners.
    pub directory: PathBuf,
    /// A thousand ports for each hostile peer are theirs, from this one on. All are below those that the kernel gives to clients
    /// (`net.ipv4.ip_local_port_range`).
    pub ports: u16,
    /// The broker's process id.
    pub broker: u32,
}

/// What all hostile peers of a scene share.
#[derive(Default)]
pub struct Shared {
    /// Set when they are to stop.
    pub stop: AtomicBool,
    /// The completed rounds of all.
    pub rounds: AtomicU64,
    /// The harms that they noticed.
    pub harms: Mutex<Vec<String>>,
    /// The latest endpoints that they held and that must be free for others.
    pub released: Mutex<Vec<Released>>,
    /// Endpoints that they held and still occupy in a way that no program can undo.
    pub occupied: Mutex<Vec<String>>,
}

/// An endpoint that a hostile peer held and that must be free for others.
pub struct Released {
    /// Where.
    pub endpoint: String,
    /// Whether at once, or as soon as the broker notices a hang-up.
    pub at_once: bool,
    /// When it was released.
    pub since: Instant,
}

/// See the module.
pub struct Attacker<'s> {
    /// Which peer it is.
    pub who: Who,
    /// The objects of others.
    pub targets: &'s Targets,
    /// Its random choices.
    pub random: Random,
    shared: &'s Shared,
    until: Option<Instant>,
    channel: Option<std::os::unix::net::UnixDatagram>,
    name: String,
}

impl<'s> Attacker<'s> {
    /// A hostile peer. `channel` is the worker's, if it is the worker.
    pub fn new(
        who: Who,
        targets: &'s Targets,
        shared: &'s Shared,
        random: Random,
        channel: Option<std::os::unix::net::UnixDatagram>,
    ) -> Self {
        Self { who, targets, shared, random, until: None, channel, name: String::new() }
    }

    /// Performs a trick, for this time at most.
    pub fn perform(&mut self, name: &str, trick: &dyn super::Trick, time: Option<Duration>) {
        let before = (self.until, std::mem::replace(&mut self.name, name.to_owned()));
        self.until = time.map(|time| Instant::now() + time).into_iter().chain(before.0).min();
        trick.attack(self);
        (self.until, self.name) = before;
    }

    /// Ends a round of a trick. False if the trick is to end.
    pub fn next_round(&mut self) -> bool {
        self.shared.rounds.fetch_add(1, Ordering::Relaxed);
        // The trick attacks the broker, not the processor that this thread shares with the victim's.
        std::thread::sleep(Duration::from_micros(100));
        !self.is_over()
    }

    /// Whether the trick is to end.
    pub fn is_over(&self) -> bool {
        self.shared.stop.load(Ordering::Relaxed) || self.until.is_some_and(|until| Instant::now() > until)
    }

    /// Waits until the trick is to end.
    pub fn hold(&mut self) {
        while self.next_round() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Reports a harm that the trick has noticed.
    pub fn harm(&self, what: impl std::fmt::Display) {
        let mut harms = self.shared.harms.lock().unwrap();
        if harms.len() < 3 {
            harms.push(format!("{:?} {}: {what}", self.who, self.name));
        }
    }

    /// Opens a channel without sending Hello. `None` if the broker does not accept it. The worker has only one channel.
    pub fn connect(&self) -> Option<Session> {
        match &self.channel {
            Some(channel) => Some(Session::new(channel.try_clone().ok()?, PATIENCE)),
            None => Session::connect(&self.targets.control, PATIENCE).ok(),
        }
    }

    /// Opens a session. `None` if the broker refuses it.
    pub fn session(&self) -> Option<Session> {
        let mut session = self.connect()?;
        match self.channel.is_some() || session.hello("hostile").is_ok() {
            true => Some(session),
            false => None,
        }
    }

    /// An endpoint of its own that no peer of this process has used before, also not under an earlier trick: what one trick
    /// occupies, another may not state to have released.
    pub fn endpoint(&self) -> String {
        let number = NEXT_ENDPOINT.fetch_add(1, Ordering::Relaxed);
        let port = u32::from(self.targets.ports) + self.who.number() * PORTS + number % PORTS;
        let [_, _, high, low] = (number / PORTS).to_be_bytes();
        format!("127.{high}.{low}.254:{port}")
    }

    /// One of its addresses, by a number below [`ADDRESSES`].
    pub fn address(&self, number: u16) -> IpAddr {
        let block = self.who.number() * 16 + u32::from(number / 256) % 16;
        Ipv4Addr::new(10, 3, block as u8, (number % 256) as u8).into()
    }

    /// States that an endpoint that it held must be free for others now.
    pub fn release(&self, endpoint: &str) {
        self.add_released(endpoint, true);
    }

    /// States that an endpoint that it held must be free for others when the broker has noticed that its session ended.
    pub fn release_by_hang_up(&self, endpoint: &str) {
        self.add_released(endpoint, false);
    }

    /// States that it occupies an endpoint that it held: others get it, or learn who occupies it.
    pub fn occupy(&self, endpoint: &str) {
        let mut occupied = self.shared.occupied.lock().unwrap();
        if occupied.len() < 64 {
            occupied.push(endpoint.to_owned());
        }
    }

    fn add_released(&self, endpoint: &str, at_once: bool) {
        let mut released = self.shared.released.lock().unwrap();
        if released.len() >= 64 {
            released.remove(0);
        }
        released.push(Released { endpoint: endpoint.to_owned(), at_once, since: Instant::now() });
    }
}

/// A path in the directory of targets.
pub fn path(targets: &Targets, name: impl AsRef<Path>) -> String {
    targets.directory.join(name).to_string_lossy().into_owned()
}
