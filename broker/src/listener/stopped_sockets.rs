//! The sockets of stopped listeners of which a peer may keep a copy: the broker keeps its own copy for a while.
//!
//! A revoked socket receives nothing, but it stays bound as long as a copy of it exists. Its holder could listen on it
//! again, or clear SO_REUSEADDR, and so keep others from the endpoint. As long as the broker has a copy too, it undoes
//! that when another listener needs the endpoint.
//!
//! Promises: at most [`MAX_KEPT`] sockets, of one holder at most [`MAX_OF_HOLDER`]; one that its holder does not misuse is
//! closed after [`KEEP`].

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use portreeve_protocol::Endpoint;
use tokio::sync::Notify;

use crate::holder::Holder;
use crate::sys::{socket, sockopt};

/// How long a socket is kept whose holder does nothing with it.
const KEEP: Duration = Duration::from_secs(2);
/// How long a socket is kept after its holder was last found to misuse it; it is checked more often.
const KEEP_MISUSED: Duration = Duration::from_secs(10);
/// How long a UDP endpoint is shared with the copy that the former holder may still have.
const RECENT: Duration = Duration::from_secs(60);
const MAX_KEPT: usize = 256;
const MAX_OF_HOLDER: usize = 64;

/// One of them.
#[derive(Debug)]
pub struct StoppedSocket {
    /// Where it listened.
    pub endpoint: Rc<Endpoint>,
    /// Who held it and may have a copy.
    pub holder: Holder,
    /// When its holder was last found to misuse it.
    misused: Option<Instant>,
    socket: OwnedFd,
    check_at: Instant,
}

/// The socket of a stopped listener of which the broker has no copy any more.
#[derive(Debug)]
struct ClosedSocket {
    endpoint: Rc<Endpoint>,
    holder: Holder,
    /// Whether it was disarmed, so that a UDP endpoint can be shared with it.
    disarmed: bool,
    since: Instant,
}

/// All of them, the oldest first.
#[derive(Debug, Default)]
pub struct StoppedSockets {
    sockets: VecDeque<StoppedSocket>,
    /// Those of which the broker has no copy any more, the oldest first.
    closed: VecDeque<ClosedSocket>,
    added: Rc<Notify>,
}

/// Takes the endpoint back from the holder of a copy: the socket does not listen, and keeps nobody from the endpoint.
pub(super) fn disarm(endpoint: &Endpoint, socket: &OwnedFd) {
    // This takes longer, so it comes first: the holder of a copy has less time to undo both.
    let _ = socket::shut_down(socket); // it fails unless the socket listens
    release_endpoint(endpoint, socket);
}

/// Makes a socket that does not listen keep nobody from its endpoint: others can bind there, and a UDP socket takes no packet
/// from them.
pub(super) fn release_endpoint(endpoint: &Endpoint, socket: &OwnedFd) {
    let _ = sockopt::set_reuse_address(socket, true); // it cannot fail for a socket
    if may_take_packets(endpoint, socket) {
        let _ = socket::disconnect(socket); // it unbinds the socket from the holder's interface
        let _ = sockopt::bind_to_no_interface(socket); // the filter drops the packets nevertheless
    }
}

/// Whether it is a UDP socket that can take packets from others.
fn may_take_packets(endpoint: &Endpoint, socket: &OwnedFd) -> bool {
    matches!(endpoint, Endpoint::Udp(_)) && !sockopt::is_bound_to_no_interface(socket)
}

impl StoppedSocket {
    /// Whether its holder has made it keep others from the endpoint.
    fn is_misused(&self) -> bool {
        sockopt::is_listening(&self.socket).unwrap_or(false)
            || !sockopt::reuses_address(&self.socket).unwrap_or(true)
            || may_take_packets(&self.endpoint, &self.socket)
    }
}

impl StoppedSockets {
    /// Is notified when a socket is added.
    pub fn added(&self) -> Rc<Notify> {
        self.added.clone()
    }

    /// Keeps the socket of a listener that was just revoked.
    pub fn keep(&mut self, endpoint: Rc<Endpoint>, holder: Holder, socket: OwnedFd) {
        let of_holder = self.sockets.iter().filter(|other| other.holder == holder).count();
        if of_holder >= MAX_OF_HOLDER {
            self.close_oldest(|other| other.holder == holder);
        } else if self.sockets.len() >= MAX_KEPT {
            self.close_oldest(|_| true);
        }
        let check_at = Instant::now() + KEEP;
        release_endpoint(&endpoint, &socket);
        self.sockets.push_back(StoppedSocket { endpoint, holder, misused: None, socket, check_at });
        self.added.notify_one();
    }

