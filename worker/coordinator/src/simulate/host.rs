//! A simulated host: its clock, its broker, and the coordinator that runs on it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::Event;
use crate::core::decide::{BrokerCall, BrokerReply, Facts, Node, Refusal, Stage};
use crate::core::time::BootTime;

/// A clock with a wrong rate that began to count at some instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Clock {
    /// What it showed at `since`.
    pub offset: u64,
    /// The instant, by the simulation's clock.
    pub since: u64,
    /// The error of its rate in millionths.
    pub error: i64,
}

impl Clock {
    const MILLION: i128 = 1_000_000;

    /// What it shows at an instant.
    pub fn at(&self, instant: u64) -> BootTime {
        let passed = i128::from(instant.saturating_sub(self.since));
        let counted = passed * (Self::MILLION + i128::from(self.error)) / Self::MILLION;
        BootTime(self.offset.saturating_add(u64::try_from(counted).unwrap_or_default()))
    }

    /// The instant at which it shows a time.
    pub fn instant(&self, time: BootTime) -> u64 {
        let counted = i128::from(time.0.saturating_sub(self.offset));
        let passed = counted * Self::MILLION / (Self::MILLION + i128::from(self.error)) + 1;
        self.since.saturating_add(u64::try_from(passed).unwrap_or(u64::MAX))
    }
}

/// What a broker has, and what its kernel has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Broker {
    /// The addresses with epoch and deadline. Those of a broker that was killed stay until the next one starts.
    pub leases: BTreeMap<IpAddr, (u64, BootTime)>,
    /// The highest epochs that it has seen; the next broker does not know them.
    pub epochs: BTreeMap<IpAddr, u64>,
    /// Addresses that it refuses to add.
    pub refuses: Vec<IpAddr>,
}

/// What a call changes on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wire {
    /// The host answers for the address until then.
    Answers(IpAddr, BootTime),
    /// It does not any more.
    Stops(IpAddr),
}

impl Broker {
    /// Performs a call.
    pub fn call(&mut self, now: BootTime, call: &BrokerCall) -> (BrokerReply, Vec<Wire>) {
        self.leases.retain(|_, (_, until)| *until > now);
        let mut wire = Vec::new();
        let reply = match call {
            BrokerCall::Add { leases, until, .. } => {
                let mut add = |address: IpAddr, epoch: u64| {
                    let newest = self.epochs.entry(address).or_default();
                    if epoch < *newest {
                        return Err(Refusal::OldEpoch);
                    }
                    *newest = epoch;
                    if *until <= now {
                        return Err(Refusal::TooLate);
                    }
                    if self.refuses.contains(&address) {
                        return Err(Refusal::Other("refused".to_owned()));
                    }
                    self.leases.insert(address, (epoch, *until));
                    wire.push(Wire::Answers(address, *until));
                    Ok(())
                };
                let results = leases.iter().map(|(address, epoch)| (*address, *epoch, add(*address, *epoch)));
                BrokerReply::Added(results.collect())
            }
            BrokerCall::RenewAll { until } => {
                if *until > now {
                    for (address, (_, deadline)) in &mut self.leases {
                        *deadline = *until;
                        wire.push(Wire::Answers(*address, *until));
                    }
                }
                BrokerReply::Renewed(self.leases.len())
            }
            BrokerCall::Remove { leases } => {
                let mut results = Vec::new();
                for (address, _) in leases {
                    self.leases.remove(address);
                    wire.push(Wire::Stops(*address));
                    results.push((*address, true));
                }
                BrokerReply::Removed(results)
            }
            BrokerCall::List => {
                let listed = self.leases.iter().map(|(address, (epoch, _))| (*address, *epoch));
                BrokerReply::Listed(listed.collect())
            }
        };
        (reply, wire)
    }
}

/// A host.
#[derive(Clone, Debug)]
pub struct Host {
    /// Its clock; a new one with each boot.
    pub clock: Clock,
    /// Counts its boots.
    pub boot: u32,
    /// Whether it is powered on.
    pub is_up: bool,
    /// The coordinator; `None`: killed.
    pub node: Option<Node>,
    /// Counts the coordinators and the connections to brokers.
    pub generation: u32,
    /// Counts the brokers.
    pub broker_generation: u32,
    /// The broker.
    pub broker: Broker,
    /// Whether the broker runs.
    pub broker_is_up: bool,
    /// Until when the coordinator is stopped by SIGSTOP.
    pub node_stopped: u64,
    /// Until when the broker is stopped by SIGSTOP.
    pub broker_stopped: u64,
    /// Whether it reaches the engine, and whether the engine's replies reach it.
    pub link: (bool, bool),
    /// Whether what it sends to other hosts arrives, and whether what they send to it does.
    pub peers: (bool, bool),
    /// What the coordinator is told about the host.
    pub facts: Facts,
    /// The number of the coordinator's watch.
    pub watch: u64,
    /// When the next call reaches the broker at the earliest: calls keep their order.
    pub call_at: u64,
    /// The same for replies.
    pub reply_at: u64,
    /// When the broker may send the next frame.
    pub frames_at: u64,
    /// When the coordinator's next wake is planned.
    pub wake_at: u64,
    /// Whether the coordinator was told to leave.
    pub is_leaving: bool,
    /// What came for the coordinator while it was stopped.
    pub(super) node_queue: Vec<Event>,
    /// What came for the broker while it was stopped.
    pub(super) broker_queue: Vec<Event>,
}

impl Host {
    /// Whether no coordinator runs.
    pub fn is_stopped(&self) -> bool {
        let stage = self.node.as_ref().map(Node::stage);
        stage.is_none_or(|stage| matches!(stage, Stage::Left | Stage::Refused(_)))
    }
}
