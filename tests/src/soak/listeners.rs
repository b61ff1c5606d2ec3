//! A peer that starts and stops listeners, on ports of its own and on ports that others want too.
//!
//! What it is given must be its own: whoever connects there reaches it. What it has stopped serves nobody.

use std::time::{Duration, Instant};

use portreeve_protocol::message::{ListenMany, ListenerId, Outcome, Ping, StatusRequest, Stop};
use portreeve_protocol::{Endpoint, FaultCode, List};

use super::actor::Actor;
use super::configuration::NARROWED;
use super::ledger::{Held, Ledger};
use super::session::{Lost, Session};
use super::trouble::Moment;
use super::visit::{serve, serves_nobody};
use crate::peer::listen;
use crate::random::Random;
use crate::wait::TIMEOUT;

/// As many as one peer holds at once.
const MOST: usize = 60;
/// Ports that every such peer asks for.
const SHARED: u16 = 9000;

/// The peer.
pub struct Listeners {
    random: Random,
    user: u32,
    ports: u16,
    session: Option<Session>,
    held: Vec<(String, ListenerId)>,
    /// What it had when another broker took over.
    left: Vec<String>,
    /// When it last had what it may not have where the configuration is narrow.
    seen: Moment,
}

impl Listeners {
    /// One that is this user and has the thousand ports from `ports` on for itself.
    pub fn new(ledger: &Ledger, random: Random, user: u32, ports: u16) -> Self {
        let seen = ledger.narrow.now();
        Self { random, user, ports, session: None, held: Vec::new(), left: Vec::new(), seen }
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

    /// Whether this endpoint may have been withdrawn.
    fn is_withdrawn(&self, ledger: &Ledger, endpoint: &str) -> bool {
        self.user == NARROWED && endpoint.ends_with("/udp") && ledger.narrow.since(self.seen)
    }

    /// Gives back what may have been withdrawn.
    fn give_up(&mut self, ledger: &Ledger, session: &mut Session) -> Result<(), Lost> {
        let now = ledger.narrow.now();
        let all = std::mem::take(&mut self.held);
        let (gone, held): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|(endpoint, _)| self.is_withdrawn(ledger, endpoint));
        self.held = held;
        gone.iter().for_each(|(endpoint, _)| ledger.give_back(endpoint, &session.name));
        let listeners = List::first_of(gone.into_iter().map(|(_, id)| id));
        if let Err(fault) = session.request(ledger, &Stop { listeners })? {
            wrong(ledger, "stop", &fault)?;
        }
        self.seen = now;
        Ok(())
    }

    fn try_act(&mut self, ledger: &Ledger, session: &mut Session) -> Result<(), Lost> {
        if self.user == NARROWED && ledger.narrow.since(self.seen) {
            self.give_up(ledger, session)?;
        }
        if let Some(endpoint) = self.left.pop() {
            return self.start_at(ledger, session, &endpoint);
        }
        match self.random.below(12) {
            0..4 if self.held.len() < MOST => self.start(ledger, session),
            4 if self.held.len() < MOST => self.start_many(ledger, session),
            5..9 => self.stop(ledger, session),
            9 => self.stop_of_others(ledger, session),
            10 => self.compare(ledger, session),
            _ => match session.request(ledger, &Ping {})? {
                Ok(_) => Ok(()),
                Err(fault) => wrong(ledger, "ping", &fault),
            },
        }
    }

    fn start(&mut self, ledger: &Ledger, session: &mut Session) -> Result<(), Lost> {
        // Sometimes again: then it has to be the same.
        let again = self.random.one_in(4).then(|| self.random.pick(&self.held).map(|(text, _)| text.clone()));
        let endpoint = again.flatten().unwrap_or_else(|| self.endpoint());
        self.start_at(ledger, session, &endpoint)
    }

