//! The metrics over HTTP, for Prometheus: this process holds the port, so that the broker need not.
//!
//! Promises: a request has a deadline and a bound, few are served at once, and a broker that is away or does not answer
//! is told as `portreeve_up 0` and asked again by the next.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use portreeve::Client;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::SignalKind;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{sleep, timeout};

use super::{ask, page};
use crate::failure::Failure;
use crate::open::Broker;
use crate::output::note;

/// How many connections are served at once; others wait.
const AT_ONCE: usize = 16;
/// How long the broker may take.
const BROKER: Duration = Duration::from_secs(5);
/// How long a whole connection may take; it has one request.
const CONNECTION: Duration = Duration::from_secs(15);
/// How many bytes the head of a request may have.
const HEAD: usize = 8 * 1024;
/// The text format's media type.
const FORMAT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// Serves until interrupted.
pub async fn serve(broker: &Broker, address: SocketAddr, leases: usize) -> Result<(), Failure> {
    let failed = |error| Failure::System("listening for HTTP", error);
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let mut interrupt = crate::listen::on(SignalKind::interrupt())?;
    let mut terminate = crate::listen::on(SignalKind::terminate())?;
    note(format_args!("serving http://{address}/metrics until interrupted"));
    let source = Arc::new(Source { broker: broker.clone(), leases, session: Mutex::default() });
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        never = accept(&listener, &source) => match never {},
    }
    Ok(())
}

async fn accept(listener: &TcpListener, source: &Arc<Source>) -> Infallible {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let place = places.clone().acquire_owned().await;
        match listener.accept().await {
            Ok((connection, _)) => {
                let source = source.clone();
                tokio::spawn(async move {
                    let _whoever_is_too_slow_gets_none =
                        timeout(CONNECTION, converse(connection, source)).await;
                    drop(place);
                });
            }
            // No descriptors are left, most likely.
            Err(error) => {
                note(format_args!("a connection could not be accepted: {error}"));
                sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn converse(connection: TcpStream, source: Arc<Source>) {
    let answer = service_fn(|request| answer(request, &source));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(BROKER)
        .keep_alive(false)
        .max_buf_size(HEAD)
        .serve_connection(TokioIo::new(connection), answer);
    let _it_hung_up_or_spoke_no_http = served.await;
}

async fn answer(request: Request<Incoming>, source: &Source) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut response = Response::new(Full::default());
    response.headers_mut().insert(CONTENT_TYPE, FORMAT);
    match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => *response.body_mut() = source.page().await.into(),
        (&Method::GET | &Method::HEAD, _) => {
            *response.status_mut() = StatusCode::NOT_FOUND;
            *response.body_mut() = "The metrics are at /metrics.\n".into();
        }
        _ => {
            *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
    }
    Ok(response)
}

/// Where the metrics come from: one session, opened again when it is over.
struct Source {
    broker: Broker,
    leases: usize,
    session: Mutex<Session>,
}

#[derive(Default)]
struct Session {
    client: Option<Client>,
    /// What was last said of a broker that does not answer.
    trouble: Option<String>,
}

impl Source {
    async fn page(&self) -> String {
        let mut session = self.session.lock().await;
        let page = match timeout(BROKER, self.ask(&mut session)).await {
            Ok(page) => page,
            Err(_) => Err(format!("the broker has not answered in {} s", BROKER.as_secs())),
        };
        match page {
            Ok(page) => {
                if session.trouble.take().is_some() {
                    note("the broker answers again");
                }
                page
            }
            Err(trouble) => {
                session.client = None;
                if session.trouble.as_ref() != Some(&trouble) {
                    note(&trouble);
                    session.trouble = Some(trouble);
                }
                page::of_nobody()
            }
        }
    }

    async fn ask(&self, session: &mut Session) -> Result<String, String> {
        if let Some(client) = &session.client
            && let Ok((metrics, leases)) = ask(client, self.leases).await
        {
            return Ok(page::of(&metrics, &leases));
        }
        // A broker that was started again knows nothing of the session of before.
        let client = self.broker.open().await.map_err(|failure| failure.line())?;
        let (metrics, leases) = ask(&client, self.leases).await.map_err(|error| error.to_string())?;
        session.client = Some(client);
        Ok(page::of(&metrics, &leases))
    }
}
