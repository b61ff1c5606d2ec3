//! The channel between the coordinators of a cluster, which is used while the engine is out: requests for promises, and replies.
//!
//! A message is a line of JSON. A coordinator sends requests on connections that it has opened, and replies on those that it has
//! accepted. Both sides show a certificate of the authorities in `ca`, with TLS 1.3; without certificates, both are on
//! loopback addresses. What a peer claims decides nothing by itself: a reply counts as that of the node whose address was
//! connected, and a request names the nonce of a session, which only those know who read the engine.
//!
//! Promises: what a peer sends is read into at most [`MAX_MESSAGE`] bytes, and is never logged; connections, their lives and the
//! time for each step are bounded.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Display;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use serde::{Deserialize, Serialize};
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::core::promise::{PromiseReply, PromiseRequest};
use crate::core::record::Name;
use crate::engine::files;

/// The longest message: the names in it have at most 64 characters, of which each is at most two in JSON.
const MAX_MESSAGE: u64 = 1024;
/// How many connections are open, and how many of one address.
const CONNECTIONS: [usize; 2] = [128, 8];
/// How long a connection and its handshake may take.
const CONNECT: Duration = Duration::from_secs(1);
/// How long a reply may take. A new request is sent soon.
const REPLY: Duration = Duration::from_millis(500);
/// For how long a peer may send nothing. It sends a request every 30 s at least.
const IDLE: Duration = Duration::from_secs(90);
/// The pause between two requests of a connection: there are twelve in a lease of at least 3 s.
const PAUSE: Duration = Duration::from_millis(20);
/// The pause after an error of the listener.
const LISTEN_AGAIN: Duration = Duration::from_secs(2);
/// For how long files that were read are used.
const READ_FILES: Duration = Duration::from_secs(60);
/// How many nodes this one asks. A roster has at most 16.
const ASKED: usize = 64;

/// Who this node is, and where its certificates are.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The cluster.
    pub group: String,
    /// The files; `None`: no TLS, and loopback addresses only.
    pub files: Option<Files>,
}

/// The files of TLS, in PEM.
#[derive(Clone, Debug)]
pub struct Files {
    /// The authorities that sign certificates of peers.
    pub ca: String,
    /// This node's certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

/// A request of a peer; its sender takes the reply.
pub type Asked = (PromiseRequest, oneshot::Sender<PromiseReply>);

#[derive(Serialize, Deserialize)]
struct Ask {
    group: String,
    ask: PromiseRequest,
}

/// The channel of this node.
pub struct Peers {
    identity: Rc<Identity>,
    tls: Rc<Mutex<Option<(Instant, Tls)>>>,
    /// Where each node is asked, and its newest request.
    asked: BTreeMap<Name, (String, watch::Sender<Option<PromiseRequest>>)>,
}

#[derive(Clone)]
struct Tls {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl Peers {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// The files of TLS cannot be used.
    pub fn new(identity: Identity) -> io::Result<Self> {
        let peers = Peers { identity: Rc::new(identity), tls: Rc::default(), asked: BTreeMap::new() };
        if let Some(files) = &peers.identity.files {
            load(&peers.tls, files)?;
        }
        Ok(peers)
    }

    /// Sends a request to the node at an address instead of an earlier one that was not sent yet, and reports the reply if there is one.
    pub fn ask(
        &mut self,
        address: String,
        request: PromiseRequest,
        report: impl FnMut(PromiseReply) + 'static,
    ) {
        if let Some((known, sender)) = self.asked.get(&request.to)
            && *known == address
        {
            sender.send_replace(Some(request));
            return;
        }
        if self.asked.len() >= ASKED {
            self.asked.clear();
        }
        let name = Arc::clone(&request.to);
        let (sender, requests) = watch::channel(Some(request));
        let at = address.parse();
        self.asked.insert(Arc::clone(&name), (address, sender));
        let Ok(at) = at else {
            tracing::warn!(node = ?name, "this node cannot be asked for promises: its address in the engine is not ADDRESS:PORT");
            return;
        };
        let asker = Asker {
            name,
            at,
            identity: Rc::clone(&self.identity),
            tls: Rc::clone(&self.tls),
            connection: None,
            last: String::new(),
        };
        spawn_local(asker.run(requests, report));
    }