    /// Closes the oldest socket of those that match, if possible one that was not misused.
    fn close_oldest(&mut self, matches: impl Fn(&StoppedSocket) -> bool) {
        let unused = self.sockets.iter().position(|socket| matches(socket) && socket.misused.is_none());
        let oldest = unused.or_else(|| self.sockets.iter().position(matches));
        if let Some(socket) = oldest.and_then(|index| self.sockets.remove(index)) {
            self.note_closed(socket.endpoint, socket.holder);
        }
    }

    /// Disarms the sockets whose endpoint has the same transport and port; false if there is none.
    pub fn disarm_at(&self, endpoint: &Endpoint) -> bool {
        let mut found = false;
        for socket in self.sockets.iter().filter(|socket| same_port(&socket.endpoint, endpoint)) {
            disarm(&socket.endpoint, &socket.socket);
            found = true;
        }
        found
    }

    /// Records the former holder of a socket that was disarmed and of which the broker has no copy any more.
    pub fn note_closed(&mut self, endpoint: Rc<Endpoint>, holder: Holder) {
        self.note(endpoint, holder, true);
    }

    /// Records the former holder of a socket that the broker did not keep.
    pub fn note_unkept(&mut self, endpoint: Rc<Endpoint>, holder: Holder) {
        self.note(endpoint, holder, false);
    }

    fn note(&mut self, endpoint: Rc<Endpoint>, holder: Holder, disarmed: bool) {
        if self.closed.len() >= MAX_KEPT {
            self.closed.pop_front();
        }
        self.closed.push_back(ClosedSocket { endpoint, holder, disarmed, since: Instant::now() });
    }

    /// Whether a listener with this transport and port was stopped and closed a moment ago, and none whose socket the broker did
    /// not keep.
    pub fn was_closed_at(&self, endpoint: &Endpoint) -> bool {
        let is_recent = |closed: &&ClosedSocket| closed.since.elapsed() < RECENT;
        let recent = self.closed.iter().rev().take_while(is_recent);
        let mut here = recent.filter(|closed| same_port(&closed.endpoint, endpoint)).peekable();
        here.peek().is_some() && here.all(|closed| closed.disarmed)
    }

    /// The former holder of a stopped listener whose copy of the socket may keep others from this endpoint.
    pub fn holder_at(&self, endpoint: &Endpoint) -> Option<Holder> {
        let kept = self.sockets.iter().filter(|socket| same_port(&socket.endpoint, endpoint));
        let closed = self.closed.iter().rev().filter(|closed| same_port(&closed.endpoint, endpoint));
        // Sockets that were disarmed keep nobody from the endpoint, unless they were misused.
        let misused = kept.clone().find(|socket| socket.misused.is_some()).map(|socket| socket.holder);
        let armed = closed.clone().find(|closed| !closed.disarmed).map(|closed| closed.holder);
        let mut others = kept.map(|socket| socket.holder).chain(closed.map(|closed| closed.holder));
        misused.or(armed).or_else(|| others.next())
    }

    /// When the next socket has to be checked.
    pub fn next_check(&self) -> Option<Instant> {
        self.sockets.iter().map(|socket| socket.check_at).min()
    }

    /// Checks the sockets that are due: closes those that are not misused any more, and disarms the others. Returns the endpoints and
    /// holders of those that were found to be misused for the first time.
    pub fn check(&mut self, now: Instant) -> Vec<(Rc<Endpoint>, Holder)> {
        let (mut found, mut closed) = (Vec::new(), Vec::new());
        self.sockets.retain_mut(|socket| {
            if socket.check_at > now {
                return true;
            }
            if socket.is_misused() {
                disarm(&socket.endpoint, &socket.socket);
                if socket.misused.replace(now).is_none() {
                    found.push((socket.endpoint.clone(), socket.holder));
                }
            }
            socket.check_at = now + KEEP;
            let is_kept = socket.misused.is_some_and(|last| now < last + KEEP_MISUSED);
            if !is_kept {
                closed.push((socket.endpoint.clone(), socket.holder));
            }
            is_kept
        });
        closed.into_iter().for_each(|(endpoint, holder)| self.note_closed(endpoint, holder));
        found
    }

    /// Those that were misused.
    pub fn misused(&self) -> impl Iterator<Item = &StoppedSocket> {
        self.sockets.iter().filter(|socket| socket.misused.is_some())
    }

    /// Closes all of them.
    pub fn clear(&mut self) {
        self.sockets.clear();
    }
}

/// Whether two endpoints have the same transport and port, so that they may overlap.
pub fn same_port(one: &Endpoint, other: &Endpoint) -> bool {
    match (one, other) {
        (Endpoint::Tcp(one), Endpoint::Tcp(other)) | (Endpoint::Udp(one), Endpoint::Udp(other)) => {
            one.port == other.port
        }
        _ => false,
    }
}