    fn start_at(&mut self, ledger: &Ledger, session: &mut Session, endpoint: &str) -> Result<(), Lost> {
        let end = Instant::now() + TIMEOUT;
        loop {
            match session.request(ledger, &listen(endpoint))? {
                Ok((reply, mut sockets)) => {
                    self.note(ledger, session, endpoint, reply.id);
                    match sockets.pop() {
                        Some(socket) if !self.is_withdrawn(ledger, endpoint) => {
                            serve(ledger, session.began, endpoint, socket);
                        }
                        Some(_) => {}
                        None => ledger.violation(format_args!("no socket came for {endpoint}")),
                    }
                    return Ok(());
                }
                Err(fault) if fault.code == FaultCode::Denied && self.is_withdrawn(ledger, endpoint) => {
                    ledger.count("listeners refused in a narrow configuration");
                    return Ok(());
                }
                Err(fault) if fault.code != FaultCode::InUse => return wrong(ledger, endpoint, &fault),
                Err(_) if !Self::is_own(endpoint) => {
                    ledger.count("shared endpoints that another had");
                    return Ok(());
                }
                // The session that this peer gave up may not have ended yet.
                Err(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(5)),
                Err(fault) => return wrong(ledger, endpoint, &fault),
            }
        }
    }

    fn start_many(&mut self, ledger: &Ledger, session: &mut Session) -> Result<(), Lost> {
        let many = self.random.below(20) + 1;
        let mut endpoints: Vec<String> = (0..many).map(|_| self.endpoint()).collect();
        endpoints.sort();
        endpoints.dedup();
        let all_or_nothing = self.random.one_in(2);
        let listeners = List::first_of(endpoints.iter().map(|endpoint| listen(endpoint)));
        let (reply, sockets) = match session.request(ledger, &ListenMany { all_or_nothing, listeners })? {
            Ok(done) => done,
            Err(fault) => return wrong(ledger, "listen-many", &fault),
        };
        let mut sockets = sockets.into_iter();
        for (endpoint, outcome) in endpoints.iter().zip(reply.results.into_vec()) {
            match outcome {
                Outcome::Done(done) => {
                    self.note(ledger, session, endpoint, done.id);
                    match sockets.next() {
                        Some(_) if self.is_withdrawn(ledger, endpoint) => {}
                        Some(socket) => serve(ledger, session.began, endpoint, socket),
                        None => ledger.violation(format_args!("no socket came for {endpoint}")),
                    }
                }
                Outcome::Fault(fault)
                    if fault.code == FaultCode::Denied && self.is_withdrawn(ledger, endpoint) => {}
                // All of them, where one is another's.
                Outcome::Fault(fault) if fault.code == FaultCode::InUse => ledger.count("listeners in use"),
                Outcome::Fault(_) if all_or_nothing => ledger.count("listeners taken back"),
                Outcome::Fault(fault) => wrong(ledger, endpoint, &fault)?,
            }
        }
        Ok(())
    }

    fn note(&mut self, ledger: &Ledger, session: &Session, endpoint: &str, id: ListenerId) {
        let held = Held { id, owner: session.name.clone(), generation: session.generation };
        ledger.grant(endpoint, held);
        if !self.held.iter().any(|(text, _)| text == endpoint) {
            self.held.push((endpoint.to_owned(), id));
        }
    }

    fn stop(&mut self, ledger: &Ledger, session: &mut Session) -> Result<(), Lost> {
        let many = self.held.len().min(self.random.below(4) as usize + 1);
        let some: Vec<(String, ListenerId)> = (0..many)
            .map(|_| self.held.swap_remove(self.random.below(self.held.len() as u64) as usize))
            .collect();
        some.iter().for_each(|(endpoint, _)| ledger.give_back(endpoint, &session.name));
        let listeners = List::first_of(some.iter().map(|(_, id)| *id));
        match session.request(ledger, &Stop { listeners })? {
            Ok((stopped, _)) if stopped.unknown.is_empty() => {
                let own = some.iter().filter(|(endpoint, _)| Self::is_own(endpoint));
                own.for_each(|(endpoint, _)| serves_nobody(ledger, endpoint));
            }
            Ok((stopped, _)) => {
                let unknown = |id: &ListenerId| stopped.unknown.contains(id);
                let lost = some.iter().filter(|(_, id)| unknown(id));
                for (endpoint, _) in lost.filter(|(endpoint, _)| !self.is_withdrawn(ledger, endpoint)) {
                    ledger.violation(format_args!("{endpoint} was lost"));
                }
            }
            Err(fault) => return wrong(ledger, "stop", &fault),
        }
        Ok(())
    }

