//! Staying true: what the kernel tells of interfaces and addresses, and putting back what somebody took away.
//!
//! Promises: an address that is leased and was taken away is put back while its lease lasts, at most so often a minute,
//! and never for longer; it is announced again then, and when its interface has a carrier again or another hardware
//! address. News that were lost are made up for by looking at everything.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use portreeve_protocol::{Event, EventCode, Text};

use super::lease::{Lease, State};
use super::{Addresses, fault};
use crate::events::Concern;
use crate::holder::Holder;
use crate::sys::boot_time::BootTime;
use crate::sys::interface::{Interface, RTM_DELLINK, RTM_NEWLINK};
use crate::sys::netlink;
use crate::sys::rtnl::{self, Place, Present, RTM_DELADDR, RTM_NEWADDR};

/// How soon everything is compared when the kernel told of something that could not be seen.
const SOON: Duration = Duration::from_millis(100);

impl Addresses {
    /// Takes all news that there are, and puts back what they say is missing.
    pub(super) fn take_news(&self) {
        while self.take_one().is_ok() {}
        self.put_back();
    }

    /// Takes one datagram of news; `WouldBlock` when there is none.
    pub(super) fn take_one(&self) -> io::Result<()> {
        let mut datagram = self.inbox.borrow_mut();
        match recv(self.news.as_raw_fd(), &mut datagram, MsgFlags::empty()) {
            Ok(length) => {
                for (kind, body) in netlink::bodies(datagram.get(..length).unwrap_or_default()) {
                    self.take(kind, body);
                }
                Ok(())
            }
            Err(Errno::ENOBUFS) => {
                tracing::warn!("news of interfaces were lost; everything is looked at");
                self.compare();
                Ok(())
            }
            Err(errno) => Err(errno.into()),
        }
    }

    fn take(&self, kind: u16, body: &[u8]) {
        match kind {
            RTM_NEWLINK => Interface::read(body).into_iter().for_each(|link| self.link_is(link)),
            RTM_DELLINK => Interface::read(body).into_iter().for_each(|link| self.link_is_gone(link.index)),
            RTM_NEWADDR => {
                if let Some(present) = Present::read(body) {
                    self.is_there(&present.place);
                }
            }
            RTM_DELADDR => {
                if let Some(present) = Present::read(body) {
                    self.was_removed(&present.place);
                }
            }
            _ => {}
        }
    }

    fn link_is(&self, link: Interface) {
        let index = link.index;
        let before = self.links.borrow_mut().insert(index, link.clone());
        self.tell_of_link(&link, before.as_ref());
        if before.as_ref().is_none_or(|before| before.name != link.name) {
            self.came_back(&link);
        }
        let Some(before) = before else { return };
        if (link.carrier && !before.carrier) || (link.hardware != before.hardware) {
            let there: Vec<IpAddr> = {
                let table = self.table.borrow();
                let held =
                    table.iter().filter(|lease| lease.place.index == index && lease.state == State::Held);
                held.filter(|lease| lease.series > 0).map(|lease| lease.place.address).collect()
            };
            there.into_iter().for_each(|address| self.announce(address));
        }
    }

    /// An interface that was deleted and made again has another number: what was on it is missing there from now on.
    fn came_back(&self, link: &Interface) {
        let links = self.links.borrow();
        for lease in self.table.borrow_mut().missing() {
            if *lease.interface == *link.name && !links.contains_key(&lease.place.index) {
                lease.place.index = link.index;
                self.any_missing.set(true);
            }
        }
    }

    fn link_is_gone(&self, index: u32) {
        let Some(link) = self.links.borrow_mut().remove(&index) else { return };
        self.tell_link(EventCode::LinkGone, &link, "");
        self.missing_where(|place| place.index == index);
    }

    /// Tells what is different about an interface.
    fn tell_of_link(&self, link: &Interface, before: Option<&Interface>) {
        if let Some(before) = before.filter(|before| before.name != link.name) {
            let mut table = self.table.borrow_mut();
            table.on(link.index).for_each(|lease| lease.interface = Text::clipped(&link.name));
            drop(table);
            self.tell_link(EventCode::LinkRenamed, link, &before.name);
        }
        if link.carrier != before.is_some_and(|before| before.carrier) {
            let code = if link.carrier { EventCode::LinkUp } else { EventCode::LinkDown };
            self.tell_link(code, link, "");
        }
    }

    fn tell_link(&self, code: EventCode, link: &Interface, detail: &str) {
        let mut holders: Vec<Holder> = Vec::new();
        for lease in self.table.borrow_mut().on(link.index) {
            if !holders.contains(&lease.holder) {
                holders.push(lease.holder);
            }
        }
        let (interface, detail) = (Text::clipped(&link.name), Text::clipped(detail));
        let event = Event { code, interface, index: link.index, detail, ..Event::default() };
        self.events.tell(Concern::Interface(holders), event);
    }

