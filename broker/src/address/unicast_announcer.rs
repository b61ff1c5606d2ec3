//! Announces an address to each known neighbour by a unicast request that the neighbour answers: used for
//! `arp_all_hosts = false`.
//!
//! Promises: sends at most three requests, 250 ms apart, to a neighbour that does not answer. Falls back to broadcast when
//! a neighbour has answered none of them, when a gateway is not a known neighbour or that is in doubt, or when no neighbour is
//! known.
//! See RFC 826, and RFC 4861 section 7.2.8.

use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::announcement_queue::{PERIOD, Round};
use super::frame;
use super::gateways::Gateways;
use crate::sys::Netlink;
use crate::sys::interface::Mac;
use crate::sys::neighbour::{self, Neighbour};

/// How many requests a neighbour is sent, and how long it may take to answer each.
const MAX_REQUESTS: usize = 3;
const TIMEOUT: Duration = Duration::from_millis(250);
/// How many neighbours are sent a request in a row.
const MAX_BURST: usize = 16;
/// How long the kernel's table of neighbours is used before it is read again.
const MAX_AGE: Duration = Duration::from_secs(1);

/// The kernel's table of neighbours at one time.
#[derive(Debug)]
struct Snapshot {
    at: Instant,
    neighbours: Vec<Neighbour>,
}

/// The neighbours that one series of announcements is sent to.
#[derive(Debug, Default)]
struct Recipients {
    series: u64,
    /// Those that have not answered, and the number of requests that each was sent.
    unanswered: Vec<(Neighbour, usize)>,
    /// All of them.
    hosts: Vec<IpAddr>,
    /// When the series began.
    began: Option<Instant>,
}

/// The announcements in progress.
pub(super) struct UnicastAnnouncer {
    gateways: Rc<Gateways>,
    snapshot: Option<Snapshot>,
    /// By announced address.
    recipients: HashMap<IpAddr, Recipients>,
}

impl UnicastAnnouncer {
    pub fn new(gateways: Rc<Gateways>) -> Self {
        Self { gateways, snapshot: None, recipients: HashMap::new() }
    }

    /// The frames of a round.
    pub fn frames(&mut self, route: &Netlink, round: &Round, index: u32, own_mac: Mac) -> Vec<Vec<u8>> {
        if self.recipients.get(&round.address).is_none_or(|recipients| recipients.series != round.series) {
            let recipients = self.find_recipients(route, round, index);
            self.recipients.insert(round.address, recipients);
        }
        let Some(recipients) = self.recipients.get(&round.address) else { return Vec::new() };
        if recipients.is_done(round.number) {
            let all_are_told = recipients.unanswered.is_empty()
                && recipients.began.is_some_and(|began| {
                    self.gateways.are_among(&recipients.hosts, index, round.address, began)
                });
            let broadcast = recipients.hosts.is_empty() || !all_are_told;
            return if broadcast { frame::announcement(own_mac, round.address) } else { Vec::new() };
        }
        let next = recipients.unanswered.iter().filter(|(_, sent)| *sent <= round.number).take(MAX_BURST);
        next.map(|(host, _)| frame::unicast_request(own_mac, round.address, (host.mac, host.address)))
            .collect()
    }

    /// The round after one that was sent.
    pub fn next_round(&mut self, round: &Round, now: Instant) -> Round {
        let recipients = self.recipients.get_mut(&round.address);
        let Some(recipients) = recipients.filter(|recipients| !recipients.is_done(round.number)) else {
            self.recipients.remove(&round.address);
            return Round { at: now + PERIOD, began: now + PERIOD, number: 0, ..*round };
        };
        let sent = recipients.unanswered.iter_mut().filter(|(_, sent)| *sent <= round.number).take(MAX_BURST);
        sent.for_each(|(_, sent)| *sent = round.number + 1);
        match recipients.unanswered.iter().any(|(_, sent)| *sent <= round.number) {
            true => *round,
            false => Round { at: now + TIMEOUT, number: round.number + 1, ..*round },
        }
    }

    /// Records that a neighbour answered a request about an address.
    pub fn acknowledge(&mut self, address: IpAddr, neighbour: IpAddr) {
        if let Some(recipients) = self.recipients.get_mut(&address) {
            recipients.unanswered.retain(|(unanswered, _)| unanswered.address != neighbour);
        }
    }

    fn find_recipients(&mut self, route: &Netlink, round: &Round, index: u32) -> Recipients {
        self.gateways.request();
        let none = Recipients { series: round.series, ..Recipients::default() };
        if self.snapshot.as_ref().is_none_or(|snapshot| snapshot.at.elapsed() > MAX_AGE) {
            match neighbour::list(route) {
                Ok(neighbours) => self.snapshot = Some(Snapshot { at: Instant::now(), neighbours }),
                Err(errno) => {
                    tracing::warn!(error = %errno, "cannot list the neighbours; announcing to all hosts");
                    return none;
                }
            }
        }
        let Some(snapshot) = &self.snapshot else { return none };
        let is_recipient = |host: &&Neighbour| {
            host.index == index
                && host.address.is_ipv4() == round.address.is_ipv4()
                && host.address != round.address
        };
        let hosts = snapshot.neighbours.iter().filter(is_recipient);
        Recipients {
            unanswered: hosts.clone().map(|host| (*host, 0)).collect(),
            hosts: hosts.map(|host| host.address).collect(),
            began: Some(round.began),
            ..none
        }
    }
}

impl Recipients {
    /// Whether no more requests are sent in this round.
    fn is_done(&self, round: usize) -> bool {
        round >= MAX_REQUESTS || self.unanswered.is_empty()
    }
}
