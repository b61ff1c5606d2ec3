//! Subscriptions: a session's peer is sent events as they come, beside its answers.
//!
//! Promises: a peer that does not read keeps its own events waiting and nobody else's; a session that is over is sent none.

use std::rc::Rc;

use portreeve_protocol::{Kind, codec};

use super::session::{Session, Turn};
use super::state::{Broker, Buffers};
use crate::events::{Concern, Subscriber, Told};
use crate::holder::Holder;
use crate::policy::Requester;

/// Whether a peer may know of an event; with `all` of those too that do not concern it.
pub fn sees(broker: &Broker, session: &Session, all: bool, told: &Told) -> bool {
    let policy = broker.policy.borrow();
    let own = || session.holder();
    let concerned = match &told.concern {
        Concern::Everyone => true,
        Concern::Holder(holder) => *holder == own(),
        Concern::Interface(holders) => {
            holders.contains(&own()) || policy.interface(&session.requester, &told.event.interface).is_ok()
        }
        Concern::Operator => false,
    };
    concerned || all && may_see_all(broker, session)
}

/// Whether a peer may know of everything.
pub fn may_see_all(broker: &Broker, session: &Session) -> bool {
    broker.policy.borrow().operation(&session.requester, "status").is_ok()
}

/// Sends events for as long as the session and its subscription last.
pub async fn serve(broker: Rc<Broker>, session: Rc<Session>, subscriber: Rc<Subscriber>) {
    while let Some(event) = subscriber.next().await {
        let turn = {
            let Buffers { outbox, .. } = &mut *broker.buffers.borrow_mut();
            match codec::encode(outbox, Kind::EVENT, 0, 0, &event) {
                Ok(frame) => session.send_now(frame, &[]),
                Err(error) => Turn::Over(error.to_string()),
            }
        };
        let sent = match turn {
            Turn::Answered => Ok(()),
            Turn::Waiting { frame, .. } => {
                session.send_waiting(&frame, &[]).await.map_err(|error| error.to_string())
            }
            Turn::Over(why) => Err(why),
        };
        if let Err(why) = sent {
            // The session ends by itself when its peer is gone.
            tracing::debug!(session = session.number, why, "an event was not sent");
            return;
        }
    }
}

impl Session {
    /// Whose addresses its peer's are.
    pub fn holder(&self) -> Holder {
        match self.requester {
            Requester::Worker => Holder::Worker,
            Requester::Local { uid, .. } => Holder::User(uid),
        }
    }
}
