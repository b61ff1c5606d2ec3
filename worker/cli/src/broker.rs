//! Opening a session with the broker. The program that listens on the socket may not be a broker, or may hang.

use std::path::PathBuf;
use std::time::Duration;

use portreeve::{Channel, Client};
use tokio::time::timeout;

use crate::arguments::seconds;
use crate::failure::Failure;

/// The broker's control socket, and the time limit of its first reply.
#[derive(clap::Args, Clone)]
pub struct Broker {
    /// The broker's control socket.
    #[arg(long, global = true, value_name = "PATH", env = "PORTREEVE_SOCKET", default_value = portreeve::DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// Seconds to wait for the first reply of the broker or the coordinator.
    #[arg(long, global = true, value_name = "SECONDS", default_value = "15", value_parser = seconds("--timeout", 1..=3600))]
    pub timeout: u32,
}

impl Broker {
    /// Opens a session.
    pub async fn open(&self) -> Result<Client, Failure> {
        self.open_channel(|channel| channel).await
    }

    /// Opens a session that continues with the next broker.
    pub async fn open_reconnecting(&self) -> Result<Client, Failure> {
        self.open_channel(|channel| channel.reconnect_through(&self.socket)).await
    }

    /// Opens a session that continues with the next broker; over the inherited channel if this is the broker's worker.
    pub async fn open_inherited_or_reconnecting(&self) -> Result<Client, Failure> {
        if std::env::var_os(portreeve::CHANNEL_VARIABLE).is_none() {
            return self.open_reconnecting().await;
        }
        let opening = Client::open(Channel::from_environment()?, "portreeve");
        match timeout(Duration::from_secs(self.timeout.into()), opening).await {
            Ok(opened) => Ok(opened?),
            Err(_) => Err(Failure::NoReply(self.clone())),
        }
    }

    async fn open_channel(&self, prepare: impl FnOnce(Channel) -> Channel) -> Result<Client, Failure> {
        let path = self.socket.clone();
        let opening = async {
            // connect(2) waits while the socket's queue of connections is full.
            let connected = tokio::task::spawn_blocking(move || Channel::connect(&path)).await;
            let what = || format!("cannot connect to the broker at {}", self.socket.display());
            let channel = connected.map_err(|error| Failure::System(what(), error.into()))??;
            Ok(Client::open(prepare(channel), "portreeve").await?)
        };
        match timeout(Duration::from_secs(self.timeout.into()), opening).await {
            Ok(opened) => opened,
            Err(_) => Err(Failure::NoReply(self.clone())),
        }
    }
}
