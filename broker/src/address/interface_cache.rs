//! The interfaces of the host, as the kernel last reported them. Data only, but for [`InterfaceCache::load`].

use std::cell::RefCell;
use std::collections::HashMap;

use nix::errno::Errno;

use crate::sys::interface::{Mac, Vrf};
use crate::sys::{Interface, Netlink};

/// The interfaces by index.
#[derive(Debug, Default)]
pub(super) struct InterfaceCache(RefCell<HashMap<u32, Interface>>);

impl InterfaceCache {
    /// Adds every interface of the host.
    ///
    /// # Errors
    /// They could not be listed.
    pub fn load(&self, route: &Netlink) -> Result<(), Errno> {
        let interfaces = Interface::list(route)?;
        self.0.borrow_mut().extend(interfaces.into_iter().map(|interface| (interface.index, interface)));
        Ok(())
    }

    pub fn get(&self, index: u32) -> Option<Interface> {
        self.0.borrow().get(&index).cloned()
    }

    /// The VRF of an interface.
    pub fn vrf_of(&self, index: u32) -> Option<Vrf> {
        self.0.borrow().get(&index)?.vrf
    }

    pub fn contains(&self, index: u32) -> bool {
        self.0.borrow().contains_key(&index)
    }

    /// Whether a MAC address is one of this host's.
    pub fn has_mac(&self, mac: Mac) -> bool {
        self.0.borrow().values().any(|interface| interface.mac == Some(mac))
    }

    /// Stores an interface, and returns what was stored before.
    pub fn insert(&self, interface: Interface) -> Option<Interface> {
        self.0.borrow_mut().insert(interface.index, interface)
    }

    pub fn remove(&self, index: u32) -> Option<Interface> {
        self.0.borrow_mut().remove(&index)
    }

    pub fn indexes(&self) -> Vec<u32> {
        self.0.borrow().keys().copied().collect()
    }

    pub fn index_of(&self, name: &str) -> Option<u32> {
        let interfaces = self.0.borrow();
        interfaces.values().find(|interface| interface.has_name(name)).map(|interface| interface.index)
    }
}
