//! Notifies the holder of an address before its removal, and verifies the removal afterwards.
//!
//! Promises: waits only for holders that are subscribed to events, and at most `NOTICE_PERIOD`.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use portreeve_protocol::Fault;
use portreeve_protocol::address::Removal;
use tokio::time::{Instant, sleep};

use super::Addresses;
use crate::holder::Holder;
use crate::sys::BootTime;

/// How long before the removal of an address its holder is notified.
pub(super) const NOTICE_PERIOD: Duration = Duration::from_secs(1);
/// How long a removal is verified.
const VERIFY_TIMEOUT: Duration = Duration::from_secs(2);
/// The time between two checks.
const INTERVAL: Duration = Duration::from_millis(50);

impl Addresses {
    /// Notifies the holders of these addresses of their removal, and waits until those that are subscribed have removed
    /// them, at most `NOTICE_PERIOD`.
    pub async fn notify_removal(&self, addresses: &[IpAddr]) {
        let notify = |address: &&IpAddr| {
            let table = self.table.borrow();
            table.get(**address).is_some_and(|lease| self.events.removal_notice(lease, NOTICE_PERIOD))
        };
        let notified: Vec<IpAddr> = addresses.iter().filter(notify).copied().collect();
        let end = Instant::now() + NOTICE_PERIOD;
        while Instant::now() < end
            && notified.iter().any(|address| self.table.borrow().get(*address).is_some())
        {
            sleep(INTERVAL).await;
        }
    }

    /// Notifies the holders of addresses whose lease ends soon, once for each lease.
    pub(super) fn notify_expiring(&self, now: BootTime) {
        for lease in self.table.borrow_mut().expiring(now, NOTICE_PERIOD) {
            lease.expiry_notified = true;
            let remaining = lease.deadline.map_or(NOTICE_PERIOD, |deadline| now.duration_until(deadline));
            self.events.removal_notice(lease, remaining);
        }
    }

    /// Every address that has a lease.
    pub fn all(&self) -> Vec<IpAddr> {
        self.table.borrow().iter().map(|lease| lease.placement.address).collect()
    }

    /// The holder of an address.
    pub fn holder_of(&self, address: IpAddr) -> Option<Holder> {
        self.table.borrow().get(address).map(|lease| lease.holder)
    }

    /// Waits until the host no longer has the removed addresses, at most two seconds, and marks those verified. An address
    /// that another program added elsewhere stays fenced.
    pub async fn verify_removal(&self, removed: &mut HashMap<IpAddr, Result<Removal, Fault>>) {
        let end = Instant::now() + VERIFY_TIMEOUT;
        loop {
            for one in removed.values_mut().flatten() {
                let is_absent = !self.host.is_quarantined(one.address);
                one.verified |= is_absent && self.table.borrow().get(one.address).is_none();
            }
            if removed.values().flatten().all(|one| one.verified) || Instant::now() >= end {
                return;
            }
            sleep(INTERVAL).await;
            self.reconciler.check_quarantine();
        }
    }
}
