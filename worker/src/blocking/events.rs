//! Events of the blocking client: an iterator that waits for the next one, while other threads may ask.

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::task::{Poll, Wake, Waker};

use portreeve_protocol::Event;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::{Errno, read, write};

use super::{Client, Session};
use crate::error::Error;
use crate::followers::FollowerId;

/// What happens, from when it was asked for, one event after the other. It ends after the error that ended the session;
/// dropping it ends the subscription.
#[derive(Debug)]
pub struct Events {
    client: Client,
    id: FollowerId,
    recent: VecDeque<Event>,
    /// Written to when another thread has received an event.
    bell: Arc<Bell>,
    waker: Waker,
    over: bool,
}

#[derive(Debug)]
struct Bell(OwnedFd);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        // It is full only where it rings already.
        let _ = write(&self.0, &1_u64.to_ne_bytes());
    }
}

impl Client {
    /// Begins to hear of what happens: first what the broker remembers of it, the oldest first, then what comes. With
    /// `all` of what concerns others too, as far as this peer may ask for `status`; all iterators of a session hear of
    /// that then.
    ///
    /// # Errors
    /// As for every request.
    pub fn events(&self, all: bool) -> Result<Events, Error> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let bell = Arc::new(Bell(bell.map_err(Error::io("making an eventfd"))?));
        let id = self.0.exchange().followers.add(None, all);
        let (waker, recent) = (Waker::from(bell.clone()), VecDeque::new());
        let mut events = Events { client: self.clone(), id, recent, bell, waker, over: false };
        let wanted = self.0.exchange().followers.wanted();
        let subscribed = self.0.call(&wanted)?;
        let mut exchange = self.0.exchange();
        exchange.followers.asked(wanted);
        exchange.followers.knows(id, &subscribed);
        drop(exchange);
        events.recent = subscribed.recent.into_vec().into();
        Ok(events)
    }

    /// What the broker remembers of what happened lately, the oldest first; `all` as in [`Client::events`].
    ///
    /// # Errors
    /// As for every request.
    pub fn recent_events(&self, all: bool) -> Result<Vec<Event>, Error> {
        // Whoever follows goes on doing so.
        let mut wanted = self.0.exchange().followers.wanted();
        wanted.all |= all;
        Ok(self.0.call(&wanted)?.recent.into_vec())
    }
}

impl Events {
    fn wait(&self) -> Result<Event, Error> {
        loop {
            if let Some(event) = self.client.0.event_there_is(self.id, &self.waker)? {
                return Ok(event);
            }
            let channel = &self.client.0.channel;
            let mut either = [PollFd::new(channel, PollFlags::IN), PollFd::new(&self.bell.0, PollFlags::IN)];
            match poll(&mut either, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(Error::io("waiting for an event")(error)),
            }
            // Nothing is there to read where it did not ring.
            let _ = read(&self.bell.0, &mut [0; 8]);
        }
    }
}

impl Session {
    /// The next event of a follower, if one has come by now.
    fn event_there_is(&self, id: FollowerId, waker: &Waker) -> Result<Option<Event>, Error> {
        let mut exchange = self.exchange();
        loop {
            if let Poll::Ready(event) = exchange.poll_event(id, waker) {
                return event.map(Some);
            }
            // Nobody else receives while this holds the exchange, so what is there is there still.
            let mut channel = [PollFd::new(&self.channel, PollFlags::IN)];
            match poll(&mut channel, Some(&Timespec::default())) {
                Ok(0) => return Ok(None),
                Ok(_) => _ = exchange.receive(self.channel.as_fd())?,
                Err(Errno::INTR) => {}
                Err(error) => return Err(Error::io("waiting for an event")(error)),
            }
        }
    }
}

impl Iterator for Events {
    type Item = Result<Event, Error>;

    /// Waits for the next event. One with the code [`Gap`](crate::EventCode::Gap) stands for those that were lost because
    /// they were not taken in time.
    fn next(&mut self) -> Option<Self::Item> {
        if let Some(event) = self.recent.pop_front() {
            return Some(Ok(event));
        }
        if self.over {
            return None;
        }
        let event = self.wait();
        self.over = event.is_err();
        Some(event)
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let mut exchange = self.client.0.exchange();
        exchange.followers.remove(self.id);
        if let Some(none) = exchange.followers.to_ask().filter(|wanted| !wanted.follow) {
            // Where the session is over so is the subscription.
            let _ = exchange.tell(self.client.0.channel.as_fd(), &none);
            exchange.followers.asked(none);
        }
    }
}
