//! Reloading the listeners: new ones, and those that the new policy no longer permits to their owners.
//!
//! New listeners are bound while the old ones still listen. So when a wildcard replaces an address, or an address a
//! wildcard, no client is refused in between. A floating listener is opened if its address is on this host already.

use std::collections::HashMap;
use std::path::Path;
use std::rc::Rc;

use portreeve_protocol::message::{ListenOptions, ListenerId};
use portreeve_protocol::{Endpoint, EventCode, Fault, FaultCode, Text};

use super::address;
use super::report::{APPLIED, CLOSED, FAILED, KEPT, NEEDS_RESTART, OPENED, RELEASED, Row};
use crate::config::{Config, Listener, OnNarrow};
use crate::listener::{Entry, Owner, in_use};
use crate::policy::{Policy, Requester, ipv4_endpoint};
use crate::server::state::Broker;

/// The listeners that were opened for a configuration that is not in force yet.
pub(super) struct Opened {
    new: Vec<ListenerId>,
    /// The listeners that will close: new ones may share their endpoints meanwhile.
    closing: Vec<ListenerId>,
    /// The optional listeners that could not be opened, with the causes.
    unopened: Vec<(Endpoint, Fault)>,
    rows: Vec<Row>,
}

impl Opened {
    fn go_on_without(&mut self, endpoint: &Endpoint, fault: Fault) {
        self.rows.push(Row::new(FAILED, listener_named(endpoint), format!("optional; {fault}")));
        self.unopened.push((endpoint.clone(), fault));
    }
}

/// Opens the static listeners that do not exist yet, or opens none and returns the fault. `policy` is the new one: existing
/// listeners that it does not permit will be closed, so they are no obstacle.
pub(super) fn open(broker: &Broker, config: &Config, policy: &Policy) -> Result<Opened, Fault> {
    let closing = match config.broker.on_narrow {
        OnNarrow::Close => not_permitted(broker, policy),
        OnNarrow::Keep => Vec::new(),
    };
    let mut opened = Opened { new: Vec::new(), closing, unopened: Vec::new(), rows: Vec::new() };
    for Required { listener, floating } in required_listeners(broker, config, policy) {
        let endpoint = &listener.endpoint.value;
        let mut registry = broker.registry.borrow_mut();
        registry.end_closed_at(endpoint, &ListenOptions::default());
        let existing = registry.id_at(endpoint).and_then(|id| {
            let entry = registry.entry(id)?;
            Some((id, entry.owner, entry.is_kept()))
        });
        match existing {
            Some((_, Owner::Worker, true)) => continue,
            // A user's listener never becomes the worker's, and one whose socket the broker does not keep never a static one. A
            // new socket can be bound beside a TCP or UDP socket only.
            Some((id, owner, _)) if endpoint.inet().is_none() || !opened.closing.contains(&id) => {
                let fault = in_use(endpoint, owner);
                if listener.socket.optional {
                    opened.go_on_without(endpoint, fault);
                    continue;
                }
                drop(registry);
                roll_back(broker, opened);
                return Err(with_place(config, listener, &fault));
            }
            Some(_) | None => {}
        }
        let what = listener_named(endpoint);
        let known = |directory: &Path| registry.directories().get(directory).is_ok();
        if let Some(reason) = broker.reloading.fixed.out_of_reach(endpoint, known) {
            opened.rows.push(Row::new(NEEDS_RESTART, what, reason));
            continue;
        }
        let room = registry.check_capacity();
        let vrf = broker.vrf_at(endpoint);
        let bind = |()| {
            let (name, closing) = (listener.name(), &opened.closing);
            registry.bind_static(endpoint, &listener.socket, &name, closing, vrf.as_deref())
        };
        match room.and_then(bind) {
            Ok(id) => {
                opened.new.push(id);
                let detail = if endpoint.inet().is_none() {
                    "bound; clients are refused until the worker requests it or is restarted"
                } else if floating {
                    registry.set_configured(id, Some(&listener.name()), true);
                    "open because its address is on this host; connections wait in its queue until the worker requests it"
                } else {
                    "open; connections wait in its queue until the worker requests it or is restarted"
                };
                opened.rows.push(Row::new(OPENED, what, detail));
            }
            // After a restart it is bound while the broker is still root.
            Err(fault) if fault.code == FaultCode::NotRetained || is_denied(&fault) => {
                opened.rows.push(Row::new(NEEDS_RESTART, what, fault.message.to_string()));
            }
            Err(fault) if listener.socket.optional => opened.go_on_without(endpoint, fault),
            Err(fault) => {
                drop(registry);
                roll_back(broker, opened);
                return Err(with_place(config, listener, &fault));
            }
        }
    }
    Ok(opened)
}

