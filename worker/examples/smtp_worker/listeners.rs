//! The listeners of the server: requested from the broker or inherited, each with a task that accepts connections.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use portreeve::{Client, Endpoint, Error, InheritedListener, ListenOptions, ListenerId};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;

use crate::connection::{self, Service};
use crate::note;

/// Maximum number of simultaneous dialogues.
const MAX_DIALOGUES: usize = 500;

/// The listeners, by their endpoints as text.
pub struct Listeners {
    client: Option<Client>,
    service: Arc<Service>,
    dialogues: Arc<Semaphore>,
    /// Every dialogue has a clone; when the last clone is dropped, all dialogues have ended.
    open: mpsc::Sender<()>,
    served: BTreeMap<String, Served>,
}

struct Served {
    /// Its number in the broker; `None` for an inherited listener.
    id: Option<ListenerId>,
    task: JoinHandle<()>,
}

impl Served {
    fn is_accepting(&self) -> bool {
        !self.task.is_finished()
    }
}

impl Listeners {
    pub fn new(client: Option<Client>, service: Arc<Service>, open: mpsc::Sender<()>) -> Self {
        Self {
            client,
            service,
            dialogues: Arc::new(Semaphore::new(MAX_DIALOGUES)),
            open,
            served: BTreeMap::new(),
        }
    }

    /// Serves on a socket passed by LISTEN_FDS.
    pub fn adopt(&mut self, inherited: InheritedListener) {
        let adopt = || -> io::Result<(String, TcpListener)> {
            let socket = std::net::TcpListener::from(inherited.socket);
            socket.set_nonblocking(true)?;
            let text = socket.local_addr()?.to_string();
            let text = text.parse().map_or(text, |endpoint: Endpoint| endpoint.to_string());
            Ok((text, TcpListener::from_std(socket)?))
        };
        match adopt() {
            Ok((text, listener)) => self.serve(text, None, listener),
            Err(error) => {
                note(format_args!("cannot serve on the inherited socket {:?}: {error}", inherited.name))
            }
        }
    }

    /// Requests a listener from the broker and serves on it.
    pub async fn start(&mut self, endpoint: &Endpoint) -> Result<String, String> {
        let text = endpoint.to_string();
        // A listener that the broker stopped can be requested again.
        if self.served.get(&text).is_some_and(Served::is_accepting) {
            return Ok(format!("{text} is being served"));
        }
        let client = self
            .client
            .as_ref()
            .ok_or("this server has no broker. Start it as the broker's worker, or with --broker")?;
        let options = ListenOptions::default();
        let listener = match client.listen(endpoint, &options).await {
            // The broker still has the listener, so the request can be repeated.
            Err(Error::DescriptorsLost) => client.listen(endpoint, &options).await,
            other => other,
        };
        let listener =
            listener.and_then(|listener| listener.into_tcp()).map_err(|error| error.to_string())?;
        let id = listener.id();
        self.serve(text.clone(), Some(id), listener.into_socket());
        Ok(format!("{text} is being served"))
    }

    /// Closes a listener, and stops it at the broker.
    pub async fn stop(&mut self, endpoint: &Endpoint) -> Result<String, String> {
        let text = endpoint.to_string();
        let served = self.served.remove(&text).ok_or_else(|| format!("{text} is not being served"))?;
        served.task.abort();
        let _ = served.task.await; // it was aborted
        match (&self.client, served.id) {
            (Some(client), Some(id)) => {
                client.stop(&[id]).await.map_err(|error| error.to_string())?;
                Ok(format!("{text} is stopped"))
            }
            _ => Ok(format!("{text} is closed in this process; the program that passed it may have it open")),
        }
    }

    /// Stops accepting on all listeners. The broker retains them for the next worker.
    pub async fn stop_all(&mut self) {
        for (_, served) in std::mem::take(&mut self.served) {
            served.task.abort();
            let _ = served.task.await; // it was aborted
        }
    }

    /// The endpoints that are served.
    pub fn list(&self) -> Vec<&str> {
        let served = self.served.iter().filter(|(_, served)| served.is_accepting());
        served.map(|(text, _)| text.as_str()).collect()
    }

    fn serve(&mut self, text: String, id: Option<ListenerId>, listener: TcpListener) {
        note(format_args!("serving on {text}"));
        let task = tokio::spawn(accept(
            text.clone(),
            listener,
            Arc::clone(&self.service),
            Arc::clone(&self.dialogues),
            self.open.clone(),
        ));
        self.served.insert(text, Served { id, task });
    }
}

async fn accept(
    endpoint: String,
    listener: TcpListener,
    service: Arc<Service>,
    dialogues: Arc<Semaphore>,
    open: mpsc::Sender<()>,
) {
    loop {
        // Above the limit, clients wait in the kernel's queue.
        let Ok(permit) = Arc::clone(&dialogues).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, from)) => {
                let (service, open) = (Arc::clone(&service), open.clone());
                tokio::spawn(async move {
                    let _ = connection::serve(stream, from, &service).await; // the client has closed the connection
                    drop((permit, open));
                });
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                note(format_args!("{endpoint} was stopped by the broker"));
                return;
            }
            Err(error) => {
                note(format_args!("cannot accept on {endpoint}: {error}"));
                // For example, no descriptors are free until a connection closes.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}
