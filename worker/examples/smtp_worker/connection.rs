//! One client connection: passes lines to the dialogue, sends replies to the client, and delivers messages to the Maildir.
//!
//! It enforces the limits of lines, messages and idle time, and sends several replies in one packet if the client pipelines.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::data::DataDecoder;
use crate::dialogue::{Action, Dialogue, Envelope, line};
use crate::maildir::{Delivery, Maildir};
use crate::note;

/// Maximum idle time of a client. RFC 5321 section 4.5.3.2.7.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);
/// Maximum length of a command line: RFC 5321 section 4.5.3.1.4, with room for the parameters of MAIL.
const MAX_LINE: usize = 1000;
/// Maximum number of failed commands in one dialogue.
const MAX_FAILURES: u32 = 50;

/// State that all connections share.
#[derive(Debug)]
pub struct Service {
    pub name: String,
    pub max_size: u64,
    pub maildir: Maildir,
    /// True when no new message may start.
    pub closing: watch::Receiver<bool>,
}

/// A line, or the reason that there is none.
enum Input {
    Line,
    TooLong,
    Closed,
    Idle,
    Closing,
}

struct Connection<'a> {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    /// Replies that are not yet sent.
    replies: String,
    line: Vec<u8>,
    from: SocketAddr,
    service: &'a Service,
}

/// Serves a client until its dialogue ends.
pub async fn serve(stream: TcpStream, from: SocketAddr, service: &Service) -> io::Result<()> {
    let (reader, writer) = stream.into_split();
    let mut connection = Connection {
        reader: BufReader::new(reader),
        writer,
        replies: String::new(),
        line: Vec::new(),
        from,
        service,
    };
    let mut dialogue = Dialogue::new(&service.name, service.max_size);
    connection.replies = dialogue.greeting();
    let result = connection.run(&mut dialogue).await;
    connection.flush().await?;
    result
}

impl Connection<'_> {
    async fn run(&mut self, dialogue: &mut Dialogue) -> io::Result<()> {
        let mut failures = 0;
        let mut closing = self.service.closing.clone();
        loop {
            let wait_for_closing = !dialogue.in_transaction();
            let input = tokio::select! {
                biased;
                input = timeout(IDLE_TIMEOUT, self.next_line()) => input.unwrap_or(Ok(Input::Idle))?,
                _ = closing.wait_for(|closing| *closing), if wait_for_closing => Input::Closing,
            };
            let action = match input {
                Input::Line => dialogue.command(&self.line),
                Input::TooLong => Action::Reply(line(500, "the line is too long")),
                Input::Closed => return Ok(()),
                Input::Idle => Action::Quit(line(421, "idle for too long")),
                Input::Closing => Action::Quit(line(421, "the service is shutting down")),
            };
            match action {
                Action::Reply(reply) => {
                    failures += u32::from(reply.starts_with('5'));
                    self.replies.push_str(&reply);
                }
                Action::Quit(reply) => {
                    self.replies.push_str(&reply);
                    return Ok(());
                }
                Action::Data(reply) => {
                    self.replies.push_str(&reply);
                    let reply = self.receive_message(dialogue).await?;
                    self.replies.push_str(&reply);
                }
            }
            if failures > MAX_FAILURES {
                self.replies.push_str(&line(421, "too many errors"));
                return Ok(());
            }
        }
    }

    async fn flush(&mut self) -> io::Result<()> {
        if !self.replies.is_empty() {
            let sent = timeout(IDLE_TIMEOUT, self.writer.write_all(self.replies.as_bytes())).await;
            self.replies.clear();
            sent.map_err(|_| io::ErrorKind::TimedOut)??;
        }
        Ok(())
    }

    /// Reads a line into `self.line`, without its end.
    async fn next_line(&mut self) -> io::Result<Input> {
        self.line.clear();
        let mut too_long = false;
        loop {
            if !self.reader.buffer().contains(&b'\n') {
                self.flush().await?;
            }
            let bytes = self.reader.fill_buf().await?;
            if bytes.is_empty() {
                return Ok(Input::Closed);
            }
            let end = bytes.iter().position(|&byte| byte == b'\n');
            let part = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default();
            too_long |= self.line.len() + part.len() > MAX_LINE;
            if !too_long {
                self.line.extend_from_slice(part);
            }
            let consumed = part.len() + usize::from(end.is_some());
            self.reader.consume(consumed);
            if end.is_some() {
                if self.line.last() == Some(&b'\r') {
                    self.line.pop();
                }
                return Ok(if too_long { Input::TooLong } else { Input::Line });
            }
        }
    }

    /// Receives the text of a message to its end, even if it is refused, and returns the reply.
    async fn receive_message(&mut self, dialogue: &mut Dialogue) -> io::Result<String> {
        let envelope = dialogue.finish();
        let mut delivery = self.service.maildir.begin().and_then(|mut delivery| {
            let trace = self.trace(dialogue, &envelope, delivery.name());
            delivery.write(trace.as_bytes()).map(|()| delivery)
        });
        let (mut text, mut part) = (DataDecoder::new(), Vec::new());
        loop {
            if self.reader.buffer().is_empty() {
                self.flush().await?;
            }
            let bytes = timeout(IDLE_TIMEOUT, self.reader.fill_buf())
                .await
                .map_err(|_| io::ErrorKind::TimedOut)??;
            if bytes.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            part.clear();
            let end = text.decode(bytes, &mut part);
            let consumed = end.unwrap_or(bytes.len());
            self.reader.consume(consumed);
            if text.length() <= self.service.max_size
                && let Ok(file) = &mut delivery
                && let Err(error) = file.write(&part)
            {
                delivery = Err(error);
            }
            if end.is_some() {
                break;
            }
        }
        if text.length() > self.service.max_size {
            return Ok(line(552, "the message is too long"));
        }
        if text.has_bare_line_ends() {
            return Ok(line(554, "a line of the message does not end with CRLF"));
        }
        Ok(store(delivery).await)
    }

    /// The Return-Path and Received fields.
    fn trace(&self, dialogue: &Dialogue, envelope: &Envelope, id: &str) -> String {
        let now = httpdate::fmt_http_date(SystemTime::now()).replace("GMT", "+0000");
        let by = &self.service.name;
        let (client, protocol) = (dialogue.client(), dialogue.protocol());
        let literal = match self.from.ip().to_canonical() {
            std::net::IpAddr::V4(address) => address.to_string(),
            std::net::IpAddr::V6(address) => format!("IPv6:{address}"),
        };
        let recipient = match envelope.to.as_slice() {
            [only] => format!("\r\n\tfor <{only}>"),
            _ => String::new(),
        };
        format!(
            "Return-Path: <{}>\r\nReceived: from {client} ([{literal}])\r\n\tby {by} with {protocol} id {id}\
             {recipient};\r\n\t{now}\r\n",
            envelope.from
        )
    }
}

/// Stores the message on another thread, so that other dialogues continue.
async fn store(delivery: io::Result<Delivery>) -> String {
    let stored = match delivery {
        Ok(delivery) => {
            let name = delivery.name().to_owned();
            let finished = tokio::task::spawn_blocking(|| delivery.finish()).await;
            finished.unwrap_or_else(|_| Err(io::ErrorKind::Other.into())).map(|()| name)
        }
        Err(error) => Err(error),
    };
    match stored {
        Ok(name) => line(250, &format!("stored as {name}")),
        Err(error) => {
            note(format_args!("cannot store a message: {error}"));
            match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    line(452, "insufficient storage")
                }
                _ => line(451, "the message could not be stored"),
            }
        }
    }
}
