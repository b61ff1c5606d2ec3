//! The server: serves requests in the confined broker until a signal stops it. One thread, one task per session.
#![deny(unsafe_code)]

pub mod control_socket;
pub mod counters;
mod descriptors_in_flight;
mod floating;
mod in_flight;
mod interfaces;
mod memory;
mod operation;
mod orphans;
mod quota;
mod reload;
mod reply;
mod session;
mod shutdown;
mod state;
mod stopped_sockets;
mod subscription;
mod takeover;
mod worker;

pub use quota::MAX_SESSIONS;
pub use reload::{ReloadRequest, Reloading, RestartOnly, Started};
pub use state::{Broker, LauncherProcess, Parts, Processes};
pub use worker::Supervision;

use std::convert::Infallible;
use std::os::unix::net::UnixListener;
use std::rc::Rc;
use std::time::Duration;

use self::interfaces::InterfaceMonitor;
use self::orphans::Reaper;
use crate::address;
use crate::failure::Failure;
use crate::inject;
use crate::launcher::{FormerLaunchers, Handle};
use crate::log;
use crate::reader::Reader;
use crate::sd_notify::Notifier;
use crate::sys::children::Children;
use crate::sys::rtnl_monitor::RtnlMonitor;
use crate::takeover::{Import, NamesAtStart};

/// The time between two looks at the state that the service manager shows.
const STATE_INTERVAL: Duration = Duration::from_secs(5);
/// How long a process that ends by itself may take to exit.
const EXIT_TIMEOUT: Duration = Duration::from_secs(2);

/// The broker's state and everything else that serving needs.
pub struct Service {
    /// The broker's state.
    pub broker: Broker,
    /// The control socket, if one is configured.
    pub control: Option<UnixListener>,
    /// The launcher and how the worker is started, if one is configured.
    pub worker: Option<(Handle, Supervision)>,
    /// The kernel's notifications about interfaces.
    pub interfaces: RtnlMonitor,
    /// What finds the processes of the worker if the launcher is lost.
    pub children: Children,
    /// The launchers of brokers that have ended, whose workers may still run.
    pub former_launchers: FormerLaunchers,
    /// The reader, if reloads are enabled.
    pub reader: Option<Reader>,
    /// The requests to reload.
    pub reload_requests: tokio::sync::mpsc::Receiver<ReloadRequest>,
    /// The service manager.
    pub notifier: Rc<Notifier>,
    /// The import from the predecessor, in a takeover.
    pub import: Option<Import>,
    /// The names in the service manager's fdstore.
    pub fdstore_names: NamesAtStart,
}

impl Service {
    /// Serves until a signal ends it or an essential part of the broker fails.
    pub async fn run(mut self) -> Result<(), Failure> {
        let broker = Rc::new(self.broker);
        inject::point("signals")?;
        let mut shutdown = shutdown::Shutdown::new(broker.export.clone())?;
        let hangups = reload::hangups()?;
        let notifier = self.notifier.clone();
        let mut reaper = Reaper::new(self.reader.as_ref().map(|reader| reader.pid), self.children)?;
        inject::point("reader.epoll")?;
        let reader = self.reader.map(Reader::into_handle).transpose();
        let reader = reader.map_err(|error| Failure::os("reader", "epoll_ctl", error))?;
        let reloads = reload::run(broker.clone(), reader, hangups, self.reload_requests, notifier.clone());
        let reloads = tokio::task::spawn_local(reloads);
        if let Some(socket) = self.control {
            inject::point("control.epoll")?;
            let listener = tokio::net::UnixListener::from_std(socket)
                .map_err(|error| Failure::os("control socket", "epoll_ctl", error))?;
            tokio::task::spawn_local(control_socket::accept_loop(broker.clone(), listener));
        }
        tokio::task::spawn_local(stopped_sockets::check_loop(broker.clone()));
        tokio::task::spawn_local(memory::release_loop(broker.clone()));
        let interfaces = InterfaceMonitor::new(self.interfaces)
            .map_err(|error| Failure::os("interfaces", "epoll_ctl", error))?;
        tokio::task::spawn_local(interfaces.run(broker.clone()));
        if let Some(addresses) = &broker.addresses {
            let listeners: Rc<dyn address::FloatingListeners> = broker.clone();
            address::spawn(addresses, &listeners)
                .map_err(|error| Failure::os("addresses", "epoll_ctl", error))?;
        }
        if let Some(import) = &mut self.import {
            self.fdstore_names.stale.extend(import.run(&broker.import_target())?);
        }
        if let Some(fdstore) = &broker.fdstore {
            tokio::task::spawn_local(fdstore.clone().run(broker.clone(), self.fdstore_names));
        }
        let serving = async {
            if let Some(import) = self.import {
                // One worker at a time: the predecessor's exits first, and clients wait in the accept queues meanwhile.
                tokio::select! {
                    () = import.predecessor.exited() => {}
                    () = shutdown.requested() => return Ok(()),
                }
            }
            if self.worker.is_some() {
                // As above, after a broker that was killed.
                tokio::select! {
                    () = self.former_launchers.ended() => {}
                    () = shutdown.requested() => return Ok(()),
                }
            }
            // Retain imported listeners for the peers that owned them.
            worker::retain(&broker);
            match &self.worker {
                None => {
                    notifier.ready(broker.summary());
                    shutdown.requested().await;
                    notifier.stopping();
                    Ok(())
                }
                Some((launcher, supervision)) => {
                    worker::supervise(&broker, launcher, supervision, &notifier, &mut shutdown).await
                }
            }
        };
        let result = tokio::select! {
            result = serving => result,
            never = notifier.keep_alive() => match never {},
            never = notifier.send_waiting() => match never {},
            never = log::retry_loop() => match never {},
            never = reaper.run() => match never {},
            never = show_state(&broker, &notifier) => match never {},
        };
        let is_launcher_lost = self.worker.as_ref().is_some_and(|(launcher, _)| launcher.is_lost());
        // Without their channels reader and launcher end. A service manager would kill them.
        drop(self.worker);
        reloads.abort();
        let _ = reloads.await; // it was cancelled
        match is_launcher_lost {
            true => reaper.log_survivors_of_launcher().await,
            false => reaper.await_end(broker.launcher_pid()).await,
        }
        if let Some(addresses) = &broker.addresses {
            addresses.notify_removal(&addresses.all()).await;
        }
        broker.stop_everything();
        notifier.flush_at_end().await;
        result
    }
}

/// Shows the service manager the broker's state as it changes, for as long as it is polled.
async fn show_state(broker: &Broker, notifier: &Notifier) -> Infallible {
    if notifier.socket().is_none() {
        return std::future::pending().await;
    }
    let mut ticks = tokio::time::interval(STATE_INTERVAL);
    loop {
        ticks.tick().await;
        notifier.show(broker.summary());
    }
}
