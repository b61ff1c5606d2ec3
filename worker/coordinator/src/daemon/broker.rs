//! The broker's side: one session after another, and what the decisions ask of it.
//!
//! Promises: requests are sent in the order of the calls. No lease gets an end that lies after the one that was decided,
//! whatever the clocks of two time namespaces show.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use portreeve::address::{AddressPage, Bounds};
use portreeve::{AddressOptions, Channel, Client, Error, Event, EventCode, FaultCode};
use tokio::time::timeout;

use super::clock;
use super::failure::Failure;
use super::settings::{Settings, Unusable};
use crate::core::decide::{BrokerCall, BrokerReply, Refusal};
use crate::core::time::BootTime;

/// The name of this program in the broker's log.
const CLIENT: &str = "portreeve-coordinator";
/// How long a new broker may take for its first replies.
const OPEN: Duration = Duration::from_secs(10);
/// The pauses between attempts to connect, at first and at most.
const RETRY: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];
/// An IPv6 address whose lease ends earlier than this from now is added without the kernel's duplicate address detection. That
/// takes up to 2.6 s, and the broker renews no address before it has ended.
const DETECTION: Duration = Duration::from_secs(4);
/// How many addresses a request names: with those that follow them, they must fit into the broker's limit of 256.
const BATCH: usize = 64;
/// How many requests of one call are in flight at once; a broker serves 256 of a peer.
const AT_ONCE: usize = 64;
/// The broker refuses a lease that ends earlier than this from now.
const SHORTEST_LEASE: Duration = Duration::from_secs(1);

/// What happens to the session.
pub enum Change {
    /// A session was opened.
    Connected(Session, Box<Settings>),
    /// The settings may have changed.
    Settings(Box<Settings>),
    /// Another host uses the address; the text is its hardware address.
    Conflict(IpAddr, String),
    /// The session ended.
    Disconnected,
}

/// A session with a broker.
#[derive(Clone)]
pub struct Session {
    client: Client,
    /// How the broker names this user in its lists.
    user: String,
    shared: Rc<RefCell<Shared>>,
}

#[derive(Default)]
struct Shared {
    /// The broker's clock minus this process's, at least by so many nanoseconds.
    offset: i128,
    /// The addresses that the broker added because they follow another.
    followers: BTreeSet<IpAddr>,
    bounds: Option<Bounds>,
}

