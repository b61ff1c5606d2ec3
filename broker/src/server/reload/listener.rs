//! The listeners of a configuration that comes into force: those that are new, those that nobody may have any more.
//!
//! The new ones are bound while the old ones still listen, so that one which takes over from another, a wildcard from
//! an address or the other way round, leaves no moment in which a client is refused. A listener that moves is opened
//! where its address is here already.

use std::collections::HashMap;
use std::path::Path;
use std::rc::Rc;

use portreeve_protocol::message::ListenerId;
use portreeve_protocol::{Endpoint, EventCode, Fault, FaultCode, Text};

use super::address;
use super::report::{APPLIED, CLOSED, FAILED, KEPT, NEEDS_RESTART, OPENED, RELEASED, Row};
use crate::config::{Config, Listener, OnNarrow};
use crate::listener::{Entry, Owner, in_use};
use crate::policy::{Policy, Requester};
use crate::server::operation::same_port_of_ipv4;
use crate::server::state::Broker;

/// What was bound for a configuration that is not in force yet.
pub(super) struct Opened {
    new: Vec<ListenerId>,
    rows: Vec<Row>,
}

/// Binds the static listeners that are not there yet, or takes back what it bound and tells why. `policy` is the one to
/// come: what it does not permit goes, so it is no obstacle.
pub(super) fn open(broker: &Broker, config: &Config, policy: &Policy) -> Result<Opened, Fault> {
    let mut opened = Opened { new: Vec::new(), rows: Vec::new() };
    let leaving = match config.broker.on_narrow {
        OnNarrow::Close => outside(broker, policy),
        OnNarrow::Keep => Vec::new(),
    };
    for Wanted { listener, moves } in wanted(broker, config, policy) {
        let endpoint = &listener.endpoint.value;
        let mut registry = broker.registry.borrow_mut();
        if registry.holds(endpoint) {
            match registry.owner_at(endpoint) {
                Some(owner @ (Owner::Session(_) | Owner::Former(_))) => {
                    let fault = in_use(endpoint, owner);
                    drop(registry);
                    take_back(broker, opened);
                    return Err(at(config, listener, &fault));
                }
                Some(Owner::Worker) | None => continue,
            }
        }
        let what = listener_named(endpoint);
        let known = |directory: &Path| registry.directories().get(directory).is_ok();
        if let Some(why) = broker.reloading.fixed.out_of_reach(endpoint, known) {
            opened.rows.push(Row::new(NEEDS_RESTART, what, why));
            continue;
        }
        match registry.open_static(endpoint, &listener.socket, &listener.name(), &leaving) {
            Ok(id) => {
                opened.new.push(id);
                let detail = if moves {
                    registry.rename(id, Some(&listener.name()), true);
                    "its address is here already; it queues connections, and the worker has it when it asks for it"
                } else {
                    "it queues connections; the worker has it when it asks for it, or at its next start"
                };
                opened.rows.push(Row::new(OPENED, what, detail));
            }
            // At the start it is bound as root.
            Err(fault) if fault.code == FaultCode::NotRetained => {
                opened.rows.push(Row::new(NEEDS_RESTART, what, fault.message.to_string()));
            }
            Err(fault) => {
                drop(registry);
                take_back(broker, opened);
                return Err(at(config, listener, &fault));
            }
        }
    }
    Ok(opened)
}

/// The same fault with the place of the listener that it is about.
fn at(config: &Config, listener: &Listener, fault: &Fault) -> Fault {
    let message = format!("{}: {}", config.place(listener.endpoint.span), &*fault.message);
    Fault { message: Text::truncated(&message), ..fault.clone() }
}

fn take_back(broker: &Broker, opened: Opened) {
    let mut registry = broker.registry.borrow_mut();
    for id in opened.new {
        if let Err(fault) = registry.stop(id, None) {
            tracing::error!(%fault, "a listener of a configuration that is not in force could not be stopped");
        }
    }
}

/// Brings the listeners in line with the configuration, whose policy is in force by now.
pub(super) fn settle(broker: &Rc<Broker>, config: &Config, opened: Opened, rows: &mut Vec<Row>) {
    rows.extend(opened.rows);
    rename(broker, config, rows);
    tell_of_moving(broker, &opened.new);
    let outside = outside(broker, &broker.policy.borrow());
    for id in outside {
        let mut registry = broker.registry.borrow_mut();
        let Some(entry) = registry.entry(id) else { continue };
        let (endpoint, owner) = (entry.endpoint.clone(), told(entry));
        let what = listener_named(&endpoint);
        match config.broker.on_narrow {
            OnNarrow::Keep => {
                tracing::warn!(%endpoint, owner, "nothing permits this listener now: it is kept until its owner stops it");
                rows.push(Row::new(KEPT, what, format!("{owner}, and nothing permits it now")));
            }
            OnNarrow::Close => {
                tracing::warn!(%endpoint, owner, "nothing permits this listener now: closing it");
                match registry.retire(id) {
                    Ok(leaving) => {
                        rows.push(Row::new(CLOSED, what, format!("{owner}, and nothing permits it now")));
                        drop(registry);
                        drain(broker, leaving);
                    }
                    Err(fault) => rows.push(Row::new(FAILED, what, fault.to_string())),
                }
            }
        }
    }
}

