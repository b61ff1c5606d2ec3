//! The metrics over HTTP, for Prometheus: this process opens the port, so that the broker and the coordinator need not.
//!
//! Promises: each request has a deadline and a maximum size, and the number of connections is limited. If the source does not
//! reply, the page says so, and the next request tries again.

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
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::SignalKind;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{sleep, timeout};

use crate::failure::Failure;
use crate::output::note;

/// Maximum number of connections that are served at once; others wait.
const MAX_CONNECTIONS: usize = 16;
/// Time limit of the source.
const SOURCE_TIMEOUT: Duration = Duration::from_secs(5);
/// Time limit of a whole connection, which has one request.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(15);
/// Maximum size of the head of a request, in bytes.
const MAX_HEAD: usize = 8 * 1024;
/// The text format's media type.
const FORMAT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// What the pages come from.
pub trait Pages: Send + Sync + 'static {
    /// The name of the program.
    const SOURCE: &'static str;

    /// Fetches the page.
    fn fetch(&self) -> impl Future<Output = Result<String, String>> + Send;

    /// The page while the program does not reply.
    fn without(&self) -> String;
}

/// Serves until interrupted.
pub async fn serve(pages: impl Pages, address: SocketAddr) -> Result<(), Failure> {
    let failed = |error| Failure::System(format!("cannot listen for HTTP on {address}"), error);
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let mut interrupt = crate::listen::signals(SignalKind::interrupt())?;
    let mut terminate = crate::listen::signals(SignalKind::terminate())?;
    note(format_args!("serving http://{address}/metrics until interrupted"));
    let source = Arc::new(Source { pages, problem: Mutex::default() });
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        never = accept(&listener, &source) => match never {},
    }
    Ok(())
}

async fn accept(listener: &TcpListener, source: &Arc<Source<impl Pages>>) -> Infallible {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let permit = permits.clone().acquire_owned().await;
        match listener.accept().await {
            Ok((connection, _)) => {
                let source = source.clone();
                tokio::spawn(async move {
                    let _ = timeout(CONNECTION_TIMEOUT, serve_connection(connection, source)).await; // a slow client is cut off
                    drop(permit);
                });
            }
            // Most likely this process has no free descriptors.
            Err(error) => {
                note(format_args!("cannot accept an HTTP connection: {error}"));
                sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn serve_connection(connection: TcpStream, source: Arc<Source<impl Pages>>) {
    let service = service_fn(|request| respond(request, &source));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(SOURCE_TIMEOUT)
        .keep_alive(false)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(connection), service);
    let _ = served.await; // the client disconnected or sent invalid HTTP
}

async fn respond(
    request: Request<Incoming>,
    source: &Source<impl Pages>,
) -> Result<Response<Full<Bytes>>, Infallible> {
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

/// A source with the last message that it does not reply.
struct Source<P> {
    pages: P,
    problem: Mutex<Option<String>>,
}

impl<P: Pages> Source<P> {
    async fn page(&self) -> String {
        let mut last = self.problem.lock().await;
        let page = match timeout(SOURCE_TIMEOUT, self.pages.fetch()).await {
            Ok(page) => page,
            Err(_) => Err(format!("no reply from the {} within {} s", P::SOURCE, SOURCE_TIMEOUT.as_secs())),
        };
        match page {
            Ok(page) => {
                if last.take().is_some() {
                    note(format_args!("the {} replies again", P::SOURCE));
                }
                page
            }
            Err(problem) => {
                if last.as_ref() != Some(&problem) {
                    note(&problem);
                    *last = Some(problem);
                }
                self.pages.without()
            }
        }
    }
}
