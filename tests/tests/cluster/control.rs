//! The server of the control socket: who may do what, and that no peer keeps another or the loop from working.

use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use portreeve_coordinator::control::server::{CALLS, Call, FOLLOWED, serve};
use portreeve_coordinator::control::{Done, FaultCode, MAX_REQUEST, Request, Response};
use portreeve_coordinator::core::news::{Event, Kind, News};
use portreeve_tests::adversary::as_user;
use portreeve_tests::{Host, isolated};
use tokio::net::UnixListener;
use tokio::sync::{broadcast, mpsc, oneshot};

/// A server and its loop, which answers requests for events with three, and others with the name of the user.
struct Server {
    socket: PathBuf,
    followers: broadcast::Sender<Event>,
    /// Ends the server when it is dropped.
    _end: oneshot::Sender<()>,
}

impl Server {
    /// Starts a server whose loop takes some time for each call.
    fn start(host: &Host, busy: Duration) -> Self {
        let socket = host.path("coordinator.sock");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666)).unwrap();
        let (calls, mut incoming) = mpsc::channel::<Call>(CALLS);
        let (followers, _) = broadcast::channel(FOLLOWED);
        let (end, ended) = oneshot::channel::<()>();
        let events = followers.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = UnixListener::from_std(listener).unwrap();
                tokio::select! {
                    () = serve(listener, calls, events) => {}
                    _ = ended => {}
                }
            });
        });
        std::thread::spawn(move || {
            while let Some(call) = incoming.blocking_recv() {
                std::thread::sleep(busy); // a loop that works
                let response = match &call.request {
                    Request::Events { .. } => Response::Events((1..=3).map(event).collect()),
                    _ => done(&call.by),
                };
                call.reply(response);
            }
        });
        Server { socket, followers, _end: end }
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.socket).unwrap()
    }

    fn ask(&self, line: &str) -> Response {
        ask(&self.socket, line)
    }
}

const STATUS: &str = "{\"request\":\"status\"}\n";
const THAW: &str = "{\"request\":\"thaw\"}\n";

fn done(text: &str) -> Response {
    Response::Done(Done { changed: true, text: text.to_owned(), warnings: Vec::new() })
}

fn event(number: u64) -> Event {
    Event { number, time_ms: 1, news: News::new(Kind::Frozen, "") }
}

fn next(stream: &mut impl BufRead) -> Response {
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
}

fn ask(socket: &Path, line: &str) -> Response {
    let mut stream = UnixStream::connect(socket).unwrap();
    // The server may reply without reading.
    let _ = stream.write_all(line.as_bytes());
    next(&mut BufReader::new(stream))
}

#[track_caller]
fn fault(response: Response) -> (FaultCode, String) {
    match response {
        Response::Error(fault) => (fault.code, fault.message),
        other => panic!("{other:?}"),
    }
}

/// The user id of a peer that is no operator.
const OTHER: u32 = 65_534;

#[test]
fn operators_may_give_orders_and_others_may_read() {
    isolated(|host| {
        let server = Server::start(host, Duration::ZERO);
        assert_eq!(server.ask(THAW), done("root"));
        let [read, order] = as_user(OTHER, &[], || [STATUS, THAW].map(|line| server.ask(line)));
        assert_eq!(read, done("65534"));
        let message = "only root and the coordinator's own user may give orders".to_owned();
        assert_eq!(fault(order), (FaultCode::NoPermission, message));
    });
}

#[test]
fn a_request_that_cannot_be_read_is_refused() {
    isolated(|host| {
        let server = Server::start(host, Duration::ZERO);
        for line in ["\n", "{}\n", "{\"request\":\"sing\"}\n", "{\"request\":\"drain\"}\n", "\0\n", "[[[[\n"]
        {
            assert_eq!(fault(server.ask(line)).0, FaultCode::Malformed, "{line:?}");
        }
        let unknown = server.ask("{\"request\":\"explain\",\"address\":\"10.0.0.1\",\"loud\":true}\n");
        assert!(fault(unknown).1.contains("unknown field `loud`"));
        let long = "x".repeat(MAX_REQUEST + 1_000);
        assert!(fault(server.ask(&long)).1.contains("longer than 4096 bytes"));
    });
}

