//! A peer that opens and stops listeners, on ports of its own and on ports that it shares with other peers.
//!
//! Connections to its listeners must reach it, and connections to its stopped listeners must be refused.

use std::time::{Duration, Instant};

use portreeve_protocol::message::{ListenMany, ListenerId, Outcome, Ping, StatusRequest, Stop};
use portreeve_protocol::{Endpoint, FaultCode, List};

use super::actor::Actor;
use super::configuration::RESTRICTED_USER;
use super::connectivity::{check_refused, check_served};
use super::disruption::Mark;
use super::model::{Held, Model};
use super::session::{Session, SessionLost};
use crate::peer::listen;
use crate::random::Random;
use crate::wait::TIMEOUT;

/// How many listeners one peer holds at most.
const MAX_HELD: usize = 60;
/// The first of the ports that all such peers request.
const SHARED: u16 = 9000;

/// See the module.
pub struct ListenerPeer {
    random: Random,
    user: u32,
    ports: u16,
    session: Option<Session>,
    held: Vec<(String, ListenerId)>,
    /// The listeners that it held before a takeover and requests again.
    to_reclaim: Vec<String>,
    /// When it last released what the restricted variant withdraws.
    seen: Mark,
}

impl ListenerPeer {
    /// A peer with this user id, which has the thousand ports from `ports` on for itself.
    pub fn new(model: &Model, random: Random, user: u32, ports: u16) -> Self {
        let seen = model.restricted.mark();
        Self { random, user, ports, session: None, held: Vec::new(), to_reclaim: Vec::new(), seen }
    }

    fn endpoint(&mut self) -> String {
        let port = self.ports + self.random.below(100) as u16;
        match self.random.below(10) {
            0 => format!("127.0.0.1:{}", SHARED + self.random.below(8) as u16),
            1 | 2 => format!("127.0.0.1:{port}/udp"),
            3 | 4 => format!("[::1]:{port}"),
            _ => format!("127.0.0.1:{port}"),
        }
    }

    fn is_own(endpoint: &str) -> bool {
        !endpoint.contains(":900")
    }

    /// Whether a reload may have withdrawn this endpoint.
    fn is_withdrawn(&self, model: &Model, endpoint: &str) -> bool {
        self.user == RESTRICTED_USER
            && endpoint.ends_with("/udp")
            && model.restricted.occurred_since(self.seen)
    }

