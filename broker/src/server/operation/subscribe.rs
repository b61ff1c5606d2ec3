//! Subscribe: what happened lately, and from now on what happens, as far as it concerns the peer or it may know all.

use std::fmt;
use std::rc::Rc;

use portreeve_protocol::event::{Subscribe, Subscribed};
use portreeve_protocol::{Fault, List};

use super::audit::Arguments;
use crate::server::session::Session;
use crate::server::state::Broker;
use crate::server::subscription;

impl Arguments for Subscribe {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "follow {} all {}", self.follow, self.all)
    }
}

pub async fn subscribe(
    broker: Rc<Broker>,
    session: Rc<Session>,
    request: Rc<Subscribe>,
) -> Result<Subscribed, Fault> {
    let wants_all = request.all;
    let all = wants_all && subscription::may_see_all(&broker, &session);
    let recent = broker.events.recent(|told| subscription::sees(&broker, &session, wants_all, told));
    if request.follow {
        // Weak, for the broker owns its events; and the session's end forgets the subscription.
        let (of, whose) = (Rc::downgrade(&broker), Rc::downgrade(&session));
        let sees = move |told: &_| match (of.upgrade(), whose.upgrade()) {
            (Some(broker), Some(session)) => subscription::sees(&broker, &session, wants_all, told),
            _ => false,
        };
        let subscriber = broker.events.subscribe(session.number, session.holder(), Box::new(sees));
        tokio::task::spawn_local(subscription::serve(broker, session, subscriber));
    } else {
        broker.events.forget(session.number);
    }
    Ok(Subscribed { all, recent: List::truncated(recent) })
}
