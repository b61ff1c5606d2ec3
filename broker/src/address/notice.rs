//! Notice: whoever holds an address that is about to go is told first, and has a moment to let go of it; and afterwards
//! it is looked for until it is gone.
//!
//! Promises: nobody is waited for who does not listen, and nobody for longer than [`NOTICE`].

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use portreeve_protocol::address::Removed;
use portreeve_protocol::{Event, EventCode, Fault};
use tokio::time::{Instant, sleep};

use super::Addresses;
use super::lease::Lease;
use crate::events::Concern;
use crate::holder::Holder;
use crate::sys::boot_time::BootTime;

/// How long before an address goes its holder is told.
pub const NOTICE: Duration = Duration::from_secs(1);
/// How long an address is looked for that should be gone.
const LOOKING: Duration = Duration::from_secs(2);
/// How often.
const LOOK: Duration = Duration::from_millis(50);

impl Addresses {
    /// Tells who holds these addresses that they go, and waits until those who heard it have let go.
    pub async fn give_notice(&self, addresses: &[IpAddr]) {
        let tell = |address: &&IpAddr| {
            let table = self.table.borrow();
            table.get(**address).is_some_and(|lease| self.tell_leaving(lease, NOTICE))
        };
        let heard: Vec<IpAddr> = addresses.iter().filter(tell).copied().collect();
        let end = Instant::now() + NOTICE;
        while Instant::now() < end && heard.iter().any(|address| self.table.borrow().get(*address).is_some())
        {
            sleep(LOOK).await;
        }
    }

    /// Tells the holders of addresses whose lease is about to end, once for each.
    pub(super) fn tell_of_ends(&self, now: BootTime) {
        for lease in self.table.borrow_mut().ending(now, NOTICE) {
            lease.warned = true;
            let left = lease.deadline.map_or(NOTICE, |deadline| now.until(deadline));
            self.tell_leaving(lease, left);
        }
    }

    fn tell_leaving(&self, lease: &Lease, left: Duration) -> bool {
        let event = Event {
            code: EventCode::AddressLeaving,
            address: Some(lease.place.address),
            interface: lease.interface.clone(),
            index: lease.place.index,
            epoch: lease.epoch,
            count: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
            ..Event::default()
        };
        self.events.tell(Concern::Holder(lease.holder), event)
    }

    /// Everything that the broker has put on interfaces.
    pub fn all(&self) -> Vec<IpAddr> {
        self.table.borrow().iter().map(|lease| lease.place.address).collect()
    }

    /// Whose an address is.
    pub fn holder(&self, address: IpAddr) -> Option<Holder> {
        self.table.borrow().get(address).map(|lease| lease.holder)
    }

    /// Looks for addresses that were removed and are here still, until they are gone or it has taken too long: one that
    /// another program put elsewhere stays silent then.
    pub async fn see_gone(&self, removed: &mut HashMap<IpAddr, Result<Removed, Fault>>) {
        let end = Instant::now() + LOOKING;
        loop {
            for one in removed.values_mut().flatten() {
                let here = |address| self.silent.borrow().contains(&address);
                one.verified |= !here(one.address) && self.table.borrow().get(one.address).is_none();
            }
            if removed.values().flatten().all(|one| one.verified) || Instant::now() >= end {
                return;
            }
            sleep(LOOK).await;
            self.look_at_silent();
        }
    }
}
