//! Clients that come in crowds to a mail server, again and again: whoever connects is to be served.

use std::io::{ErrorKind, Read as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::chroot::Chroot;
use crate::wait::PATIENCE;
use crate::{Host, sample};

/// A worker of a test is ended more often than one that should give up.
pub const RESTLESS: &str = "worker { stable_after = 0 }";

/// How many connections one client opens before it reads from the first.
pub const CROWD: usize = 16;

/// The configuration of the sample mail server on port 25, in a chroot, with a control socket.
pub fn mail_server(host: &Host) -> String {
    let chroot = Chroot::new(host, "chroot");
    chroot.worker_directory("/Maildir");
    let command = r#"( /run/host/bin/smtp_worker "--listen" "127.0.0.1:25" )"#;
    let rest = format!("{}{RESTLESS}", sample::socket(r#"( "127.0.0.1:1-65535" )"#));
    sample::worker(&chroot, command, &rest)
}

/// What became of the clients.
#[derive(Default)]
pub struct Tally {
    enough: AtomicBool,
    greeted: AtomicUsize,
    cut_off: AtomicUsize,
}

impl Tally {
    /// Comes in crowds, again and again, until it is enough. Not one may be refused.
    pub fn come(&self) {
        let server = SocketAddr::from(([127, 0, 0, 1], 25));
        while !self.enough.load(Ordering::Relaxed) {
            let crowd: [TcpStream; CROWD] = std::array::from_fn(|_| {
                TcpStream::connect_timeout(&server, PATIENCE)
                    .unwrap_or_else(|error| panic!("a client could not connect: {error}"))
            });
            crowd.into_iter().for_each(|client| self.greet(client));
        }
    }

    fn greet(&self, mut client: TcpStream) {
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        match client.read(&mut [0; 64]) {
            Ok(length) if length > 0 => self.greeted.fetch_add(1, Ordering::Relaxed),
            Err(error) if error.kind() != ErrorKind::ConnectionReset => {
                panic!("a client was not greeted: {error}")
            }
            // The worker that had taken it was ended.
            _ => self.cut_off.fetch_add(1, Ordering::Relaxed),
        };
    }

    /// How many were greeted.
    pub fn greeted(&self) -> usize {
        self.greeted.load(Ordering::Relaxed)
    }

    /// How many were not, by a worker that had taken them.
    pub fn cut_off(&self) -> usize {
        self.cut_off.load(Ordering::Relaxed)
    }

    /// Has the clients go home.
    pub fn enough(&self) {
        self.enough.store(true, Ordering::Relaxed);
    }
}
