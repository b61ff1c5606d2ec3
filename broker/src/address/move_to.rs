//! Moving: an address leaves one interface of this host for another, as one step.
//!
//! Promises: it ends up on the new interface alone, or on the old one alone with a fault; it is on at least one of them all
//! the while, so that connections and listeners go on; its lease, its fence and its epoch go on as they are.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use nix::errno::Errno;
use portreeve_protocol::{EventCode, Fault, FaultCode, Text};

use super::add::{Asked, Outcome, is_down, without_hardware};
use super::lease::State;
use super::renew::taken_away;
use super::{Addresses, fault};
use crate::holder::Holder;
use crate::sys::Interface;
use crate::sys::boot_time::BootTime;
use crate::sys::rtnl::{self, Lifetime, Place};

/// An address on its way.
#[derive(Clone, Copy)]
struct Move {
    from: Place,
    to: Place,
    life: Lifetime,
}

impl Addresses {
    /// Moves addresses that somebody holds to where each is asked for, and gives what became of each.
    pub fn move_to(
        &self,
        asked: &[Result<Asked, Fault>],
        holder: Option<Holder>,
        epoch: u64,
        announce: bool,
    ) -> Vec<Outcome> {
        // What the kernel has told by now is what is there.
        self.take_news();
        let begun: Vec<_> = asked
            .iter()
            .map(|asked| asked.clone().and_then(|asked| self.begin_move(&asked, holder, epoch, announce)))
            .collect();
        // One that is named twice moves once.
        let mut named = HashSet::new();
        let moves: Vec<Move> = begun
            .iter()
            .filter_map(|begun| *begun.as_ref().ok()?)
            .filter(|one| named.insert(one.to.address))
            .collect();
        let failed = self.carry_out(&moves);
        let done = moves.iter().filter(|one| !failed.contains_key(&one.to.address));
        done.for_each(|one| self.has_moved(one, announce));
        let now = BootTime::now();
        let outcome = |(asked, begun): (&Result<Asked, Fault>, Result<Option<Move>, Fault>)| {
            begun?;
            let address = asked.as_ref().map_err(Fault::clone)?.address;
            match failed.get(&address) {
                Some(fault) => Err(fault.clone()),
                None => self
                    .table
                    .borrow()
                    .get(address)
                    .map(|lease| lease.told(now))
                    .ok_or_else(|| taken_away(address)),
            }
        };
        asked.iter().zip(begun).map(outcome).collect()
    }

    /// What is to be done for one; `None` where it is there already.
    fn begin_move(
        &self,
        asked: &Asked,
        holder: Option<Holder>,
        epoch: u64,
        announce: bool,
    ) -> Result<Option<Move>, Fault> {
        let now = BootTime::now();
        let link = Interface::named(&self.route, &asked.interface)
            .map_err(|errno| fault::of_interface(&asked.interface, errno))?;
        if !link.up {
            return Err(is_down(&asked.interface));
        }
        if announce && link.hardware.is_none() {
            return Err(without_hardware(&asked.interface));
        }
        let mut table = self.table.borrow_mut();
        let lease = table.of(asked.address, holder, epoch, now)?;
        if lease.state == State::Missing {
            return Err(taken_away(asked.address));
        }
        if lease.is_ending(now) {
            let message = format!("the lease of {} ends within a second", asked.address);
            return Err(Fault::new(FaultCode::Expired, &message).remedy("renew it and move it then"));
        }
        let to = Place { address: asked.address, index: link.index, prefix: asked.prefix };
        let one = Move { from: lease.place, to, life: lease.left(now) };
        drop(table);
        self.links.borrow_mut().insert(link.index, link);
        Ok(Some(one).filter(|one| one.from.index != one.to.index))
    }

