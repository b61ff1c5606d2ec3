//! The addresses of one request while they are added. Touches only the lease table.
//!
//! Promises: of an address and its followers, all are added or none is.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;

use portreeve_protocol::{Fault, FaultCode, Text, address};

use super::add::Outcome;
use super::lease_table::LeaseTable;
use crate::sys::rtnl::Placement;

/// The addresses of one request.
#[derive(Debug, Default)]
pub(super) struct AddBatch {
    /// The addresses that have not failed, each with its position in the request.
    pub pending: Vec<(usize, Placement)>,
    /// The outcome of each, in the order of the request.
    pub outcomes: Vec<Outcome>,
    /// The leader of each: the address that it follows, or itself.
    leaders: Vec<Option<IpAddr>>,
}

/// How the addition of an address starts.
pub(super) enum Start {
    /// The address is to be added.
    New(Placement),
    /// The holder has the address already; its lease was renewed.
    Renewed(address::Lease),
}

impl AddBatch {
    /// Appends the next address of the request.
    pub fn push(&mut self, leader: Option<IpAddr>, start: Result<Start, Fault>) {
        let index = self.outcomes.len();
        self.leaders.push(leader);
        self.outcomes.push(match start {
            Ok(Start::Renewed(lease)) => Ok(lease),
            Ok(Start::New(placement)) => {
                self.pending.push((index, placement));
                Err(Fault::new(FaultCode::Busy, &format!("{} is being added", placement.address)))
            }
            Err(fault) => Err(fault),
        });
    }

    /// The placements of the pending addresses.
    pub fn placements(&self) -> Vec<Placement> {
        self.pending.iter().map(|(_, placement)| *placement).collect()
    }

    /// Fails the pending addresses for which `check` returns a fault, and removes their leases.
    pub fn fail(&mut self, table: &RefCell<LeaseTable>, check: impl Fn(&Placement) -> Option<Fault>) {
        let outcomes = &mut self.outcomes;
        self.pending.retain(|(index, placement)| match check(placement) {
            None => true,
            Some(fault) => {
                table.borrow_mut().remove(placement.address, false);
                outcomes.get_mut(*index).into_iter().for_each(|outcome| *outcome = Err(fault.clone()));
                false
            }
        });
    }

    /// Fails the pending addresses that have a fault in the map.
    pub fn fail_all(&mut self, table: &RefCell<LeaseTable>, faults: &HashMap<IpAddr, Fault>) {
        self.fail(table, |placement| faults.get(&placement.address).cloned());
    }

    /// Fails the pending addresses whose leader, or another follower of it, has failed. Returns their placements.
    pub fn fail_groups(&mut self, table: &RefCell<LeaseTable>) -> Vec<Placement> {
        let pending: Vec<usize> = self.pending.iter().map(|(index, _)| *index).collect();
        let mut failed: HashMap<IpAddr, Fault> = HashMap::new();
        for (index, (outcome, leader)) in self.outcomes.iter().zip(&self.leaders).enumerate() {
            if let (Err(fault), Some(leader)) = (outcome, leader)
                && pending.binary_search(&index).is_err()
            {
                failed.entry(*leader).or_insert_with(|| fault.clone());
            }
        }
        if failed.is_empty() {
            return Vec::new();
        }
        let faults: HashMap<IpAddr, Fault> = self
            .pending
            .iter()
            .filter_map(|(index, placement)| {
                let leader = (*self.leaders.get(*index)?)?;
                Some((placement.address, group_fault(placement.address, failed.get(&leader)?)))
            })
            .collect();
        let placements = self.placements().into_iter();
        let placements = placements.filter(|placement| faults.contains_key(&placement.address)).collect();
        self.fail_all(table, &faults);
        placements
    }
}

/// The fault of an address that is not added because another one of its group failed.
fn group_fault(address: IpAddr, fault: &Fault) -> Fault {
    let message =
        format!("cannot add {address}: an address that is added with it failed: {}", &*fault.message);
    Fault { message: Text::truncated(&message), ..fault.clone() }
}
