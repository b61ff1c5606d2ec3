//! Addresses that pass from one broker to the next: told with deadline and epoch, taken in, let go.
//!
//! Promises: nothing here touches an interface or the fence. What was let go is neither removed, renewed nor announced
//! by this broker any more; what was taken in ends when the other broker said, by the same clock.

use std::collections::VecDeque;
use std::net::IpAddr;

use portreeve_protocol::takeover::{HandedLease, PastEpoch};

use super::Addresses;
use super::lease::{Lease, State};
pub use super::lease::{MOST, REMEMBERED};
use crate::holder::Holder;
use crate::sys::Interface;
use crate::sys::boot_time::BootTime;
use crate::sys::rtnl::Place;

impl Addresses {
    /// Whether no address is on its way just now.
    pub fn is_settled(&self) -> bool {
        self.table.borrow().iter().all(|lease| lease.state != State::Adding)
    }

    /// Tells of at most `count` leases after an address.
    pub fn hand(&self, after: Option<IpAddr>, count: usize) -> Vec<HandedLease> {
        let one = |lease: &Lease| HandedLease {
            address: lease.place.address,
            index: lease.place.index,
            interface: lease.interface.clone(),
            prefix: lease.place.prefix,
            user: match lease.holder {
                Holder::Worker => None,
                Holder::User(user) => Some(user),
            },
            lifetime: lease.lifetime,
            deadline: lease.deadline.map(BootTime::told),
            epoch: lease.epoch,
            follows: lease.follows,
            present: lease.state == State::Held,
            announced: lease.series > 0,
        };
        self.table.borrow().after(after).take(count).map(one).collect()
    }

    /// Tells what is remembered of addresses that are gone, in their order.
    pub fn hand_epochs(&self) -> Vec<PastEpoch> {
        let table = self.table.borrow();
        let one = |(address, past): (&IpAddr, &(u64, bool))| PastEpoch {
            address: *address,
            epoch: past.0,
            expired: past.1,
        };
        let mut epochs: Vec<PastEpoch> = table.past.iter().map(one).collect();
        epochs.sort_unstable_by_key(|past| past.address);
        epochs
    }

    /// Takes in a lease as another broker told it.
    pub fn take_in(&self, told: HandedLease) {
        let place = Place { address: told.address, index: told.index, prefix: told.prefix };
        let link = Interface::numbered(&self.route, told.index).ok();
        let state = if told.present && link.is_some() { State::Held } else { State::Missing };
        link.into_iter().for_each(|link| drop(self.links.borrow_mut().insert(told.index, link)));
        let lease = Lease {
            place,
            interface: told.interface,
            holder: told.user.map_or(Holder::Worker, Holder::User),
            lifetime: told.lifetime,
            deadline: told.deadline.map(BootTime::of),
            warned: false,
            epoch: told.epoch,
            follows: told.follows,
            state,
            series: 0,
            put_back: VecDeque::new(),
        };
        self.table.borrow_mut().insert(lease);
        if told.announced {
            self.go_on_announcing(told.address);
        }
    }

    /// Takes in what another broker remembered of an address that is gone.
    pub fn remember(&self, past: PastEpoch) {
        self.table.borrow_mut().past.insert(past.address, (past.epoch, past.expired));
    }

    /// Forgets everything: it is another broker's, on its interfaces as in the fence.
    pub fn forget_all(&self) {
        *self.table.borrow_mut() = super::lease::Table::default();
    }

    /// Begins to keep what was taken in: what happened meanwhile is looked at.
    pub fn go_on(&self) {
        self.any_missing.set(true);
        self.compare();
        self.put_back();
        self.changed.notify_one();
    }
}
