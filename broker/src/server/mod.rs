//! The service: what the confined broker does until it is told to stop. One thread, one task a session.

mod answer;
pub mod control_socket;
pub mod counters;
mod handover;
mod later;
mod moving;
mod notify;
mod operation;
mod quota;
mod reload;
mod session;
mod shutdown;
mod state;
mod store;
mod subscription;
mod succession;
mod worker;

pub use handover::Handover;
pub use notify::Notifier;
pub use operation::listen_permit;
pub use reload::{Ask, Fixed, Reloading, Started};
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

/// How long what has ended by itself may take to be gone.
const GRACE: Duration = Duration::from_secs(2);

/// What serving needs beside the broker's state.
pub struct Service {
    /// The broker's state.
    pub broker: Broker,
    /// The control socket, where there is one.
    pub control: Option<UnixListener>,
    /// The launcher and what it is to start, where there is a worker.
    pub worker: Option<(Handle, Supervision)>,
    /// The reader, where there is one.
    pub reader: Option<Reader>,
    /// Who asks for a reload.
    pub asked: tokio::sync::mpsc::Receiver<Ask>,
    /// The service manager.
    pub notifier: Rc<Notifier>,
    /// The broker that this one is to succeed.
    pub succession: Option<Succession>,
    /// Names in the service manager's store of what is no listener any more.
    pub stale: Vec<String>,
}

impl Service {
    /// Serves until a signal ends it, or something that it cannot do without is gone.
    pub async fn run(mut self) -> Result<(), Failure> {
        let broker = Rc::new(self.broker);
        inject::point("signals")?;
        let mut stop = shutdown::Signals::new(broker.handover.clone())?;
        let hangups = reload::hangups()?;
        let notifier = self.notifier.clone();
        inject::point("reader.epoll")?;
        let reader = self.reader.map(Reader::into_handle).transpose();
        let reader = reader.map_err(|error| Failure::os("reader", "epoll_ctl", error))?;
        let reloads = reload::keep(broker.clone(), reader, hangups, self.asked, notifier.clone());
        tokio::task::spawn_local(reloads);
        if let Some(socket) = self.control {
            inject::point("control.epoll")?;
            let listener = tokio::net::UnixListener::from_std(socket)
                .map_err(|error| Failure::os("control socket", "epoll_ctl", error))?;
            tokio::task::spawn_local(control_socket::accept(broker.clone(), listener));
        }
        if let Some(addresses) = &broker.addresses {
            let listeners: Rc<dyn address::FloatingListeners> = broker.clone();
            address::spawn(addresses, &listeners)
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
                // One worker at a time: the other broker's goes first, and clients wait in the queues meanwhile.
                tokio::select! {
                    () = succession.predecessor.left() => {}
                    () = stop.wait() => return Ok(()),
                }
            }
            // What was there before this broker waits for whoever had it.
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
            addresses.notify_removal(&addresses.all()).await;
        }
        broker.stop_everything();
        ended
    }
}