    /// Stops the listeners that a reload may have withdrawn.
    fn release_withdrawn(&mut self, model: &Model, session: &mut Session) -> Result<(), SessionLost> {
        let now = model.restricted.mark();
        let all = std::mem::take(&mut self.held);
        let (withdrawn, held): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|(endpoint, _)| self.is_withdrawn(model, endpoint));
        self.held = held;
        withdrawn.iter().for_each(|(endpoint, _)| model.release(endpoint, &session.name));
        let listeners = List::truncated(withdrawn.into_iter().map(|(_, id)| id));
        if let Err(fault) = session.request(model, &Stop { listeners })? {
            report(model, "stop", &fault)?;
        }
        self.seen = now;
        Ok(())
    }

    fn try_step(&mut self, model: &Model, session: &mut Session) -> Result<(), SessionLost> {
        if self.user == RESTRICTED_USER && model.restricted.occurred_since(self.seen) {
            self.release_withdrawn(model, session)?;
        }
        if let Some(endpoint) = self.to_reclaim.pop() {
            return self.start_at(model, session, &endpoint);
        }
        match self.random.below(12) {
            0..4 if self.held.len() < MAX_HELD => self.start(model, session),
            4 if self.held.len() < MAX_HELD => self.start_many(model, session),
            5..9 => self.stop(model, session),
            9 => self.stop_foreign(model, session),
            10 => self.compare_with_status(model, session),
            _ => match session.request(model, &Ping {})? {
                Ok(_) => Ok(()),
                Err(fault) => report(model, "ping", &fault),
            },
        }
    }

    fn start(&mut self, model: &Model, session: &mut Session) -> Result<(), SessionLost> {
        // Sometimes it requests a listener that it already holds, and must be given the same one.
        let again = self.random.one_in(4).then(|| self.random.pick(&self.held).map(|(text, _)| text.clone()));
        let endpoint = again.flatten().unwrap_or_else(|| self.endpoint());
        self.start_at(model, session, &endpoint)
    }

    fn start_at(&mut self, model: &Model, session: &mut Session, endpoint: &str) -> Result<(), SessionLost> {
        let end = Instant::now() + TIMEOUT;
        loop {
            match session.request(model, &listen(endpoint))? {
                Ok((reply, mut sockets)) => {
                    self.record(model, session, endpoint, reply.id);
                    match sockets.pop() {
                        Some(socket) if !self.is_withdrawn(model, endpoint) => {
                            check_served(model, session.began, endpoint, socket);
                        }
                        Some(_) => {}
                        None => model.violation(format_args!("the reply for {endpoint} has no socket")),
                    }
                    return Ok(());
                }
                Err(fault) if fault.code == FaultCode::Denied && self.is_withdrawn(model, endpoint) => {
                    model.count("listeners denied by the restricted configuration");
                    return Ok(());
                }
                Err(fault) if fault.code != FaultCode::InUse => return report(model, endpoint, &fault),
                Err(_) if !Self::is_own(endpoint) => {
                    model.count("shared endpoints in use by another peer");
                    return Ok(());
                }
                // This peer's last session may not have ended yet.
                Err(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(5)),
                Err(fault) => return report(model, endpoint, &fault),
            }
        }
    }

    fn start_many(&mut self, model: &Model, session: &mut Session) -> Result<(), SessionLost> {
        let many = self.random.below(20) + 1;
        let mut endpoints: Vec<String> = (0..many).map(|_| self.endpoint()).collect();
        endpoints.sort();
        endpoints.dedup();
        let all_or_nothing = self.random.one_in(2);
        let listeners = endpoints.iter().map(|endpoint| listen(endpoint));
        let (reply, sockets) =
            match session.request(model, &ListenMany::truncated(all_or_nothing, listeners))? {
                Ok(done) => done,
                Err(fault) => return report(model, "listen-many", &fault),
            };
        let mut sockets = sockets.into_iter();
        for (endpoint, outcome) in endpoints.iter().zip(reply.results.into_vec()) {
            match outcome {
                Outcome::Done(done) => {
                    self.record(model, session, endpoint, done.id);
                    match sockets.next() {
                        Some(_) if self.is_withdrawn(model, endpoint) => {}
                        Some(socket) => check_served(model, session.began, endpoint, socket),
                        None => model.violation(format_args!("the reply for {endpoint} has no socket")),
                    }
                }
                Outcome::Fault(fault)
                    if fault.code == FaultCode::Denied && self.is_withdrawn(model, endpoint) => {}
                // If another peer holds one of them, all fail.
                Outcome::Fault(fault) if fault.code == FaultCode::InUse => model.count("listeners in use"),
                Outcome::Fault(_) if all_or_nothing => model.count("listeners rolled back"),
                Outcome::Fault(fault) => report(model, endpoint, &fault)?,
            }
        }
        Ok(())
    }

    fn record(&mut self, model: &Model, session: &Session, endpoint: &str, id: ListenerId) {
        let held = Held { id, owner: session.name.clone(), generation: session.generation };
        model.grant(endpoint, held);
        if !self.held.iter().any(|(text, _)| text == endpoint) {
            self.held.push((endpoint.to_owned(), id));
        }
    }

    fn stop(&mut self, model: &Model, session: &mut Session) -> Result<(), SessionLost> {
        let many = self.held.len().min(self.random.below(4) as usize + 1);
        let some: Vec<(String, ListenerId)> = (0..many)
            .map(|_| self.held.swap_remove(self.random.below(self.held.len() as u64) as usize))
            .collect();
        some.iter().for_each(|(endpoint, _)| model.release(endpoint, &session.name));
        let listeners = List::truncated(some.iter().map(|(_, id)| *id));
        match session.request(model, &Stop { listeners })? {
            Ok((stopped, _)) if stopped.unknown.is_empty() => {
                let own = some.iter().filter(|(endpoint, _)| Self::is_own(endpoint));
                own.for_each(|(endpoint, _)| check_refused(model, endpoint));
            }
            Ok((stopped, _)) => {
                let unknown = |id: &ListenerId| stopped.unknown.contains(id);
                let lost = some.iter().filter(|(_, id)| unknown(id));
                for (endpoint, _) in lost.filter(|(endpoint, _)| !self.is_withdrawn(model, endpoint)) {
                    model.violation(format_args!("{endpoint} was lost"));
                }
            }
            Err(fault) => return report(model, "stop", &fault),
        }
        Ok(())
    }

    fn stop_foreign(&mut self, model: &Model, session: &mut Session) -> Result<(), SessionLost> {
        let others = model.listeners().into_values().filter(|held| held.owner != session.name);
        let ids: Vec<ListenerId> = others.map(|held| held.id).take(8).chain([ListenerId(1)]).collect();
        match session.request(model, &Stop { listeners: List::truncated(ids.clone()) })? {
            Ok((stopped, _)) if stopped.unknown.len() == ids.len() => {}
            reply => model.violation(format_args!("{} stopped some of {ids:?}: {reply:?}", session.name)),
        }
        Ok(())
    }

    /// Compares the broker's status with what this peer holds.
    fn compare_with_status(&mut self, model: &Model, session: &mut Session) -> Result<(), SessionLost> {
        let (mut rows, mut after) = (Vec::new(), 0);
        loop {
            let Ok((page, _)) = session.request(model, &StatusRequest { after })? else {
                return report(model, "status", &"refused");
            };
            rows.extend(page.listeners.into_vec().into_iter().map(|row| (row.endpoint.to_string(), row.id)));
            after = page.next;
            if after == 0 {
                break;
            }
        }
        let mine = |endpoint: &str| {
            Endpoint::inet(&endpoint.parse().unwrap())
                .is_some_and(|inet| (self.ports..self.ports + 1_000).contains(&inet.port))
        };
        let certain = |endpoint: &str| mine(endpoint) && !self.is_withdrawn(model, endpoint);
        let mut held: Vec<_> = self.held.iter().filter(|(endpoint, _)| certain(endpoint)).cloned().collect();
        // Status may also list the listeners that a takeover has retained for this peer.
        let retained = model.retained();
        let is_held = |row: &(String, ListenerId)| held.contains(row) || !retained.may_exist();
        rows.retain(|row| certain(&row.0) && is_held(row));
        rows.sort();
        held.sort();
        if rows != held {
            model.violation(format_args!("{} holds {held:?}, but status lists {rows:?}", session.name));
        }
        Ok(())
    }

    fn disconnect(&mut self, model: &Model) {
        if let Some(session) = self.session.take() {
            model.release_all(&session.name);
        }
        self.held.clear();
        self.to_reclaim.clear();
    }

    /// Handles the loss of the session because the broker ended.
    fn session_lost(&mut self, model: &Model) {
        let by_takeover =
            self.session.as_ref().is_some_and(|session| model.takeovers.occurred_since(session.began));
        let endpoints = self.held.drain(..).map(|(endpoint, _)| endpoint).collect();
        if by_takeover {
            self.session.take().iter().for_each(|session| model.retain_all(&session.name));
        }
        self.disconnect(model);
        if by_takeover && self.random.one_in(2) {
            self.to_reclaim = endpoints;
        }
    }
}

impl Actor for ListenerPeer {
    fn step(&mut self, model: &Model) {
        if self.random.one_in(100) {
            self.disconnect(model);
        }
        let outcome = match self.session.take() {
            None => Session::open(model, self.user).map(|session| self.session = Some(session)),
            Some(mut session) => {
                let outcome = self.try_step(model, &mut session);
                self.session = Some(session);
                outcome
            }
        };
        if outcome.is_err() {
            self.session_lost(model);
        }
    }

    fn release(&mut self, model: &Model) {
        self.disconnect(model);
    }

    fn pause(&mut self) -> Duration {
        Duration::from_millis(if self.session.is_none() { 50 } else { self.random.below(10) })
    }
}

/// Records a violation that does not end the session.
fn report(model: &Model, what: &str, why: &dyn std::fmt::Display) -> Result<(), SessionLost> {
    model.violation(format_args!("{what}: {why}"));
    Ok(())
}
