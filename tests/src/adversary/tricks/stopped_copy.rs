//! A former holder keeps copies of its sockets and makes them listen again.

use std::collections::VecDeque;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use portreeve_protocol::FaultCode;
use portreeve_protocol::message::ListenerId;
use rustix::event::{PollFd, PollFlags, poll};

use crate::adversary::session::{Failure, Session};
use crate::adversary::socket_option::{disconnect, lock_filter, set_number};
use crate::adversary::{Attacker, Trick};
use crate::broker::timespec;
use crate::peer::listen;

/// How long a client tries to reach a stopped socket.
const REACH: Duration = Duration::from_millis(30);
/// How many copies are kept.
const KEPT: usize = 24;

/// The copies of stopped sockets that a former holder keeps.
#[derive(Default)]
pub struct Copies(VecDeque<OwnedFd>);

impl Copies {
    /// Keeps one more.
    pub fn keep(&mut self, copy: OwnedFd) {
        self.0.push_back(copy);
        if self.0.len() > KEPT {
            self.0.pop_front();
        }
    }

    /// Makes each copy listen again.
    fn listen_again(&self) {
        for copy in &self.0 {
            let _ = rustix::net::listen(copy, 16); // refused for datagrams
        }
    }
}

/// Reports a harm if the copy of a stopped socket still receives what clients send.
pub fn check_stopped(attacker: &Attacker<'_>, copy: &OwnedFd, endpoint: &str) {
    let _ = rustix::net::listen(copy, 16); // refused for datagrams
    let readable = || {
        let mut ready = [PollFd::new(copy, PollFlags::IN)];
        matches!(poll(&mut ready, Some(&timespec(REACH))), Ok(1..))
    };
    let served = match endpoint.strip_suffix("/udp") {
        Some(address) => {
            let client = UdpSocket::bind("127.0.0.1:0").unwrap();
            // The kernel may report that there is no receiver.
            client.send_to(b"?", address).is_ok() && readable() && {
                let server = UdpSocket::from(copy.as_fd().try_clone_to_owned().unwrap());
                server.recv_from(&mut [0; 16]).is_ok()
            }
        }
        None => {
            let address: SocketAddr = endpoint.parse().unwrap();
            TcpStream::connect_timeout(&address, REACH).is_ok() && readable() && {
                TcpListener::from(copy.as_fd().try_clone_to_owned().unwrap()).accept().is_ok()
            }
        }
    };
    if served {
        attacker.harm(format_args!("the copy of {endpoint} serves after the stop"));
    }
}

/// Stops a listener, and releases its endpoint after the check. Returns the session, unless it is to be replaced.
pub fn stop(
    attacker: &Attacker<'_>,
    mut session: Session,
    id: ListenerId,
    endpoint: &str,
    check: impl FnOnce(),
) -> Option<Session> {
    match session.stop(id) {
        Ok(()) => {
            check();
            attacker.release(endpoint);
            return Some(session);
        }
        Err(Failure::Fault(fault)) if fault.code != FaultCode::Busy => {
            attacker.harm(format_args!("the broker did not stop {endpoint}: {fault}"));
        }
        // The broker has ended, holds this peer back, or is being replaced: the session is over.
        Err(_) => {}
    }
    None
}

/// Stops its listener, then makes the copy listen again and again.
pub struct ListensAgain;

impl Trick for ListensAgain {
    fn attack(&self, attacker: &mut Attacker<'_>) {
        let (mut copies, mut open) = (Copies::default(), None);
        while attacker.next_round() {
            copies.listen_again();
            let Some(mut session) = open.take().or_else(|| attacker.session()) else { continue };
            let endpoint = attacker.endpoint();
            let Ok((id, copy)) = session.listen(&listen(&endpoint)) else { continue };
            if attacker.random.one_in(2) {
                // The broker may find a socket that does not listen any longer.
                let _ = rustix::net::shutdown(&copy, rustix::net::Shutdown::Both);
            }
            open = stop(attacker, session, id, &endpoint, || {
                let _ = disconnect(&copy); // not every socket can be disconnected
                check_stopped(attacker, &copy, &endpoint);
            });
            copies.keep(copy);
        }
    }
}

/// Hangs up instead of stopping, with its copy locked, or with the socket still unread in its channel.
pub struct HangsUp;

impl Trick for HangsUp {
    fn attack(&self, attacker: &mut Attacker<'_>) {
        let (mut copies, mut channels) = (Copies::default(), VecDeque::new());
        while attacker.next_round() {
            copies.listen_again();
            let Some(mut session) = attacker.session() else { continue };
            let endpoint = attacker.endpoint();
            if attacker.random.one_in(3) {
                // It never receives the socket.
                if session.send(&listen(&endpoint)) {
                    let _ = session.channel.shutdown(Shutdown::Write); // the broker may have ended the session
                    channels.push_back(session);
                }
            } else {
                let Ok((_, copy)) = session.listen(&listen(&endpoint)) else { continue };
                // May be refused.
                let _ = lock_filter(&copy);
                let _ = set_number(&copy, libc::SOL_SOCKET, libc::SO_REUSEADDR, 0);
                copies.keep(copy);
            }
            attacker.release_by_hang_up(&endpoint);
            if channels.len() > KEPT {
                channels.pop_front();
            }
            // Beyond max_new_sessions, the broker would make the next session wait, and notice its end late.
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn suits(&self, who: crate::adversary::Who) -> bool {
        // The worker's listeners are retained for the next worker.
        who != crate::adversary::Who::Worker
    }
}

/// Keeps a connection that it accepted from its listener, with the options that prevent another bind(2). The broker has no copy
/// of the connection, so it cannot undo that.
pub struct KeepsConnections;

impl Trick for KeepsConnections {
    fn attack(&self, attacker: &mut Attacker<'_>) {
        let (mut connections, mut open) = (VecDeque::new(), None);
        while attacker.next_round() {
            let Some(mut session) = open.take().or_else(|| attacker.session()) else { continue };
            let endpoint = attacker.endpoint();
            let Ok((id, copy)) = session.listen(&listen(&endpoint)) else { continue };
            // A connection inherits these from the listening socket. Each may be refused.
            let _ = set_number(&copy, libc::SOL_SOCKET, libc::SO_REUSEADDR, 0);
            let _ = set_number(&copy, libc::SOL_SOCKET, libc::SO_REUSEPORT, 0);
            let server = TcpListener::from(copy);
            let Ok(client) = TcpStream::connect(&endpoint) else { continue };
            let Ok((accepted, _)) = server.accept() else { continue };
            if session.stop(id).is_ok() {
                attacker.occupy(&endpoint);
                open = Some(session);
            }
            connections.push_back((server, client, accepted));
            if connections.len() > KEPT {
                connections.pop_front();
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}
