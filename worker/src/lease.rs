//! A held address: its lease is renewed while its guard exists, and the owner learns when the address is lost.
//!
//! Promises: the owner learns of a loss before the lease ends, even if the broker hangs or misbehaves. Events of the broker
//! can only make the report earlier.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use portreeve_protocol::address::{Lease as Granted, RenewAddress};
use portreeve_protocol::event::Subscribe;
use portreeve_protocol::{EventCode, Fault, FaultCode, Operation as _, Trailing};
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

use crate::address_options::{AddressOptions, results};
use crate::build;
use crate::client::Client;
use crate::error::Error;
use crate::subscribers::SubscriberId;

/// The longest lease. A permanent address is renewed as if it had a lease of this length.
const MAX_LEASE: Duration = Duration::from_secs(86_400);

impl Client {
    /// Adds an address and holds it: its lease is renewed after each fifth of its length while the guard exists. If this peer
    /// may subscribe, events of the address report a loss at once.
    ///
    /// In a session that reconnects ([`Channel::reconnect_through`](crate::Channel::reconnect_through)), a broker that took
    /// over renews the lease, and one that started without it adds the address again with the same options, if the lease has
    /// not ended.
    ///
    /// # Errors
    /// [`Error::Fault`] with the broker's reason; [`Error::Request`] if the options give the end of the lease, because a held
    /// address has a length.
    pub async fn hold_address(&self, address: IpAddr, options: &AddressOptions) -> Result<Lease, Error> {
        if options.until.is_some() {
            let message = "a held address is renewed for its length: give `lease`, not `until`";
            return Err(Error::Request(message.into()));
        }
        let events = AddressEvents::subscribe(self, address).await?;
        let requested = Instant::now();
        let granted = self.add_addresses(&[address], options).await?;
        let granted = single(granted)?;
        let length = Duration::from_millis(granted.remaining_ms).clamp(Duration::from_secs(1), MAX_LEASE);
        let (state_sender, state) = watch::channel(LeaseState::default());
        let (state_sender, renew_now) = (Arc::new(state_sender), Arc::new(Notify::new()));
        let renewal = Renewal {
            client: self.clone(),
            address,
            options: *options,
            length,
            renew_now: renew_now.clone(),
        };
        let sender = state_sender.clone();
        let renewing = tokio::spawn(async move {
            let why = renewal.run(requested + length).await;
            sender.send_modify(|state| state.lost = Some(why));
            // The state stays readable until the guard is dropped.
            sender.closed().await;
        });
        let (client, notify) = (self.clone(), renew_now.clone());
        // The lease is renewed at once after each reconnection.
        let reconnecting = tokio::spawn(async move {
            while client.session().reconnected(client.session().generation()).await {
                notify.notify_one();
            }
            // The renewal fails at once, so the owner learns of the loss before the lease ends.
            notify.notify_one();
        });
        let receiving = events
            .map(|events| tokio::spawn(async move { events.receive_loop(&state_sender, &renew_now).await }));
        let tasks = [Some(renewing), Some(reconnecting), receiving];
        let tasks = tasks.into_iter().flatten().map(|task| task.abort_handle()).collect();
        Ok(Lease { client: Some(self.clone()), epoch: options.epoch, granted, state, tasks })
    }
}

/// The guard of an address that this program holds.
///
/// Dropping it removes the address: it sends the request and does not wait for the reply, unless other removals are still in
/// flight and there is no runtime to wait for them. That works inside and outside of
/// a tokio runtime, and after the runtime has ended. If the session has no broker at that moment, the next broker gets the
/// request, if this program reconnects; otherwise the address is removed when its lease ends.
#[must_use = "an address is removed when its guard is dropped"]
#[derive(Debug)]
pub struct Lease {
    client: Option<Client>,
    epoch: u64,
    granted: Granted,
    state: watch::Receiver<LeaseState>,
    tasks: Vec<AbortHandle>,
}

#[derive(Debug, Default)]
struct LeaseState {
    /// How long until the broker removes the address, if it has given notice.
    removal_notice: Option<Duration>,
    lost: Option<Error>,
}

impl Lease {
    /// The address.
    pub fn address(&self) -> IpAddr {
        self.granted.address
    }

    /// The interface that the address was added to.
    pub fn interface(&self) -> &str {
        &self.granted.interface
    }

    /// Waits until the address is lost, and returns the reason: the lease could not be renewed in time, the session has ended, or
    /// the next broker refuses the address. From then on this host must not use the address.
    pub async fn lost(&mut self) -> Error {
        match self.state.wait_for(|state| state.lost.is_some()).await {
            Ok(state) => state.lost.clone().unwrap_or(Error::Closed),
            Err(_) => Error::Closed,
        }
    }

    /// Waits until the broker gives notice that it will remove the address, and returns the time that remains; zero if the
    /// address is lost. Only a peer that may subscribe receives the notice.
    pub async fn removal_notice(&mut self) -> Duration {
        let is_ending = |state: &LeaseState| state.removal_notice.is_some() || state.lost.is_some();
        match self.state.wait_for(is_ending).await {
            Ok(state) => state.removal_notice.unwrap_or_default(),
            Err(_) => Duration::ZERO,
        }
    }

