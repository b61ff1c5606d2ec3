//! The broker under measurement, and the client library's two clients, used as a worker uses them.

use portreeve_tests::{Host, broker};
use portreeve_worker::{Channel, Client, Endpoint, InetEndpoint, Listen, ListenOptions, blocking};

use crate::ports;

/// The broker, permitting [`ports`] to root on its control socket.
pub struct Broker {
    _process: portreeve_tests::Broker,
}

impl Broker {
    /// Starts it. What it logs is written to a file, as it would be under a service manager.
    pub fn start(host: &Host) -> Self {
        let last = ports::FIRST + (ports::COUNT - 1);
        let config = format!(
            r#"
            security {{ user = nobody group = nogroup capabilities = "cap_net_bind_service+ep" }}
            broker {{
                socket = "{}"
                permit "bench" {{ listen = ( "127.0.0.1:{}-{last}" ) }}
                peer root {{ allow = ( listen status ) permit = ( bench ) }}
            }}"#,
            broker::SOCKET,
            ports::FIRST
        );
        Self { _process: portreeve_tests::Broker::start_quietly(host, &config) }
    }

    /// Opens a session of the blocking client.
    pub fn blocking(&self) -> Blocking {
        Blocking(blocking::Client::open(channel(), "bench").unwrap())
    }

    /// Opens a session of the asynchronous client, with a runtime of its own.
    pub fn asynchronous(&self) -> Asynchronous {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let client = runtime.block_on(Client::open(channel(), "bench")).unwrap();
        Asynchronous { runtime, client }
    }
}

fn channel() -> Channel {
    Channel::connect(broker::SOCKET).unwrap()
}

/// What can be measured of a client.
pub trait Worker {
    /// One listener on its own.
    fn one(&mut self, port: u16);
    /// As many as there are ports, in one request.
    fn batch(&mut self, ports: &[u16]);
    /// Waits for what is still under way, so that it is counted here and not with the next contender.
    fn settle(&mut self);
}

/// The blocking client.
pub struct Blocking(blocking::Client);

impl Worker for Blocking {
    fn one(&mut self, port: u16) {
        drop(self.0.listen(&endpoint(port), &ListenOptions::default()).unwrap());
    }

    fn batch(&mut self, ports: &[u16]) {
        let listeners = self.0.listen_many(&listens(ports), true).unwrap();
        let listeners = listeners.into_iter().map(Result::unwrap);
        // All at once, because this client's guards stop one by one.
        let (ids, sockets): (Vec<_>, Vec<_>) = listeners.map(|one| (one.id(), one.keep())).unzip();
        drop(sockets);
        self.0.stop(&ids).unwrap();
    }

    fn settle(&mut self) {
        self.0.ping().unwrap();
    }
}

/// The asynchronous client.
pub struct Asynchronous {
    runtime: tokio::runtime::Runtime,
    client: Client,
}

impl Worker for Asynchronous {
    fn one(&mut self, port: u16) {
        let listening = async { self.client.listen(&endpoint(port), &ListenOptions::default()).await };
        drop(self.runtime.block_on(listening).unwrap());
    }

    fn batch(&mut self, ports: &[u16]) {
        let listens = listens(ports);
        let listening = self.client.listen_many(&listens, true);
        drop(self.runtime.block_on(listening).unwrap());
    }

    fn settle(&mut self) {
        self.runtime.block_on(self.client.ping()).unwrap();
    }
}

fn endpoint(port: u16) -> Endpoint {
    Endpoint::Tcp(InetEndpoint { address: [127, 0, 0, 1].into(), port, scope: Default::default() })
}

fn listens(ports: &[u16]) -> Vec<Listen> {
    let listen = |port: &u16| Listen { endpoint: endpoint(*port), options: ListenOptions::default() };
    ports.iter().map(listen).collect()
}
