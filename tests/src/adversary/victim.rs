//! The well-behaved peers: a user, the worker, a client of the second broker, and root's command line. Each checks every
//! reply and every connection, and measures how long they take.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use portreeve_protocol::address::{AddAddress, Lease, RemoveAddress, RenewAddress};
use portreeve_protocol::event::Subscribe;
use portreeve_protocol::message::{Listen, ListenerId, Outcome, Ping};
use portreeve_protocol::{EventCode, Fault, FaultCode, List};
use rustix::event::{PollFd, PollFlags, poll};

use super::attacker::as_user;
use super::latency::{Latencies, PATIENCE};
use super::session::{Failure, Session};
use crate::broker::timespec;
use crate::peer::listen;
use crate::process;

/// The victim's user id.
pub const USER: u32 = 4001;
/// The epoch of its lease.
const EPOCH: u64 = 7;
/// An endpoint of each kind that it holds.
pub const STREAM: &str = "127.0.0.1:2001";
/// Held with SO_REUSEPORT.
pub const WILDCARD: &str = "*:2003";
/// Receives datagrams.
pub const DATAGRAM: &str = "127.0.0.1:2004/udp";
/// The address of its lease.
pub const ADDRESS: &str = "10.2.1.1";
/// An address that it adds and removes.
pub const SECOND_ADDRESS: &str = "10.2.1.2";
/// An address that it has removed with the epoch 9.
pub const REMOVED_ADDRESS: &str = "10.2.1.3";
/// The worker's endpoint.
pub const WORKER: &str = "127.0.0.1:25";
/// Another of the worker's endpoints, with SO_REUSEPORT.
pub const WORKER_WILDCARD: &str = "*:2525";

type Checked<T = ()> = Result<T, String>;

/// A listener and its socket.
pub struct Held {
    /// The request that it was granted to.
    request: Listen,
    id: ListenerId,
    socket: OwnedFd,
}

/// See the module.
pub struct Victim {
    control: PathBuf,
    session: Session,
    subscriber: Session,
    held: Vec<Held>,
    unix: String,
    next_port: u16,
    flags: Option<rustix::fs::OFlags>,
    /// The endpoints that were granted to it since these were last taken.
    pub granted: Vec<String>,
}

fn lost(what: &str) -> impl Fn(Failure) -> String + '_ {
    move |failure| format!("{what}: {failure}")
}

fn only<T, const MAX: usize>(results: List<Outcome<T>, MAX>) -> Result<T, Fault> {
    match results.into_vec().pop() {
        Some(Outcome::Done(done)) => Ok(done),
        Some(Outcome::Fault(fault)) => Err(fault),
        None => Err(Fault::new(FaultCode::Malformed, "there is no result")),
    }
}

fn one<const MAX: usize>(address: &str) -> List<IpAddr, MAX> {
    crate::peer::one_address(address)
}

impl Victim {
    /// Connects and requests everything that it holds. The Unix listener is in `directory`.
    pub fn new(control: &Path, directory: &Path) -> Checked<Self> {
        let open = || Session::open(control, PATIENCE).map_err(lost("open a session"));
        let (session, subscriber) = as_user(USER, &[], || (open(), open()));
        let unix = directory.join("victim.sock").to_string_lossy().into_owned();
        let mut victim = Self {
            control: control.to_owned(),
            session: session?,
            subscriber: subscriber?,
            held: Vec::new(),
            unix,
            next_port: 0,
            flags: None,
            granted: Vec::new(),
        };
        for endpoint in [STREAM, WILDCARD, DATAGRAM, &victim.unix.clone()] {
            let mut request = listen(endpoint);
            request.options.reuse_port = endpoint == WILDCARD;
            let held = victim.hold(request)?;
            victim.held.push(held);
        }
        victim.add(ADDRESS, EPOCH)?;
        victim.add(REMOVED_ADDRESS, 9)?;
        victim.remove(REMOVED_ADDRESS, 9)?;
        victim.subscribe()?;
        Ok(victim)
    }

    fn subscribe(&mut self) -> Checked {
        let follow = Subscribe { follow: true, all: false };
        self.subscriber.ask(&follow).map(drop).map_err(lost("subscribe"))
    }

