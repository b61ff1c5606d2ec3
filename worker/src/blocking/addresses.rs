//! Addresses and interfaces of the blocking client. It renews no lease by itself.

use std::net::IpAddr;

use portreeve_protocol::Fault;
use portreeve_protocol::address::{
    AddressPage, Announce, Lease as Granted, Link, ListAddresses, MoveAddress, Removal, RemoveAddress,
    RenewAddress, SetLink,
};

use super::Client;
use crate::address_options::{AddressOptions, each};
use crate::ask;
use crate::error::Error;

impl Client {
    /// Adds addresses, at most 256, and gives what became of each in their order, and after that of those that follow
    /// them by the configuration (`duravip_follow`), which come and go with them. They go at the end of their lease
    /// unless they are renewed in time: at a fifth of it is well in time.
    ///
    /// # Errors
    /// As for every request; what failed for one address is that one's result.
    pub fn add_addresses(
        &self,
        addresses: &[IpAddr],
        options: &AddressOptions,
    ) -> Result<Vec<Result<Granted, Fault>>, Error> {
        Ok(each(self.0.call(&options.add(addresses)?)?.results.into_vec()))
    }

    /// Begins the leases of addresses anew; `lease` as in [`AddressOptions`], or as long as the last one.
    ///
    /// # Errors
    /// As [`Client::add_addresses`].
    pub fn renew_addresses(
        &self,
        addresses: &[IpAddr],
        lease: Option<u32>,
        epoch: u64,
    ) -> Result<Vec<Result<Granted, Fault>>, Error> {
        let renew = RenewAddress { addresses: ask::list(addresses)?, lease, epoch };
        Ok(each(self.0.call(&renew)?.results.into_vec()))
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
        let remove = RemoveAddress { addresses: ask::list(addresses)?, epoch };
        Ok(each(self.0.call(&remove)?.results.into_vec()))
    }

    /// Moves addresses from the interfaces that they are on to another of this host. Their leases and connections go on.
    ///
    /// # Errors
    /// As [`Client::add_addresses`].
    pub fn move_addresses(
        &self,
        addresses: &[IpAddr],
        interface: &str,
        epoch: u64,
    ) -> Result<Vec<Result<Granted, Fault>>, Error> {
        let (addresses, interface) = (ask::list(addresses)?, ask::text(interface)?);
        let to = MoveAddress { addresses, interface, epoch, announce: true };
        Ok(each(self.0.call(&to)?.results.into_vec()))
    }

    /// Tells the neighbours of addresses again.
    ///
    /// # Errors
    /// As [`Client::add_addresses`].
    pub fn announce_addresses(
        &self,
        addresses: &[IpAddr],
        epoch: u64,
    ) -> Result<Vec<Result<Granted, Fault>>, Error> {
        let announce = Announce { addresses: ask::list(addresses)?, epoch };
        Ok(each(self.0.call(&announce)?.results.into_vec()))
    }

    /// The page of the broker's addresses that begins after this one, or the first.
    ///
    /// # Errors
    /// As for every request.
    pub fn addresses(&self, after: Option<IpAddr>) -> Result<AddressPage, Error> {
        self.0.call(&ListAddresses { after })
    }

    /// Sets an interface up or down, or to another MTU; what is `None` stays.
    ///
    /// # Errors
    /// As for every request.
    pub fn set_link(&self, interface: &str, up: Option<bool>, mtu: Option<u32>) -> Result<Link, Error> {
        self.0.call(&SetLink { interface: ask::text(interface)?, up, mtu })
    }
}
