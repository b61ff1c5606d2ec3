//! Clients that come in crowds to a mail server, again and again: whoever connects is to be served.

use std::io::{ErrorKind, Read as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::chroot::Chroot;
use crate::wait::TIMEOUT;
use crate::{Host, sample};

/// A worker of a test is ended more often than one that should give up.
pub const ALWAYS_STABLE: &str = "worker { stable_after = 0 }";

/// How many connections one client opens before it reads from the first.
pub const BATCH: usize = 16;

/// The configuration of the sample mail server on port 25, in a chroot, with a control socket.
pub fn mail_server(host: &Host) -> String {
    let chroot = Chroot::new(host, "chroot");
    chroot.worker_directory("/Maildir");
    let command = r#"( /run/host/bin/smtp_worker "--listen" "127.0.0.1:25" )"#;
    let rest = format!("{}{ALWAYS_STABLE}", sample::socket(r#"( "127.0.0.1:1-65535" )"#));
    sample::worker(&chroot, command, &rest)
}

/// What became of the clients.
#[derive(Default)]
pub struct SmtpLoad {
    stopped: AtomicBool,
    greeted: AtomicUsize,
    disconnected: AtomicUsize,
}

impl SmtpLoad {
    /// Comes in crowds, again and again, until it is enough. Not one may be refused.
    pub fn run_client(&self) {
        let server = SocketAddr::from(([127, 0, 0, 1], 25));
        while !self.stopped.load(Ordering::Relaxed) {
            let crowd: [TcpStream; BATCH] = std::array::from_fn(|_| {
                TcpStream::connect_timeout(&server, TIMEOUT)
                    .unwrap_or_else(|error| panic!("a client could not connect: {error}"))
            });
            crowd.into_iter().for_each(|client| self.greet(client));
        }
    }

    fn greet(&self, mut client: TcpStream) {
        client.set_read_timeout(Some(TIMEOUT)).unwrap();
        match client.read(&mut [0; 64]) {
            Ok(length) if length > 0 => self.greeted.fetch_add(1, Ordering::Relaxed),
            Err(error) if error.kind() != ErrorKind::ConnectionReset => {
                panic!("a client was not greeted: {error}")
            }
            // The worker that had taken it was ended.
            _ => self.disconnected.fetch_add(1, Ordering::Relaxed),
        };
    }

    /// How many were greeted.
    pub fn greeted(&self) -> usize {
        self.greeted.load(Ordering::Relaxed)
    }

    /// How many were not, by a worker that had taken them.
    pub fn disconnected(&self) -> usize {
        self.disconnected.load(Ordering::Relaxed)
    }

    /// Has the clients go home.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}
