//! The VRFs of leased addresses: a listener at an address has to be bound to the device of the VRF of its interface, and an
//! interface can change its VRF.
//!
//! Promises: asks for the listeners of an address to be bound again after each change. Borrows nothing while it does that.

use std::cell::{OnceCell, RefCell};
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::rc::{Rc, Weak};

use portreeve_protocol::Text;

use super::interface_cache::InterfaceCache;
use super::lease_table::LeaseTable;
use super::{Addresses, FloatingListeners};
use crate::sys::rtnl::Placement;
use crate::sys::{Interface, Netlink};

/// Binds listeners to the VRFs of their addresses.
pub(super) struct VrfListeners {
    table: Rc<RefCell<LeaseTable>>,
    interfaces: Rc<InterfaceCache>,
    route: Rc<Netlink>,
    /// Unset until the broker serves.
    listeners: OnceCell<Weak<dyn FloatingListeners>>,
}

impl VrfListeners {
    pub fn new(table: Rc<RefCell<LeaseTable>>, interfaces: Rc<InterfaceCache>, route: Rc<Netlink>) -> Self {
        Self { table, interfaces, route, listeners: OnceCell::new() }
    }

    /// Sets what starts and stops the listeners.
    pub fn set_listeners(&self, listeners: Weak<dyn FloatingListeners>) {
        let _ = self.listeners.set(listeners); // It is set once.
    }

    /// What starts and stops the listeners, once the broker serves.
    pub fn listeners(&self) -> Option<Rc<dyn FloatingListeners>> {
        self.listeners.get().and_then(Weak::upgrade)
    }

    /// The name of the VRF of an interface.
    fn vrf_of_interface(&self, index: u32) -> Option<Text<15>> {
        let vrf = self.interfaces.vrf_of(index)?;
        // A new or renamed device may not be reported yet.
        let device = Interface::by_index(&self.route, vrf.index).ok()?;
        Some(Text::truncated(&device.name))
    }

    /// The name of the VRF of a leased address.
    pub fn vrf_of(&self, address: IpAddr) -> Option<Text<15>> {
        let index = self.table.borrow().get(address)?.placement.index;
        self.vrf_of_interface(index)
    }

    /// Binds the listeners of an interface's addresses again.
    pub fn follow(&self, index: u32) {
        let addresses: HashSet<IpAddr> = {
            let mut table = self.table.borrow_mut();
            table.on_interface(index).map(|lease| lease.placement.address).collect()
        };
        if let Some(listeners) = self.listeners().filter(|_| !addresses.is_empty()) {
            listeners.change_vrf(&addresses, self.vrf_of_interface(index).as_deref());
        }
    }

    /// Binds the listeners of addresses that were just added to an interface, if it is in a VRF: those that were opened before
    /// their address existed are bound to no interface.
    pub fn bind_new(&self, added: &[Placement]) {
        let mut by_interface: HashMap<u32, HashSet<IpAddr>> = HashMap::new();
        let in_vrf = added.iter().filter(|placement| self.interfaces.vrf_of(placement.index).is_some());
        for Placement { index, address, .. } in in_vrf {
            by_interface.entry(*index).or_default().insert(*address);
        }
        let Some(listeners) = self.listeners() else { return };
        for (index, addresses) in by_interface {
            listeners.change_vrf(&addresses, self.vrf_of_interface(index).as_deref());
        }
    }

    /// Binds the listeners of all addresses again.
    pub fn follow_all(&self) {
        let indexes: HashSet<u32> = self.table.borrow().iter().map(|lease| lease.placement.index).collect();
        indexes.into_iter().for_each(|index| self.follow(index));
    }
}

impl Addresses {
    /// The name of the VRF of a leased address.
    pub fn vrf_of(&self, address: IpAddr) -> Option<Text<15>> {
        self.vrf_listeners.vrf_of(address)
    }
}
