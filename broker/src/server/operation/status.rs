//! Status: the processes and what was verified of them, the sessions, and a page of the listeners.

use std::fmt;

use portreeve_protocol::message::{ListenerId, StatusRequest};
use portreeve_protocol::status::{Listener, Quota, Session as SessionRow, Status};
use portreeve_protocol::{Fault, List, Text};

use super::Done;
use super::handler::{Handler, Immediate};
use crate::listener::Owner;
use crate::policy::{OperationPermit, Policy, Requester};
use crate::server::session::Session;
use crate::server::state::{Broker, RELEASE};

/// How many listeners one reply lists.
const PAGE: usize = 128;

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
        let sessions = sessions.iter().map(|(number, info)| SessionRow {
            id: *number,
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

/// The quotas, by the names of their options.
pub(super) fn quotas(broker: &Broker) -> impl Iterator<Item = Quota> {
    let quotas = broker.accounts.quotas().named().into_iter();
    quotas.map(|(name, limit)| Quota { name: Text::truncated(name), limit })
}
