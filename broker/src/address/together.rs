//! Addresses that come and go together: those of one request on their way, and those that follow another one.
//!
//! Promises: of an address and those that follow it none is added where one cannot be. Data only: touches nothing but
//! the table.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;

use portreeve_protocol::{Fault, FaultCode, Text, address};

use super::add::Outcome;
use super::lease::Table;
use crate::sys::rtnl::Place;

/// The addresses that follow others.
#[derive(Debug, Default)]
pub struct Followers(HashMap<IpAddr, Vec<IpAddr>>);

impl Followers {
    /// The addresses that came with one and go with it.
    pub fn of(&self, leader: IpAddr) -> &[IpAddr] {
        self.0.get(&leader).map(Vec::as_slice).unwrap_or_default()
    }

    pub(super) fn enter(&mut self, leader: Option<IpAddr>, own: IpAddr) {
        if let Some(leader) = leader {
            self.0.entry(leader).or_default().push(own);
        }
    }

    pub(super) fn leave(&mut self, leader: Option<IpAddr>, own: IpAddr) {
        let Some(leader) = leader else { return };
        if let Some(followers) = self.0.get_mut(&leader) {
            followers.retain(|follower| *follower != own);
            if followers.is_empty() {
                self.0.remove(&leader);
            }
        }
    }
}

/// The addresses of one request on their way.
#[derive(Debug, Default)]
pub(super) struct Way {
    /// Those that may come yet, with their place in the request.
    pub pending: Vec<(usize, Place)>,
    /// What became of each, in their order.
    pub outcomes: Vec<Outcome>,
    /// The address that each follows, or its own.
    groups: Vec<Option<IpAddr>>,
}

/// What an address of a request begins as.
pub(super) enum Begun {
    /// It is to be added.
    New(Place),
    /// It is there already.
    Again(address::Lease),
}

impl Way {
    /// Takes the next address of the request on its way; `group` is the one that it follows, or its own.
    pub fn enter(&mut self, group: Option<IpAddr>, begun: Result<Begun, Fault>) {
        let index = self.outcomes.len();
        self.groups.push(group);
        self.outcomes.push(match begun {
            Ok(Begun::Again(lease)) => Ok(lease),
            Ok(Begun::New(place)) => {
                self.pending.push((index, place));
                Err(Fault::new(FaultCode::Busy, "it is being added"))
            }
            Err(fault) => Err(fault),
        });
    }

    /// The places of those that may come yet.
    pub fn places(&self) -> Vec<Place> {
        self.pending.iter().map(|(_, place)| *place).collect()
    }

    /// Ends the way of those that have a fault.
    pub fn fail(&mut self, table: &RefCell<Table>, fault: impl Fn(&Place) -> Option<Fault>) {
        let outcomes = &mut self.outcomes;
        self.pending.retain(|(index, place)| match fault(place) {
            None => true,
            Some(fault) => {
                table.borrow_mut().remove(place.address, false);
                outcomes.get_mut(*index).into_iter().for_each(|outcome| *outcome = Err(fault.clone()));
                false
            }
        });
    }

    /// Ends the way of those that would come without one that they belong to, and gives their places.
    pub fn fail_the_rest(&mut self, table: &RefCell<Table>) -> Vec<Place> {
        let pending: Vec<usize> = self.pending.iter().map(|(index, _)| *index).collect();
        let mut failed: HashMap<IpAddr, Fault> = HashMap::new();
        for (index, (outcome, group)) in self.outcomes.iter().zip(&self.groups).enumerate() {
            if let (Err(fault), Some(group)) = (outcome, group)
                && pending.binary_search(&index).is_err()
            {
                failed.entry(*group).or_insert_with(|| fault.clone());
            }
        }
        if failed.is_empty() {
            return Vec::new();
        }
        let belongs: HashMap<IpAddr, Fault> = self
            .pending
            .iter()
            .filter_map(|(index, place)| {
                let group = (*self.groups.get(*index)?)?;
                Some((place.address, because(failed.get(&group)?)))
            })
            .collect();
        let places = self.places().into_iter().filter(|place| belongs.contains_key(&place.address));
        let places: Vec<Place> = places.collect();
        self.fail(table, |place| belongs.get(&place.address).cloned());
        places
    }
}

/// The fault of an address that does not come because of another one's.
fn because(fault: &Fault) -> Fault {
    let message = Text::truncated(&format!("an address that belongs with it: {}", &*fault.message));
    Fault { message, ..fault.clone() }
}
