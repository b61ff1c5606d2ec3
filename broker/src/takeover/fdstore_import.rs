//! Importing listeners that the service manager stored for an earlier broker: their owners adopt them as before.
//!
//! Promises: a descriptor becomes a listener only if a broker stored it and the kernel confirms the endpoint in its name. A
//! listener that the policy no longer permits is stopped.

use std::os::fd::OwnedFd;

use portreeve_protocol::message::{Listen, ListenerId};
use portreeve_protocol::takeover::ExportedListener;

use super::fdstore_name::FdstoreName;
use crate::config::Config;
use crate::listener::{Configured, Registry};
use crate::policy::{Policy, Requester};

/// Imports the descriptors that the service manager passed with these names. Returns the names that have to be removed
/// from the store.
pub fn import_from_fdstore(
    passed: impl IntoIterator<Item = (String, OwnedFd)>,
    config: &Config,
    policy: &Policy,
    registry: &mut Registry,
) -> Vec<String> {
    let mut count = 0_usize;
    let mut stale = Vec::new();
    for (name, descriptor) in passed {
        count += 1;
        if let Err(cause) = import_one(&name, descriptor, config, policy, registry) {
            tracing::warn!(target: "audit", name, cause, "closed a descriptor that the service manager passed");
            stale.push(name);
        }
    }
    if count > 0 {
        tracing::info!(
            listeners = registry.count(),
            passed = count,
            "imported listeners from the service manager's descriptor store"
        );
    }
    stale
}

fn import_one(
    name: &str,
    descriptor: OwnedFd,
    config: &Config,
    policy: &Policy,
    registry: &mut Registry,
) -> Result<(), String> {
    let FdstoreName { endpoint, options, user } =
        FdstoreName::decode(name).ok_or("no broker stored it under this name")?;
    let mut statics = config.listeners.iter().filter(|listener| listener.is_static());
    let configured = match statics.find(|listener| listener.endpoint.value == endpoint) {
        Some(listener) => Configured::Static(listener.name()),
        None => Configured::No,
    };
    let listen = Listen { endpoint: endpoint.clone(), options: options.clone() };
    let permitted =
        configured != Configured::No || policy.listen_request(&Requester::Worker, &listen).is_ok();
    let id: ListenerId = registry.next_id();
    let exported = ExportedListener { id, endpoint, options, user, file: None };
    registry.import(exported, descriptor, configured).map_err(|error| error.to_string())?;
    if permitted {
        return Ok(());
    }
    let endpoint = listen.endpoint;
    Err(match registry.stop(id, None) {
        Ok(_) => format!("the listener on {endpoint} is no longer permitted"),
        Err(fault) => format!("the listener on {endpoint} is no longer permitted, and still open: {fault}"),
    })
}
