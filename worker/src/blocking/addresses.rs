//! Address and interface requests of the blocking client. It does not renew leases automatically.

use std::net::IpAddr;

use portreeve_protocol::address::{
    AddressPage, Announce, Lease as Granted, Link, ListAddresses, Removal, RemoveAddress, RenewAddress,
    RenewAll, RenewedAll, SetLink,
};
use portreeve_protocol::{Fault, Trailing};

use super::Client;
use crate::address_options::{AddressOptions, results};
use crate::build;
use crate::error::Error;

impl Client {
    /// Adds addresses, at most 256. The results are in the order of the request; results of the addresses that follow
    /// these by the configuration (`duravip_follow`) come after them. An address is removed when its lease ends, unless the
    /// lease is renewed: renew it when a fifth of it has passed.
    ///
    /// # Errors
    /// An [`Error`] if the request as a whole fails; a [`Fault`] in the results for each address that fails.
    pub fn add_addresses(
        &self,
        addresses: &[IpAddr],
        options: &AddressOptions,
    ) -> Result<Vec<Result<Granted, Fault>>, Error> {
        if options.until.is_some() {
            build::require_lease_times(self.welcome().as_deref())?;
        }
        Ok(results(self.0.call(&options.to_wire(addresses)?)?.results.into_vec()))
    }

    /// Restarts the leases of addresses. `lease` is as in [`AddressOptions`]; if absent, the length stays the same.
    ///
    /// # Errors
    /// As [`Client::add_addresses`].
    pub fn renew_addresses(
        &self,
        addresses: &[IpAddr],
        lease: Option<u32>,
        epoch: u64,
    ) -> Result<Vec<Result<Granted, Fault>>, Error> {
        let request = RenewAddress {
            addresses: build::list("addresses", addresses)?,
            lease,
            epoch,
            until: Trailing(None),
        };
        Ok(results(self.0.call(&request)?.results.into_vec()))
    }

    /// Gives the leases of addresses a new end, in nanoseconds of the broker's CLOCK_BOOTTIME, however late the broker handles the
    /// request: at least 1 s and at most 86400 s from now. [`Error::Request`] if the broker is of an earlier release.
    ///
    /// # Errors
    /// As [`Client::add_addresses`].
    pub fn renew_addresses_until(
        &self,
        addresses: &[IpAddr],
        until: u64,
        epoch: u64,
    ) -> Result<Vec<Result<Granted, Fault>>, Error> {
        build::require_lease_times(self.welcome().as_deref())?;
        let request = build::renew_until(addresses, until, epoch)?;
        Ok(results(self.0.call(&request)?.results.into_vec()))
    }

    /// Restarts the leases of all addresses of this peer except permanent ones, at a cost that does not depend on their number.
    /// `lease` is their length in seconds; if absent, the configured one.
    ///
    /// # Errors
    /// An [`Error`] with the broker's reason.
    pub fn renew_all(&self, lease: Option<u32>) -> Result<RenewedAll, Error> {
        self.0.call(&RenewAll { lease, until: None })
    }

    /// As [`Client::renew_all`], with the end of the leases as in [`Client::renew_addresses_until`].
    ///
    /// # Errors
    /// As [`Client::renew_all`].
    pub fn renew_all_until(&self, until: u64) -> Result<RenewedAll, Error> {
        self.0.call(&RenewAll { lease: None, until: Some(until) })
    }

    /// Removes addresses, with their listeners and connections.
    ///
    /// # Errors
    /// As [`Client::add_addresses`].
    pub fn remove_addresses(
        &self,
        addresses: &[IpAddr],
        epoch: u64,
    ) -> Result<Vec<Result<Removal, Fault>>, Error> {
        let request = RemoveAddress { addresses: build::list("addresses", addresses)?, epoch };
        Ok(results(self.0.call(&request)?.results.into_vec()))
    }

    /// Moves addresses to another interface of this host. Their leases and connections continue.
    ///
    /// # Errors
    /// As [`Client::add_addresses`].
    pub fn move_addresses(
        &self,
        addresses: &[IpAddr],
        interface: &str,
        epoch: u64,
    ) -> Result<Vec<Result<Granted, Fault>>, Error> {
        let request = build::move_addresses(addresses, interface, epoch)?;
        Ok(results(self.0.call(&request)?.results.into_vec()))
    }

    /// Announces addresses to the neighbours again.
    ///
    /// # Errors
    /// As [`Client::add_addresses`].
    pub fn announce_addresses(
        &self,
        addresses: &[IpAddr],
        epoch: u64,
    ) -> Result<Vec<Result<Granted, Fault>>, Error> {
        let request = Announce { addresses: build::list("addresses", addresses)?, epoch };
        Ok(results(self.0.call(&request)?.results.into_vec()))
    }

    /// Returns the page of the broker's addresses that begins after this address, or the first page.
    ///
    /// # Errors
    /// As [`Client::ping`].
    pub fn addresses(&self, after: Option<IpAddr>) -> Result<AddressPage, Error> {
        self.0.call(&ListAddresses { after })
    }

    /// Sets an interface up or down, or changes its MTU, and returns its state. `None` changes nothing.
    ///
    /// # Errors
    /// As [`Client::ping`].
    pub fn set_link(&self, interface: &str, up: Option<bool>, mtu: Option<u32>) -> Result<Link, Error> {
        self.0.call(&SetLink { interface: build::text("the interface name", interface)?, up, mtu })
    }
}
