//! Events of the asynchronous client.

use std::collections::VecDeque;

use portreeve_protocol::Event;

use crate::client::Client;
use crate::error::Error;
use crate::subscribers::SubscriberId;

/// A stream of events. Dropping it ends its subscription.
#[derive(Debug)]
pub struct Events {
    client: Client,
    id: SubscriberId,
    recent: VecDeque<Event>,
}

impl Client {
    /// Subscribes to events: first the recent events that the broker remembers, oldest first, then each new one. With `all`,
    /// events of other peers are included if this peer may request `status`; then all streams of the session receive them.
    ///
    /// # Errors
    /// As [`Client::ping`].
    pub async fn events(&self, all: bool) -> Result<Events, Error> {
        let id = self.session().with_subscribers(|subscribers| subscribers.add(None, all));
        let mut events = Events { client: self.clone(), id, recent: VecDeque::new() };
        let required = self.session().with_subscribers(|subscribers| subscribers.required_subscription());
        let subscribed = self.call(&required).await?;
        self.session().with_subscribers(|subscribers| {
            subscribers.set_subscription(required);
            subscribers.mark_seen(id, &subscribed);
        });
        events.recent = subscribed.recent.into_vec().into();
        Ok(events)
    }

    /// Returns the recent events that the broker remembers, oldest first. `all` is as in [`Client::events`].
    ///
    /// # Errors
    /// As [`Client::ping`].
    pub async fn recent_events(&self, all: bool) -> Result<Vec<Event>, Error> {
        // The request replaces the session's subscription, so it includes what the subscribers need.
        let mut required = self.session().with_subscribers(|subscribers| subscribers.required_subscription());
        required.all |= all;
        Ok(self.call(&required).await?.recent.into_vec())
    }
}

impl Events {
    /// Waits for the next event. An event with the code [`Gap`](crate::EventCode::Gap) stands for lost events: its count is
    /// the number of events that were not taken in time, or 0 for events between two brokers. A cancelled call loses no
    /// event.
    ///
    /// # Errors
    /// The reason that the session ended.
    pub async fn next(&mut self) -> Result<Event, Error> {
        match self.recent.pop_front() {
            Some(event) => Ok(event),
            None => self.client.session().next_event(self.id).await,
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.client.session().unsubscribe(self.id);
    }
}
