//! The sets and rules of the holders that renew their addresses together.
//!
//! Promises: an address is either in a holder's set or has an element of its own, also if a change fails; a holder whose time was
//! over is not renewed.

use std::net::IpAddr;
use std::time::Duration;

use nix::errno::Errno;

use super::{ALLOWED, Fence, LEASED, MAX_ADDRESSES, by_table, first_error, longest, set, without_timeout};
use crate::holder::Holder;
use crate::sys::nft::{Direction, Element, Family, Key, Set, Transaction};
use crate::sys::nft_query;

/// The largest number of holders that renew their addresses together.
const MAX_HOLDERS: usize = 64;

/// The set of the addresses that a holder renews together.
pub(super) fn members_of(holder: Holder) -> String {
    format!("{}_members", name_of(holder))
}

/// The set of the protocols for which a holder has renewed in time.
fn renewed_by(holder: Holder) -> String {
    format!("{}_renewed", name_of(holder))
}

fn name_of(holder: Holder) -> String {
    match holder {
        Holder::Worker => "worker".to_owned(),
        Holder::User(uid) => format!("user_{uid}"),
    }
}

impl Fence {
    /// Creates the sets and rules of a holder; there are none.
    fn create_holder(&self, holder: Holder) -> Result<(), Errno> {
        let mut create = Transaction::new(&self.netlink);
        let (members, renewed) = (members_of(holder), renewed_by(holder));
        for family in [Family::Inet, Family::Arp] {
            create.create_protocol_set(family, &renewed);
            for key in family.keys() {
                create.create_set(&Set { family, key, name: &members, timeout: false });
                for direction in [Direction::In, Direction::Out] {
                    create.add_protocol_rule(family, key, direction, &members, &renewed);
                }
            }
        }
        first_error(create.commit()?)?;
        self.holders.borrow_mut().insert(holder);
        Ok(())
    }

    /// Whether one more holder can have sets and rules: each packet meets the rules of all.
    pub fn has_room_for(&self, holder: Holder) -> bool {
        let holders = self.holders.borrow();
        holders.contains(&holder) || holders.len() < MAX_HOLDERS
    }

    /// Learns that the fence of the predecessor has sets and rules of a holder.
    pub fn import_holder(&self, holder: Holder) {
        self.holders.borrow_mut().insert(holder);
    }

    /// How long the fence still lets the addresses pass that a holder renews together, as [`Fence::remaining`].
    ///
    /// # Errors
    /// The kernel refused to tell.
    pub fn holder_remaining(&self, holder: Holder) -> Result<Option<Option<Duration>>, Errno> {
        let mut remaining = Vec::new();
        for family in [Family::Inet, Family::Arp] {
            remaining.extend(nft_query::protocols_remaining(&self.netlink, family, &renewed_by(holder))?);
        }
        Ok(longest(remaining))
    }

    /// Lets the addresses that a holder renews together pass until this timeout, whatever it was before.
    ///
    /// # Errors
    /// The kernel refused it; ENOENT if there is no fence.
    pub fn start_holder(&self, holder: Holder, timeout: Duration) -> Result<(), Errno> {
        if !self.holders.borrow().contains(&holder) {
            // The fence of a predecessor may have them.
            match nft_query::elements(&self.netlink, Family::Arp, &set(Key::V4, &members_of(holder))) {
                Err(Errno::ENOENT) => self.create_holder(holder)?,
                _ => drop(self.holders.borrow_mut().insert(holder)),
            }
        }
        self.set_holder(holder, timeout, true)
    }

    /// Restarts the timeout of the addresses that a holder renews together.
    ///
    /// # Errors
    /// The kernel refused it; ENOENT if it had expired, or if there is no fence.
    pub fn renew_holder(&self, holder: Holder, timeout: Duration) -> Result<(), Errno> {
        self.set_holder(holder, timeout, false)
    }

    fn set_holder(&self, holder: Holder, timeout: Duration, add_first: bool) -> Result<(), Errno> {
        let renewed = renewed_by(holder);
        let mut renew = Transaction::new(&self.netlink);
        for family in [Family::Inet, Family::Arp] {
            if add_first {
                renew.add_protocols(family, &renewed, timeout);
            }
            renew.delete_protocols(family, &renewed);
            renew.add_protocols(family, &renewed, timeout);
        }
        first_error(renew.commit()?)
    }

    /// Lets addresses that have an element of their own pass while their holder renews.
    ///
    /// # Errors
    /// The kernel refused it; ENOENT if one of them has no element.
    pub fn join(&self, addresses: &[IpAddr], holder: Holder) -> Result<(), Errno> {
        let members = members_of(holder);
        for chunk in without_timeout(addresses).chunks(MAX_ADDRESSES) {
            let mut join = Transaction::new(&self.netlink);
            for (family, key, of_table) in by_table(chunk) {
                join.add_elements(family, &set(key, &members), &of_table, false);
                join.delete_elements(family, &set(key, ALLOWED), &of_table);
                join.delete_elements(family, &set(key, LEASED), &of_table);
            }
            first_error(join.commit()?)?;
        }
        Ok(())
    }

    /// Gives addresses that pass while their holder renews an element of their own, with its timeout; without one for a timeout
    /// of 0, which blocks the address.
    ///
    /// # Errors
    /// The kernel refused it; ENOENT if the holder has no sets.
    pub fn leave(&self, addresses: &[Element], holder: Holder) -> Result<(), Errno> {
        let members = members_of(holder);
        for chunk in addresses.chunks(MAX_ADDRESSES) {
            let mut leave = Transaction::new(&self.netlink);
            for (family, key, of_table) in by_table(chunk) {
                let leased: Vec<Element> = of_table.iter().map(|(address, _)| (*address, None)).collect();
                let lasting = of_table.iter().filter(|(_, timeout)| *timeout != Some(Duration::ZERO));
                let lasting: Vec<Element> = lasting.copied().collect();
                leave.add_elements(family, &set(key, LEASED), &leased, false);
                if !lasting.is_empty() {
                    leave.add_elements(family, &set(key, ALLOWED), &lasting, false);
                }
                // One that the set does not contain aborts the transaction, unless the transaction adds it first.
                leave.add_elements(family, &set(key, &members), &leased, false);
                leave.delete_elements(family, &set(key, &members), &leased);
            }
            first_error(leave.commit()?)?;
        }
        Ok(())
    }
}
