//! Removes leftover addresses of an earlier broker or another program at the start, and every address at the end.
//!
//! Promises: at the start, removes only addresses with the broker's tag, and floating addresses that are strays; never one
//! of the host's own addresses. Changes no interface.

use std::collections::HashMap;
use std::net::IpAddr;

use super::open::STEP;
use super::stray::Untagged;
use super::{AddSpec, Addresses};
use crate::failure::{Exit, Failure};
use crate::sys::rtnl::{self, HostAddress, Placement};

impl Addresses {
    /// Starts as the successor of a running broker: leaves its addresses and its fence as they are. Returns warnings for
    /// the operator.
    ///
    /// # Errors
    /// The predecessor has a fence, and this process cannot use it.
    pub fn start_as_successor(&self, fenced: bool) -> Result<Vec<String>, Failure> {
        self.load_interfaces()?;
        match (self.is_fenced(), fenced) {
            (false, true) => Err(Failure::new(
                Exit::OsError,
                STEP,
                "cannot take over the fence of the running broker: the netlink socket for it cannot be opened",
                "restart the running broker instead of taking over",
            )),
            (true, true) => Ok(Vec::new()),
            (_, false) => {
                self.host.turn_fence_off();
                Ok(vec![no_fence("; the running broker has no fence either")])
            }
        }
    }

    /// Removes tagged addresses of an earlier broker and strays among the floating addresses, and creates the fence.
    /// Returns warnings for the operator.
    ///
    /// # Errors
    /// The host's addresses cannot be listed, or one cannot be removed.
    pub fn clean_slate(&self, floating: &[AddSpec]) -> Result<Vec<String>, Failure> {
        self.load_interfaces()?;
        let (present, untagged) = self.find_untagged(floating)?;
        let tagged = present.iter().filter(|one| one.tagged).map(|one| (one.placement, "an earlier broker"));
        let strays = untagged.strays.into_iter().map(|placement| (placement, "another program"));
        let leftovers: Vec<(Placement, &str)> = tagged.chain(strays).collect();
        let placements: Vec<Placement> = leftovers.iter().map(|(placement, _)| *placement).collect();
        for ((placement, added_by), outcome) in leftovers.iter().zip(self.host.remove(&placements)) {
            let (address, index) = (placement.address, placement.index);
            match outcome {
                Ok(_) => tracing::info!(%address, index, added_by, "removed a leftover address"),
                Err(fault) => return Err(Failure::os(STEP, "removing a leftover address", fault)),
            }
        }
        let cause = match self.host.fence().map(|fence| fence.create()) {
            Some(Ok(())) => return Ok(Vec::new()),
            Some(Err(errno)) => format!(" ({})", errno.desc()),
            None => String::new(),
        };
        self.host.turn_fence_off();
        Ok(vec![no_fence(&cause)])
    }

    /// The warning of a broker that cannot keep another one from managing the same addresses.
    pub fn no_reservation(&self) -> Option<String> {
        let warning = "another user has bound the abstract Unix socket by which a second broker finds this one: see to it that only \
                       one broker manages the addresses of this network namespace";
        self.reservation.is_none().then(|| warning.to_owned())
    }

    /// The floating addresses that the host has permanently, without the broker.
    ///
    /// # Errors
    /// The host's addresses cannot be listed.
    pub fn host_owned(&self, floating: &[AddSpec]) -> Result<Vec<IpAddr>, Failure> {
        self.load_interfaces()?;
        Ok(self.find_untagged(floating)?.1.host_owned)
    }

    /// Removes every address, and the fence.
    pub fn remove_all(&self) {
        let mut keep_fence = false;
        for outcome in self.remove(&self.all()) {
            match outcome {
                Ok(removed) => keep_fence |= !removed.verified,
                Err(fault) => {
                    keep_fence = true;
                    tracing::error!(error = %fault, "cannot remove an address at exit");
                }
            }
        }
        if let Some(fence) = self.host.fence().filter(|_| !keep_fence)
            && let Err(errno) = fence.delete()
        {
            tracing::error!(error = %errno, "cannot remove the fence at exit");
        }
    }

    fn load_interfaces(&self) -> Result<(), Failure> {
        self.interfaces
            .load(self.host.route())
            .map_err(|errno| Failure::os(STEP, "listing the interfaces", errno))
    }

    /// Every address of the host, and the floating ones among them that do not carry the broker's tag. An address in another VRF
    /// than the floating one is not that address.
    fn find_untagged(&self, floating: &[AddSpec]) -> Result<(Vec<HostAddress>, Untagged), Failure> {
        let placement = |spec: &AddSpec| Placement {
            address: spec.address,
            // No interface has the index 0.
            index: self.interfaces.index_of(&spec.interface).unwrap_or_default(),
            prefix: spec.prefix,
        };
        let declared: HashMap<IpAddr, Placement> =
            floating.iter().map(|spec| (spec.address, placement(spec))).collect();
        let present = rtnl::list(self.host.route())
            .map_err(|errno| Failure::os(STEP, "listing the addresses", errno))?;
        let is_in_its_vrf = |one: &HostAddress| {
            let vrf_of = |placement: &Placement| self.interfaces.vrf_of(placement.index);
            let configured = declared.get(&one.placement.address);
            configured.is_none_or(|configured| vrf_of(configured) == vrf_of(&one.placement))
        };
        let candidates: Vec<HostAddress> = present.iter().filter(|one| is_in_its_vrf(one)).copied().collect();
        let untagged = Untagged::find(&candidates, &declared);
        Ok((present, untagged))
    }
}

fn no_fence(cause: &str) -> String {
    format!(
        "no fence: this kernel has no nf_tables{cause}; if the broker dies, the kernel may keep an address a second, or an \
         eighth of its lease, longer than the lease, and an IPv6 address longer still on a busy host"
    )
}
