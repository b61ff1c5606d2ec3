//! Binds listeners that serve one interface again when it was deleted and made again.

use std::io;
use std::rc::Rc;

use nix::errno::Errno;
use portreeve_protocol::{Event, EventCode, Text};
use tokio::io::Interest;
use tokio::net::UnixDatagram;

use super::state::Broker;
use crate::events::Audience;
use crate::listener::InterfaceChange;
use crate::sys::rtnl_monitor::RtnlMonitor;

/// Receives the kernel's notifications about interfaces.
pub struct InterfaceMonitor {
    monitor: RtnlMonitor,
    socket: UnixDatagram,
}

impl InterfaceMonitor {
    /// Registers the monitor with the runtime.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub fn new(monitor: RtnlMonitor) -> io::Result<Self> {
        let socket = UnixDatagram::from_std(monitor.try_clone()?)?;
        Ok(Self { monitor, socket })
    }

    /// Follows the interfaces for as long as the broker serves.
    pub async fn run(self, broker: Rc<Broker>) {
        broker.follow_interfaces();
        loop {
            let received = self.socket.async_io(Interest::READABLE, || match self.monitor.receive(|_| {}) {
                // After lost notifications any interface may have changed.
                Err(Errno::ENOBUFS) => Ok(()),
                result => Ok(result?),
            });
            if received.await.is_ok() {
                broker.follow_interfaces();
            }
            // One look suffices for all that has happened by then.
            tokio::task::yield_now().await;
        }
    }
}

impl Broker {
    /// Binds the listeners whose interface was made again to it; logs and publishes which have lost their interface, and which
    /// serve it again.
    pub(super) fn follow_interfaces(&self) {
        let changes = self.registry.borrow_mut().follow_interfaces();
        for InterfaceChange { id, endpoint, interface, holder, lost } in changes {
            let code = match lost {
                Some(cause) => {
                    tracing::error!(%endpoint, reason = cause, "a listener receives nothing");
                    EventCode::ListenerLost
                }
                None => {
                    tracing::info!(%endpoint, "bound a listener to its interface, which was deleted and made again");
                    EventCode::ListenerRestored
                }
            };
            let event = Event {
                code,
                address: endpoint.inet().map(|inet| inet.address),
                interface: Text::truncated(&interface),
                count: id.0,
                detail: Text::truncated(&endpoint.to_string()),
                ..Event::default()
            };
            self.events.publish(Audience::Holder(holder), event);
        }
    }
}
