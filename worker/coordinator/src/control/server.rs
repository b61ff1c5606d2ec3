//! The control socket's server.
//!
//! Promises: a connection has one request of bounded length, and bounded time for each step; the number of connections is
//! bounded for operators, for all others together and for each other user; the loop writes at most one report for operators
//! and one for others at a time, and reports for each of the two take at most about a quarter of its time; at most one check for
//! operators and one for others ask the engine at a time.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::unistd::{Uid, User, geteuid};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::{Fault, FaultCode, MAX_REQUEST, Request, Response};
use crate::core::news::{Event, Kind, News, REMEMBERED};

/// How many calls wait for the loop at most: one of each kind.
pub const CALLS: usize = 5;
/// How many events a follower may be late.
pub const FOLLOWED: usize = REMEMBERED;

/// How many connections operators have at most.
const OPERATORS: usize = 32;
/// How many all other users have, and how many each of them.
const OTHERS: [usize; 2] = [32, 8];
/// How long a peer may take to send its request.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a peer may take to read a response.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the loop may take. The engine may need a few attempts.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause between two checks: each makes requests to every endpoint of the engine.
const CHECK_PAUSE: Duration = Duration::from_secs(1);
/// How long the name of a user may take to look up.
const NAME_TIMEOUT: Duration = Duration::from_secs(1);

/// A request that its peer may make.
#[derive(Debug)]
pub struct Call {
    /// The request.
    pub request: Request,
    /// The name of the user who makes it, or its number.
    pub by: String,
    reply: oneshot::Sender<Response>,
}

impl Call {
    /// Sends the response. The peer may be gone.
    pub fn reply(self, response: Response) {
        let _ = self.reply.send(response); // nobody waits any more
    }
}

/// Serves until the loop receives no calls any more. The loop sends its events to `followers`.
pub async fn serve(listener: UnixListener, calls: mpsc::Sender<Call>, followers: broadcast::Sender<Event>) {
    let turns = [const { Semaphore::const_new(1) }; CALLS].map(Arc::new);
    let server = Arc::new(Server { calls, followers, connections: Mutex::default(), turns });
    tokio::select! {
        never = accept(&listener, &server) => match never {},
        () = server.calls.closed() => {}
    }
}

async fn accept(listener: &UnixListener, server: &Arc<Server>) -> Infallible {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => server.admit(stream),
            // Most likely this process has no free descriptors.
            Err(error) => {
                warn!("cannot accept a connection to the control socket: {error}");
                sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

struct Server {
    calls: mpsc::Sender<Call>,
    followers: broadcast::Sender<Event>,
    /// The number of connections of each user that has one.
    connections: Mutex<BTreeMap<u32, usize>>,
    /// For orders, reports for operators and for others, checks for operators and for others.
    turns: [Arc<Semaphore>; CALLS],
}

fn is_operator(uid: u32) -> bool {
    uid == 0 || uid == geteuid().as_raw()
}

/// A connection that counts.
struct Connection {
    server: Arc<Server>,
    uid: u32,
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut connections = self.server.lock();
        if let Some(count) = connections.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                connections.remove(&self.uid);
            }
        }
    }
}

impl Server {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, usize>> {
        // The counts are never left half changed.
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves a connection in a task of its own, unless there are too many.
    fn admit(self: &Arc<Self>, stream: UnixStream) {
        let Ok(peer) = stream.peer_cred() else { return };
        let uid = peer.uid();
        match self.count(uid) {
            Some(connection) => drop(tokio::spawn(converse(connection, stream))),
            None => {
                let fault = Fault::new(
                    FaultCode::Busy,
                    "the coordinator has too many connections to its control socket",
                    "Try again, and end programs that keep connections open, such as `portreeve cluster events --follow`.",
                );
                // Its buffer is empty, and whoever does not read it learns less.
                let _ = stream.try_write(&line(&Response::Error(fault)));
            }
        }
    }

    fn count(self: &Arc<Self>, uid: u32) -> Option<Connection> {
        let mut connections = self.lock();
        let all = |is_counted: fn(u32) -> bool| -> usize {
            connections.iter().filter(|(uid, _)| is_counted(**uid)).map(|(_, count)| count).sum()
        };
        let [others, each] = OTHERS;
        let own = connections.get(&uid).copied().unwrap_or_default();
        let has_room = match is_operator(uid) {
            true => all(is_operator) < OPERATORS,
            false => all(|uid| !is_operator(uid)) < others && own < each,
        };
        has_room.then(|| {
            connections.insert(uid, own + 1);
            Connection { server: Arc::clone(self), uid }
        })
    }

