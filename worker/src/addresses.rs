//! Addresses of the asynchronous client, asked for by the list.

use std::net::IpAddr;

use portreeve_protocol::address::{
    AddAddress, AddressPage, Announce, Lease as Granted, Link, ListAddresses, RemoveAddress, Removed,
    RenewAddress, SetLink,
};
use portreeve_protocol::message::Outcome;
use portreeve_protocol::{Fault, FaultCode};

use crate::ask;
use crate::client::Client;
use crate::error::Error;

/// How an address is added. The default asks the network three times and tells the neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressOptions {
    /// Seconds until it goes by itself unless it is renewed, from 3 on; the configuration's where absent. 0 for ever, where
    /// a permit of the broker's says so: such an address stays until it is removed.
    pub lease: Option<u32>,
    /// The number of this ownership, from whoever decides which host has the address; 0 where nobody does.
    pub epoch: u64,
    /// How often to ask first whether another host has it: up to 3, 200 ms each.
    pub probes: u8,
    /// Whether to tell the neighbours.
    pub announce: bool,
}

impl Default for AddressOptions {
    fn default() -> Self {
        Self { lease: None, epoch: 0, probes: 3, announce: true }
    }
}

impl Client {
    /// Adds addresses, at most 256, and gives what became of each in their order, and after that of those that follow
    /// them by the configuration (`duravip_follow`), which come and go with them. They go at the end of their lease
    /// unless they are renewed; [`Client::hold_address`] does that by itself.
    ///
    /// # Errors
    /// As for every request; what failed for one address is that one's result.
    pub async fn add_addresses(
        &self,
        addresses: &[IpAddr],
        options: &AddressOptions,
    ) -> Result<Vec<Result<Granted, Fault>>, Error> {
        let AddressOptions { lease, epoch, probes, announce } = *options;
        let add = AddAddress { addresses: ask::list(addresses)?, lease, epoch, probes, announce };
        Ok(each(self.call(&add).await?.results.into_vec()))
    }

    /// Begins the leases of addresses anew; `lease` as in [`AddressOptions`], or as long as the last one.
    ///
    /// # Errors
    /// As [`Client::add_addresses`].
    pub async fn renew_addresses(
        &self,
        addresses: &[IpAddr],
        lease: Option<u32>,
        epoch: u64,
    ) -> Result<Vec<Result<Granted, Fault>>, Error> {
        let renew = RenewAddress { addresses: ask::list(addresses)?, lease, epoch };
        Ok(each(self.call(&renew).await?.results.into_vec()))
    }

    /// Removes addresses, with their listeners and connections.
    ///
    /// # Errors
    /// As [`Client::add_addresses`].
    pub async fn remove_addresses(
        &self,
        addresses: &[IpAddr],
        epoch: u64,
    ) -> Result<Vec<Result<Removed, Fault>>, Error> {
        let remove = RemoveAddress { addresses: ask::list(addresses)?, epoch };
        Ok(each(self.call(&remove).await?.results.into_vec()))
    }

    /// Tells the neighbours of addresses again.
    ///
    /// # Errors
    /// As [`Client::add_addresses`].
    pub async fn announce_addresses(
        &self,
        addresses: &[IpAddr],
        epoch: u64,
    ) -> Result<Vec<Result<Granted, Fault>>, Error> {
        let announce = Announce { addresses: ask::list(addresses)?, epoch };
        Ok(each(self.call(&announce).await?.results.into_vec()))
    }

    /// The page of the broker's addresses that begins after this one, or the first.
    ///
    /// # Errors
    /// As for every request.
    pub async fn addresses(&self, after: Option<IpAddr>) -> Result<AddressPage, Error> {
        self.call(&ListAddresses { after }).await
    }

    /// Sets an interface up or down, or to another MTU; what is `None` stays.
    ///
    /// # Errors
    /// As for every request.
    pub async fn set_link(&self, interface: &str, up: Option<bool>, mtu: Option<u32>) -> Result<Link, Error> {
        self.call(&SetLink { interface: ask::interface(interface)?, up, mtu }).await
    }
}

pub(crate) fn nothing() -> Fault {
    Fault::new(FaultCode::Other(0), "the broker answered for no address")
}

fn each<T>(outcomes: Vec<Outcome<T>>) -> Vec<Result<T, Fault>> {
    let result = |outcome| match outcome {
        Outcome::Done(done) => Ok(done),
        Outcome::Fault(fault) => Err(fault),
    };
    outcomes.into_iter().map(result).collect()
}