    fn is_there(&self, place: &Place) {
        if let Some(lease) = self.table.borrow_mut().get_mut(place.address)
            && lease.place == *place
            && lease.state == State::Missing
        {
            lease.state = State::Held;
            self.tell(lease, EventCode::AddressRestored, "");
        }
    }

    /// An address was removed some time ago. What the broker itself has put there again since is not missing.
    fn was_removed(&self, place: &Place) {
        let held = |lease: &&Lease| lease.place == *place && lease.state == State::Held;
        let held = self.table.borrow().get(place.address).filter(held).is_some();
        if held && !self.is_present(place) {
            self.table.borrow_mut().get_mut(place.address).into_iter().for_each(|lease| self.miss(lease));
        } else if held || self.silent.borrow().contains(&place.address) {
            // Of IPv4 the kernel tells before it takes the route away, and the address may be elsewhere on this host.
            let soon = self.doubt.get().unwrap_or_else(|| tokio::time::Instant::now() + SOON);
            self.doubt.set(Some(soon));
            self.changed.notify_one();
        }
    }

    /// Whether an address is there now, or somewhere on this host where the kernel tells no more of IPv4.
    fn is_present(&self, place: &Place) -> bool {
        match place.address {
            IpAddr::V4(_) => {
                matches!(self.are_local(&[place.address]).remove(&place.address), Some(Ok(true)))
            }
            IpAddr::V6(_) => rtnl::look(&self.route, place).is_ok_and(|present| present.place == *place),
        }
    }

    pub(super) fn missing_where(&self, which: impl Fn(&Place) -> bool) {
        let mut table = self.table.borrow_mut();
        let gone: Vec<IpAddr> = table
            .iter()
            .filter(|lease| lease.state == State::Held && which(&lease.place))
            .map(|lease| lease.place.address)
            .collect();
        for address in gone {
            table.get_mut(address).into_iter().for_each(|lease| self.miss(lease));
        }
    }

    /// An address is not where it should be. In the last second of its lease that is the lease's end: the kernel counts
    /// in seconds, and may be early by what it rounds.
    fn miss(&self, lease: &mut Lease) {
        let now = BootTime::now();
        if lease.is_ending(now) {
            lease.deadline = Some(now);
            return self.changed.notify_one();
        }
        lease.state = State::Missing;
        self.any_missing.set(true);
        self.tell(lease, EventCode::AddressLost, "");
    }

    /// Compares every lease with what the kernel has.
    pub(super) fn compare(&self) {
        match Interface::all(&self.route) {
            Ok(links) => {
                let there: HashSet<u32> = links.iter().map(|link| link.index).collect();
                let known: Vec<u32> = self.links.borrow().keys().copied().collect();
                known
                    .iter()
                    .filter(|index| !there.contains(index))
                    .for_each(|index| self.link_is_gone(*index));
                links.into_iter().for_each(|link| self.link_is(link));
            }
            Err(errno) => tracing::error!(%errno, "the interfaces of this host could not be listed"),
        }
        match rtnl::list(&self.route) {
            Ok(present) => {
                let present: HashSet<Place> = present.into_iter().map(|present| present.place).collect();
                present.iter().for_each(|place| self.is_there(place));
                self.missing_where(|place| !present.contains(place));
            }
            Err(errno) => tracing::error!(%errno, "the addresses of this host could not be listed"),
        }
        self.look_at_silent();
    }

    /// Puts back what is missing, where its interface is up.
    pub(super) fn put_back(&self) {
        if !self.any_missing.replace(false) {
            return;
        }
        let (now, instant) = (BootTime::now(), Instant::now());
        let mut again = Vec::new();
        for lease in self.table.borrow_mut().missing() {
            // Until it is there again it is tried again with each news.
            self.any_missing.set(true);
            let place = lease.place;
            let up = Interface::numbered(&self.route, place.index).is_ok_and(|link| link.up);
            if up && !lease.is_ending(now) && lease.may_be_put_back(instant, self.settings.get().put_back) {
                again.push((place, lease.left(now)));
            }
        }
        if again.is_empty() {
            return;
        }
        // It was this host's a moment ago: no other may have it, and it has to be usable at once.
        let results = rtnl::add(&self.route, &again, false);
        let results = results.unwrap_or_else(|error| vec![Err(fault::errno(&error)); again.len()]);
        for ((place, _), result) in again.into_iter().zip(results) {
            let (address, index) = (place.address, place.index);
            match result {
                Ok(()) | Err(Errno::EEXIST) => {
                    self.is_there(&place);
                    self.counts.put_back.up();
                    tracing::warn!(%address, index, "somebody took an address away; it was put back");
                    if self.table.borrow().get(address).is_some_and(|lease| lease.series > 0) {
                        self.announce(address);
                    }
                }
                Err(errno) => tracing::warn!(%address, index, %errno, "an address could not be put back"),
            }
        }
    }
}
