//! Subscribe: recent events, and from now on new ones: those that concern the peer, or all if the peer is allowed to see
//! them.

use std::fmt;
use std::rc::Rc;

use portreeve_protocol::event::{Subscribe, Subscribed};
use portreeve_protocol::{Fault, List};

use super::handler::{Deferred, Handler};
use crate::events::Record;
use crate::policy::{Permit, Policy, Requester, Rule};
use crate::server::session::Session;
use crate::server::state::Broker;
use crate::server::subscription;

/// Permission to subscribe.
pub struct SubscribePermit {
    /// To all events, or only to those that concern the peer.
    all: bool,
}

/// It names no rule: permission for the operation is enough.
impl Permit for SubscribePermit {
    fn for_each_rule(&self, _: &mut dyn FnMut(&Rule)) {}
}

impl Handler for Subscribe {
    const CHANGES_STATE: bool = false;
    type Permit = SubscribePermit;

    fn decide(&self, policy: &Policy, requester: &Requester) -> Result<SubscribePermit, Fault> {
        Ok(SubscribePermit { all: self.all && subscription::may_see_all(policy, requester) })
    }

    fn arguments(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match (self.follow, self.all) {
            (false, false) => "recent",
            (true, false) => "recent, follow",
            (false, true) => "recent, of all peers",
            (true, true) => "recent, follow, of all peers",
        })
    }
}

impl Deferred for Subscribe {
    async fn act(
        self: Rc<Self>,
        permit: Rc<SubscribePermit>,
        broker: Rc<Broker>,
        session: Rc<Session>,
    ) -> Result<Subscribed, Fault> {
        let recent = {
            let policy = broker.policy.borrow();
            let is_visible =
                |record: &Record| permit.all || subscription::concerns(&policy, &session, record);
            broker.events.recent(is_visible)
        };
        if self.follow {
            // The current policy decides about each event when it happens: a reload may change which events the peer sees.
            // Weak references, because the broker owns its events, and the end of the session removes the subscription.
            let (weak_broker, weak_session) = (Rc::downgrade(&broker), Rc::downgrade(&session));
            let is_visible = move |record: &Record| match (weak_broker.upgrade(), weak_session.upgrade()) {
                (Some(broker), Some(session)) => {
                    let policy = broker.policy.borrow();
                    subscription::concerns(&policy, &session, record)
                        || self.all && subscription::may_see_all(&policy, &session.requester)
                }
                _ => false,
            };
            let subscriber = broker.events.subscribe(session.number, session.holder(), Box::new(is_visible));
            tokio::task::spawn_local(subscription::serve(broker, session, subscriber));
        } else {
            broker.events.unsubscribe(session.number);
        }
        Ok(Subscribed { all: permit.all, recent: List::truncated(recent) })
    }
}
