//! A holder sets every option that it may on its copy of a lent socket, and makes the kernel send signals about it.

use std::net::TcpStream;

use libc::{IPPROTO_IP, IPPROTO_TCP, SOL_SOCKET, c_int};

use crate::adversary::socket_option::{bind_to_device, select_one_of_group, set_number, signal_process};
use crate::adversary::{Attacker, Trick, Who};
use crate::peer::listen;

/// Level, name and value.
const OPTIONS: &[(c_int, c_int, c_int)] = &[
    (SOL_SOCKET, libc::SO_REUSEADDR, 0),
    (SOL_SOCKET, libc::SO_REUSEPORT, 1),
    (SOL_SOCKET, libc::SO_KEEPALIVE, 1),
    (SOL_SOCKET, libc::SO_RCVBUF, 1),
    (SOL_SOCKET, libc::SO_SNDBUF, 1),
    (SOL_SOCKET, libc::SO_RCVLOWAT, c_int::MAX),
    (SOL_SOCKET, libc::SO_INCOMING_CPU, 0),
    (SOL_SOCKET, libc::SO_DONTROUTE, 1),
    (SOL_SOCKET, libc::SO_OOBINLINE, 1),
    (SOL_SOCKET, libc::SO_MARK, 1),
    (SOL_SOCKET, libc::SO_PRIORITY, 6),
    (IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 3600),
    (IPPROTO_TCP, libc::TCP_FASTOPEN, 1),
    (IPPROTO_TCP, libc::TCP_MAXSEG, 88),
    (IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 1),
    (IPPROTO_IP, libc::IP_TTL, 1),
    (IPPROTO_IP, libc::IP_FREEBIND, 1),
    (IPPROTO_IP, libc::IP_TRANSPARENT, 1),
    (IPPROTO_IP, libc::IP_TOS, 255),
];

/// See the module.
pub struct SocketOptions;

impl Trick for SocketOptions {
    fn attack(&self, attacker: &mut Attacker<'_>) {
        let mut open = None;
        while attacker.next_round() {
            let Some(mut session) = open.take().or_else(|| attacker.session()) else { continue };
            let endpoint = attacker.endpoint();
            let Ok((id, copy)) = session.listen(&listen(&endpoint)) else { continue };
            // The kernel may refuse each of these.
            if attacker.who != Who::Root {
                // User 0 is allowed to signal the broker anyway.
                let _ = signal_process(&copy, attacker.targets.broker);
            }
            drop(TcpStream::connect(&endpoint));
            for (level, name, value) in OPTIONS {
                let _ = set_number(&copy, *level, *name, *value);
            }
            let _ = bind_to_device(&copy, "eth1");
            let _ = select_one_of_group(&copy);
            if session.stop(id).is_ok() {
                attacker.release(&endpoint);
                open = Some(session);
            }
        }
    }
}