    fn hold(&mut self, request: Listen) -> Checked<Held> {
        let what = format!("listen on {}", request.endpoint);
        let (id, socket) = self.session.listen(&request).map_err(lost(&what))?;
        if request.endpoint.to_string().starts_with('/') {
            // Its clients see the credentials of the process that calls listen(2).
            as_user(USER, &[], || rustix::net::listen(&socket, 16)).map_err(|error| error.to_string())?;
        }
        Ok(Held { request, id, socket })
    }

    /// Opens new sessions after a takeover, and requests what it held. The ids must be the same.
    pub fn reconnect(&mut self) -> Checked {
        let open = || Session::open(&self.control, PATIENCE).map_err(lost("open a session"));
        let (session, subscriber) = as_user(USER, &[], || (open(), open()));
        (self.session, self.subscriber) = (session?, subscriber?);
        self.subscribe()?;
        for index in 0..self.held.len() {
            let request = self.held[index].request.clone();
            let now = self.hold(request)?;
            let before = std::mem::replace(&mut self.held[index], now);
            if before.id != self.held[index].id {
                return Err(format!("{} has another id after the takeover", before.request.endpoint));
            }
        }
        Ok(())
    }

    fn add(&mut self, address: &str, epoch: u64) -> Checked<Lease> {
        let add = AddAddress { addresses: one(address), lease: Some(60), epoch, ..AddAddress::default() };
        let (reply, _) = self.session.ask(&add).map_err(lost("add-address"))?;
        only(reply.results).map_err(|fault| format!("add {address}: {fault}"))
    }

    fn remove(&mut self, address: &str, epoch: u64) -> Checked {
        let remove = RemoveAddress { addresses: one(address), epoch };
        let (reply, _) = self.session.ask(&remove).map_err(lost("remove-address"))?;
        only(reply.results).map(drop).map_err(|fault| format!("remove {address}: {fault}"))
    }

    fn await_event(&mut self, code: EventCode) -> Checked {
        let awaited = SECOND_ADDRESS.parse().ok();
        loop {
            let event = self.subscriber.next_event().map_err(lost("wait for an event"))?;
            if event.code == code && event.address == awaited {
                return Ok(());
            }
        }
    }

    fn fresh_endpoint(&mut self) -> String {
        self.next_port = (self.next_port + 1) % 9_000;
        format!("127.0.0.1:{}", 10_000 + self.next_port)
    }

    /// Makes each request once.
    pub fn round(&mut self, latencies: &mut Latencies) -> Checked {
        latencies.measure("ping", || self.session.ask(&Ping {})).map_err(lost("ping"))?;
        let endpoint = self.fresh_endpoint();
        latencies.measure("listen and serve", || self.serve_once(&endpoint))?;
        latencies.measure("serve", || self.serve_held())?;
        let renew =
            RenewAddress { addresses: one(ADDRESS), epoch: EPOCH, lease: None, ..RenewAddress::default() };
        let renewed = latencies.measure("renew", || self.session.ask(&renew)).map_err(lost("renew"))?;
        only(renewed.0.results).map_err(|fault| format!("renew {ADDRESS}: {fault}"))?;
        latencies.measure("event", || {
            self.add(SECOND_ADDRESS, EPOCH)?;
            self.await_event(EventCode::AddressAdded)?;
            self.remove(SECOND_ADDRESS, EPOCH)?;
            self.await_event(EventCode::AddressRemoved)
        })
    }

    /// Uses an endpoint that another peer has held, which must be free after this time at the latest.
    pub fn succeed(&mut self, endpoint: &str, free_after: Duration) -> Checked {
        let end = Instant::now() + free_after;
        loop {
            match self.serve_once(endpoint) {
                Err(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(20)),
                done => return done.map_err(|why| format!("an endpoint that another peer has left: {why}")),
            }
        }
    }

    /// Uses an endpoint that another peer still occupies, or learns which one.
    pub fn succeed_or_learn(&mut self, endpoint: &str) -> Checked {
        let request = listen(endpoint);
        match self.session.listen(&request) {
            Ok((id, _)) => {
                self.granted.push(endpoint.to_owned());
                self.session.stop(id).map_err(|failure| format!("stop {endpoint}: {failure}"))
            }
            Err(Failure::Fault(fault))
                if fault.code == FaultCode::InUse && fault.message.contains("which may keep a copy") =>
            {
                Ok(())
            }
            Err(failure) => Err(format!("an endpoint that another peer occupies: {failure}")),
        }
    }

