//! Renewing: a lease that lasts begins anew, in the fence and in the kernel.
//!
//! Promises: a lease that has ended stays so, by the table's clock and by the fence's; an address that somebody took away
//! is not made again by a renewal.

use std::net::IpAddr;
use std::time::Duration;

use portreeve_protocol::{Fault, FaultCode};

use super::add::{Outcome, without_hardware};
use super::lease::State;
use super::{Addresses, fault};
use crate::holder::Holder;
use crate::sys::boot_time::BootTime;
use crate::sys::rtnl::{self, Lifetime, Place};

impl Addresses {
    /// Renews addresses for who holds them; `None` may anyone's. Without a lifetime each stays as long as the last time.
    pub fn renew(
        &self,
        asked: &[Result<IpAddr, Fault>],
        holder: Option<Holder>,
        lifetime: Option<Lifetime>,
        epoch: u64,
    ) -> Vec<Outcome> {
        // What the kernel has told by now is what is there.
        self.take_news();
        let now = BootTime::now();
        let mut outcomes: Vec<Outcome> = Vec::with_capacity(asked.len());
        let mut renewed: Vec<(usize, Place, Lifetime)> = Vec::new();
        for (index, address) in asked.iter().enumerate() {
            let found = address.clone().and_then(|address| {
                let mut table = self.table.borrow_mut();
                let found = table.of(address, holder, epoch, now)?;
                match found.state {
                    State::Missing => Err(taken_away(address)),
                    _ => Ok((found.place, lifetime.unwrap_or(found.lifetime))),
                }
            });
            outcomes.push(match found {
                Ok((place, lifetime)) => {
                    renewed.push((index, place, lifetime));
                    Err(taken_away(place.address))
                }
                Err(fault) => Err(fault),
            });
        }
        let mut fail = |index: usize, fault: Fault| {
            outcomes.get_mut(index).into_iter().for_each(|outcome| *outcome = Err(fault.clone()));
        };
        if let Some(fence) = &self.fence {
            let passes: Vec<_> = renewed
                .iter()
                .map(|(_, place, lifetime)| {
                    (place.address, lifetime.map(|seconds| Duration::from_secs(seconds.into())))
                })
                .collect();
            match fence.renew(&passes) {
                Ok(over) => renewed.retain(|(index, place, _)| {
                    let passes = !over.contains(&place.address);
                    if !passes {
                        fail(*index, super::lease::over(place.address));
                    }
                    passes
                }),
                Err(error) => {
                    for (index, place, _) in renewed.drain(..) {
                        fail(
                            index,
                            fault::of_address("renewing the fence", place.address, fault::errno(&error)),
                        );
                    }
                }
            }
        }
        let places: Vec<(Place, Lifetime)> =
            renewed.iter().map(|(_, place, lifetime)| (*place, *lifetime)).collect();
        let results = rtnl::renew(&self.route, &places);
        let results = results.unwrap_or_else(|error| vec![Err(fault::errno(&error)); places.len()]);
        for ((index, place, lifetime), result) in renewed.into_iter().zip(results) {
            let mut table = self.table.borrow_mut();
            let outcome = match (result, table.get_mut(place.address)) {
                (Ok(()), Some(lease)) => {
                    self.counts.renewals.up();
                    lease.lifetime = lifetime;
                    lease.warned = false;
                    lease.deadline = lifetime.map(|seconds| now.after(Duration::from_secs(seconds.into())));
                    Ok(lease.told(now))
                }
                (Err(errno), _) => Err(fault::of_address("RTM_NEWADDR", place.address, errno)),
                (Ok(()), None) => Err(taken_away(place.address)),
            };
            outcomes.get_mut(index).into_iter().for_each(|place| *place = outcome.clone());
        }
        outcomes
    }

    /// Announces addresses again for who holds them.
    pub fn announce_again(
        &self,
        asked: &[Result<IpAddr, Fault>],
        holder: Option<Holder>,
        epoch: u64,
    ) -> Vec<Outcome> {
        let now = BootTime::now();
        let one = |address: &Result<IpAddr, Fault>| {
            let address = address.clone()?;
            let (told, index) = match self.table.borrow_mut().of(address, holder, epoch, now)? {
                lease if lease.state == State::Missing => return Err(taken_away(address)),
                lease => (lease.told(now), lease.place.index),
            };
            match self.link(index) {
                Some(link) if link.hardware.is_none() => return Err(without_hardware(&link.name)),
                _ => self.announce(address),
            }
            Ok(told)
        };
        asked.iter().map(one).collect()
    }
}

pub(super) fn taken_away(address: IpAddr) -> Fault {
    Fault::new(FaultCode::NotLocal, &format!("somebody took {address} away, and it could not be put back"))
        .remedy("remove it, find out who does that, and add it again")
}