/// The reply to a connection that has sent nothing.
fn busy(stream: &UnixStream) -> FaultCode {
    fault(next(&mut BufReader::new(stream.try_clone().unwrap()))).0
}

#[test]
fn idle_connections_do_not_keep_others_out() {
    isolated(|host| {
        let server = Server::start(host, Duration::ZERO);
        let idle: Vec<UnixStream> = (0..33).map(|_| server.connect()).collect();
        assert_eq!(busy(idle.last().unwrap()), FaultCode::Busy, "operators have 32 at most");
        let other = as_user(OTHER, &[], || server.ask(STATUS));
        assert_eq!(other, done("65534"), "operators do not keep others out");
        drop(idle);

        let idle = as_user(OTHER, &[], || (0..9).map(|_| server.connect()).collect::<Vec<_>>());
        assert_eq!(busy(idle.last().unwrap()), FaultCode::Busy, "one user has eight at most");
        let end = Instant::now() + Duration::from_secs(10);
        let until_served = |ask: &dyn Fn() -> Response| {
            while matches!(ask(), Response::Error(_)) {
                assert!(Instant::now() < end, "the connections still count");
            }
        };
        until_served(&|| server.ask(STATUS));
        drop(idle);
        until_served(&|| as_user(OTHER, &[], || server.ask(STATUS)));
    });
}

#[test]
fn reports_take_a_quarter_of_the_time_of_the_loop_and_orders_do_not_wait_for_them() {
    isolated(|host| {
        const BUSY: Duration = Duration::from_millis(100);
        let server = Server::start(host, BUSY);
        let (start, reported) = (Instant::now(), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    assert!(matches!(server.ask(STATUS), Response::Done(_)));
                    reported.fetch_add(1, Ordering::Relaxed);
                });
            }
            assert!(matches!(server.ask(THAW), Response::Done(_)));
            assert!(reported.load(Ordering::Relaxed) < 4, "the order waited for every report");
        });
        assert!(start.elapsed() >= BUSY * 13, "{:?}", start.elapsed());
    });
}

#[test]
fn a_follower_gets_each_event_once_and_learns_of_gaps() {
    isolated(|host| {
        let server = Server::start(host, Duration::ZERO);
        let mut stream = server.connect();
        stream.write_all(b"{\"request\":\"events\",\"follow\":true}\n").unwrap();
        let mut stream = BufReader::new(stream);
        assert_eq!(next(&mut stream), Response::Events((1..=3).map(event).collect()));
        for number in 2..=5 {
            server.followers.send(event(number)).unwrap();
        }
        assert_eq!(next(&mut stream), Response::Events(vec![event(4)]));
        assert_eq!(next(&mut stream), Response::Events(vec![event(5)]));

        // More than its socket and its queue have room for.
        let number = 100_000;
        for number in 6..=number {
            server.followers.send(event(number)).unwrap();
        }
        let (mut last, mut lost, mut gaps) = (5, 0, 0);
        while last < number {
            let Response::Events(events) = next(&mut stream) else { panic!("no events") };
            for event in events {
                if event.news.kind == Kind::Gap {
                    lost += event.news.detail.parse::<u64>().unwrap();
                    gaps += 1;
                } else {
                    assert_eq!(event.number, last + lost + 1);
                    (last, lost) = (event.number, 0);
                }
            }
        }
        assert!(gaps > 0);
    });
}

#[test]
fn the_server_ends_with_its_loop() {
    isolated(|host| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = UnixListener::bind(host.path("coordinator.sock")).unwrap();
            let (calls, incoming) = mpsc::channel(CALLS);
            let (followers, _) = broadcast::channel(FOLLOWED);
            drop(incoming);
            serve(listener, calls, followers).await;
        });
    });
}
