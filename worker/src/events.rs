//! Events of the asynchronous client: what happens to this peer's addresses and interfaces, as it happens.

use std::collections::VecDeque;

use portreeve_protocol::Event;

use crate::client::Client;
use crate::error::Error;
use crate::followers::FollowerId;

/// What happens, from when it was asked for. Dropping it ends that.
#[derive(Debug)]
pub struct Events {
    client: Client,
    id: FollowerId,
    recent: VecDeque<Event>,
}

impl Client {
    /// Begins to hear of what happens: first what the broker remembers of it, the oldest first, then what comes. With
    /// `all` of what concerns others too, as far as this peer may ask for `status`; all streams of a session hear of
    /// that then.
    ///
    /// # Errors
    /// As for every request.
    pub async fn events(&self, all: bool) -> Result<Events, Error> {
        let id = self.session().followers(|followers| followers.add(None, all));
        let mut events = Events { client: self.clone(), id, recent: VecDeque::new() };
        let wanted = self.session().followers(|followers| followers.wanted());
        let subscribed = self.call(&wanted).await?;
        self.session().followers(|followers| {
            followers.asked(wanted);
            followers.knows(id, &subscribed);
        });
        events.recent = subscribed.recent.into_vec().into();
        Ok(events)
    }

    /// What the broker remembers of what happened lately, the oldest first; `all` as in [`Client::events`].
    ///
    /// # Errors
    /// As for every request.
    pub async fn recent_events(&self, all: bool) -> Result<Vec<Event>, Error> {
        // Whoever follows goes on doing so.
        let mut wanted = self.session().followers(|followers| followers.wanted());
        wanted.all |= all;
        Ok(self.call(&wanted).await?.recent.into_vec())
    }
}

impl Events {
    /// Waits for the next event. One with the code [`Gap`](crate::EventCode::Gap) stands for those that were lost because
    /// they were not taken in time, or, with a count of 0, for those that happened before the next broker was reached. A call
    /// that is cancelled loses none.
    ///
    /// # Errors
    /// Why the session is over.
    pub async fn next(&mut self) -> Result<Event, Error> {
        match self.recent.pop_front() {
            Some(event) => Ok(event),
            None => self.client.session().event(self.id).await,
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.client.session().unfollow(self.id);
    }
}
