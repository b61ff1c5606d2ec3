//! The engine in etcd.
//!
//! Each endpoint has a connection of its own, without a balancer. A request goes to the endpoint that answered
//! last, and after 300 ms without a reply also to the next one; the first reply wins. A transaction can so be
//! performed twice; its comparisons make the second time harmless, and its reply is then that of a comparison
//! that failed.

mod attempts;
pub mod compaction;
mod endpoint;
mod faults;
mod inspect;
mod messages;
mod problem;
mod status;
mod watch;

use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use http::Uri;
use tokio::time::{Instant, sleep_until};

use self::attempts::{Endpoints, PAUSE};
use self::endpoint::{Endpoint, RANGE, TXN, lock};
use self::messages::{
    CompareResult, CompareTarget, DeleteRangeRequest, KeyValue, OperationRequest, PutRequest, RangeRequest,
    RangeResponse, RequestOp, TargetUnion, TxnRequest, TxnResponse,
};
pub use self::problem::Problem;
pub use self::status::{Diagnosis, MemberStatus, State};
use super::{Engine, Watched};
use crate::core::check;
use crate::core::patience::ATTEMPT;
use crate::core::record::{Entry, Key};
use crate::core::report;
use crate::core::txn::{Compare, NoReply, Operation, Reply, Txn};

/// How many keys one request reads. A reply of etcd must fit into 4 MiB.
const PAGE: i64 = 500;

/// A group whose keys and values have more bytes than this is refused.
const MAX_GROUP: usize = 64 << 20;

/// Where the engine is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The URLs of the members: `https://HOST:PORT`, or `http://` and a loopback address.
    pub endpoints: Vec<String>,
    /// The file of the certificates of the authorities that sign the members' certificates.
    pub ca: String,
    /// The file of this node's own certificate; may be empty.
    pub certificate: String,
    /// The file of its private key.
    pub key: String,
    /// The user; may be empty.
    pub user: String,
    /// The file of that user's password.
    pub password_file: String,
    /// The group.
    pub group: String,
}

impl Settings {
    fn check(&self) -> Result<(), Problem> {
        if self.endpoints.is_empty() {
            return Err(Problem::Url(
                "`endpoints` is empty. Write the URL of each member of the engine".to_owned(),
            ));
        }
        for url in &self.endpoints {
            let uri: Uri =
                url.parse().map_err(|error| Problem::Url(format!("{url} is not a URL: {error}")))?;
            let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
            match uri.scheme_str() {
                Some("https") if self.ca.is_empty() => {
                    return Err(Problem::File(format!(
                        "{url} needs `ca`: without it, the coordinator cannot verify that this is the engine"
                    )));
                }
                Some("https") => {}
                Some("http") if host.parse().is_ok_and(|host: IpAddr| host.is_loopback()) => {}
                _ => {
                    let remedy = "write https://, or http:// with a loopback address";
                    return Err(Problem::Url(format!("{url} is not allowed: {remedy}")));
                }
            }
        }
        Ok(())
    }
}

/// The prefix of a group's keys.
struct Prefix(String);

impl Prefix {
    /// The key in etcd.
    fn path(&self, key: &Key) -> Vec<u8> {
        format!("{}{key}", self.0).into_bytes()
    }

    /// The range of all keys of the group, or of those that are no beats.
    fn range(&self, with_beats: bool) -> (Vec<u8>, Vec<u8>) {
        // After '/' comes '0'. No key of a group is before its beats.
        let end = format!("{}0", self.0.trim_end_matches('/'));
        let begin = if with_beats { self.0.clone() } else { format!("{}beat0", self.0) };
        (begin.into_bytes(), end.into_bytes())
    }

    /// An entry, unless it is the engine's own.
    fn entry(&self, kv: KeyValue) -> Option<Entry> {
        let path = String::from_utf8_lossy(&kv.key);
        let path = path.strip_prefix(&self.0).unwrap_or(&path);
        if path == compaction::KEY {
            return None;
        }
        Some(self.decode(Key::parse(path), &kv))
    }

