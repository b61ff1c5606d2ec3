//! The broker under measurement, and a client that asks as the client library's guard does: the socket is
//! closed and `Stop` sent at once, and the reply to `Stop` is read when the next one comes.

use std::os::fd::OwnedFd;

use portreeve_protocol::List;
use portreeve_protocol::message::{
    Listen, ListenMany, ListenOptions, ListenerId, Listening, ListeningMany, Operation, Outcome, Stop,
};
use portreeve_protocol::{Endpoint, InetEndpoint, Text};
use portreeve_tests::peer::Frame;
use portreeve_tests::{Host, Peer};

use crate::ports;

/// The broker, permitting [`ports`] to root on its control socket.
pub struct Broker(portreeve_tests::Broker);

/// One session.
pub struct Client {
    peer: Peer,
    /// The last `Stop` that was sent.
    stopping: u32,
}

impl Broker {
    /// Starts it.
    pub fn start(host: &Host) -> Self {
        let last = ports::FIRST + (ports::COUNT - 1);
        let config = format!(
            r#"
            security {{ user = nobody group = nogroup capabilities = "cap_net_bind_service+ep" }}
            broker {{
                socket = "/run/host/broker.sock"
                permit "bench" {{ listen = ( "127.0.0.1:{}-{last}" ) }}
                peer root {{ allow = ( listen status ) permit = ( bench ) }}
            }}"#,
            ports::FIRST
        );
        Self(portreeve_tests::Broker::start(host, &config))
    }

    /// Opens a session.
    pub fn client(&self) -> Client {
        Client {
            peer: self.0.peer(),
            stopping: 0,
        }
    }
}

impl Client {
    /// One listener on its own.
    pub fn one(&mut self, port: u16) {
        let (Listening { id }, descriptors) = self.ask(&listen(port));
        drop(descriptors);
        self.stop(vec![id]);
    }

    /// As many as there are ports, in one request.
    pub fn batch(&mut self, ports: &[u16]) {
        let listeners = List::new(ports.iter().map(|port| listen(*port)).collect()).unwrap();
        let request = ListenMany {
            all_or_nothing: true,
            listeners,
        };
        let (ListeningMany { results }, descriptors) = self.ask(&request);
        drop(descriptors);
        let id = |result: &Outcome<Listening>| match result {
            Outcome::Done(listening) => listening.id,
            Outcome::Fault(fault) => panic!("{fault}"),
        };
        self.stop(results.iter().map(id).collect());
    }

    fn stop(&mut self, listeners: Vec<ListenerId>) {
        self.stopping = self.peer.send(&Stop {
            listeners: List::new(listeners).unwrap(),
        });
    }

    /// Waits for what is still under way, so that it is counted here and not with the next contender.
    pub fn settle(&mut self) {
        self.reply_to(self.stopping);
    }

    fn ask<T: Operation>(&mut self, request: &T) -> (T::Reply, Vec<OwnedFd>) {
        let number = self.peer.send(request);
        self.reply_to(number).reply::<T>().unwrap()
    }

    fn reply_to(&mut self, number: u32) -> Frame {
        loop {
            let frame = self.peer.receive().unwrap();
            if frame.header.request == number {
                return frame;
            }
        }
    }
}

fn listen(port: u16) -> Listen {
    let inet = InetEndpoint {
        address: [127, 0, 0, 1].into(),
        port,
        scope: Text::default(),
    };
    Listen {
        endpoint: Endpoint::Tcp(inet),
        options: ListenOptions::default(),
    }
}
