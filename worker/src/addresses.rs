//! Addresses of the asynchronous client: asked for by the list, or held one by one by a guard that renews itself.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use portreeve_protocol::address::{
    AddAddress, AddressPage, Announce, Lease as Granted, Link, ListAddresses, RemoveAddress, Removed,
    RenewAddress, SetLink,
};
use portreeve_protocol::message::Outcome;
use portreeve_protocol::{Fault, FaultCode};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::ask;
use crate::client::Client;
use crate::error::Error;

/// How an address is added. The default asks the network three times and tells the neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressOptions {
    /// Seconds until it goes by itself unless it is renewed, from 3 on; the configuration's where absent.
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

    /// Adds an address and keeps it: the lease is renewed at each fifth of it for as long as the guard lives.
    ///
    /// # Errors
    /// [`Error::Fault`] with the broker's reason.
    pub async fn hold_address(&self, address: IpAddr, options: &AddressOptions) -> Result<Lease, Error> {
        let asked = Instant::now();
        let granted = self.add_addresses(&[address], options).await?;
        let granted = granted.into_iter().next().unwrap_or_else(|| Err(nothing()))?;
        let length = Duration::from_millis(granted.left_ms).max(Duration::from_secs(1));
        let (tell, lost) = watch::channel(None);
        let renewing = Renewing { client: self.clone(), address, options: *options, length };
        let task = tokio::spawn(async move {
            let why = renewing.until_lost(asked + length).await;
            tell.send_replace(Some(why));
            // The guard reads it whenever it asks.
            tell.closed().await;
        });
        Ok(Lease {
            client: Some(self.clone()),
            epoch: options.epoch,
            granted,
            lost,
            task: task.abort_handle(),
        })
    }
}

/// An address that this program holds. Dropping it has the broker remove the address.
#[must_use = "an address is removed when its guard is dropped"]
#[derive(Debug)]
pub struct Lease {
    client: Option<Client>,
    epoch: u64,
    granted: Granted,
    lost: watch::Receiver<Option<Error>>,
    task: AbortHandle,
}

impl Lease {
    /// The address.
    pub fn address(&self) -> IpAddr {
        self.granted.address
    }

    /// The interface that it is on.
    pub fn interface(&self) -> &str {
        &self.granted.interface
    }

    /// Waits until the address is lost and says why: the lease could not be renewed in time, or the session is over.
    /// From then on this host may not use it.
    pub async fn lost(&mut self) -> Error {
        match self.lost.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or(Error::Closed),
            Err(_) => Error::Closed,
        }
    }

    /// Removes the address and says whether it was seen to be gone.
    ///
    /// # Errors
    /// As for every request.
    pub async fn remove(mut self) -> Result<bool, Error> {
        self.task.abort();
        let Some(client) = self.client.take() else { return Ok(false) };
        let removed = client.remove_addresses(&[self.address()], self.epoch).await?;
        Ok(removed.into_iter().next().unwrap_or_else(|| Err(nothing()))?.verified)
    }

    /// Stops renewing without removing: the address stays until its lease ends.
    pub fn let_run_out(mut self) {
        self.client = None;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.task.abort();
        if let (Some(client), Ok(runtime)) = (self.client.take(), tokio::runtime::Handle::try_current()) {
            let (address, epoch) = (self.address(), self.epoch);
            runtime.spawn(async move { client.remove_addresses(&[address], epoch).await });
        }
    }
}

struct Renewing {
    client: Client,
    address: IpAddr,
    options: AddressOptions,
    length: Duration,
}

impl Renewing {
    /// Renews until that fails for good, and says why. The lease ends no later than it does for the broker, for it is
    /// reckoned from before each request was sent.
    async fn until_lost(&self, mut end: Instant) -> Error {
        let address = [self.address];
        loop {
            tokio::time::sleep(self.length / 5).await;
            let asked = Instant::now();
            let renewal = self.client.renew_addresses(&address, self.options.lease, self.options.epoch);
            let why = match tokio::time::timeout_at(end.into(), renewal).await {
                Err(_) => return Error::Fault(over(self.address)),
                Ok(Err(why)) => return why,
                Ok(Ok(mut results)) => match results.pop().unwrap_or_else(|| Err(nothing())) {
                    Ok(_) => {
                        end = asked + self.length;
                        continue;
                    }
                    Err(why) => why,
                },
            };
            // What may pass is tried again while the lease lasts.
            let passing = matches!(why.code, FaultCode::Busy | FaultCode::Os | FaultCode::NotLocal);
            if !passing || Instant::now() >= end {
                return Error::Fault(why);
            }
        }
    }
}

fn over(address: IpAddr) -> Fault {
    Fault::new(FaultCode::Expired, &format!("the lease of {address} ended before the broker renewed it"))
}

fn nothing() -> Fault {
    Fault::new(FaultCode::Other(0), "the broker answered for no address")
}

fn each<T>(outcomes: Vec<Outcome<T>>) -> Vec<Result<T, Fault>> {
    let result = |outcome| match outcome {
        Outcome::Done(done) => Ok(done),
        Outcome::Fault(fault) => Err(fault),
    };
    outcomes.into_iter().map(result).collect()
}