/// Static is what the configuration says now; of those that stay so the options may have changed.
fn rename(broker: &Broker, config: &Config, rows: &mut Vec<Row>) {
    let all = wanted(broker, config, &broker.policy.borrow());
    let wanted: HashMap<&Endpoint, &Wanted<'_>> =
        all.iter().map(|wanted| (&wanted.listener.endpoint.value, wanted)).collect();
    let mut registry = broker.registry.borrow_mut();
    for id in registry.ids_of(Owner::Worker) {
        let Some(entry) = registry.entry(id) else { continue };
        let (endpoint, moved, was_static) = (entry.endpoint.clone(), entry.moves, entry.name.is_some());
        let what = listener_named(&endpoint);
        match wanted.get(&*endpoint) {
            Some(Wanted { listener, moves }) => {
                registry.rename(id, Some(&listener.name()), *moves);
                if *moves && !moved {
                    rows.push(Row::new(APPLIED, &what, "from now on it goes and comes with its address"));
                } else if !moves && (moved || !was_static) {
                    rows.push(Row::new(APPLIED, &what, "static from now on: it outlives its worker"));
                }
                if let Err(why) = registry.adjust(id, &listener.socket) {
                    rows.push(Row::new(NEEDS_RESTART, &what, why));
                }
            }
            // It goes with its address.
            None if moved => {}
            None if was_static => {
                registry.rename(id, None, false);
                if broker.policy.borrow().listen(&Requester::Worker, &endpoint).is_ok() {
                    let detail = "no longer static: it stays its worker's, and ends some time after it";
                    rows.push(Row::new(RELEASED, what, detail));
                }
            }
            None => {}
        }
    }
}

/// Ends listeners once who holds them has taken the connections that were made before.
fn drain(broker: &Rc<Broker>, leaving: crate::listener::Leaving) {
    let broker = broker.clone();
    tokio::task::spawn_local(async move {
        leaving.drained().await;
        if let Err(fault) = broker.registry.borrow().end(leaving) {
            tracing::error!(%fault, "a listener that is outside the policy could not be stopped");
        }
    });
}

/// A listener that is to be there once a configuration is in force.
struct Wanted<'c> {
    listener: &'c Listener,
    /// It is there for as long as its address.
    moves: bool,
}

fn wanted<'c>(broker: &Broker, config: &'c Config, policy: &Policy) -> Vec<Wanted<'c>> {
    let here = address::staying(broker, policy, config.broker.on_narrow);
    let of = |listener: &'c Listener| {
        let at = &listener.endpoint.value;
        let comes = || {
            at.inet().is_some_and(|inet| here.contains(&inet.address)) && policy.starts_with_its_address(at)
        };
        match listener.is_static() {
            true => Some(Wanted { listener, moves: false }),
            false => comes().then_some(Wanted { listener, moves: true }),
        }
    };
    config.listeners.iter().filter_map(of).collect()
}

fn tell_of_moving(broker: &Broker, new: &[ListenerId]) {
    for id in new {
        let registry = broker.registry.borrow();
        let endpoint = registry.entry(*id).filter(|entry| entry.moves).map(|entry| entry.endpoint.clone());
        drop(registry);
        endpoint.iter().for_each(|endpoint| broker.tell_worker(EventCode::ListenerStarted, *id, endpoint));
    }
}

fn listener_named(endpoint: &Endpoint) -> String {
    format!("listener {endpoint}")
}

fn told(entry: &Entry) -> String {
    match (&entry.name, entry.owner) {
        (Some(_), _) => "static".to_owned(),
        (None, Owner::Worker) => "the worker's".to_owned(),
        (None, Owner::Session(number)) => format!("session {number}'s"),
        (None, Owner::Former(user)) => format!("user {user}'s"),
    }
}

/// The listeners that a policy does not permit their owners.
fn outside(broker: &Broker, policy: &Policy) -> Vec<ListenerId> {
    let sessions = broker.sessions.borrow();
    let registry = broker.registry.borrow();
    let permits = |entry: &Entry| {
        let who = match entry.owner {
            Owner::Worker => Some(&Requester::Worker),
            Owner::Session(number) => sessions.get(&number).map(|info| &info.requester),
            // Whose groups are not known before it is back. Unless it comes soon, they end by themselves.
            Owner::Former(_) => None,
        };
        let may = |endpoint: &Endpoint| who.is_none_or(|who| policy.listen(who, endpoint).is_ok());
        may(&entry.endpoint)
            && (!entry.is_dual_stack() || same_port_of_ipv4(&entry.endpoint).is_none_or(|ipv4| may(&ipv4)))
    };
    registry.after(ListenerId(0)).filter(|(_, entry)| !permits(entry)).map(|(id, _)| id).collect()
}
