//! The listeners that are being served: asked of the broker or adopted, each with its task that accepts.

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

/// How many dialogues there may be at once.
const DIALOGUES: usize = 500;

/// Serves on listeners, by their endpoints as text.
pub struct Listeners {
    client: Option<Client>,
    service: Arc<Service>,
    dialogues: Arc<Semaphore>,
    /// Cloned into every dialogue; when the last clone is gone all are over.
    open: mpsc::Sender<()>,
    served: BTreeMap<String, Served>,
}

struct Served {
    /// The broker's number; none for an adopted listener.
    id: Option<ListenerId>,
    accepts: JoinHandle<()>,
}

impl Served {
    fn accepts(&self) -> bool {
        !self.accepts.is_finished()
    }
}

impl Listeners {
    pub fn new(client: Option<Client>, service: Arc<Service>, open: mpsc::Sender<()>) -> Self {
        Self {
            client,
            service,
            dialogues: Arc::new(Semaphore::new(DIALOGUES)),
            open,
            served: BTreeMap::new(),
        }
    }

    /// Serves on a socket that was passed by LISTEN_FDS.
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
            Err(error) => note(format_args!("the passed socket {:?} is not served: {error}", inherited.name)),
        }
    }

    /// Asks the broker for a listener and serves on it.
    pub async fn start(&mut self, endpoint: &Endpoint) -> Result<String, String> {
        let text = endpoint.to_string();
        // What was taken out of service from elsewhere can be asked for again.
        if self.served.get(&text).is_some_and(Served::accepts) {
            return Ok(format!("{text} is being served"));
        }
        let client =
            self.client.as_ref().ok_or("there is no broker to ask: the server was started without one")?;
        let options = ListenOptions::default();
        let listener = match client.listen(endpoint, &options).await {
            // The broker still has the socket.
            Err(Error::DescriptorsLost) => client.listen(endpoint, &options).await,
            other => other,
        };
        let listener =
            listener.and_then(|listener| listener.into_tcp()).map_err(|error| error.to_string())?;
        let id = listener.id();
        self.serve(text.clone(), Some(id), listener.into_socket());
        Ok(format!("{text} is being served"))
    }

    /// Closes a listener and takes it out of service at the broker.
    pub async fn stop(&mut self, endpoint: &Endpoint) -> Result<String, String> {
        let text = endpoint.to_string();
        let served = self.served.remove(&text).ok_or_else(|| format!("{text} is not being served"))?;
        served.accepts.abort();
        let _ = served.accepts.await;
        match (&self.client, served.id) {
            (Some(client), Some(id)) => {
                client.stop(&[id]).await.map_err(|error| error.to_string())?;
                Ok(format!("{text} is out of service"))
            }
            _ => Ok(format!("{text} is closed here; whoever passed it may have it open")),
        }
    }

    /// Stops accepting everywhere. The listeners stay with the broker for the next worker.
    pub async fn stop_all(&mut self) {
        for (_, served) in std::mem::take(&mut self.served) {
            served.accepts.abort();
            let _ = served.accepts.await;
        }
    }

    /// What is being served.
    pub fn list(&self) -> Vec<&str> {
        let served = self.served.iter().filter(|(_, served)| served.accepts());
        served.map(|(text, _)| text.as_str()).collect()
    }

    fn serve(&mut self, text: String, id: Option<ListenerId>, listener: TcpListener) {
        note(format_args!("serving on {text}"));
        let accepts = tokio::spawn(accept(
            text.clone(),
            listener,
            Arc::clone(&self.service),
            Arc::clone(&self.dialogues),
            self.open.clone(),
        ));
        self.served.insert(text, Served { id, accepts });
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
        // Beyond the limit, clients wait in the kernel's queue.
        let Ok(permit) = Arc::clone(&dialogues).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, from)) => {
                let (service, open) = (Arc::clone(&service), open.clone());
                tokio::spawn(async move {
                    // A client that breaks off has nobody left to be told.
                    let _ = connection::serve(stream, from, &service).await;
                    drop((permit, open));
                });
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                note(format_args!("{endpoint} was taken out of service"));
                return;
            }
            Err(error) => {
                note(format_args!("accepting on {endpoint}: {error}"));
                // Out of descriptors, say: what is open now will be closed.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}