    /// Listens on an endpoint, serves a client, and stops.
    fn serve_once(&mut self, endpoint: &str) -> Checked {
        let request = listen(endpoint);
        let (id, socket) =
            self.session.listen(&request).map_err(|failure| format!("listen on {endpoint}: {failure}"))?;
        self.granted.push(endpoint.to_owned());
        let flags = rustix::fs::fcntl_getfl(&socket).map_err(|error| error.to_string())?;
        if *self.flags.get_or_insert(flags) != flags {
            return Err(format!("the socket of {endpoint} has the status flags {flags:?} of another holder"));
        }
        let served = check_served(&socket, endpoint);
        let stopped = self.session.stop(id).map_err(|failure| format!("stop {endpoint}: {failure}"));
        served.and(stopped)?;
        match endpoint.strip_suffix("/udp") {
            None if TcpStream::connect(endpoint).is_ok() => {
                Err(format!("{endpoint} accepts clients after its stop"))
            }
            _ => Ok(()),
        }
    }

    fn serve_held(&self) -> Checked {
        for held in &self.held {
            match held.request.endpoint.to_string().as_str() {
                WILDCARD => ["127.0.0.1:2003", "127.0.0.2:2003"]
                    .iter()
                    .try_for_each(|client| check_served(&held.socket, client))?,
                endpoint => check_served(&held.socket, endpoint)?,
            }
        }
        Ok(())
    }

    /// Checks that the epoch of an address is remembered after its removal.
    pub fn check_epochs(&mut self) -> Checked {
        match self.add(REMOVED_ADDRESS, 8) {
            Err(why) if why.contains("epoch") => Ok(()),
            Err(why) => Err(format!("an old epoch was refused for another reason: {why}")),
            Ok(_) => {
                let _ = self.remove(REMOVED_ADDRESS, 9); // the violation is already found
                Err(format!("{REMOVED_ADDRESS} was granted to an epoch older than its last one"))
            }
        }
    }
}

/// Checks that what a client sends to this endpoint arrives at this socket.
fn check_served(socket: &OwnedFd, to: &str) -> Checked {
    let failed = |error: &dyn std::fmt::Display| format!("a client of {to}: {error}");
    let readable = || {
        let mut ready = [PollFd::new(socket, PollFlags::IN)];
        match poll(&mut ready, Some(&timespec(PATIENCE))) {
            Ok(1..) => Ok(()),
            Ok(0) => Err(failed(&"its connection did not arrive at the holder's socket")),
            Err(error) => Err(failed(&error)),
        }
    };
    let copy = socket.as_fd().try_clone_to_owned().map_err(|error| failed(&error))?;
    if to.starts_with('/') {
        let client = UnixStream::connect(to).map_err(|error| failed(&error))?;
        readable()?;
        std::os::unix::net::UnixListener::from(copy).accept().map_err(|error| failed(&error))?;
        let holder = rustix::net::sockopt::socket_peercred(&client).map_err(|error| failed(&error))?.uid;
        return match holder.as_raw() {
            USER => Ok(()),
            other => Err(failed(&format_args!("the listener has the credentials of user {other}"))),
        };
    }
    if let Some(address) = to.strip_suffix("/udp") {
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|error| failed(&error))?;
        client.send_to(b"?", address).map_err(|error| failed(&error))?;
        let (own, server) = (client.local_addr().ok(), UdpSocket::from(copy));
        loop {
            readable()?;
            let (_, from) = server.recv_from(&mut [0; 16]).map_err(|error| failed(&error))?;
            if Some(from) == own {
                return Ok(());
            }
        }
    }
    let address: SocketAddr = to.parse().map_err(|error| failed(&error))?;
    let client = TcpStream::connect_timeout(&address, PATIENCE).map_err(|error| failed(&error))?;
    let (own, server) = (client.local_addr().ok(), TcpListener::from(copy));
    loop {
        readable()?;
        let (_, from) = server.accept().map_err(|error| failed(&error))?;
        if Some(from) == own {
            return Ok(());
        }
    }
}

