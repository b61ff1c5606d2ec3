//! A lease that renews itself for as long as its guard lives, and tells its owner when the address is lost.
//!
//! Promises: the owner is told before the lease ends, whatever the broker does; what the broker tells meanwhile only
//! makes it sooner.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use portreeve_protocol::address::{Lease as Granted, RenewAddress};
use portreeve_protocol::event::Subscribe;
use portreeve_protocol::{EventCode, Fault, FaultCode, Operation as _};
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

use crate::address_options::{AddressOptions, each};
use crate::ask;
use crate::client::Client;
use crate::error::Error;
use crate::followers::FollowerId;

/// The longest lease; one that never ends is renewed as if it had this one.
const LONGEST: Duration = Duration::from_secs(86_400);

impl Client {
    /// Adds an address and keeps it: the lease is renewed at each fifth of it for as long as the guard lives. Where this
    /// peer may subscribe, what the broker tells of the address is heard too, so that a loss is known at once.
    ///
    /// In a session that outlasts its broker ([`Channel::reconnect_through`](crate::Channel::reconnect_through)) the lease
    /// does too: a broker that took over renews it, and one that started afresh is asked to add the address again, with the
    /// same options, as long as the lease has not ended.
    ///
    /// # Errors
    /// [`Error::Fault`] with the broker's reason.
    pub async fn hold_address(&self, address: IpAddr, options: &AddressOptions) -> Result<Lease, Error> {
        let heard = Heard::of(self, address).await?;
        let asked = Instant::now();
        let granted = self.add_addresses(&[address], options).await?;
        let granted = first(granted)?;
        let length = Duration::from_millis(granted.remaining_ms).clamp(Duration::from_secs(1), LONGEST);
        let (tell, state) = watch::channel(State::default());
        let (tell, again) = (Arc::new(tell), Arc::new(Notify::new()));
        let renewing =
            Renewing { client: self.clone(), address, options: *options, length, again: again.clone() };
        let told = tell.clone();
        let renewing = tokio::spawn(async move {
            let why = renewing.until_lost(asked + length).await;
            told.send_modify(|state| state.lost = Some(why));
            // The guard reads it whenever it asks.
            told.closed().await;
        });
        let (client, renewed) = (self.clone(), again.clone());
        // Another broker is asked at once.
        let reminding = tokio::spawn(async move {
            loop {
                client.session().renewed(client.session().generation()).await;
                renewed.notify_one();
            }
        });
        let hearing = heard.map(|heard| tokio::spawn(async move { heard.until_over(&tell, &again).await }));
        let tasks =
            [Some(renewing), Some(reminding), hearing].into_iter().flatten().map(|task| task.abort_handle());
        Ok(Lease { client: Some(self.clone()), epoch: options.epoch, granted, state, tasks: tasks.collect() })
    }
}

/// An address that this program holds. Dropping it has the broker remove the address.
#[must_use = "an address is removed when its guard is dropped"]
#[derive(Debug)]
pub struct Lease {
    client: Option<Client>,
    epoch: u64,
    granted: Granted,
    state: watch::Receiver<State>,
    tasks: Vec<AbortHandle>,
}

/// What became of an address that is held.
#[derive(Debug, Default)]
struct State {
    leaving: Option<Duration>,
    lost: Option<Error>,
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

    /// Waits until the address is lost and says why: the lease could not be renewed in time, or the session is over, or the
    /// next broker refuses the address.
    /// From then on this host may not use it.
    pub async fn lost(&mut self) -> Error {
        match self.state.wait_for(|state| state.lost.is_some()).await {
            Ok(state) => state.lost.clone().unwrap_or(Error::Closed),
            Err(_) => Error::Closed,
        }
    }

    /// Waits until the broker is about to remove the address, and says how long this program has to let go of it; nothing
    /// where it is lost. It is heard of only where this peer may subscribe.
    pub async fn leaving(&mut self) -> Duration {
        let leaves = |state: &State| state.leaving.is_some() || state.lost.is_some();
        match self.state.wait_for(leaves).await {
            Ok(state) => state.leaving.unwrap_or_default(),
            Err(_) => Duration::ZERO,
        }
    }

    /// Removes the address and says whether it was seen to be gone.
    ///
    /// # Errors
    /// As for every request.
    pub async fn remove(mut self) -> Result<bool, Error> {
        self.tasks.iter().for_each(AbortHandle::abort);
        let Some(client) = self.client.take() else { return Ok(false) };
        let removed = client.remove_addresses(&[self.address()], self.epoch).await?;
        Ok(first(removed)?.verified)
    }