    /// Gets the loop's response to a request.
    async fn ask(&self, uid: u32, request: Request) -> Response {
        let is_order = request.is_order();
        if is_order && !is_operator(uid) {
            return Response::Error(Fault::new(
                FaultCode::NoPermission,
                "only root and the coordinator's own user may give orders",
                "Repeat the command as root.",
            ));
        }
        let by = if is_order { user_name(uid).await } else { uid.to_string() };
        if is_order {
            info!("user {by:?} requests {request:?}");
        }
        let [orders, operators, others, operators_checks, others_checks] = &self.turns;
        let is_check = matches!(request, Request::Check {});
        let turn = match (is_order, is_check, is_operator(uid)) {
            (true, ..) => orders,
            (false, false, true) => operators,
            (false, false, false) => others,
            (false, true, true) => operators_checks,
            (false, true, false) => others_checks,
        };
        let asked = async {
            let turn = Arc::clone(turn).acquire_owned().await.ok()?;
            let start = Instant::now();
            let (reply, response) = oneshot::channel();
            self.calls.send(Call { request, by, reply }).await.ok()?;
            let response = response.await.ok()?;
            if !is_order {
                // A check waits for the engine, while the loop goes on.
                let pause = if is_check { CHECK_PAUSE } else { 3 * start.elapsed() };
                tokio::spawn(async move {
                    sleep(pause).await;
                    drop(turn);
                });
            }
            Some(response)
        };
        let (code, message) = match timeout(ANSWER_TIMEOUT, asked).await {
            Ok(Some(response)) => return response,
            Ok(None) => (FaultCode::Busy, "the coordinator ends".to_owned()),
            Err(_) => {
                let limit = ANSWER_TIMEOUT.as_secs();
                (FaultCode::Busy, format!("the coordinator did not answer the request within {limit} s"))
            }
        };
        Response::Error(Fault::new(code, message, "Try again; the log of the coordinator may show why."))
    }
}

async fn user_name(uid: u32) -> String {
    // A directory service may hang.
    let found = tokio::task::spawn_blocking(move || User::from_uid(Uid::from_raw(uid)));
    match timeout(NAME_TIMEOUT, found).await {
        Ok(Ok(Ok(Some(user)))) => user.name,
        _ => uid.to_string(),
    }
}

async fn converse(connection: Connection, stream: UnixStream) {
    let (server, uid) = (&connection.server, connection.uid);
    let mut stream = BufReader::new(stream);
    let request = match timeout(READ_TIMEOUT, read(&mut stream)).await {
        Ok(Ok(request)) => request,
        Ok(Err(fault)) => {
            let _ = write(&mut stream, Response::Error(fault)).await; // it has its own mistakes
            return;
        }
        Err(_) => return,
    };
    let follow = matches!(request, Request::Events { follow: true });
    // From before the remembered events are copied, so that none is missing.
    let events = follow.then(|| server.followers.subscribe());
    let response = server.ask(uid, request).await;
    let last = match &response {
        Response::Events(events) => events.last().map_or(0, |event| event.number),
        _ => 0,
    };
    let written = write(&mut stream, response).await;
    if let (Some(events), true) = (events, written.is_ok()) {
        let _ = follow_events(&mut stream, events, last).await; // the peer has gone, or does not read
    }
}

/// Reads the request.
async fn read(stream: &mut BufReader<UnixStream>) -> Result<Request, Fault> {
    let malformed =
        |why: String| Fault::new(FaultCode::Malformed, format!("the request cannot be read: {why}"), "");
    let mut text = Vec::new();
    let limit = u64::try_from(MAX_REQUEST).unwrap_or(u64::MAX);
    let size = stream
        .take(limit)
        .read_until(b'\n', &mut text)
        .await
        .map_err(|error| malformed(error.to_string()))?;
    if size == MAX_REQUEST && !text.ends_with(b"\n") {
        return Err(malformed(format!("it is longer than {MAX_REQUEST} bytes")));
    }
    serde_json::from_slice(&text).map_err(|error| malformed(error.to_string()))
}

fn line(response: &Response) -> Vec<u8> {
    // These types contain nothing that JSON cannot express.
    let mut line = serde_json::to_vec(response).unwrap_or_default();
    line.push(b'\n');
    line
}

async fn write(stream: &mut BufReader<UnixStream>, response: Response) -> io::Result<()> {
    // A status can be long; the loop runs meanwhile.
    let line = tokio::task::spawn_blocking(move || line(&response)).await?;
    timeout(WRITE_TIMEOUT, stream.get_mut().write_all(&line)).await?
}

/// Sends events after the one with that number, until the peer closes the connection.
async fn follow_events(
    stream: &mut BufReader<UnixStream>,
    mut events: broadcast::Receiver<Event>,
    mut last: u64,
) -> io::Result<()> {
    loop {
        let mut byte = [0];
        let event = tokio::select! {
            event = events.recv() => event,
            // The peer has nothing more to say.
            _ = stream.read(&mut byte) => return Ok(()),
        };
        let event = match event {
            Ok(event) if event.number <= last => continue,
            Ok(event) => event,
            Err(RecvError::Lagged(count)) => {
                let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                let time_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
                Event { number: last, time_ms, news: News::new(Kind::Gap, count.to_string()) }
            }
            Err(RecvError::Closed) => return Ok(()),
        };
        last = event.number;
        write(stream, Response::Events(vec![event])).await?;
    }
}
