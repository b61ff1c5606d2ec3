//! Clients that connect to a mail server in batches, repeatedly. Each connection must be accepted.

use std::io::{ErrorKind, Read as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::chroot::Chroot;
use crate::wait::TIMEOUT;
use crate::{Host, sample};

/// Makes the broker regard every worker as stable at once: tests end workers more often than a broken worker would end.
pub const ALWAYS_STABLE: &str = "worker { stable_after = 0 }";

/// The number of connections that a client opens before it reads from the first.
pub const BATCH: usize = 16;

/// A configuration with the sample mail server on port 25 in a chroot, and a control socket.
pub fn mail_server(host: &Host) -> String {
    let chroot = Chroot::new(host, "chroot");
    chroot.worker_directory("/Maildir");
    let command = r#"( /run/host/bin/smtp_worker "--listen" "127.0.0.1:25" )"#;
    let rest = format!("{}{ALWAYS_STABLE}", sample::socket(r#"( "127.0.0.1:1-65535" )"#));
    sample::worker(&chroot, command, &rest)
}

/// The load's counters, and whether it is to stop.
#[derive(Default)]
pub struct SmtpLoad {
    stopped: AtomicBool,
    greeted: AtomicUsize,
    disconnected: AtomicUsize,
}

impl SmtpLoad {
    /// Opens batches of connections until [`SmtpLoad::stop`]. Panics if a connection is refused.
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
            // The worker that had accepted it has ended.
            _ => self.disconnected.fetch_add(1, Ordering::Relaxed),
        };
    }

    /// How many clients were greeted.
    pub fn greeted(&self) -> usize {
        self.greeted.load(Ordering::Relaxed)
    }

    /// How many clients were disconnected after a worker had accepted them.
    pub fn disconnected(&self) -> usize {
        self.disconnected.load(Ordering::Relaxed)
    }

    /// Stops the clients.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}
