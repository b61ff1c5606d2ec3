//! Requests to the coordinator over its control socket. What it replies contains names and reasons that other hosts wrote.

use std::io;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::PathBuf;
use std::time::Duration;

use portreeve::printable::Escaped;
use portreeve_coordinator::control::{MAX_RESPONSE, Request, Response};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::failure::Failure;
use crate::output::Output;

/// Where the control socket is unless another is named.
pub const DEFAULT_SOCKET: &str = "/run/portreeve-coordinator/control.sock";

/// The coordinator's control socket.
#[derive(clap::Args, Clone)]
pub struct Coordinator {
    /// The coordinator's control socket.
    #[arg(
        long = "coordinator",
        global = true,
        value_name = "PATH",
        env = "PORTREEVE_COORDINATOR_SOCKET",
        default_value = DEFAULT_SOCKET
    )]
    pub socket: PathBuf,
}

/// A coordinator with a time limit for its replies.
pub struct Client {
    socket: PathBuf,
    limit: Duration,
    /// Whether text is printed as it is, because JSON escapes it.
    is_json: bool,
}

/// A connection after its request, of which every line is a response.
pub struct Responses {
    stream: BufReader<UnixStream>,
    is_json: bool,
    socket: PathBuf,
}

impl Client {
    pub fn new(coordinator: &Coordinator, seconds: u32, out: Output) -> Self {
        let limit = Duration::from_secs(seconds.into());
        Client { socket: coordinator.socket.clone(), limit, is_json: out.json }
    }

    /// Sends a request, and returns the response unless it is an error.
    pub async fn ask(&self, request: &Request) -> Result<Response, Failure> {
        self.open(request).await.map(|(response, _)| response)
    }

    /// The same with the connection, on which further responses may come.
    pub async fn open(&self, request: &Request) -> Result<(Response, Responses), Failure> {
        let asked = async {
            let mut responses = self.connect(request).await?;
            let first = responses.next().await?;
            first
                .map(|first| (first, responses))
                .ok_or_else(|| self.failure(io::ErrorKind::UnexpectedEof.into()))
        };
        match timeout(self.limit, asked).await {
            Ok(asked) => asked,
            Err(_) => Err(self.failure(io::ErrorKind::TimedOut.into())),
        }
    }

    async fn connect(&self, request: &Request) -> Result<Responses, Failure> {
        let path = self.socket.clone();
        // connect(2) waits while the socket's queue of connections is full.
        let connected = tokio::task::spawn_blocking(move || {
            let stream = StdUnixStream::connect(path)?;
            stream.set_nonblocking(true).map(|()| stream)
        });
        let connected =
            connected.await.map_err(io::Error::from).and_then(|stream| UnixStream::from_std(stream?));
        let mut stream = connected.map_err(|error| self.failure(error))?;
        let line = format!("{}\n", serde_json::json!(request));
        // A coordinator that has too many connections replies without reading.
        let _ = stream.write_all(line.as_bytes()).await;
        Ok(Responses { stream: BufReader::new(stream), is_json: self.is_json, socket: self.socket.clone() })
    }

    fn failure(&self, error: io::Error) -> Failure {
        Failure::NoCoordinator(self.socket.clone(), error)
    }
}

impl Responses {
    /// The coordinator closed the connection.
    pub fn closed(&self) -> Failure {
        Failure::NoCoordinator(self.socket.clone(), io::ErrorKind::UnexpectedEof.into())
    }

    /// The next response unless it is an error; `None`: the coordinator closed the connection.
    pub async fn next(&mut self) -> Result<Option<Response>, Failure> {
        let mut line = Vec::new();
        let limit = u64::try_from(MAX_RESPONSE).unwrap_or(u64::MAX);
        let read = (&mut self.stream).take(limit).read_until(b'\n', &mut line).await;
        let size = read.map_err(|error| Failure::NoCoordinator(self.socket.clone(), error))?;
        if size == 0 {
            return Ok(None);
        }
        let parsed = serde_json::from_slice(&line).and_then(|mut value| {
            if !self.is_json {
                escape(&mut value);
            }
            serde_json::from_value(value)
        });
        match parsed {
            Ok(Response::Error(fault)) => Err(Failure::Coordinator(fault)),
            Ok(response) => Ok(Some(response)),
            Err(error) => {
                let socket = self.socket.display();
                let error = error.to_string();
                Err(Failure::NotCoordinator(format!(
                    "the program at {socket} is not a coordinator of this version: {}",
                    Escaped(&error)
                )))
            }
        }
    }
}

/// Escapes what is not printable in all text, so that no table and no message has to.
fn escape(value: &mut Value) {
    match value {
        Value::String(text) => *text = Escaped(text).to_string(),
        Value::Array(items) => items.iter_mut().for_each(escape),
        Value::Object(members) => members.values_mut().for_each(escape),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The response was another one than the request asks for.
pub fn unexpected() -> Failure {
    Failure::NotCoordinator("the coordinator's response is not to this request".to_owned())
}