/// Opens sessions one after another, and reports them. Ends only if the settings of the first one cannot be used. Later ones that
/// cannot be used change nothing: what is in force stays.
pub async fn connect(path: PathBuf, mut report: impl FnMut(Change)) -> Failure {
    let [first, most] = RETRY;
    let mut pause = first;
    let mut last = String::new();
    let mut is_first = true;
    loop {
        let text = match timeout(OPEN, open(&path)).await {
            Ok(Ok((session, settings))) => {
                tracing::info!(broker = %path.display(), user = %session.user, "connected to the broker");
                (pause, is_first, last) = (first, false, String::new());
                report(Change::Connected(session.clone(), Box::new(settings)));
                let ended = session.follow(&mut report).await;
                report(Change::Disconnected);
                format!("the session with the broker ended: {ended}")
            }
            Ok(Err(Unusable::Config(failure))) if is_first => return failure,
            Ok(Err(Unusable::Config(failure))) => failure.to_string(),
            Ok(Err(Unusable::Session(error))) => error.to_string(),
            Err(_) => format!("the broker at {} does not answer", path.display()),
        };
        // One line for each reason, not for each attempt.
        if text != last {
            tracing::warn!(error = %text, "no session with the broker; it is tried again");
            last = text;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(most);
    }
}

async fn open(path: &Path) -> Result<(Session, Settings), Unusable> {
    let path = path.to_owned();
    // connect(2) waits while the socket's queue of connections is full.
    let connected = tokio::task::spawn_blocking(move || Channel::connect(&path)).await;
    let Ok(channel) = connected else { return Err(Error::Closed.into()) };
    let client = Client::open(channel?, CLIENT).await?;
    let user = client.welcome().map(|welcome| welcome.peer.to_string()).unwrap_or_default();
    let session = Session { client, user, shared: Rc::default() };
    let settings = session.settings().await?;
    Ok((session, settings))
}

impl Session {
    /// Reads the settings, and on the way the broker's clock.
    async fn settings(&self) -> Result<Settings, Unusable> {
        let page = self.client.addresses(None).await;
        let page = match page {
            // The settings say what is missing.
            Err(Error::Fault(_)) => AddressPage::default(),
            other => other?,
        };
        self.learn(&page);
        let bounds = self.shared.borrow().bounds;
        let unfenced = Bounds { ipv4_fenced: false, ipv6_fenced: false };
        Settings::read(&self.client, bounds.unwrap_or(unfenced)).await
    }

    /// Follows the broker's events until the session ends.
    async fn follow(&self, report: &mut impl FnMut(Change)) -> Error {
        let mut events = match self.client.events(false).await {
            Ok(events) => events,
            Err(Error::Fault(fault)) => {
                tracing::warn!(error = %fault, "no events of the broker: this program does not notice reloads");
                return self.client.closed().await;
            }
            Err(error) => return error,
        };
        loop {
            match events.next().await {
                Ok(event) if matches!(event.code, EventCode::Reloaded | EventCode::Gap) => {
                    match self.settings().await {
                        Ok(settings) => report(Change::Settings(Box::new(settings))),
                        Err(Unusable::Config(failure)) => {
                            tracing::error!(
                                "the changed settings are not used, the former ones stay in force: {failure}"
                            );
                        }
                        Err(Unusable::Session(error)) => return error,
                    }
                }
                Ok(Event { code: EventCode::AddressConflict, address: Some(address), detail, .. }) => {
                    report(Change::Conflict(address, detail.to_string()));
                }
                Ok(_) => {}
                Err(error) => return error,
            }
        }
    }

    /// What ends the leases if the broker does not, as it said last.
    pub fn bounds(&self) -> Option<Bounds> {
        self.shared.borrow().bounds
    }

    fn learn(&self, page: &AddressPage) {
        if let Some(times) = &page.times.0 {
            self.learn_times(times.leases.now, times.bounds);
        }
    }

    /// The broker read its clock before now. So its clock is ahead by at least the difference.
    fn learn_times(&self, broker: u64, bounds: Bounds) {
        let offset = i128::from(broker) - i128::from(clock::now().0);
        let mut shared = self.shared.borrow_mut();
        shared.offset = match shared.bounds {
            Some(_) => shared.offset.max(offset),
            None => offset,
        };
        shared.bounds = Some(bounds);
    }

    /// An instant on the broker's clock, or a little earlier.
    fn at_broker(&self, instant: BootTime) -> u64 {
        let instant = i128::from(instant.0) + self.shared.borrow().offset;
        u64::try_from(instant.max(0)).unwrap_or(u64::MAX)
    }

    /// Performs a call. `None`: the session ended.
    pub async fn perform(&self, call: BrokerCall) -> Option<BrokerReply> {
        let reply = match call {
            BrokerCall::Add { leases, until, probes } => self.add(&leases, until, probes).await,
            BrokerCall::RenewAll { until } => self.renew_all(until).await,
            BrokerCall::Remove { leases } => self.remove(&leases).await,
            BrokerCall::List => self.list().await,
        };
        match reply {
            Ok(reply) => Some(reply),
            Err(error) => {
                tracing::warn!(error = %error, "a request to the broker has no reply");
                None
            }
        }
    }

    async fn add(&self, leases: &[(IpAddr, u64)], until: BootTime, probes: u8) -> Result<BrokerReply, Error> {
        let has_time = until.since(clock::now()) > DETECTION;
        let end = self.at_broker(until);
        let batches = batches(leases).into_iter().map(async |(epoch, addresses)| {
            // A request has addresses of one family.
            let may_probe = has_time || addresses.iter().all(IpAddr::is_ipv4);
            let probes = if may_probe { probes } else { 0 };
            let options = AddressOptions::new().until(end).epoch(epoch).probes(probes);
            let results = self.client.add_addresses(&addresses, &options).await;
            (epoch, addresses, results)
        });
        let mut added = Vec::new();
        let mut replies = stream::iter(batches).buffered(AT_ONCE);
        while let Some((epoch, addresses, results)) = replies.next().await {
            let results = match results {
                Ok(results) => results,
                Err(Error::Fault(fault)) => vec![Err(fault); addresses.len()],
                Err(error) => return Err(error),
            };
            // Results of followers come after those that were requested.
            let followers = results.iter().skip(addresses.len()).flatten().map(|lease| lease.address);
            self.shared.borrow_mut().followers.extend(followers);
            for (address, result) in addresses.into_iter().zip(results) {
                let result = result.map(drop).map_err(|fault| {
                    let is_in_time = until.since(clock::now()) > SHORTEST_LEASE;
                    match fault.code {
                        FaultCode::Expired if is_in_time => Refusal::OldEpoch,
                        FaultCode::Expired => Refusal::TooLate,
                        _ => Refusal::Other(fault.to_string()),
                    }
                });
                added.push((address, epoch, result));
            }
        }
        Ok(BrokerReply::Added(added))
    }

    async fn renew_all(&self, until: BootTime) -> Result<BrokerReply, Error> {
        match self.client.renew_all_until(self.at_broker(until)).await {
            Ok(renewed) => {
                self.learn_times(renewed.now, renewed.bounds);
                let followers = self.shared.borrow().followers.len();
                let count = usize::try_from(renewed.renewed).unwrap_or(usize::MAX);
                Ok(BrokerReply::Renewed(count.saturating_sub(followers)))
            }
            Err(Error::Fault(fault)) => {
                tracing::warn!(error = %fault, "the broker renews no address");
                Ok(BrokerReply::Renewed(0))
            }
            Err(error) => Err(error),
        }
    }

    async fn remove(&self, leases: &[(IpAddr, u64)]) -> Result<BrokerReply, Error> {
        let batches = batches(leases).into_iter().map(async |(epoch, addresses)| {
            let results = self.client.remove_addresses(&addresses, epoch).await;
            (addresses, results)
        });
        let mut removed = Vec::new();
        let mut replies = stream::iter(batches).buffered(AT_ONCE);
        while let Some((addresses, results)) = replies.next().await {
            let results = match results {
                Ok(results) => results,
                Err(Error::Fault(fault)) => vec![Err(fault); addresses.len()],
                Err(error) => return Err(error),
            };
            for removal in results.iter().skip(addresses.len()).flatten() {
                self.shared.borrow_mut().followers.remove(&removal.address);
            }
            for (address, result) in addresses.into_iter().zip(results) {
                let is_verified = match result {
                    Ok(removal) => removal.verified,
                    Err(fault) => {
                        let is_absent = fault.code == FaultCode::NotFound;
                        if !is_absent {
                            tracing::warn!(%address, error = %fault, "the broker does not remove the address");
                        }
                        is_absent
                    }
                };
                removed.push((address, is_verified));
            }
        }
        Ok(BrokerReply::Removed(removed))
    }

    /// The addresses of this user.
    async fn list(&self) -> Result<BrokerReply, Error> {
        let (mut listed, mut followers) = (Vec::new(), BTreeSet::new());
        let mut after = None;
        loop {
            let page = match self.client.addresses(after).await {
                Err(Error::Fault(fault)) => {
                    tracing::warn!(error = %fault, "the broker lists no address");
                    break;
                }
                other => other?,
            };
            self.learn(&page);
            after = page.addresses.last().map(|row| row.lease.address);
            for row in page.addresses.iter().filter(|row| *row.holder == *self.user) {
                match row.lease.follows {
                    Some(_) => drop(followers.insert(row.lease.address)),
                    None => listed.push((row.lease.address, row.lease.epoch)),
                }
            }
            if !page.more || after.is_none() {
                break;
            }
        }
        self.shared.borrow_mut().followers = followers;
        Ok(BrokerReply::Listed(listed))
    }
}

/// The addresses of each epoch, in batches that fit into a request. An IPv4 address does not wait for IPv6 addresses.
fn batches(leases: &[(IpAddr, u64)]) -> Vec<(u64, Vec<IpAddr>)> {
    let mut epochs: BTreeMap<(u64, bool), Vec<IpAddr>> = BTreeMap::new();
    for (address, epoch) in leases {
        epochs.entry((*epoch, address.is_ipv6())).or_default().push(*address);
    }
    let chunks = |((epoch, _), addresses): ((u64, bool), Vec<IpAddr>)| -> Vec<(u64, Vec<IpAddr>)> {
        addresses.chunks(BATCH).map(|chunk| (epoch, chunk.to_vec())).collect()
    };
    epochs.into_iter().flat_map(chunks).collect()
}