/// Whether the kernel denied the bind although the capability is retained, such as Landlock or a security module.
fn is_denied(fault: &Fault) -> bool {
    let errno = i32::try_from(fault.errno).unwrap_or_default();
    fault.code == FaultCode::Os && [libc::EACCES, libc::EPERM].contains(&errno)
}

/// The fault with the place of its listener in the configuration.
fn with_place(config: &Config, listener: &Listener, fault: &Fault) -> Fault {
    let message = format!("{}: {}", config.place(listener.endpoint.span), &*fault.message);
    Fault { message: Text::truncated(&message), ..fault.clone() }
}

fn roll_back(broker: &Broker, opened: Opened) {
    let mut registry = broker.registry.borrow_mut();
    for id in opened.new {
        if let Err(fault) = registry.stop(id, None) {
            tracing::error!(error = %fault, "cannot revoke a listener that was opened for a configuration that failed");
        }
    }
    registry.end_sharing(&opened.closing);
}

/// Makes the listeners match the configuration. Its policy is in force already.
pub(super) fn apply(broker: &Rc<Broker>, config: &Config, opened: Opened, rows: &mut Vec<Row>) {
    rows.extend(opened.rows);
    let mut registry = broker.registry.borrow_mut();
    registry.forget_unopened();
    opened.unopened.iter().for_each(|(endpoint, fault)| registry.go_on_without(endpoint, &fault.message));
    drop(registry);
    update(broker, config, rows);
    publish_floating(broker, &opened.new);
    broker.follow_interfaces();
    let registry = broker.registry.borrow();
    let row = |(endpoint, cause): (&Endpoint, &str)| {
        Row::new(NEEDS_RESTART, listener_named(endpoint), format!("receives nothing: {cause}"))
    };
    rows.extend(registry.without_interface().map(row));
    drop(registry);
    let not_permitted = not_permitted(broker, &broker.policy.borrow());
    for id in not_permitted {
        let mut registry = broker.registry.borrow_mut();
        let Some(entry) = registry.entry(id) else { continue };
        let (endpoint, owner, is_kept) = (entry.endpoint.clone(), owner_text(entry), entry.is_kept());
        let what = listener_named(&endpoint);
        match config.broker.on_narrow {
            OnNarrow::Keep => {
                tracing::warn!(%endpoint, owner, "a listener is no longer permitted to its owner: it stays until its owner stops it");
                rows.push(Row::new(KEPT, what, format!("{owner}, no longer permitted")));
            }
            OnNarrow::Close => {
                tracing::warn!(%endpoint, owner, "a listener is no longer permitted to its owner: closing it");
                if !is_kept {
                    // Its owner has the connections in the queue in any case.
                    let stopped = registry.stop(id, None);
                    rows.push(match stopped {
                        Ok(_) => Row::new(CLOSED, what, format!("{owner}, no longer permitted")),
                        Err(fault) => Row::new(FAILED, what, fault.to_string()),
                    });
                    continue;
                }
                match registry.start_drain(id) {
                    Ok(draining) => {
                        rows.push(Row::new(CLOSED, what, format!("{owner}, no longer permitted")));
                        drop(registry);
                        drain(broker, draining);
                    }
                    Err(fault) => rows.push(Row::new(FAILED, what, fault.to_string())),
                }
            }
        }
    }
}

