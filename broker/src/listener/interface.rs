//! Listeners that serve one interface: `[fe80::25%eth1]:25`, or with the option `device`. An interface that is deleted and made
//! again has another index, and their sockets receive nothing until they are bound to that.

use portreeve_protocol::message::{ListenOptions, ListenerId};
use portreeve_protocol::{Endpoint, Fault, FaultCode};

use super::entry::Entry;
use super::overlap::{Reach, interface_name};
use super::registry::Registry;
use super::vrf::bind_to_device;
use crate::sys::{socket, sockopt};

/// How many of the listeners without an interface `status` names.
const MAX_WITHOUT_INTERFACE: usize = 8;

/// A listener whose interface was made again: bound to it, or why not.
pub type Followed = (Endpoint, Result<(), Fault>);

impl Registry {
    /// Binds the listeners whose interface has another index now to that, in all copies of their sockets.
    pub fn follow_interfaces(&mut self) -> Vec<Followed> {
        let lost: Vec<ListenerId> =
            self.entries.iter().filter(|(_, entry)| is_elsewhere(entry)).map(|(id, _)| *id).collect();
        lost.into_iter()
            .filter_map(|id| Some((id, self.follow_interface(id)?)).map(|(_, followed)| followed))
            .collect()
    }

    fn follow_interface(&mut self, id: ListenerId) -> Option<Followed> {
        let entry = self.entries.get(&id)?;
        let name = entry.interface()?;
        let endpoint = Endpoint::clone(&entry.endpoint);
        if let Err(errno) = bind_to_device(&entry.bound.socket, Some(name)) {
            let message = format!(
                "the listener on {endpoint} receives nothing: its interface {name:?} was deleted and made again, and the broker \
                 cannot bind the socket to it: {}",
                errno.desc()
            );
            let fault = Fault::new(FaultCode::Os, &message)
                .subject("setsockopt SO_BINDTODEVICE")
                .remedy("restart portreeved; with cap_net_raw in security.capabilities it binds the socket itself")
                .errno(errno as i32);
            return Some((endpoint, Err(fault)));
        }
        let default = ListenOptions::default();
        let options = entry.options.as_deref().unwrap_or(&default);
        if let Some(reach) = Reach::bound(&endpoint, options, &entry.bound.socket) {
            let holder = entry.holder();
            self.overlaps.insert(id, reach, holder);
        }
        Some((endpoint, Ok(())))
    }

    /// Warnings about listeners that receive nothing because they are not bound to their interface.
    pub(super) fn without_interface(&self) -> impl Iterator<Item = String> {
        let warning = |entry: &Entry| {
            let name = entry.interface()?;
            let cause = match socket::interface_index(name) {
                Err(_) => format!("its interface {name:?} does not exist"),
                Ok(_) if is_elsewhere(entry) => {
                    format!("its interface {name:?} was deleted and made again: restart portreeved")
                }
                Ok(_) => return None,
            };
            Some(format!("the listener on {} receives nothing: {cause}", entry.endpoint))
        };
        self.entries.values().filter_map(move |entry| warning(entry)).take(MAX_WITHOUT_INTERFACE)
    }
}

impl Entry {
    /// The name of the only interface that it serves.
    fn interface(&self) -> Option<&str> {
        let inet = self.endpoint.inet()?;
        let device = self.options.as_deref().map_or("", |options| &*options.device);
        Some(interface_name(inet, device)).filter(|name| !name.is_empty())
    }
}

/// Whether the interface with its name is another one than that to which its socket is bound.
fn is_elsewhere(entry: &Entry) -> bool {
    let index = entry.interface().and_then(|name| socket::interface_index(name).ok());
    index.is_some_and(|index| sockopt::bound_interface(&entry.bound.socket) != Ok(index))
}