    /// Accepts connections, and reports requests.
    pub fn listen(&self, at: SocketAddr, report: impl Fn(Asked) + 'static) {
        let server = Rc::new(Server {
            identity: Rc::clone(&self.identity),
            tls: Rc::clone(&self.tls),
            report,
            connections: Mutex::default(),
        });
        spawn_local(async move {
            let mut last = String::new();
            loop {
                let Err(error) = server.serve(at).await;
                let text = error.to_string();
                if text != last {
                    tracing::warn!(listen = %at, error = %text, "cannot accept connections of other nodes; it is tried again");
                    last = text;
                }
                sleep(LISTEN_AGAIN).await;
            }
        });
    }
}

/// The configurations of TLS. The files are read again now and then, because certificates are renewed.
fn load(tls: &Mutex<Option<(Instant, Tls)>>, files: &Files) -> io::Result<Tls> {
    let mut tls = tls.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((at, known)) = &*tls
        && at.elapsed() < READ_FILES
    {
        return Ok(known.clone());
    }
    let loaded = Tls::read(files)?;
    *tls = Some((Instant::now(), loaded.clone()));
    Ok(loaded)
}

impl Tls {
    fn read(files: &Files) -> io::Result<Self> {
        let Files { ca, certificate, key } = files;
        let read = |option, path| files::read(path).map_err(|error| unusable(option, path, &error));
        let certificates = |option, path| {
            files::certificates(&read(option, path)?).map_err(|error| unusable(option, path, &error))
        };
        let refused =
            |option, path, error: &dyn Display| unusable(option, path, &format!("cannot be used: {error}"));
        let mut roots = RootCertStore::empty();
        for authority in certificates("ca", ca)? {
            roots.add(authority).map_err(|error| refused("ca", ca, &error))?;
        }
        let roots = Arc::new(roots);
        let own = certificates("certificate", certificate)?;
        let key = files::private_key(&read("key", key)?).map_err(|error| unusable("key", key, &error))?;
        let bad = |error: rustls::Error| refused("certificate", certificate, &error);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            .build()
            .map_err(|error| refused("ca", ca, &error))?;
        let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(bad)?
            .with_root_certificates(roots)
            .with_client_auth_cert(own.clone(), key.clone_key())
            .map_err(bad)?;
        let server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(bad)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(own, key)
            .map_err(bad)?;
        Ok(Tls { client: Arc::new(client), server: Arc::new(server) })
    }
}

fn unusable(option: &str, path: &str, error: &str) -> io::Error {
    io::Error::other(format!("`{option}`: {path} {error}"))
}

trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

type Connection = BufReader<Box<dyn Stream>>;

/// Reads a line of bounded length; `None`: the peer has closed the connection.
async fn read_line(connection: &mut Connection) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let size = connection.take(MAX_MESSAGE).read_until(b'\n', &mut line).await?;
    match size {
        0 => Ok(None),
        _ if line.ends_with(b"\n") => Ok(Some(line)),
        _ => Err(io::Error::other("a message is too long or incomplete")),
    }
}

async fn write_line(connection: &mut Connection, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    connection.get_mut().write_all(&line).await?;
    connection.get_mut().flush().await
}

/// Asks one node, one request after another.
struct Asker {
    name: Name,
    at: SocketAddr,
    identity: Rc<Identity>,
    tls: Rc<Mutex<Option<(Instant, Tls)>>>,
    connection: Option<Connection>,
    last: String,
}

impl Asker {
    async fn run(
        mut self,
        mut requests: watch::Receiver<Option<PromiseRequest>>,
        mut report: impl FnMut(PromiseReply),
    ) {
        requests.mark_changed();
        while requests.changed().await.is_ok() {
            let Some(request) = requests.borrow_and_update().clone() else { continue };
            match self.ask(request).await {
                Ok(reply) => {
                    self.last.clear();
                    report(reply);
                }
                Err(error) => {
                    self.connection = None;
                    let text = error.to_string();
                    // One line for each reason, not for each attempt.
                    if text != self.last {
                        tracing::warn!(node = ?self.name, at = %self.at, error = ?text, "the node does not answer a request for a promise");
                        self.last = text;
                    }
                }
            }
        }
    }