    /// Adds each at its new place, takes it from the old one, and looks. What fails is where it was; gives that.
    fn carry_out(&self, moves: &[Move]) -> HashMap<IpAddr, Fault> {
        let mut failed = HashMap::new();
        if moves.is_empty() {
            return failed;
        }
        // It was this host's alone until now: nobody else has to be asked.
        let there: Vec<_> = moves.iter().map(|one| (one.to, one.life)).collect();
        let added = each(rtnl::add(&self.route, &there, false), moves.len());
        let mut fail = |one: &Move, call: &str, errno: Errno| {
            failed.insert(one.to.address, fault::of_address(call, one.to.address, errno));
        };
        let mut added: Vec<Move> = moves
            .iter()
            .zip(added)
            .filter_map(|(one, result)| match result {
                Ok(()) => Some(*one),
                Err(errno) => {
                    fail(one, "RTM_NEWADDR", errno);
                    None
                }
            })
            .collect();
        let old: Vec<Place> = added.iter().map(|one| one.from).collect();
        let removed = each(rtnl::remove(&self.route, &old), old.len());
        let present: Result<HashSet<Place>, Errno> =
            rtnl::list(&self.route).map(|present| present.into_iter().map(|present| present.place).collect());
        let mut results = removed.into_iter();
        let mut back = Vec::new();
        added.retain(|one| {
            let gone = match results.next().unwrap_or(Err(Errno::EIO)) {
                Ok(()) | Err(Errno::EADDRNOTAVAIL | Errno::ENODEV) => Ok(()),
                Err(errno) => Err(("RTM_DELADDR", errno)),
            };
            let seen = present.as_ref().map_err(|errno| ("RTM_GETADDR", *errno)).and_then(|present| {
                match (present.contains(&one.from), present.contains(&one.to)) {
                    (false, true) => Ok(()),
                    (true, _) => Err(("RTM_DELADDR", Errno::EEXIST)),
                    (false, false) => Err(("RTM_NEWADDR", Errno::EADDRNOTAVAIL)),
                }
            });
            let Err((call, errno)) = gone.and(seen) else { return true };
            fail(one, call, errno);
            back.push(*one);
            false
        });
        self.move_back(&back);
        failed
    }

    /// Puts what could not be moved back where it was. What cannot be put back is missing there, and is put back as such.
    fn move_back(&self, back: &[Move]) {
        if back.is_empty() {
            return;
        }
        let old: Vec<_> = back.iter().map(|one| (one.from, one.life)).collect();
        let put = each(rtnl::add(&self.route, &old, false), old.len());
        let new: Vec<Place> = back.iter().map(|one| one.to).collect();
        let taken = each(rtnl::remove(&self.route, &new), new.len());
        for ((one, put), taken) in back.iter().zip(put).zip(taken) {
            let address = one.to.address;
            if let Err(errno) = taken.or_else(|errno| match errno {
                Errno::EADDRNOTAVAIL | Errno::ENODEV => Ok(()),
                errno => Err(errno),
            }) {
                tracing::error!(%address, index = one.to.index, %errno, "an address stays where it was not moved to");
            }
            if let Err(errno) = put
                && errno != Errno::EEXIST
            {
                tracing::error!(%address, index = one.from.index, %errno, "an address is not where it was");
                self.missing_where(|place| *place == one.from);
            }
        }
    }

    /// Enters a move in the table, and tells of it.
    fn has_moved(&self, one: &Move, announce: bool) {
        let before = self.link(one.from.index).map_or_else(String::new, |link| link.name);
        let name = self.link(one.to.index).map_or_else(String::new, |link| link.name);
        let mut table = self.table.borrow_mut();
        let Some(lease) = table.get_mut(one.to.address) else { return };
        lease.place = one.to;
        lease.interface = Text::clipped(&name);
        // What was under way is announced where it is no more.
        let announced = std::mem::take(&mut lease.series) > 0;
        self.tell(lease, EventCode::AddressMoved, &before);
        drop(table);
        if announce || announced {
            self.announce(one.to.address);
        }
    }
}

/// A result each, whatever became of the exchange.
fn each(outcomes: rtnl::Outcomes, count: usize) -> Vec<Result<(), Errno>> {
    outcomes.unwrap_or_else(|error| vec![Err(fault::errno(&error)); count])
}
