//! One endpoint: its connection, its token, and what is known about it.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::uri::PathAndQuery;
use prost::Message;
use tokio::time::{Instant, timeout};
use tonic::client::Grpc;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use super::Settings;
use super::attempts::LATE;
use super::messages::{
    AuthenticateRequest, AuthenticateResponse, RangeRequest, RangeResponse, Response, StatusRequest,
    StatusResponse,
};
use super::problem::{Problem, printable};
use crate::core::patience::ATTEMPT;
use crate::core::record::Key;
use crate::engine::files;

/// The largest message that is accepted: etcd's default limit of requests is 1.5 MiB, gRPC's of replies is
/// this.
pub(super) const MAX_MESSAGE: usize = 4 << 20;

/// How long a request for a token may take. etcd hashes the password slowly on purpose, and one member replies
/// to one at a time.
const AUTHENTICATE: Duration = Duration::from_secs(3);

/// How long an endpoint has to tell its status.
const CHECK: Duration = Duration::from_secs(3);

/// For how long a refused password is not sent again.
const REFUSED_PASSWORD: Duration = Duration::from_secs(5);

/// etcd closes connections whose clients ping more often than every 5 s.
const PING_INTERVAL: Duration = Duration::from_secs(6);
const PING_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) const RANGE: &str = "/etcdserverpb.KV/Range";
pub(super) const TXN: &str = "/etcdserverpb.KV/Txn";
pub(super) const COMPACT: &str = "/etcdserverpb.KV/Compact";
pub(super) const WATCH: &str = "/etcdserverpb.Watch/Watch";
pub(super) const LEASE_GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";
pub(super) const LEASE_REVOKE: &str = "/etcdserverpb.Lease/LeaseRevoke";
pub(super) const MEMBER_LIST: &str = "/etcdserverpb.Cluster/MemberList";
const STATUS: &str = "/etcdserverpb.Maintenance/Status";
/// The metadata of a request that a member must not answer without a leader.
const HAS_LEADER: &str = "hasleader";
const AUTHENTICATE_PATH: &str = "/etcdserverpb.Auth/Authenticate";

/// A poisoned lock holds what the last writer left, which is complete: no code below panics while it holds one.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A connection, which is opened by the first request.
pub(super) struct Connection {
    channel: Channel,
    /// Whether a member of the cluster in use has answered on it.
    is_verified: AtomicBool,
}

/// What is known about an endpoint.
#[derive(Clone, Default)]
pub(super) struct Known {
    /// Whether it has answered or failed.
    pub(super) is_used: bool,
    /// Why it does not answer; `None`: it does.
    pub(super) problem: Option<Problem>,
    /// Why it refuses writes, although it answers.
    pub(super) refused_write: Option<Problem>,
    /// Its version.
    pub(super) version: Option<String>,
    /// The id of its cluster.
    pub(super) cluster: Option<u64>,
}

/// The token of a user, or why there is none.
#[derive(Clone)]
enum Token {
    /// Not asked for.
    Unknown,
    /// It goes with each request. `None`: this etcd demands no user.
    Known(Option<MetadataValue<Ascii>>),
    /// etcd refused the password at that time.
    Refused(Instant),
}

/// One endpoint of the engine.
pub(super) struct Endpoint {
    pub(super) url: String,
    settings: Arc<Settings>,
    prefix: String,
    /// The id of the cluster in use, which all endpoints share: that of the one which answered first.
    cluster: Arc<Mutex<Option<u64>>>,
    connection: Mutex<Option<Arc<Connection>>>,
    token: Mutex<Token>,
    /// Held while a token is requested.
    authenticating: tokio::sync::Mutex<()>,
    known: Mutex<Known>,
}

impl Endpoint {
    pub(super) fn new(url: String, settings: Arc<Settings>, cluster: Arc<Mutex<Option<u64>>>) -> Self {
        let prefix = Key::prefix(&settings.group);
        Endpoint {
            url,
            settings,
            prefix,
            cluster,
            connection: Mutex::default(),
            token: Mutex::new(Token::Unknown),
            authenticating: tokio::sync::Mutex::default(),
            known: Mutex::default(),
        }
    }

    /// What is known about it.
    pub(super) fn known(&self) -> Known {
        lock(&self.known).clone()
    }

