//! The server: what the confined broker does until a signal stops it. One thread, one task per session.
#![deny(unsafe_code)]

pub mod control_socket;
pub mod counters;
mod handover;
mod in_flight;
mod moving;
mod notify;
mod operation;
mod quota;
mod reload;
mod reply;
mod session;
mod shutdown;
mod state;
mod store;
mod subscription;
mod succession;
mod worker;

pub use handover::Handover;
pub use notify::Notifier;
pub use reload::{ReloadRequest, Reloading, RestartOnly, Started};
pub use state::{Broker, Parts, Processes};
pub use store::Store;
pub use succession::{Awaited, Succession};
pub use worker::Supervision;

use std::os::unix::net::UnixListener;
use std::rc::Rc;
use std::time::Duration;

use crate::address;
use crate::failure::Failure;
use crate::inject;
use crate::launcher::Handle;
use crate::log;
use crate::reader::Reader;

/// How long a process that ends by itself may take to exit.
const GRACE: Duration = Duration::from_secs(2);

/// The broker's state and everything else that serving needs.
pub struct Service {
    /// The broker's state.
    pub broker: Broker,
    /// The control socket, where there is one.
    pub control: Option<UnixListener>,
    /// The launcher and what it is to start, where there is a worker.
    pub worker: Option<(Handle, Supervision)>,
    /// The reader, where there is one.
    pub reader: Option<Reader>,
    /// The requests to reload.
    pub reload_requests: tokio::sync::mpsc::Receiver<ReloadRequest>,
    /// The service manager.
    pub notifier: Rc<Notifier>,
    /// The takeover from another broker, if this one takes over.
    pub succession: Option<Succession>,
    /// Names in the service manager's fdstore of descriptors that are no listeners any more.
    pub stale: Vec<String>,
}

impl Service {
    /// Serves until a signal ends it, or a part of the broker fails that it cannot do without.
    pub async fn run(mut self) -> Result<(), Failure> {
        let broker = Rc::new(self.broker);
        inject::point("signals")?;
        let mut stop = shutdown::Signals::new(broker.handover.clone())?;
        let hangups = reload::hangups()?;
        let notifier = self.notifier.clone();
        inject::point("reader.epoll")?;
        let reader = self.reader.map(Reader::into_handle).transpose();
        let reader = reader.map_err(|error| Failure::os("reader", "epoll_ctl", error))?;
        let reloads = reload::run(broker.clone(), reader, hangups, self.reload_requests, notifier.clone());
        tokio::task::spawn_local(reloads);
        if let Some(socket) = self.control {
            inject::point("control.epoll")?;
            let listener = tokio::net::UnixListener::from_std(socket)
                .map_err(|error| Failure::os("control socket", "epoll_ctl", error))?;
            tokio::task::spawn_local(control_socket::accept(broker.clone(), listener));
        }
        if let Some(addresses) = &broker.addresses {
            let listeners: Rc<dyn address::Listeners> = broker.clone();
            address::keep(addresses, &listeners)
                .map_err(|error| Failure::os("addresses", "epoll_ctl", error))?;
        }
        if let Some(succession) = &mut self.succession {
            succession.take(&broker)?;
        }
        if let Some(store) = &broker.store {
            tokio::task::spawn_local(store.clone().keep(broker.clone(), self.stale));
        }
        let serving = async {
            if let Some(succession) = self.succession {
                // One worker at a time: the predecessor's exits first, and clients wait in the accept queues meanwhile.
                tokio::select! {
                    () = succession.predecessor.left() => {}
                    () = stop.wait() => return Ok(()),
                }
            }
            // Listeners from before this broker wait for the peers that had them.
            worker::retain(&broker);
            match &self.worker {
                None => {
                    notifier.ready();
                    stop.wait().await;
                    notifier.stopping();
                    Ok(())
                }
                Some((launcher, supervision)) => {
                    worker::supervise(&broker, launcher, supervision, &notifier, &mut stop).await
                }
            }
        };
        let ended = tokio::select! {
            ended = serving => ended,
            never = notifier.keep_alive() => match never {},
            never = log::retry_loop() => match never {},
        };
        if let Some(addresses) = &broker.addresses {
            addresses.give_notice(&addresses.all()).await;
        }
        broker.stop_everything();
        ended
    }
}
