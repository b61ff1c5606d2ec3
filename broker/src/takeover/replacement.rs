//! Imported listeners that do not stay: those that the policy denies to their holders, and those of users where the
//! configuration declares a listener of the worker.
//!
//! Promises: each is stopped for every process that has a copy of its socket, and the log says which listener of whom was
//! stopped, and why.

use std::collections::BTreeMap;

use portreeve_protocol::message::{Listen, ListenerId};
use portreeve_protocol::takeover::ExportedListener;

use super::fdstore_name::FdstoreName;
use crate::listener::Registry;
use crate::policy::{Policy, Requester};

/// Why an imported listener stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The policy does not permit it to its holder.
    NotPermitted,
    /// It is in the way of a static listener.
    Static,
    /// It is in the way of a floating listener.
    Floating,
    /// It overlaps with the listener of another holder.
    Overlap,
}

impl Reason {
    fn text(self) -> &'static str {
        match self {
            Self::NotPermitted => "stopped a listener that is no longer permitted",
            Self::Static => {
                "stopped a listener of a user: the configuration makes its endpoint a static listener"
            }
            Self::Overlap => "stopped a listener that overlaps with one of another holder",
            Self::Floating => {
                "stopped a listener of a user: the configuration makes its endpoint a floating listener"
            }
        }
    }
}

/// Whether the policy permits an exported listener to its holder. The groups of a user are not known before it connects again,
/// so a user is denied what neither its own scope nor that of any group permits.
pub fn is_permitted(policy: &Policy, listener: &ExportedListener) -> bool {
    let listen = Listen::new(listener.endpoint.clone(), listener.options.clone());
    let holder = listener.user.map_or(Requester::Worker, |uid| policy.former_user(uid));
    policy.listen_request(&holder, &listen).is_ok()
}

/// The imported listeners that stop.
#[derive(Debug, Default)]
pub struct Stopping(BTreeMap<ListenerId, Reason>);

impl Stopping {
    /// Adds one. The first reason stays.
    pub fn add(&mut self, id: ListenerId, reason: Reason) {
        self.0.entry(id).or_insert(reason);
    }

    /// Their numbers.
    pub fn ids(&self) -> Vec<ListenerId> {
        self.0.keys().copied().collect()
    }

    /// Stops them, and returns the names that they had in the descriptor store.
    pub fn stop(self, registry: &mut Registry) -> Vec<String> {
        let mut names = Vec::new();
        for (id, reason) in self.0 {
            let Some(exported) = registry.export_unless_floating(id) else { continue };
            let (endpoint, user) = (exported.endpoint.clone(), exported.user);
            match registry.stop(id, None) {
                Ok(_) => tracing::warn!(target: "audit", %endpoint, user, "{}", reason.text()),
                Err(fault) => {
                    tracing::error!(%endpoint, user, error = %fault, "cannot stop a listener that must not stay")
                }
            }
            names.extend(FdstoreName::from(exported).encode());
        }
        names
    }
}
