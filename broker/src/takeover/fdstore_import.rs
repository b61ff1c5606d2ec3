//! Importing listeners that the service manager stored for an earlier broker: their owners adopt them as before.
//!
//! Promises: a descriptor becomes a listener only if a broker stored it and the kernel confirms the endpoint in its name. A
//! listener that the policy no longer permits to its holder is stopped. One of a user never becomes the worker's.

use std::os::fd::OwnedFd;

use portreeve_protocol::message::ListenerId;
use portreeve_protocol::takeover::ExportedListener;

use super::fdstore::NamesAtStart;
use super::fdstore_name::{ALLOWLIST_NAME, FdstoreName};
use super::replacement::is_permitted;
use crate::config::Config;
use crate::listener::{Configured, Registry};
use crate::policy::Policy;

/// Imports the descriptors that the service manager passed with these names, and returns the names: those of imported
/// listeners, and those that have to be removed from the store.
pub fn import_from_fdstore(
    passed: impl IntoIterator<Item = (String, OwnedFd)>,
    config: &Config,
    policy: &Policy,
    registry: &mut Registry,
) -> NamesAtStart {
    let mut count = 0_usize;
    let mut names = NamesAtStart::default();
    let mut passed: Vec<(String, OwnedFd)> = passed.into_iter().collect();
    let allowlist = passed.iter().position(|(name, _)| name == ALLOWLIST_NAME);
    let adopted = allowlist.map(|index| registry.adopt_allowlist(passed.swap_remove(index).1));
    passed.retain(|(name, _)| name != ALLOWLIST_NAME);
    if let Some(Err(errno)) = adopted {
        tracing::warn!(error = %errno, "cannot continue with the allowlist that the service manager passed");
        names.stale.push(ALLOWLIST_NAME.to_owned());
    }
    for (name, descriptor) in passed {
        count += 1;
        match import_one(&name, descriptor, config, policy, registry) {
            Ok(()) => {
                names.imported.insert(name);
            }
            Err(reason) => {
                tracing::warn!(target: "audit", name, reason, "closed a descriptor that the service manager passed");
                names.stale.push(name);
            }
        }
    }
    // Their holders may have connected them or shut them down, and still have copies.
    registry.revoke_rejected();
    if adopted == Some(Ok(())) {
        // Peers may have copies of listeners of the earlier broker that were not stored.
        registry.revoke_others();
    }
    if count > 0 {
        tracing::info!(
            listeners = registry.count(),
            passed = count,
            "imported listeners from the service manager's descriptor store"
        );
    }
    names
}

fn import_one(
    name: &str,
    descriptor: OwnedFd,
    config: &Config,
    policy: &Policy,
    registry: &mut Registry,
) -> Result<(), String> {
    let FdstoreName { endpoint, options, user, file } =
        FdstoreName::decode(name).ok_or("no broker stored it under this name")?;
    let configured = match config.static_listener(&endpoint) {
        Some(listener) if user.is_none() => Configured::Static(listener.name()),
        _ => Configured::No,
    };
    let id: ListenerId = registry.next_id();
    let exported = ExportedListener { id, endpoint: endpoint.clone(), options, user, file };
    let permitted = configured != Configured::No || is_permitted(policy, &exported);
    if file.is_some() && !registry.has_file(&exported) {
        return Err(format!("the file of {endpoint} has been removed or replaced"));
    }
    registry.import(exported, descriptor, configured).map_err(|error| error.to_string())?;
    let why = match (permitted, registry.is_shared_with_another_holder(id)) {
        (true, false) => return Ok(()),
        (true, true) => "overlaps with one of another holder",
        (false, _) => "is no longer permitted",
    };
    Err(match registry.stop(id, None) {
        Ok(_) => format!("the listener on {endpoint} {why}"),
        Err(fault) => format!("the listener on {endpoint} {why}: {fault}"),
    })
}