    fn decode(&self, key: Key, kv: &KeyValue) -> Entry {
        Entry::decode(key, kv.create_revision, kv.mod_revision, String::from_utf8_lossy(&kv.value).into())
    }
}

/// The engine in etcd. Clones share their connections.
#[derive(Clone)]
pub struct Etcd {
    endpoints: Arc<Endpoints>,
    prefix: Arc<Prefix>,
    cluster: Arc<Mutex<Option<u64>>>,
    /// The number of the endpoint whose watch was lost last.
    lost_watch: Arc<AtomicUsize>,
}

impl Etcd {
    /// Connects to nothing yet.
    pub fn new(settings: Settings) -> Result<Self, Problem> {
        settings.check()?;
        let (settings, cluster) = (Arc::new(settings), Arc::new(Mutex::new(None)));
        let endpoint =
            |url: &String| Arc::new(Endpoint::new(url.clone(), Arc::clone(&settings), Arc::clone(&cluster)));
        Ok(Etcd {
            endpoints: Arc::new(Endpoints::new(settings.endpoints.iter().map(endpoint).collect())),
            prefix: Arc::new(Prefix(Key::prefix(&settings.group))),
            cluster,
            lost_watch: Arc::new(AtomicUsize::new(usize::MAX)),
        })
    }

    /// After all endpoints have failed.
    fn give_up(&self, problems: &[Problem]) -> NoReply {
        // A cluster that was restored from a backup can have another id. It is used when no endpoint is of the
        // former one.
        let found = |problem: &Problem| match problem {
            Problem::OtherCluster { found, .. } => Some(*found),
            _ => None,
        };
        let all: Option<Vec<u64>> = problems.iter().map(found).collect();
        if let Some(all) = all
            && all.len() == self.endpoints.all().len()
            && let Some(first) = all.first()
            && all.iter().all(|id| id == first)
        {
            *lock(&self.cluster) = Some(*first);
        }
        NoReply
    }

    /// Reads all keys as they were at one revision.
    async fn read_pages(&self) -> Result<Reply, Vec<Problem>> {
        let (mut key, range_end) = self.prefix.range(true);
        let (mut revision, mut limit, mut bytes, mut entries) = (0, PAGE, 0, Vec::new());
        loop {
            let request = RangeRequest {
                key: key.clone(),
                range_end: range_end.clone(),
                limit,
                revision,
                ..RangeRequest::default()
            };
            let page: Result<RangeResponse, _> = self
                .endpoints
                .request(|endpoint| {
                    let request = request.clone();
                    async move { endpoint.call(RANGE, request).await }
                })
                .await;
            let page = match page {
                Err(problems) if limit > 1 && problems.contains(&Problem::TooLarge) => {
                    limit /= 8;
                    limit = limit.max(1);
                    continue;
                }
                other => other?,
            };
            if revision == 0 {
                revision = page.header.map_or(0, |header| header.revision);
            }
            let last = page.kvs.last().map(|kv| kv.key.clone());
            bytes += page.kvs.iter().map(|kv| kv.key.len() + kv.value.len()).sum::<usize>();
            if bytes > MAX_GROUP {
                if let Some(endpoint) = self.endpoints.get(self.endpoints.preferred()) {
                    endpoint.note(false, Some(&Problem::TooLarge));
                }
                return Err(vec![Problem::TooLarge]);
            }
            entries.extend(page.kvs.into_iter().filter_map(|kv| self.prefix.entry(kv)).map(Arc::new));
            match last {
                Some(last) if page.more => key = [last, vec![0]].concat(),
                _ => return Ok(Reply { revision, succeeded: true, entries }),
            }
        }
    }

    fn encode(&self, txn: &Txn) -> TxnRequest {
        let operations = |all: &[Operation]| all.iter().map(|one| self.operation(one)).collect();
        TxnRequest {
            compare: txn.compare.iter().map(|compare| self.comparison(compare)).collect(),
            success: operations(&txn.success),
            failure: operations(&txn.failure),
        }
    }

