//! Mail clients, which connect in batches and expect the server's greeting. None may be refused while the worker or the
//! broker runs.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::actor::Actor;
use super::model::Model;
use crate::random::Random;
use crate::wait::TIMEOUT;

/// The worker's ports: of a listener that it requests, and of one that it was started with.
pub const PORTS: [u16; 2] = [25, 26];

/// A client that connects repeatedly.
pub struct MailClient(pub Random);

impl Actor for MailClient {
    fn step(&mut self, model: &Model) {
        let port = PORTS[self.0.below(2) as usize];
        let server = SocketAddr::from(([127, 0, 0, 1], port));
        let begun = model.worker_down.mark();
        let crowd: Vec<TcpStream> =
            (0..self.0.below(8) + 1).filter_map(|_| connect(model, &server)).collect();
        for mut client in crowd {
            let talk = self.0.one_in(10);
            match greeted(&mut client, talk) {
                Ok(()) => model.count("clients served"),
                Err(_) if model.worker_down.occurred_since(begun) => {
                    model.count("clients disconnected with their worker")
                }
                Err(error) => {
                    model.violation(format_args!("a client of port {port} was not served: {error}"))
                }
            }
        }
    }

    fn release(&mut self, _: &Model) {}

    fn pause(&mut self) -> Duration {
        Duration::from_millis(5 + self.0.below(20))
    }
}

fn connect(model: &Model, server: &SocketAddr) -> Option<TcpStream> {
    let begun = model.service_down.mark();
    match TcpStream::connect_timeout(server, TIMEOUT) {
        Ok(client) => Some(client),
        Err(_) if model.service_down.occurred_since(begun) => {
            model.count("clients refused during an outage");
            None
        }
        Err(error) => {
            model.violation(format_args!("a client of {server} could not connect: {error}"));
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
