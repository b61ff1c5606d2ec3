//! The broker under measurement, and the client library's two clients, used as by a worker.

use std::net::SocketAddrV4;
use std::path::Path;

use portreeve::{Channel, Client, Endpoint, InetEndpoint, Listen, ListenOptions, ListenerId, blocking};
use portreeve_protocol::message::{Listen as Request, Listening};
use portreeve_tests::{Host, Peer, broker};

use crate::endpoints;

/// The broker, which allows [`endpoints`] to root on its control socket.
pub struct Broker {
    process: portreeve_tests::Broker,
}

impl Broker {
    /// Starts it. It logs to a file, as under a service manager.
    pub fn start(host: &Host) -> Self {
        let (first, last) = (endpoints::FIRST, endpoints::FIRST + endpoints::PORTS - 1);
        let config = format!(
            r#"
            security {{ user = nobody group = nogroup capabilities = "cap_net_bind_service+ep" }}
            broker {{
                socket = "{}"
                permit "bench" {{ listen = ( "127.0.0.0/8:{first}-{last}" ) }}
                peer root {{ allow = ( listen status ) permit = ( bench ) }}
            }}"#,
            broker::SOCKET
        );
        Self { process: portreeve_tests::Broker::start_with_log_file(host, &config) }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Opens `count` listeners, which stay open until the returned client is dropped.
    pub fn hold(&self, count: u16) -> Blocking {
        let mut holder = Blocking::open();
        let listens: Vec<Listen> = (0..count).map(|number| listen(endpoints::endpoint(2, number))).collect();
        listens.chunks(200).for_each(|some| holder.listen_many(some));
        holder
    }
}

fn channel() -> Channel {
    Channel::connect(broker::SOCKET).unwrap()
}

/// The operations of a client that are measured.
pub trait Worker {
    /// Requests listeners, in one request if there are several, and closes its copies of their sockets.
    fn listen(&mut self, endpoints: &[SocketAddrV4]);
    /// Stops all listeners that [`Worker::listen`] opened.
    fn stop(&mut self);
}

/// The blocking client.
pub struct Blocking {
    client: blocking::Client,
    given: Vec<ListenerId>,
}

impl Blocking {
    /// Opens a session.
    pub fn open() -> Self {
        Self { client: blocking::Client::open(channel(), "bench").unwrap(), given: Vec::new() }
    }

    /// Sends a ping and waits for the reply.
    pub fn ping(&self) {
        self.client.ping().unwrap();
    }

    /// Requests listeners and stops them, a single one by dropping its guard.
    pub fn listen_and_stop(&mut self, endpoints: &[SocketAddrV4]) {
        if let [one] = endpoints {
            drop(self.client.listen(&endpoint(*one), &ListenOptions::default()).unwrap());
        } else {
            self.listen(endpoints);
            self.stop();
        }
    }

    fn listen_many(&mut self, listens: &[Listen]) {
        for listener in self.client.listen_many(listens, true).unwrap() {
            let listener = listener.unwrap();
            self.given.push(listener.id());
            drop(listener.into_socket());
        }
    }
}

impl Worker for Blocking {
    fn listen(&mut self, endpoints: &[SocketAddrV4]) {
        if let [one] = endpoints {
            let listener = self.client.listen(&endpoint(*one), &ListenOptions::default()).unwrap();
            self.given.push(listener.id());
            drop(listener.into_socket());
        } else {
            self.listen_many(&listens(endpoints));
        }
    }

    fn stop(&mut self) {
        self.given.chunks(200).for_each(|ids| drop(self.client.stop(ids).unwrap()));
        self.given.clear();
    }
}

/// The asynchronous client, with a runtime of its own.
pub struct Asynchronous {
    runtime: tokio::runtime::Runtime,
    client: Client,
    given: Vec<ListenerId>,
}

impl Asynchronous {
    /// Opens a session.
    pub fn open() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let client = runtime.block_on(Client::open(channel(), "bench")).unwrap();
        Self { runtime, client, given: Vec::new() }
    }
}

impl Worker for Asynchronous {
    fn listen(&mut self, endpoints: &[SocketAddrV4]) {
        let listeners = match endpoints {
            [one] => {
                let (endpoint, options) = (endpoint(*one), ListenOptions::default());
                vec![self.runtime.block_on(self.client.listen(&endpoint, &options)).unwrap()]
            }
            _ => {
                let listening = self.runtime.block_on(self.client.listen_many(&listens(endpoints), true));
                listening.unwrap().into_iter().map(Result::unwrap).collect()
            }
        };
        for listener in listeners {
            self.given.push(listener.id());
            drop(listener.into_socket());
        }
    }

    fn stop(&mut self) {
        for ids in self.given.chunks(200) {
            self.runtime.block_on(self.client.stop(ids)).unwrap();
        }
        self.given.clear();
    }
}

/// A peer that sends all its requests before it reads the first reply.
pub struct Pipelined {
    peer: Peer,
    given: Vec<ListenerId>,
}

impl Pipelined {
    /// Opens a session.
    pub fn open() -> Self {
        let mut peer = Peer::connect(Path::new(broker::SOCKET)).unwrap();
        peer.hello();
        Self { peer, given: Vec::new() }
    }
}

impl Worker for Pipelined {
    fn listen(&mut self, endpoints: &[SocketAddrV4]) {
        for one in endpoints {
            self.peer.send(&Request::new(endpoint(*one), Default::default()));
        }
        for _ in endpoints {
            let (Listening { id }, sockets) = self.peer.receive().unwrap().reply::<Request>().unwrap();
            self.given.push(id);
            drop(sockets);
        }
    }

    fn stop(&mut self) {
        self.given.chunks(200).for_each(|ids| drop(self.peer.stop(ids)));
        self.given.clear();
    }
}

/// The endpoint of a TCP listener.
pub fn endpoint(of: SocketAddrV4) -> Endpoint {
    let inet = InetEndpoint { address: (*of.ip()).into(), port: of.port(), scope: Default::default() };
    Endpoint::Tcp(inet)
}

fn listen(of: SocketAddrV4) -> Listen {
    Listen::new(endpoint(of))
}

fn listens(endpoints: &[SocketAddrV4]) -> Vec<Listen> {
    endpoints.iter().copied().map(listen).collect()
}
