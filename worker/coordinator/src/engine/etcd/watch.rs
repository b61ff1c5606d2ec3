//! One watch, on one endpoint.

use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Streaming};
use tonic_prost::ProstCodec;

use super::Prefix;
use super::endpoint::{Connection, Endpoint, WATCH};
use super::messages::{
    EventType, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse, WatchUnion,
};
use super::problem::Problem;
use crate::core::record::Entry;
use crate::engine::Watched;

/// How long a watch may take to begin.
const BEGIN: Duration = Duration::from_secs(2);

/// How often etcd is asked how far it is, which it answers even if nothing changes.
const PROGRESS: Duration = Duration::from_secs(1);

/// The connection is dead if nothing has come for this time.
const SILENCE: Duration = Duration::from_millis(3_500);

/// More events at once than this end the watch: reading everything again is cheaper.
const MAX_EVENTS: usize = 50_000;

/// For a future that is ended by its own conditions.
const UNLIMITED: Duration = Duration::from_secs(86_400 * 365);

/// Watches until the watch is lost, and returns why.
pub(super) async fn watch(
    endpoint: &Arc<Endpoint>,
    prefix: &Prefix,
    with_beats: bool,
    mut report: impl FnMut(Watched),
) -> Problem {
    let outcome = endpoint
        .attempt(UNLIMITED, |connection| async move {
            let opening = open(endpoint, &connection, prefix, with_beats);
            let (requests, mut replies) = timeout(BEGIN, opening).await.unwrap_or(Err(Problem::TimedOut))?;
            report(Watched::Started);
            endpoint.note(false, None);
            follow(endpoint, prefix, &requests, &mut replies, report).await
        })
        .await;
    let problem = outcome.err().unwrap_or(Problem::TimedOut); // it ends with an error only
    endpoint.note(false, Some(&problem));
    problem
}

type Streams = (mpsc::Sender<WatchRequest>, Streaming<WatchResponse>);

/// Begins the watch.
async fn open(
    endpoint: &Arc<Endpoint>,
    connection: &Connection,
    prefix: &Prefix,
    with_beats: bool,
) -> Result<Streams, Problem> {
    // Also renews the token if etcd refuses it: a watch would only be refused without a reason.
    endpoint.verify(connection).await?;
    let (key, range_end) = prefix.range(with_beats);
    let create = WatchCreateRequest { key, range_end, fragment: true };
    let (requests, stream) = mpsc::channel(4);
    let _ = requests.try_send(WatchRequest { request: Some(WatchUnion::Create(create)) }); // it is empty
    let metadata = endpoint.metadata(None).await?;
    let mut client = connection.client();
    client.ready().await.map_err(|error| Problem::of_error(&error))?;
    let request = Request::from_parts(metadata, tonic::Extensions::new(), ReceiverStream::new(stream));
    let codec = ProstCodec::<WatchRequest, WatchResponse>::default();
    let reply = client.streaming(request, PathAndQuery::from_static(WATCH), codec).await;
    let mut replies = reply.map_err(|status| Problem::of_status(&status))?.into_inner();
    loop {
        let reply = next(endpoint, &mut replies).await?;
        if reply.created {
            return Ok((requests, replies));
        }
    }
}

/// Reports changes until the watch is lost.
async fn follow(
    endpoint: &Endpoint,
    prefix: &Prefix,
    requests: &mpsc::Sender<WatchRequest>,
    replies: &mut Streaming<WatchResponse>,
    mut report: impl FnMut(Watched),
) -> Result<(), Problem> {
    let mut heard = Instant::now();
    let mut ask = heard + PROGRESS;
    loop {
        let reply = tokio::select! {
            reply = next(endpoint, replies) => reply?,
            () = sleep_until(ask.min(heard + SILENCE)) => {
                if heard.elapsed() >= SILENCE {
                    return Err(Problem::TimedOut);
                }
                ask += PROGRESS;
                let progress = WatchUnion::Progress(WatchProgressRequest {});
                // The channel is full if the connection is dead.
                let _ = requests.try_send(WatchRequest { request: Some(progress) });
                continue;
            }
        };
        heard = Instant::now();
        if reply.events.len() > MAX_EVENTS {
            return Err(Problem::TooLarge);
        }
        let entry = |event: super::messages::Event| {
            let is_deleted = event.r#type == EventType::Delete as i32;
            let kv = event.kv?;
            let modified = kv.mod_revision;
            let entry = prefix.entry(kv)?;
            Some(Arc::new(if is_deleted { Entry::deleted(entry.key, modified) } else { entry }))
        };
        let changed: Arc<[Arc<Entry>]> = reply.events.into_iter().filter_map(entry).collect();
        if !changed.is_empty() {
            report(Watched::Changed(changed));
        }
    }
}

/// The next reply that is no refusal.
async fn next(endpoint: &Endpoint, replies: &mut Streaming<WatchResponse>) -> Result<WatchResponse, Problem> {
    let reply = replies.message().await.map_err(|status| Problem::of_status(&status))?;
    let reply = reply.ok_or_else(|| Problem::Network("the member ended the watch".to_owned()))?;
    endpoint.check_cluster(&reply)?;
    match () {
        () if reply.compact_revision != 0 => Err(Problem::Compacted),
        () if reply.canceled => Err(Problem::of_text(Code::Unknown, &reply.cancel_reason)),
        () => Ok(reply),
    }
}