    /// Stops renewing without removing: the address stays until its lease ends.
    pub fn let_run_out(mut self) {
        self.client = None;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
        if let (Some(client), Ok(runtime)) = (self.client.take(), tokio::runtime::Handle::try_current()) {
            let (address, epoch) = (self.address(), self.epoch);
            runtime.spawn(async move { client.remove_addresses(&[address], epoch).await });
        }
    }
}

/// What a broker answered, and which of those that the session had it was.
type Told = (Result<Granted, Fault>, u64);

struct Renewing {
    client: Client,
    address: IpAddr,
    options: AddressOptions,
    length: Duration,
    /// Something happened to the address: whether the lease lasts is worth asking at once.
    again: Arc<Notify>,
}

impl Renewing {
    /// Renews until that fails for good, and says why. The lease ends no later than it does for the broker, for it is
    /// reckoned from before each request was sent.
    async fn until_lost(&self, mut end: Instant) -> Error {
        let session = self.client.session();
        let mut generation = session.generation();
        loop {
            let _renewed_by_the_clock_or_at_once =
                tokio::time::timeout(self.length / 5, self.again.notified()).await;
            let asked = Instant::now();
            let mut renewed = tokio::time::timeout_at(end.into(), self.renew()).await;
            // Another broker that does not know the address had it removed at its start.
            if let Ok(Ok((Err(why), told))) = &renewed
                && why.code == FaultCode::NotFound
                && *told != generation
            {
                renewed = tokio::time::timeout_at(end.into(), self.add()).await;
            }
            let why = match renewed {
                Err(_) => return Error::Fault(over(self.address)),
                // The next broker is asked, if there is one in time.
                Ok(Err(why)) if session.lasts(&why) => continue,
                Ok(Err(why)) => return why,
                Ok(Ok((Ok(_), told))) => {
                    (end, generation) = (asked + self.length, told);
                    continue;
                }
                Ok(Ok((Err(why), _))) => why,
            };
            // What may pass is tried again while the lease lasts.
            let passing = matches!(why.code, FaultCode::Busy | FaultCode::Os | FaultCode::NotLocal);
            if !passing || Instant::now() >= end {
                return Error::Fault(why);
            }
        }
    }

    async fn renew(&self) -> Result<Told, Error> {
        let AddressOptions { lease, epoch, .. } = self.options;
        let renew = RenewAddress { addresses: ask::list(&[self.address])?, lease, epoch };
        let (leases, generation) = self.client.session().call_noting(&renew).await?;
        Ok((first(each(leases.results.into_vec())), generation))
    }

    async fn add(&self) -> Result<Told, Error> {
        let add = self.options.add(&[self.address])?;
        let (leases, generation) = self.client.session().call_noting(&add).await?;
        Ok((first(each(leases.results.into_vec())), generation))
    }
}

/// What the broker tells of one address.
struct Heard {
    client: Client,
    id: FollowerId,
}

impl Heard {
    /// Begins to hear, where this peer may.
    async fn of(client: &Client, address: IpAddr) -> Result<Option<Self>, Error> {
        if !client.session().may(Subscribe::NAME) {
            return Ok(None);
        }
        let id = client.session().followers(|followers| followers.add(Some(address), false));
        let heard = Self { client: client.clone(), id };
        heard.client.session().follow().await?;
        Ok(Some(heard))
    }

    /// What is heard may be of an earlier stay of the address, so it is only a reason to ask.
    async fn until_over(&self, tell: &watch::Sender<State>, again: &Notify) {
        while let Ok(event) = self.client.session().event(self.id).await {
            match event.code {
                EventCode::AddressLeaving => {
                    tell.send_modify(|state| state.leaving = Some(Duration::from_millis(event.count)));
                }
                EventCode::AddressAdded => tell.send_modify(|state| state.leaving = None),
                EventCode::AddressRestored | EventCode::AddressConflict => {}
                _ => again.notify_one(),
            }
        }
    }
}

impl Drop for Heard {
    fn drop(&mut self) {
        self.client.session().unfollow(self.id);
    }
}

fn over(address: IpAddr) -> Fault {
    Fault::new(FaultCode::Expired, &format!("the lease of {address} ended before the broker renewed it"))
}

/// What became of the one address that was asked for.
fn first<T>(results: Vec<Result<T, Fault>>) -> Result<T, Fault> {
    let nothing = || Fault::new(FaultCode::Other(0), "the broker answered for no address");
    results.into_iter().next().unwrap_or_else(|| Err(nothing()))
}
