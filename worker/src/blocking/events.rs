//! Events of the blocking client: an iterator that waits for the next event while other threads send requests.

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::task::{Poll, Wake, Waker};

use portreeve_protocol::Event;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::{Errno, read, write};

use super::Client;
use super::session::Session;
use crate::error::Error;
use crate::subscribers::SubscriberId;

/// An iterator over events. It ends after the error that ended the session. Dropping it ends its subscription.
#[derive(Debug)]
pub struct Events {
    client: Client,
    id: SubscriberId,
    recent: VecDeque<Event>,
    /// Signalled when another thread has received an event.
    wakeup: Arc<Wakeup>,
    waker: Waker,
    ended: bool,
}

/// An eventfd.
#[derive(Debug)]
struct Wakeup(OwnedFd);

impl Wake for Wakeup {
    fn wake(self: Arc<Self>) {
        // It fails only if the counter is at its maximum; then the eventfd is signalled already.
        let _ = write(&self.0, &1_u64.to_ne_bytes());
    }
}

impl Client {
    /// Subscribes to events: first the recent events that the broker remembers, oldest first, then each new one. With `all`,
    /// events of other peers are included if this peer may request `status`; then all iterators of the session receive them.
    ///
    /// # Errors
    /// As [`Client::ping`].
    pub fn events(&self, all: bool) -> Result<Events, Error> {
        let wakeup = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let wakeup = Arc::new(Wakeup(wakeup.map_err(Error::io("cannot create an eventfd"))?));
        let id = self.0.state().connection.subscribers.add(None, all);
        let (waker, recent) = (Waker::from(wakeup.clone()), VecDeque::new());
        let mut events = Events { client: self.clone(), id, recent, wakeup, waker, ended: false };
        let required = self.0.state().connection.subscribers.required_subscription();
        let subscribed = self.0.call(&required)?;
        let mut state = self.0.state();
        state.connection.subscribers.set_subscription(required);
        state.connection.subscribers.mark_seen(id, &subscribed);
        drop(state);
        events.recent = subscribed.recent.into_vec().into();
        Ok(events)
    }

    /// Returns the recent events that the broker remembers, oldest first. `all` is as in [`Client::events`].
    ///
    /// # Errors
    /// As [`Client::ping`].
    pub fn recent_events(&self, all: bool) -> Result<Vec<Event>, Error> {
        // The request replaces the session's subscription, so it includes what the subscribers need.
        let mut required = self.0.state().connection.subscribers.required_subscription();
        required.all |= all;
        Ok(self.0.call(&required)?.recent.into_vec())
    }
}

impl Events {
    fn wait(&self) -> Result<Event, Error> {
        let session = &self.client.0;
        loop {
            match session.try_next_event(self.id, &self.waker) {
                Ok(Some(event)) => return Ok(event),
                Ok(None) => {}
                Err(why) if session.survives(&why) => {
                    // The next broker's first event is a gap.
                    drop(session.await_broker(session.state())?);
                    continue;
                }
                Err(why) => return Err(why),
            }
            let channel = session.state().channel.clone();
            let mut either =
                [PollFd::new(&*channel, PollFlags::IN), PollFd::new(&self.wakeup.0, PollFlags::IN)];
            match poll(&mut either, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(Error::io("cannot wait for an event")(error)),
            }
            let _ = read(&self.wakeup.0, &mut [0; 8]); // it fails if it was not signalled
        }
    }
}

impl Session {
    /// The next event of a subscriber, if one has arrived.
    fn try_next_event(&self, id: SubscriberId, waker: &Waker) -> Result<Option<Event>, Error> {
        let mut state = self.state();
        loop {
            if let Poll::Ready(event) = state.connection.poll_event(id, waker) {
                return event.map(Some);
            }
            // Only the thread that holds this lock receives, so no other thread takes the packet that poll reports.
            let channel = state.channel.clone();
            let mut readable = [PollFd::new(&*channel, PollFlags::IN)];
            match poll(&mut readable, Some(&Timespec::default())) {
                Ok(0) => return Ok(None),
                Ok(_) => _ = state.connection.receive(channel.as_fd())?,
                Err(Errno::INTR) => {}
                Err(error) => return Err(Error::io("cannot wait for an event")(error)),
            }
        }
    }
}

impl Iterator for Events {
    type Item = Result<Event, Error>;

    /// Waits for the next event. An event with the code [`Gap`](crate::EventCode::Gap) stands for events that were lost,
    /// because they were not taken in time.
    fn next(&mut self) -> Option<Self::Item> {
        if let Some(event) = self.recent.pop_front() {
            return Some(Ok(event));
        }
        if self.ended {
            return None;
        }
        let event = self.wait();
        self.ended = event.is_err();
        Some(event)
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let mut state = self.client.0.state();
        let (channel, connection) = (state.channel.clone(), &mut state.connection);
        connection.subscribers.remove(self.id);
        if let Some(none) = connection.subscribers.missing_subscription().filter(|missing| !missing.follow) {
            // It fails only if the session has ended, and the subscription with it.
            let _ = connection.send_without_reply(channel.as_fd(), &none);
            connection.subscribers.set_subscription(none);
        }
    }
}
