//! The JSON gateway of an etcd member: requests by HTTP on the loopback interface of its host.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

use crate::lan::in_host;

/// The port on which members listen for the test.
pub const PORT: u16 = 2381;

/// The limit of a request that is not a stream.
const TIMEOUT: Duration = Duration::from_millis(500);

/// A member's gateway.
#[derive(Clone, Copy, Debug)]
pub struct Gateway {
    host: &'static str,
}

/// A reply of many JSON objects, one a line.
pub struct Stream {
    socket: TcpStream,
    received: Vec<u8>,
    is_body: bool,
}

impl Gateway {
    /// The gateway of the member on this host.
    pub fn of(host: &'static str) -> Self {
        Self { host }
    }

    /// Sends a request. The reply is read with [`Stream::receive`].
    ///
    /// # Errors
    /// The member does not run.
    pub fn open(self, path: &str, body: &Value) -> io::Result<Stream> {
        let at = SocketAddr::from(([127, 0, 0, 1], PORT));
        let mut socket = in_host(self.host, || TcpStream::connect_timeout(&at, TIMEOUT))?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        socket.set_write_timeout(Some(TIMEOUT))?;
        let body = body.to_string();
        // HTTP/1.0: the reply ends with the connection and is not chunked.
        let length = body.len();
        let request = format!("POST /v3/{path} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}");
        socket.write_all(request.as_bytes())?;
        Ok(Stream { socket, received: Vec::new(), is_body: false })
    }

    /// Sends a request and returns its reply.
    ///
    /// # Errors
    /// The member does not run, or did not reply within half a second.
    pub fn call(self, path: &str, body: &Value) -> io::Result<Value> {
        self.open(path, body)?.receive()?.ok_or_else(|| ErrorKind::TimedOut.into())
    }

    /// Whether the member leads the engine.
    pub fn is_leader(self) -> bool {
        let is_leader = |status: Value| status["leader"] == status["header"]["member_id"];
        self.call("maintenance/status", &json!({})).is_ok_and(is_leader)
    }

    /// Whether the engine performs requests for this member.
    pub fn answers(self) -> bool {
        let read = json!({ "key": encode_base64(b"/"), "count_only": true });
        self.call("kv/range", &read).is_ok_and(|reply| reply["header"].is_object())
    }
}

impl Stream {
    /// The next object; `None` if none came within half a second.
    ///
    /// # Errors
    /// The connection ended.
    pub fn receive(&mut self) -> io::Result<Option<Value>> {
        loop {
            if let Some(value) = self.take()? {
                return Ok(Some(value));
            }
            let mut some = [0; 16 * 1024];
            match self.socket.read(&mut some) {
                Ok(0) if self.is_body && !self.received.is_empty() => {
                    return Ok(Some(serde_json::from_slice(&std::mem::take(&mut self.received))?));
                }
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(length) => self.received.extend_from_slice(&some[..length]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes one line out of what was received.
    fn take(&mut self) -> io::Result<Option<Value>> {
        if !self.is_body {
            let Some(end) = self.received.windows(4).position(|four| four == b"\r\n\r\n") else {
                return Ok(None);
            };
            self.received.drain(..end + 4);
            self.is_body = true;
        }
        let Some(end) = self.received.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
        let line: Vec<u8> = self.received.drain(..=end).collect();
        Ok(Some(serde_json::from_slice(&line)?))
    }
}

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Base64 of RFC 4648, in which the gateway expects keys and values.
pub fn encode_base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits =
            group.iter().fold(0, |bits, byte| bits << 8 | usize::from(*byte)) << (8 * (3 - group.len()));
        for place in 0..4 {
            let digit = DIGITS[bits >> (18 - 6 * place) & 63];
            text.push(if place <= group.len() { digit.into() } else { '=' });
        }
    }
    text
}

/// The bytes of such a text.
pub fn decode_base64(text: &str) -> Vec<u8> {
    let digits = text.bytes().take_while(|byte| *byte != b'=');
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0_usize, 0);
    for digit in digits {
        let value = DIGITS.iter().position(|one| *one == digit).expect("a digit of base64");
        (bits, count) = ((bits << 6 | value) & 0xffff, count + 6);
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from(bits >> count & 0xff).unwrap());
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_as_in_the_rfc() {
        for (text, encoded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(encode_base64(text.as_bytes()), encoded);
            assert_eq!(decode_base64(encoded), text.as_bytes());
        }
    }
}