    fn stop_of_others(&mut self, ledger: &Ledger, session: &mut Session) -> Result<(), Lost> {
        let others = ledger.listeners().into_values().filter(|held| held.owner != session.name);
        let ids: Vec<ListenerId> = others.map(|held| held.id).take(8).chain([ListenerId(1)]).collect();
        match session.request(ledger, &Stop { listeners: List::first_of(ids.clone()) })? {
            Ok((stopped, _)) if stopped.unknown.len() == ids.len() => {}
            answer => ledger.violation(format_args!("{} stopped of {ids:?}: {answer:?}", session.name)),
        }
        Ok(())
    }

    /// What the broker says of this peer is what it was given.
    fn compare(&mut self, ledger: &Ledger, session: &mut Session) -> Result<(), Lost> {
        let (mut rows, mut after) = (Vec::new(), 0);
        loop {
            let Ok((page, _)) = session.request(ledger, &StatusRequest { after })? else {
                return wrong(ledger, "status", &"refused");
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
        let certain = |endpoint: &str| mine(endpoint) && !self.is_withdrawn(ledger, endpoint);
        let mut held: Vec<_> = self.held.iter().filter(|(endpoint, _)| certain(endpoint)).cloned().collect();
        // What a takeover has left waits for this peer, or for the end of its time.
        let kept = ledger.kept();
        let is_held = |row: &(String, ListenerId)| held.contains(row) || !kept.is_possible();
        rows.retain(|row| certain(&row.0) && is_held(row));
        rows.sort();
        held.sort();
        if rows != held {
            ledger.violation(format_args!("{} holds {held:?} and status says {rows:?}", session.name));
        }
        Ok(())
    }

    fn hang_up(&mut self, ledger: &Ledger) {
        if let Some(session) = self.session.take() {
            ledger.give_back_all(&session.name);
        }
        self.held.clear();
        self.left.clear();
    }

    /// The session is over by the broker's end.
    fn lose(&mut self, ledger: &Ledger) {
        let by_takeover = self.session.as_ref().is_some_and(|session| ledger.takeovers.since(session.began));
        let left = self.held.drain(..).map(|(endpoint, _)| endpoint).collect();
        if by_takeover {
            self.session.take().iter().for_each(|session| ledger.keep_all(&session.name));
        }
        self.hang_up(ledger);
        if by_takeover && self.random.one_in(2) {
            self.left = left;
        }
    }
}

impl Actor for Listeners {
    fn act(&mut self, ledger: &Ledger) {
        if self.random.one_in(100) {
            self.hang_up(ledger);
        }
        let outcome = match self.session.take() {
            None => Session::open(ledger, self.user).map(|session| self.session = Some(session)),
            Some(mut session) => {
                let outcome = self.try_act(ledger, &mut session);
                self.session = Some(session);
                outcome
            }
        };
        if outcome.is_err() {
            self.lose(ledger);
        }
    }

    fn give_back(&mut self, ledger: &Ledger) {
        self.hang_up(ledger);
    }

    fn pause(&mut self) -> Duration {
        Duration::from_millis(if self.session.is_none() { 50 } else { self.random.below(10) })
    }
}

/// The session goes on.
fn wrong(ledger: &Ledger, what: &str, why: &dyn std::fmt::Display) -> Result<(), Lost> {
    ledger.violation(format_args!("{what}: {why}"));
    Ok(())
}
