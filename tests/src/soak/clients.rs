//! Mail clients: they connect in crowds and are greeted. Not one may be refused while the worker or the broker lives.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::actor::Actor;
use super::ledger::Ledger;
use crate::random::Random;
use crate::wait::TIMEOUT;

/// Where the worker serves: a listener that it asks for, and one that it was started with.
pub const SERVED: [u16; 2] = [25, 26];

/// One that comes again and again.
pub struct Client(pub Random);

impl Actor for Client {
    fn act(&mut self, ledger: &Ledger) {
        let port = SERVED[self.0.below(2) as usize];
        let server = SocketAddr::from(([127, 0, 0, 1], port));
        let begun = ledger.worker_ends.now();
        let crowd: Vec<TcpStream> =
            (0..self.0.below(8) + 1).filter_map(|_| connect(ledger, &server)).collect();
        for mut client in crowd {
            let talk = self.0.one_in(10);
            match greeted(&mut client, talk) {
                Ok(()) => ledger.count("clients served"),
                Err(_) if ledger.worker_ends.since(begun) => {
                    ledger.count("clients cut off with their worker")
                }
                Err(error) => {
                    ledger.violation(format_args!("a client of port {port} was not served: {error}"))
                }
            }
        }
    }

    fn give_back(&mut self, _: &Ledger) {}

    fn pause(&mut self) -> Duration {
        Duration::from_millis(5 + self.0.below(20))
    }
}

fn connect(ledger: &Ledger, server: &SocketAddr) -> Option<TcpStream> {
    let begun = ledger.closed.now();
    match TcpStream::connect_timeout(server, TIMEOUT) {
        Ok(client) => Some(client),
        Err(_) if ledger.closed.since(begun) => {
            ledger.count("clients that came while nobody served");
            None
        }
        Err(error) => {
            ledger.violation(format_args!("a client of {server} could not connect: {error}"));
            None
        }
    }
}

fn greeted(client: &mut TcpStream, talk: bool) -> std::io::Result<()> {
    client.set_read_timeout(Some(TIMEOUT))?;
    let mut answer = [0; 512];
    let mut expect = |client: &mut TcpStream, code: &[u8]| {
        let length = client.read(&mut answer)?;
        match answer[..length].starts_with(code) {
            true => Ok(()),
            false => Err(std::io::Error::new(ErrorKind::UnexpectedEof, format!("{length} bytes"))),
        }
    };
    expect(client, b"220")?;
    if talk {
        client.write_all(b"EHLO soak.example\r\n")?;
        expect(client, b"250")?;
        client.write_all(b"QUIT\r\n")?;
        expect(client, b"221")?;
    }
    Ok(())
}