    /// Removes the address, and returns whether the broker verified that this host no longer has it.
    ///
    /// # Errors
    /// [`Error::Fault`] with the broker's reason.
    pub async fn remove(mut self) -> Result<bool, Error> {
        self.tasks.iter().for_each(AbortHandle::abort);
        let Some(client) = self.client.take() else { return Ok(false) };
        let removed = client.remove_addresses(&[self.address()], self.epoch).await?;
        Ok(single(removed)?.verified)
    }

    /// Stops renewing the lease without removing the address, which stays until the lease ends.
    pub fn let_expire(mut self) {
        self.client = None;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
        let Some(client) = self.client.take() else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return client.session().lease_dropped_blocking(self.address(), self.epoch);
        };
        client.session().lease_dropped(self.address(), self.epoch);
        if client.session().begin_removals() {
            // The task keeps the session open until then.
            drop(runtime.spawn(async move { client.session().await_removals().await }));
        }
    }
}

/// The result of a request for one address, and the generation of the broker that replied.
type ResultWithGeneration = (Result<Granted, Fault>, u64);

/// The renewal of one lease.
struct Renewal {
    client: Client,
    address: IpAddr,
    options: AddressOptions,
    length: Duration,
    /// Signalled by an event of the address and by a reconnection: the lease is renewed at once.
    renew_now: Arc<Notify>,
}

impl Renewal {
    /// Renews the lease until that fails for good, and returns the reason. `end` is no later than the end of the lease at the
    /// broker, because it counts from before each request was sent.
    async fn run(&self, mut end: Instant) -> Error {
        let session = self.client.session();
        let mut generation = session.generation();
        loop {
            let _ = tokio::time::timeout(self.length / 5, self.renew_now.notified()).await; // either way it is renewed now
            let requested = Instant::now();
            let mut renewed = tokio::time::timeout_at(end.into(), self.renew()).await;
            // A broker that started without this address has removed it, so it is added again.
            if let Ok(Ok((Err(why), replied))) = &renewed
                && why.code == FaultCode::NotFound
                && *replied != generation
            {
                renewed = tokio::time::timeout_at(end.into(), self.add()).await;
            }
            let why = match renewed {
                Err(_) => return Error::Fault(expired(self.address)),
                // The session reconnects; the loop then sends the renewal to the next broker, if one is in time.
                Ok(Err(why)) if session.survives(&why) => continue,
                Ok(Err(why)) => return why,
                Ok(Ok((Ok(_), replied))) => {
                    (end, generation) = (requested + self.length, replied);
                    continue;
                }
                Ok(Ok((Err(why), _))) => why,
            };
            // A temporary fault is retried while the lease lasts.
            let is_temporary = matches!(why.code, FaultCode::Busy | FaultCode::Os | FaultCode::NotLocal);
            if !is_temporary || Instant::now() >= end {
                return Error::Fault(why);
            }
        }
    }

    async fn renew(&self) -> Result<ResultWithGeneration, Error> {
        let AddressOptions { lease, epoch, .. } = self.options;
        let request = RenewAddress {
            addresses: build::list("addresses", &[self.address])?,
            lease,
            epoch,
            until: Trailing(None),
        };
        let (leases, generation) = self.client.session().call_with_generation(&request).await?;
        Ok((single(results(leases.results.into_vec())), generation))
    }

    async fn add(&self) -> Result<ResultWithGeneration, Error> {
        let request = self.options.to_wire(&[self.address])?;
        let (leases, generation) = self.client.session().call_with_generation(&request).await?;
        Ok((single(results(leases.results.into_vec())), generation))
    }
}

/// The subscription to the events of one address.
struct AddressEvents {
    client: Client,
    id: SubscriberId,
}

impl AddressEvents {
    /// Subscribes, if this peer may.
    async fn subscribe(client: &Client, address: IpAddr) -> Result<Option<Self>, Error> {
        if !client.session().allows(Subscribe::NAME) {
            return Ok(None);
        }
        let id = client.session().with_subscribers(|subscribers| subscribers.add(Some(address), false));
        let events = Self { client: client.clone(), id };
        events.client.session().subscribe().await?;
        Ok(Some(events))
    }

    /// Handles events. An event may be about an earlier lease of the address, so it is only a reason to renew now.
    async fn receive_loop(&self, state: &watch::Sender<LeaseState>, renew_now: &Notify) {
        while let Ok(event) = self.client.session().next_event(self.id).await {
            match event.code {
                EventCode::AddressLeaving => {
                    let notice = Duration::from_millis(event.count);
                    state.send_modify(|state| state.removal_notice = Some(notice));
                }
                EventCode::AddressAdded => state.send_modify(|state| state.removal_notice = None),
                EventCode::AddressRestored | EventCode::AddressConflict => {}
                _ => renew_now.notify_one(),
            }
        }
    }
}

impl Drop for AddressEvents {
    fn drop(&mut self) {
        self.client.session().unsubscribe(self.id);
    }
}

fn expired(address: IpAddr) -> Fault {
    Fault::new(FaultCode::Expired, &format!("the lease of {address} ended before the broker renewed it"))
}

/// The result of a request for one address.
fn single<T>(results: Vec<Result<T, Fault>>) -> Result<T, Fault> {
    let none = || Fault::new(FaultCode::Other(0), "the broker's reply has no result for the address");
    results.into_iter().next().unwrap_or_else(|| Err(none()))
}
