//! Listeners that the service manager kept from a broker before: they go on, for whoever asks for them as before.
//!
//! Promises: only what was stored under a name of ours and is what the name says becomes a listener; what the policy does
//! not permit any more is taken out of service.

use portreeve_protocol::message::{Listen, ListenerId};
use portreeve_protocol::takeover::ExportedListener;

use crate::config::Config;
use crate::confine::descriptors::Passed;
use crate::listener::Registry;
use crate::listener::handed::Named;
use crate::listener::stored::Stored;
use crate::policy::{Policy, Requester};

/// Takes in what is ours, and gives the names of what is not to be stored any longer.
pub fn take(passed: Vec<Passed>, config: &Config, policy: &Policy, registry: &mut Registry) -> Vec<String> {
    let count = passed.len();
    let mut stale = Vec::new();
    for one in passed {
        let name = one.name.clone();
        if let Err(why) = take_one(one, config, policy, registry) {
            tracing::warn!(target: "audit", name, why, "a descriptor from the service manager is closed");
            stale.push(name);
        }
    }
    if count > 0 {
        tracing::info!(
            listeners = registry.count(),
            passed = count,
            "listeners came from the service manager"
        );
    }
    stale
}

fn take_one(passed: Passed, config: &Config, policy: &Policy, registry: &mut Registry) -> Result<(), String> {
    let Stored { endpoint, options, user } =
        Stored::read(&passed.name).ok_or("no broker stored it under such a name")?;
    let mut statics = config.listeners.iter().filter(|listener| listener.is_static());
    let named = match statics.find(|listener| listener.endpoint.value == endpoint) {
        Some(listener) => Named::Static(listener.name()),
        None => Named::No,
    };
    let listen = Listen { endpoint: endpoint.clone(), options: options.clone() };
    let permitted = named != Named::No || policy.listen_request(&Requester::Worker, &listen).is_ok();
    let id: ListenerId = registry.next_id();
    let told = ExportedListener { id, endpoint, options, user, file: None };
    registry.take_in(told, passed.descriptor, named).map_err(|error| error.to_string())?;
    if permitted {
        return Ok(());
    }
    let endpoint = listen.endpoint;
    Err(match registry.stop(id, None) {
        Ok(_) => format!("{endpoint} is no longer permitted"),
        Err(fault) => format!("{endpoint} is no longer permitted, and could not be stopped: {fault}"),
    })
}
