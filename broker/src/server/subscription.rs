//! Subscriptions: a session's peer gets events as they happen, between the replies to its requests.
//!
//! Promises: a peer that does not read delays only its own events; a session that has ended gets none.

use std::rc::Rc;

use portreeve_protocol::{Kind, codec};

use super::session::{Session, Step};
use super::state::{Broker, Buffers};
use crate::events::{Audience, Record, Subscriber};
use crate::holder::Holder;
use crate::policy::{Policy, Requester};

/// Whether an event concerns a peer, so that the peer sees it even without the permission to see all events.
pub fn concerns(policy: &Policy, session: &Session, record: &Record) -> bool {
    let peer = || session.holder();
    match &record.audience {
        Audience::Everyone => true,
        Audience::Holder(holder) => *holder == peer(),
        Audience::Interface(holders) => {
            holders.contains(&peer()) || policy.interface(&session.requester, &record.event.interface).is_ok()
        }
        Audience::Operator => false,
    }
}

/// Whether a peer is allowed to see all events.
pub fn may_see_all(policy: &Policy, requester: &Requester) -> bool {
    policy.operation(requester, "status").is_ok()
}

/// Sends events until the session or its subscription ends.
pub async fn serve(broker: Rc<Broker>, session: Rc<Session>, subscriber: Rc<Subscriber>) {
    while let Some(event) = subscriber.next().await {
        session.await_reply().await;
        let step = {
            let Buffers { outbox, .. } = &mut *broker.buffers.borrow_mut();
            match codec::encode(outbox, Kind::EVENT, 0, 0, &event) {
                Ok(frame) => session.send_frame(frame),
                Err(error) => Step::Close(format!("cannot encode an event: {error}")),
            }
        };
        let sent = match step {
            Step::Continue => Ok(()),
            Step::Wait(event) => session.send_waiting(event.frame()).await.map_err(|error| error.to_string()),
            Step::Close(reason) => Err(reason),
        };
        if let Err(reason) = sent {
            // The session ends by itself when its peer closes the channel.
            tracing::debug!(session = session.number, reason, "an event was not sent");
            return;
        }
    }
}

impl Session {
    /// The holder of its peer's addresses.
    pub fn holder(&self) -> Holder {
        match self.requester {
            Requester::Worker => Holder::Worker,
            Requester::Local { uid, .. } => Holder::User(uid),
        }
    }
}