    fn comparison(&self, compare: &Compare) -> messages::Compare {
        let (result, target, key, union) = match compare {
            Compare::Value(key, text) => (
                CompareResult::Equal,
                CompareTarget::Value,
                key,
                TargetUnion::Value(text.as_bytes().to_vec()),
            ),
            Compare::Created(key, revision) => {
                (CompareResult::Equal, CompareTarget::Create, key, TargetUnion::CreateRevision(*revision))
            }
            Compare::NotCreated(key, revision) => {
                (CompareResult::NotEqual, CompareTarget::Create, key, TargetUnion::CreateRevision(*revision))
            }
        };
        let key = self.prefix.path(key);
        messages::Compare { result: result.into(), target: target.into(), key, union: Some(union) }
    }

    fn operation(&self, operation: &Operation) -> RequestOp {
        let request = match operation {
            Operation::Put(key, text) => OperationRequest::Put(PutRequest {
                key: self.prefix.path(key),
                value: text.as_bytes().to_vec(),
            }),
            Operation::Delete(key) => {
                OperationRequest::DeleteRange(DeleteRangeRequest { key: self.prefix.path(key) })
            }
            Operation::Get(key) => {
                let key = self.prefix.path(key);
                OperationRequest::Range(RangeRequest { key, ..RangeRequest::default() })
            }
        };
        RequestOp { request: Some(request) }
    }

    /// The reply to a transaction; `None` if it does not match.
    fn decode(&self, txn: &Txn, reply: TxnResponse) -> Option<Reply> {
        let operations = if reply.succeeded { &txn.success } else { &txn.failure };
        let revision = reply.header?.revision;
        let mut entries = Vec::new();
        if operations.len() != reply.responses.len() {
            return None;
        }
        for (operation, response) in operations.iter().zip(reply.responses) {
            if let Operation::Get(key) = operation {
                let entry = match response.range?.kvs.first() {
                    Some(kv) => self.prefix.decode(key.clone(), kv),
                    None => Entry::deleted(key.clone(), revision),
                };
                entries.push(Arc::new(entry));
            }
        }
        Some(Reply { revision, succeeded: reply.succeeded, entries })
    }
}

impl Engine for Etcd {
    async fn read(&self) -> Result<Reply, NoReply> {
        let begin = Instant::now();
        let mut outcome = self.read_pages().await;
        if outcome.as_ref().is_err_and(|problems| problems.contains(&Problem::Compacted)) {
            outcome = self.read_pages().await;
        }
        if outcome.is_err() && begin.elapsed() < ATTEMPT {
            sleep_until(begin + ATTEMPT).await; // the caller reads again at once
        }
        outcome.map_err(|problems| self.give_up(&problems))
    }

    async fn txn(&self, txn: Txn) -> Result<Reply, NoReply> {
        let request = self.encode(&txn);
        let reply: Result<TxnResponse, _> = self
            .endpoints
            .request(|endpoint| {
                let request = request.clone();
                async move { endpoint.call(TXN, request).await }
            })
            .await;
        let reply = reply.map_err(|problems| self.give_up(&problems))?;
        self.decode(&txn, reply).ok_or(NoReply)
    }

    fn endpoints(&self) -> Vec<report::Endpoint> {
        self.diagnosis().into_iter().map(Into::into).collect()
    }

    async fn inspect(&self) -> check::Engine {
        self.inspect_members().await
    }

    async fn watch(&self, with_beats: bool, report: impl FnMut(Watched)) -> NoReply {
        let end = Instant::now() + PAUSE;
        let number = match self.lost_watch.load(Ordering::Relaxed) {
            usize::MAX => self.endpoints.preferred(),
            lost => lost + 1,
        };
        if let Some(endpoint) = self.endpoints.get(number) {
            let _ = watch::watch(endpoint, &self.prefix, with_beats, report).await; // the endpoint has noted it
        }
        self.lost_watch.store(number % self.endpoints.all().len().max(1), Ordering::Relaxed);
        sleep_until(end).await; // the caller begins the next one at once
        NoReply
    }
}
