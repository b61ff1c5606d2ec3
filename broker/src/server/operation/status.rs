//! Status: the processes and what was verified of them, the sessions, and a page of the listeners.

use std::collections::BTreeMap;
use std::fmt;

use portreeve_protocol::message::{ListenerId, StatusRequest};
use portreeve_protocol::status::{Listener, Quota, Session as SessionRow, Status};
use portreeve_protocol::{Fault, List, Text};

use super::Done;
use super::handler::{Handler, Immediate};
use crate::listener::Owner;
use crate::policy::{OperationPermit, Policy, Requester};
use crate::server::session::Session;
use crate::server::state::{Broker, RELEASE, SessionInfo};

/// How many listeners one reply lists.
const PAGE: usize = 128;
/// How many sessions one reply lists.
const SESSIONS: usize = 64;

impl Handler for StatusRequest {
    const CHANGES_STATE: bool = false;
    const FREQUENT: bool = true;
    type Permit = OperationPermit;

    fn decide(&self, _: &Policy, _: &Requester) -> Result<OperationPermit, Fault> {
        Ok(OperationPermit)
    }

    fn arguments(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "after {}", self.after)
    }
}

impl Immediate for StatusRequest {
    fn act(&self, _: &OperationPermit, broker: &Broker, _: &Session) -> Result<Done<Status>, Fault> {
        broker.registry.borrow_mut().end_closed_after(ListenerId(self.after), PAGE);
        let registry = broker.registry.borrow();
        let mut rest = registry.iter_after(ListenerId(self.after)).map(|(id, entry)| Listener {
            id,
            endpoint: Text::truncated(&entry.endpoint.to_string()),
            owner: Text::truncated(&match (&entry.name, entry.owner) {
                (Some(name), _) if entry.floating => format!("duravip {name}"),
                (Some(name), _) => format!("static {name}"),
                (None, Owner::Worker) => "worker".to_owned(),
                (None, Owner::Session(number)) => format!("session {number}"),
                (None, Owner::Former(user)) => format!("user {user}, disconnected"),
            }),
            retained: entry.retained_until.is_some(),
        });
        let page: Vec<Listener> = rest.by_ref().take(PAGE).collect();
        let next = if rest.next().is_some() { page.last().map_or(0, |listener| listener.id.0) } else { 0 };
        let sessions = broker.sessions.borrow();
        let sessions = shown(&sessions).into_iter().map(|(number, info)| SessionRow {
            id: number,
            peer: Text::truncated(&info.requester.to_string()),
            client: info.client.clone(),
            pid: info.pid,
            listeners: u32::try_from(registry.count_of(info.owner)).unwrap_or(u32::MAX),
            refused: info.account.refusals(),
        });
        Ok(Done::new(Status {
            release: Text::truncated(RELEASE),
            uptime_ms: u64::try_from(broker.uptime().as_millis()).unwrap_or(u64::MAX),
            processes: List::truncated(broker.process_rows()),
            warnings: broker.warnings(),
            quotas: List::truncated(quotas(broker)),
            listeners_held: registry.count() as u64,
            sessions: List::truncated(sessions),
            listeners: List::truncated(page),
            next,
        }))
    }
}

/// The sessions that a reply has room for, by number. Each peer's first sessions come before any peer's further ones, so
/// that a peer with many sessions does not hide those of others.
fn shown(sessions: &BTreeMap<u64, SessionInfo>) -> Vec<(u64, &SessionInfo)> {
    let mut counts = BTreeMap::new();
    let mut ranked: Vec<(usize, u64, &SessionInfo)> = Vec::with_capacity(sessions.len());
    for (number, info) in sessions {
        let rank: &mut usize = counts.entry(info.account.peer()).or_default();
        ranked.push((*rank, *number, info));
        *rank += 1;
    }
    ranked.sort_by_key(|(rank, number, _)| (*rank, *number));
    let mut shown: Vec<_> =
        ranked.into_iter().take(SESSIONS).map(|(_, number, info)| (number, info)).collect();
    shown.sort_by_key(|(number, _)| *number);
    shown
}

/// The quotas, by the names of their options.
pub(super) fn quotas(broker: &Broker) -> impl Iterator<Item = Quota> {
    let quotas = broker.accounts.quotas().named().into_iter();
    quotas.map(|(name, limit)| Quota { name: Text::truncated(name), limit })
}