    async fn ask(&mut self, request: PromiseRequest) -> io::Result<PromiseReply> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            None => {
                let connected = timeout(CONNECT, connect(self.at, &self.identity, &self.tls)).await;
                self.connection.insert(connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?)
            }
        };
        let message = Ask { group: self.identity.group.clone(), ask: request };
        let exchange = async {
            write_line(connection, &message).await?;
            read_line(connection).await
        };
        let line = timeout(REPLY, exchange).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        let line = line.ok_or(io::ErrorKind::UnexpectedEof)?;
        // The text of the error would show what the peer sent.
        let reply: PromiseReply =
            serde_json::from_slice(&line).map_err(|_| io::Error::other("the reply cannot be read"))?;
        if reply.node != self.name {
            return Err(io::Error::other("another node answers there"));
        }
        Ok(reply)
    }
}

async fn connect(
    at: SocketAddr,
    identity: &Identity,
    tls: &Mutex<Option<(Instant, Tls)>>,
) -> io::Result<Connection> {
    let Some(files) = &identity.files else {
        if !at.ip().is_loopback() {
            return Err(io::Error::other(
                "without certificate and key, only loopback addresses are connected",
            ));
        }
        return Ok(BufReader::new(Box::new(TcpStream::connect(at).await?)));
    };
    let config = load(tls, files)?.client;
    let stream = TcpStream::connect(at).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::IpAddress(at.ip().into());
    let stream = TlsConnector::from(config).connect(name, stream).await?;
    Ok(BufReader::new(Box::new(stream)))
}

struct Server<R> {
    identity: Rc<Identity>,
    tls: Rc<Mutex<Option<(Instant, Tls)>>>,
    report: R,
    /// How many connections each address has.
    connections: Mutex<BTreeMap<IpAddr, usize>>,
}

/// A connection that counts.
struct Counted<R> {
    server: Rc<Server<R>>,
    from: IpAddr,
}

impl<R> Drop for Counted<R> {
    fn drop(&mut self) {
        let mut connections = self.server.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = connections.get_mut(&self.from) {
            *count -= 1;
            if *count == 0 {
                connections.remove(&self.from);
            }
        }
    }
}

impl<R: Fn(Asked) + 'static> Server<R> {
    async fn serve(self: &Rc<Self>, at: SocketAddr) -> io::Result<Infallible> {
        let listener = TcpListener::bind(at).await?;
        loop {
            let (stream, from) = listener.accept().await?;
            if let Some(counted) = self.count(from.ip()) {
                spawn_local(async move {
                    // Its end is the same whatever the reason. Whoever connected knows why, and a stranger must not fill the log.
                    let _ = counted.server.converse(stream).await;
                });
            }
        }
    }

    fn count(self: &Rc<Self>, from: IpAddr) -> Option<Counted<R>> {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let [all, each] = CONNECTIONS;
        let own = connections.get(&from).copied().unwrap_or_default();
        let has_room = own < each && connections.values().sum::<usize>() < all;
        has_room.then(|| {
            connections.insert(from, own + 1);
            Counted { server: Rc::clone(self), from }
        })
    }

    async fn converse(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut connection: Connection = match &self.identity.files {
            None => BufReader::new(Box::new(stream)),
            Some(files) => {
                let accepted = TlsAcceptor::from(load(&self.tls, files)?.server).accept(stream);
                BufReader::new(Box::new(timeout(CONNECT, accepted).await??))
            }
        };
        while let Some(line) = timeout(IDLE, read_line(&mut connection)).await?? {
            let Ask { group, ask } = serde_json::from_slice(&line)?;
            if group != self.identity.group {
                break;
            }
            let (reply, replied) = oneshot::channel();
            (self.report)((ask, reply));
            // Without a reply, the request was for another node.
            let Ok(Ok(reply)) = timeout(REPLY, replied).await else { break };
            timeout(REPLY, write_line(&mut connection, &reply)).await??;
            sleep(PAUSE).await;
        }
        Ok(())
    }
}