/// The worker, as the broker sees it: a session on the inherited channel.
pub struct Worker {
    /// Its session.
    pub session: Session,
    held: Vec<Held>,
    next_port: u16,
}

impl Worker {
    /// A worker with this channel. `before` is the worker that ended: the listeners must have the same ids.
    pub fn new(channel: std::os::unix::net::UnixDatagram, before: Option<&Worker>) -> Checked<Self> {
        let mut session = Session::new(channel, PATIENCE);
        session.hello("worker").map_err(lost("hello of the worker"))?;
        let mut held = Vec::new();
        for endpoint in [WORKER, WORKER_WILDCARD] {
            let mut request = listen(endpoint);
            request.options.reuse_port = endpoint == WORKER_WILDCARD;
            let (id, socket) = session.listen(&request).map_err(lost("listen of the worker"))?;
            held.push(Held { request, id, socket });
        }
        let ids = |held: &[Held]| held.iter().map(|held| held.id).collect::<Vec<_>>();
        match before.map(|before| ids(&before.held)) {
            Some(before) if before != ids(&held) => Err("the next worker got other listeners".to_owned()),
            _ => Ok(Self { session, held, next_port: 0 }),
        }
    }

    /// Makes each request once.
    pub fn round(&mut self, latencies: &mut Latencies) -> Checked {
        latencies
            .measure("worker: ping", || self.session.ask(&Ping {}))
            .map_err(lost("ping of the worker"))?;
        self.next_port = (self.next_port + 1) % 900;
        let request = listen(&format!("127.0.0.1:{}", 19_000 + self.next_port));
        latencies
            .measure("worker: listen", || {
                let (id, _) = self.session.listen(&request)?;
                self.session.stop(id)
            })
            .map_err(lost("listen of the worker"))?;
        check_served(&self.held[0].socket, WORKER)?;
        check_served(&self.held[1].socket, "127.0.0.1:2525")
    }
}

/// A client of the second broker.
pub struct OtherClient {
    session: Session,
}

impl OtherClient {
    /// Connects.
    pub fn new(control: &Path) -> Checked<Self> {
        let session = as_user(USER, &[], || Session::open(control, PATIENCE));
        Ok(Self { session: session.map_err(lost("open a session with the second broker"))? })
    }

    /// Makes each request once.
    pub fn round(&mut self, latencies: &mut Latencies) -> Checked {
        let act = || {
            let (id, _) = self.session.listen(&listen("127.0.0.1:9001"))?;
            self.session.stop(id)
        };
        latencies.measure("second broker: listen", act).map_err(lost("listen at the second broker"))
    }
}

/// How long `status` may take: it sends a request for each page of ten thousand addresses, and each one waits its turn.
const PATIENCE_WITH_STATUS: Duration = Duration::from_secs(30);

/// Runs the command line of root, and measures its ping. Its status lists what others hold, so it takes longer if they hold
/// more; it must answer in time.
pub fn root_commands(client: &Path, control: &Path, latencies: &mut Latencies) -> Checked {
    latencies.measure("root: ping", || run_in_time(client, control, &["ping", "-c", "1"], PATIENCE))?;
    run_in_time(client, control, &["status"], PATIENCE_WITH_STATUS)
}

fn run_in_time(client: &Path, control: &Path, arguments: &[&str], patience: Duration) -> Checked {
    let mut command = Command::new(client);
    command.arg("--socket").arg(control).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let end = Instant::now() + patience;
    while Instant::now() < end {
        match child.try_wait().map_err(|error| error.to_string())? {
            None => std::thread::sleep(Duration::from_millis(1)),
            Some(status) if status.success() => return Ok(()),
            Some(status) => {
                let mut text = String::new();
                if let Some(mut errors) = child.stderr.take() {
                    let _ = std::io::Read::read_to_string(&mut errors, &mut text); // it may not be UTF-8
                }
                return Err(format!("root's {} ended with {status}: {}", arguments[0], text.trim()));
            }
        }
    }
    let _ = child.kill(); // it may have ended meanwhile
    let _ = child.wait();
    Err(format!("root's {} did not end after {patience:?}", arguments[0]))
}

/// The resident memory of a process in kB.
pub fn resident(pid: u32) -> u64 {
    process::status_kilobytes(pid, "VmRSS")
}