/// Updates which listeners are static or floating, and the options of those that stay.
fn update(broker: &Broker, config: &Config, rows: &mut Vec<Row>) {
    let all = required_listeners(broker, config, &broker.policy.borrow());
    let by_endpoint: HashMap<&Endpoint, &Required<'_>> =
        all.iter().map(|required| (&required.listener.endpoint.value, required)).collect();
    let mut registry = broker.registry.borrow_mut();
    for id in registry.ids_of(Owner::Worker) {
        let Some(entry) = registry.entry(id).filter(|entry| entry.is_kept()) else { continue };
        let (endpoint, was_floating, was_static) =
            (entry.endpoint.clone(), entry.floating, entry.name.is_some());
        let what = listener_named(&endpoint);
        match by_endpoint.get(&*endpoint) {
            Some(Required { listener, floating }) => {
                registry.set_configured(id, Some(&listener.name()), *floating);
                if *floating && !was_floating {
                    rows.push(Row::new(
                        APPLIED,
                        &what,
                        "floating from now on: it starts and stops with its address",
                    ));
                } else if !floating && (was_floating || !was_static) {
                    rows.push(Row::new(APPLIED, &what, "static from now on: it outlives its worker"));
                }
                if let Err(reason) = registry.apply_settings(id, &listener.socket) {
                    rows.push(Row::new(NEEDS_RESTART, &what, reason));
                }
            }
            // It stops with its address.
            None if was_floating => {}
            None if was_static => {
                registry.set_configured(id, None, false);
                if broker.policy.borrow().listen(&Requester::Worker, &endpoint).is_ok() {
                    let detail = "no longer static: it belongs to its worker and closes some time after the worker exits";
                    rows.push(Row::new(RELEASED, what, detail));
                }
            }
            None => {}
        }
    }
}

/// Closes a listener after its owner has accepted the connections that wait in its queue.
fn drain(broker: &Rc<Broker>, draining: crate::listener::Draining) {
    let broker = broker.clone();
    tokio::task::spawn_local(async move {
        draining.wait().await;
        if let Err(fault) = broker.registry.borrow_mut().finish_drain(draining) {
            tracing::error!(error = %fault, "cannot revoke a listener that is no longer permitted");
        }
    });
}

/// A listener that must exist once a configuration is in force.
struct Required<'c> {
    listener: &'c Listener,
    /// Whether it exists only while its address is on this host.
    floating: bool,
}

fn required_listeners<'c>(broker: &Broker, config: &'c Config, policy: &Policy) -> Vec<Required<'c>> {
    let remaining = address::remaining(broker, policy, config.broker.on_narrow);
    let required = |listener: &'c Listener| {
        let at = &listener.endpoint.value;
        let starts_now = || {
            at.inet().is_some_and(|inet| remaining.contains(&inet.address))
                && policy.starts_with_its_address(at)
        };
        match listener.is_static() {
            true => Some(Required { listener, floating: false }),
            false => starts_now().then_some(Required { listener, floating: true }),
        }
    };
    config.listeners.iter().filter_map(required).collect()
}

/// Publishes that floating listeners have started.
fn publish_floating(broker: &Broker, new: &[ListenerId]) {
    for id in new {
        let registry = broker.registry.borrow();
        let endpoint = registry.entry(*id).filter(|entry| entry.floating).map(|entry| entry.endpoint.clone());
        drop(registry);
        endpoint
            .iter()
            .for_each(|endpoint| broker.publish_to_worker(EventCode::ListenerStarted, *id, endpoint));
    }
}

fn listener_named(endpoint: &Endpoint) -> String {
    format!("listener {endpoint}")
}

fn owner_text(entry: &Entry) -> String {
    match (&entry.name, entry.owner) {
        (Some(_), _) => "static".to_owned(),
        (None, Owner::Worker) => "the worker's".to_owned(),
        (None, Owner::Session(number)) => format!("session {number}'s"),
        (None, Owner::Former(user)) => format!("user {user}'s"),
    }
}

/// The listeners that a policy does not permit to their owners.
fn not_permitted(broker: &Broker, policy: &Policy) -> Vec<ListenerId> {
    let sessions = broker.sessions.borrow();
    let registry = broker.registry.borrow();
    let is_permitted = |entry: &Entry| {
        let requester = match entry.owner {
            Owner::Worker => Requester::Worker,
            Owner::Session(number) => match sessions.get(&number) {
                Some(info) => info.requester.clone(),
                // The session has ended.
                None => return false,
            },
            Owner::Former(uid) => policy.former_user(uid),
        };
        let allowed = |endpoint: &Endpoint| {
            policy.listen(&requester, endpoint).is_ok()
                && (entry.is_kept() || policy.unkept(&requester, endpoint).is_ok())
        };
        allowed(&entry.endpoint)
            && (!entry.is_dual_stack() || ipv4_endpoint(&entry.endpoint).is_none_or(|ipv4| allowed(&ipv4)))
    };
    registry.iter_after(ListenerId(0)).filter(|(_, entry)| !is_permitted(entry)).map(|(id, _)| id).collect()
}
