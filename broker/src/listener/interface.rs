//! Listeners that serve one interface: `[fe80::25%eth1]:25`, or with the option `device`. An interface that is deleted and made
//! again has another index, and their sockets receive nothing until they are bound to that.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use portreeve_protocol::Endpoint;
use portreeve_protocol::message::{ListenOptions, ListenerId};

use super::entry::Entry;
use super::overlap::{Reach, interface_name};
use super::registry::Registry;
use super::vrf::bind_to_device;
use crate::holder::Holder;
use crate::sys::{socket, sockopt};

/// How many of the listeners without an interface `status` names.
const MAX_NAMED: usize = 8;

/// A listener that has lost its interface, or serves it again.
#[derive(Debug)]
pub struct InterfaceChange {
    /// The listener.
    pub id: ListenerId,
    /// Where it listens.
    pub endpoint: Endpoint,
    /// The name of its interface.
    pub interface: String,
    /// Whose it is.
    pub holder: Holder,
    /// Why it receives nothing; `None` if it is bound to the interface again.
    pub lost: Option<String>,
}

impl Registry {
    /// Binds each listener whose interface has another index now to that, in all copies of its socket. Returns the changes since
    /// the last call.
    pub fn follow_interfaces(&mut self) -> Vec<InterfaceChange> {
        let mut without = BTreeMap::new();
        let mut changes = Vec::new();
        for (id, entry) in &self.entries {
            let (Some(interface), Some(socket)) = (entry.interface(), &entry.bound.socket) else { continue };
            let (is_bound_again, lost) = match follow(socket, interface) {
                Ok(is_bound_again) => (is_bound_again, None),
                Err(cause) => (false, Some(cause)),
            };
            if is_bound_again {
                let default = ListenOptions::default();
                let options = entry.options.as_deref().unwrap_or(&default);
                let reach = Reach::bound(&entry.endpoint, options, socket);
                reach.into_iter().for_each(|reach| self.overlaps.insert(*id, reach, entry.holder()));
            }
            if is_bound_again || self.without_interface.get(id) != lost.as_ref() {
                changes.push(InterfaceChange {
                    id: *id,
                    endpoint: Endpoint::clone(&entry.endpoint),
                    interface: interface.to_owned(),
                    holder: entry.holder(),
                    lost: lost.clone(),
                });
            }
            without.extend(lost.map(|cause| (*id, cause)));
        }
        self.without_interface = without;
        changes
    }

    /// The listeners that receive nothing, with the cause.
    pub fn without_interface(&self) -> impl Iterator<Item = (&Endpoint, &str)> {
        let lost = self.without_interface.iter();
        lost.filter_map(|(id, cause)| Some((&*self.entry(*id)?.endpoint, cause.as_str())))
    }

    /// Warnings about them.
    pub(super) fn interface_warnings(&self) -> impl Iterator<Item = String> {
        let lost = self.without_interface().take(MAX_NAMED);
        lost.map(|(endpoint, cause)| format!("the listener on {endpoint} receives nothing: {cause}"))
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

/// Binds a socket to the interface with this name, unless it is. Returns whether that was necessary; otherwise why it receives
/// nothing.
fn follow(socket: &OwnedFd, interface: &str) -> Result<bool, String> {
    let bound = sockopt::bound_interface(socket);
    match socket::interface_index(interface) {
        Ok(index) if bound == Ok(index) => Ok(false),
        Ok(_) => bind_to_device(socket, Some(interface)).map(|()| true).map_err(|errno| {
            format!(
                "its interface {interface:?} was deleted and made again, and the broker cannot bind the socket to it: {}; restart \
                 portreeved, and add cap_net_raw to security.capabilities if this happens often",
                errno.desc()
            )
        }),
        // It was renamed.
        Err(_) if bound.is_ok_and(|index| socket::interface_name(index).is_ok()) => Ok(false),
        Err(_) => Err(format!("its interface {interface:?} does not exist")),
    }
}