    /// Sends a request, and waits for the reply as long as an attempt lasts.
    pub(super) async fn call<Q, R>(self: &Arc<Self>, path: &'static str, request: Q) -> Result<R, Problem>
    where
        Q: Message + Clone + 'static,
        R: Response,
    {
        let outcome = self
            .attempt(ATTEMPT, |connection| async move { self.send(&connection, path, request).await })
            .await;
        // A refused compaction does not keep anybody from using the endpoint.
        if path != COMPACT {
            self.note(path == TXN, outcome.as_ref().err());
        }
        outcome
    }

    /// Sends a request of the checks: it has more time, and its outcome does not keep anybody from using the endpoint.
    pub(super) async fn ask<Q, R>(self: &Arc<Self>, path: &'static str, request: Q) -> Result<R, Problem>
    where
        Q: Message + Clone + 'static,
        R: Response,
    {
        self.attempt(CHECK, |connection| async move { self.send(&connection, path, request).await }).await
    }

    /// The member's own status, and why it cannot be used: it may have lost its leader, belong to another
    /// cluster, or refuse the user.
    pub(super) async fn check(self: &Arc<Self>) -> Result<(StatusResponse, Option<Problem>), Problem> {
        let outcome = self
            .attempt(CHECK + LATE, |connection| async move {
                let status = self.status(&connection);
                let (status, verified) =
                    tokio::join!(timeout(CHECK, status), timeout(CHECK, self.verify(&connection)));
                let problem = verified.unwrap_or(Err(Problem::TimedOut)).err();
                match (status, problem) {
                    (Ok(Ok(status)), problem) => Ok((status, problem)),
                    // It knows more about a connection that fails.
                    (_, Some(problem)) => Err(problem),
                    (Ok(Err(Problem::PermissionDenied)), None) => Err(Problem::StatusDenied),
                    (Ok(Err(problem)), None) => Err(problem),
                    (Err(_), None) => Err(Problem::TimedOut),
                }
            })
            .await;
        self.note(false, outcome.as_ref().map_or_else(Some, |(_, problem)| problem.as_ref()));
        outcome
    }

    /// Does something with a connection for a limited time. The next attempt does not use a connection on which
    /// one has failed.
    pub(super) async fn attempt<T, F>(
        &self,
        limit: Duration,
        act: impl FnOnce(Arc<Connection>) -> F,
    ) -> Result<T, Problem>
    where
        F: Future<Output = Result<T, Problem>>,
    {
        let connection = self.connection()?;
        let outcome = timeout(limit, act(Arc::clone(&connection))).await.unwrap_or(Err(Problem::TimedOut));
        if let Err(problem) = &outcome
            && problem.is_of_connection()
        {
            self.discard(&connection);
        }
        outcome
    }

    /// Notes the outcome of a request.
    pub(super) fn note(&self, is_write: bool, problem: Option<&Problem>) {
        let mut known = lock(&self.known);
        known.is_used = true;
        match problem {
            Some(Problem::Compacted | Problem::StatusDenied) => known.problem = None,
            Some(problem) if is_write && problem.is_of_writes() => {
                (known.problem, known.refused_write) = (None, Some(problem.clone()));
            }
            _ => known.problem = problem.cloned(),
        }
        if is_write && problem.is_none() {
            known.refused_write = None;
        }
    }

    fn connection(&self) -> Result<Arc<Connection>, Problem> {
        let mut connection = lock(&self.connection);
        if let Some(connection) = &*connection {
            return Ok(Arc::clone(connection));
        }
        let new = Arc::new(Connection { channel: self.channel()?, is_verified: AtomicBool::new(false) });
        *connection = Some(Arc::clone(&new));
        Ok(new)
    }

    fn discard(&self, failed: &Arc<Connection>) {
        let mut connection = lock(&self.connection);
        if connection.as_ref().is_some_and(|current| Arc::ptr_eq(current, failed)) {
            *connection = None;
        }
    }

    /// A channel with the certificates that the files have now.
    fn channel(&self) -> Result<Channel, Problem> {
        let unusable =
            |error| Problem::Url(format!("{} cannot be used: {}", self.url, Problem::of_error(&error)));
        let builder = Channel::from_shared(self.url.clone())
            .map_err(|error| Problem::Url(format!("{} is not a URL: {error}", printable(&self.url))))?;
        let builder = builder
            .user_agent(concat!("portreeve-coordinator/", env!("CARGO_PKG_VERSION")))
            .map_err(unusable)?
            .connect_timeout(ATTEMPT)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT);
        let uri = builder.uri();
        if uri.scheme_str() == Some("http") {
            return Ok(builder.connect_lazy());
        }
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        let Settings { ca, certificate, key, .. } = &*self.settings;
        let mut tls = ClientTlsConfig::new().domain_name(host);
        tls = tls.ca_certificate(Certificate::from_pem(certificates(ca, "ca")?));
        if !certificate.is_empty() {
            tls = tls
                .identity(Identity::from_pem(certificates(certificate, "certificate")?, read(key, "key")?));
        }
        let builder = builder.tls_config(tls).map_err(|error| {
            let problem = Problem::of_error(&error);
            Problem::File(format!("the files `ca`, `certificate` and `key` cannot be used: {problem}"))
        })?;
        Ok(builder.connect_lazy())
    }

    async fn send<Q, R>(
        self: &Arc<Self>,
        connection: &Connection,
        path: &'static str,
        request: Q,
    ) -> Result<R, Problem>
    where
        Q: Message + Clone + 'static,
        R: Response,
    {
        if !connection.is_verified.load(Ordering::Relaxed) {
            self.verify(connection).await?;
        }
        let reply: R = self.authenticated(connection, path, request).await?;
        self.check_cluster(&reply)?;
        Ok(reply)
    }

    /// Sends a harmless request as the first one, so that no transaction is sent to another cluster.
    pub(super) async fn verify(self: &Arc<Self>, connection: &Connection) -> Result<(), Problem> {
        let request = RangeRequest {
            key: self.prefix.clone().into_bytes(),
            limit: 1,
            keys_only: true,
            // Any member can answer it alone.
            serializable: true,
            ..RangeRequest::default()
        };
        let range = self.authenticated::<_, RangeResponse>(connection, RANGE, request);
        let status = self.status(connection);
        let (range, status) = tokio::join!(range, status);
        if let Ok(status) = status {
            lock(&self.known).version = Some(printable(&status.version));
        }
        let is_new = !connection.is_verified.load(Ordering::Relaxed);
        let range = range.map_err(|problem| match problem {
            // With TLS 1.3, a client learns only after the handshake that its certificate is refused, and often
            // not why: what it has sent meanwhile resets the connection.
            Problem::Lost(text) if is_new && self.url.starts_with("https") => {
                Problem::ClientCertificateRefused(text)
            }
            Problem::Lost(text) if is_new => {
                Problem::Lost(format!("{text}. If the member demands TLS, write https:// in `endpoints`"))
            }
            other => other,
        });
        self.check_cluster(&range?)?;
        connection.is_verified.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// The member's own status. Some versions tell it to everybody, others only to users: 3.6, and the newest ones of 3.4 and 3.5.
    async fn status(self: &Arc<Self>, connection: &Connection) -> Result<StatusResponse, Problem> {
        let mut metadata = self.metadata(None).await.unwrap_or_default();
        let token = metadata.get("token").cloned();
        // A member without a leader tells its status too.
        metadata.remove(HAS_LEADER);
        let status = match unary(&connection.channel, STATUS, StatusRequest {}, metadata).await {
            Ok(status) => return Ok(status),
            Err(status) => status,
        };
        if self.settings.user.is_empty() || !is_token_refused(&status) {
            return Err(Problem::of_status(&status));
        }
        let mut metadata = self.metadata(Some(token)).await?;
        metadata.remove(HAS_LEADER);
        let outcome = unary(&connection.channel, STATUS, StatusRequest {}, metadata).await;
        outcome.map_err(|status| Problem::of_status(&status))
    }

    pub(super) fn check_cluster(&self, reply: &impl Response) -> Result<(), Problem> {
        let no_header = || Problem::NotEtcd("its reply has no header".to_owned());
        let found = reply.header().ok_or_else(no_header)?.cluster_id;
        lock(&self.known).cluster = Some(found);
        let expected = *lock(&self.cluster).get_or_insert(found);
        if found == expected { Ok(()) } else { Err(Problem::OtherCluster { expected, found }) }
    }

    /// Sends a request with the user's token; once more with a new one if etcd refuses it, as it does after a
    /// restart.
    async fn authenticated<Q, R>(
        self: &Arc<Self>,
        connection: &Connection,
        path: &'static str,
        request: Q,
    ) -> Result<R, Problem>
    where
        Q: Message + Clone + 'static,
        R: Response,
    {
        let metadata = self.metadata(None).await?;
        let status = match unary(&connection.channel, path, request.clone(), metadata.clone()).await {
            Ok(reply) => return Ok(reply),
            Err(status) => status,
        };
        if self.settings.user.is_empty() || !is_token_refused(&status) {
            return Err(Problem::of_status(&status));
        }
        let metadata = self.metadata(Some(metadata.get("token").cloned())).await?;
        let outcome = unary(&connection.channel, path, request, metadata).await;
        outcome.map_err(|status| Problem::of_status(&status))
    }

    /// The metadata of a request. `refused` is the token that etcd has refused.
    pub(super) async fn metadata(
        self: &Arc<Self>,
        refused: Option<Option<MetadataValue<Ascii>>>,
    ) -> Result<MetadataMap, Problem> {
        let mut metadata = MetadataMap::new();
        // A member without a leader says so at once, rather than when it has given up.
        metadata.insert(HAS_LEADER, MetadataValue::from_static("true"));
        if !self.settings.user.is_empty()
            && let Some(token) = self.token(refused).await?
        {
            metadata.insert("token", token);
        }
        Ok(metadata)
    }

    fn current_token(&self) -> Token {
        lock(&self.token).clone()
    }

    async fn token(
        self: &Arc<Self>,
        refused: Option<Option<MetadataValue<Ascii>>>,
    ) -> Result<Option<MetadataValue<Ascii>>, Problem> {
        let current = self.current_token();
        match current {
            Token::Known(token) if refused.as_ref() != Some(&token) => return Ok(token),
            Token::Refused(at) if at.elapsed() < REFUSED_PASSWORD => return Err(Problem::WrongPassword),
            Token::Unknown | Token::Known(_) | Token::Refused(_) => {}
        }
        let this = Arc::clone(self);
        // It goes on when the attempt ends: the next one needs the token too.
        let task = tokio::spawn(async move {
            let _held = this.authenticating.lock().await;
            match this.current_token() {
                // Another attempt has requested it meanwhile.
                Token::Known(token) if refused.as_ref() != Some(&token) => Ok(token),
                Token::Refused(at) if at.elapsed() < REFUSED_PASSWORD => Err(Problem::WrongPassword),
                Token::Unknown | Token::Known(_) | Token::Refused(_) => this.authenticate().await,
            }
        });
        // A password that was wrong is assumed to be so still, until etcd has checked it again.
        if matches!(current, Token::Refused(_)) {
            return Err(Problem::WrongPassword);
        }
        task.await.unwrap_or(Err(Problem::TimedOut)) // the program ends
    }

    async fn authenticate(&self) -> Result<Option<MetadataValue<Ascii>>, Problem> {
        let Settings { user, password_file, .. } = &*self.settings;
        let password = String::from_utf8(read(password_file, "password_file")?)
            .map_err(|_| unusable(password_file, "password_file", "is not in UTF-8"))?;
        let password = password.trim_end_matches(['\r', '\n']).to_owned();
        let request = AuthenticateRequest { name: user.clone(), password };
        let outcome = self
            .attempt(AUTHENTICATE, |connection| async move {
                match unary(&connection.channel, AUTHENTICATE_PATH, request, MetadataMap::new()).await {
                    Ok(reply) => Ok(Some(reply)),
                    Err(status) if status.message().contains("authentication is not enabled") => Ok(None),
                    Err(status) => Err(Problem::of_status(&status)),
                }
            })
            .await;
        let token = match outcome {
            Ok(None) => Token::Known(None),
            Ok(Some(AuthenticateResponse { token, .. })) => match token.parse() {
                Ok(token) => Token::Known(Some(token)),
                Err(_) => return Err(Problem::NotEtcd("its token has control characters".to_owned())),
            },
            Err(Problem::WrongPassword) => Token::Refused(Instant::now()),
            Err(problem) => return Err(problem),
        };
        *lock(&self.token) = token.clone();
        match token {
            Token::Known(token) => Ok(token),
            Token::Unknown | Token::Refused(_) => Err(Problem::WrongPassword),
        }
    }
}

/// Whether a new token may help: etcd has forgotten this one, its users have changed, or it has begun to demand
/// one.
fn is_token_refused(status: &Status) -> bool {
    let text = status.message();
    status.code() == Code::Unauthenticated
        || text.contains("revision of auth store is old")
        || text.contains("user name is empty")
}

impl Connection {
    /// A client for a stream.
    pub(super) fn client(&self) -> Grpc<Channel> {
        client(&self.channel)
    }
}

fn client(channel: &Channel) -> Grpc<Channel> {
    Grpc::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE)
}

async fn unary<Q, R>(
    channel: &Channel,
    path: &'static str,
    request: Q,
    metadata: MetadataMap,
) -> Result<R, Status>
where
    Q: Message + 'static,
    R: Response,
{
    let mut client = client(channel);
    client.ready().await.map_err(|error| Status::from_error(error.into()))?;
    let request = Request::from_parts(metadata, tonic::Extensions::new(), request);
    let codec = ProstCodec::<Q, R>::default();
    let reply = client.unary(request, PathAndQuery::from_static(path), codec).await?;
    Ok(reply.into_inner())
}

/// Reads a file with certificates.
fn certificates(path: &str, option: &str) -> Result<Vec<u8>, Problem> {
    let pem = read(path, option)?;
    files::certificates(&pem).map_err(|error| unusable(path, option, &error))?;
    Ok(pem)
}

/// Reads a file that an option of the `engine` scope names.
fn read(path: &str, option: &str) -> Result<Vec<u8>, Problem> {
    if path.is_empty() {
        return Err(Problem::File(format!("`{option}` is not set")));
    }
    files::read(path).map_err(|error| unusable(path, option, &error))
}

fn unusable(path: &str, option: &str, error: &str) -> Problem {
    Problem::File(format!("`{option}`: {path} {error}"))
}
