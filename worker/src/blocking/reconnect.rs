//! Reconnection of the blocking client, in a thread of its own: when the channel of a session ends, it connects to the
//! control socket again, and requests the listeners of this program's guards again.
//!
//! Promises: the sockets of guards stay open and unchanged meanwhile, and the state is not locked while a broker is waited
//! for. Every subscriber learns that events may be missing. The thread ends with the session.

use std::os::fd::AsFd as _;
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Weak};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

use super::session::{Session, State};
use crate::build;
use crate::channel::Channel;
use crate::error::Error;
use crate::restore::{FIRST_PAUSE, HeldListener, MAX_PAUSE, REQUEST_TIMEOUT, ReconnectTarget};

/// Supervises a session from its first channel to the end of its last one.
pub(super) fn supervise(session: &Weak<Session>) {
    while let Some(channel) = session.upgrade().map(|session| session.state().channel.clone()) {
        await_end(&channel);
        drop(channel);
        if !is_reconnected(session) {
            return;
        }
    }
}

/// Waits until the other end of the channel is closed.
fn await_end(channel: &UnixDatagram) {
    // POLLHUP is always reported. An interrupted call is repeated.
    while poll(&mut [PollFd::new(channel, PollFlags::RDHUP)], None).is_err() {}
}

/// Retries until a broker accepts the session; `false` if the session has ended for good.
fn is_reconnected(session: &Weak<Session>) -> bool {
    if !session.upgrade().is_some_and(|session| session.note_end()) {
        return false;
    }
    let mut pause = FIRST_PAUSE;
    loop {
        let Some((target, held)) = session.upgrade().and_then(|session| session.target()) else {
            return false;
        };
        let opened = open(&target, &held);
        let Some(session) = session.upgrade() else { return false };
        match opened.and_then(|next| session.install(next)) {
            Ok(()) => return true,
            Err(why @ (Error::Version { .. } | Error::Protocol(_))) => {
                session.end(why);
                return false;
            }
            Err(_) => {}
        }
        drop(session);
        std::thread::sleep(pause);
        pause = MAX_PAUSE.min(pause * 2);
    }
}

/// Opens a session with the next broker, and requests the listeners of guards.
fn open(target: &ReconnectTarget, held: &[HeldListener]) -> Result<State, Error> {
    let channel = Channel::connect_nonblocking(&target.path)?.socket;
    channel.set_nonblocking(false).map_err(Error::io("cannot prepare the channel"))?;
    limit_time(&channel, Some(REQUEST_TIMEOUT))?;
    let mut next = State::new(channel);
    next.welcome = Some(Arc::new(next.request(&build::hello(&target.name))?));
    for listener in held.iter().filter(|listener| !listener.ended_with_its_broker()) {
        let reply = next.request(&listener.listen);
        if let Some(unwanted) = listener.restored(reply)? {
            next.connection.send_without_reply(next.channel.as_fd(), &build::stop(&[unwanted])?)?;
        }
    }
    Ok(next)
}

fn limit_time(channel: &UnixDatagram, time: Option<Duration>) -> Result<(), Error> {
    let limited = channel.set_read_timeout(time).and_then(|()| channel.set_write_timeout(time));
    limited.map_err(Error::io("cannot prepare the channel"))
}

impl Session {
    /// Records that the channel has ended, so that its listener numbers are invalid; `false` if the session ends too.
    fn note_end(&self) -> bool {
        let mut state = self.state();
        let why = state.receive_all();
        state.connection.closed.get_or_insert_with(|| why.clone());
        state.held.values().for_each(|listener| listener.registration.set_id(None));
        state.ended = !self.survives(&why);
        self.notify();
        !state.ended
    }

    fn target(&self) -> Option<(ReconnectTarget, Vec<HeldListener>)> {
        Some((self.reconnect.clone()?, self.state().held.values().cloned().collect()))
    }

    /// Continues with a session that the next broker has accepted.
    fn install(&self, mut next: State) -> Result<(), Error> {
        let mut state = self.state();
        let subscription = state.connection.subscribers.resubscribe();
        std::mem::swap(&mut next.connection.subscribers, &mut state.connection.subscribers);
        let mut result = Ok(());
        if subscription.follow {
            match next.request(&subscription) {
                // A broker that denies the subscription sends no events.
                Ok(_) | Err(Error::Fault(_)) => {}
                Err(why) => result = Err(why),
            }
        }
        result = result.and_then(|()| limit_time(&next.channel, None));
        if result.is_err() {
            std::mem::swap(&mut next.connection.subscribers, &mut state.connection.subscribers);
            state.held.values().for_each(|listener| listener.registration.set_id(None));
            return result;
        }
        // Guards may have been dropped meanwhile.
        for dropped in state.held.values().filter(|listener| !listener.registration.is_wanted()) {
            next.stop(&dropped.registration);
        }
        state.held.retain(|_, listener| listener.registration.is_wanted());
        (state.channel, state.connection, state.welcome) = (next.channel, next.connection, next.welcome);
        self.notify();
        Ok(())
    }

    /// Ends the session for good.
    fn end(&self, why: Error) {
        let mut state = self.state();
        (state.connection.closed, state.ended) = (Some(why), true);
        state.connection.subscribers.wake_all();
        self.notify();
    }
}
