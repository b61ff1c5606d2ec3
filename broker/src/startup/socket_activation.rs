//! Listeners that the service manager opened for a `.socket` unit: those of static endpoints are adopted. See
//! sd_listen_fds(3), systemd.socket(5).
//!
//! Promises: a socket is adopted only if the kernel reports what the broker itself would have opened. The service manager keeps
//! its copy of it.

use std::fmt::Display;
use std::os::fd::{AsFd as _, OwnedFd};

use portreeve_protocol::Endpoint;
use portreeve_protocol::message::ListenOptions;
use portreeve_protocol::takeover::ExportedListener;

use crate::config::Config;
use crate::confine::descriptors::Passed;
use crate::failure::{Exit, Failure};
use crate::listener::{BoundSocket, Configured, Registry};
use crate::sys::sockopt;

const STEP: &str = "socket activation";

/// Adopts the listeners of static endpoints among these descriptors, and closes the others. Returns the names of those: they may
/// come from the descriptor store.
///
/// # Errors
/// A socket is at a static endpoint, but is not what the broker would open there: it could not open its own beside it.
pub fn adopt(passed: Vec<Passed>, config: &Config, registry: &mut Registry) -> Result<Vec<String>, Failure> {
    let mut closed = Vec::new();
    for Passed { name, number, descriptor } in passed {
        let mut close = |cause: &dyn Display| {
            let (name, cause) = (name.as_str(), cause.to_string());
            tracing::warn!(target: "audit", name, number, reason = cause, "closed a descriptor that the service manager passed");
            closed.push(name.to_owned());
        };
        let endpoint = match BoundSocket::of(&descriptor) {
            Some(BoundSocket::Inet(endpoint)) => endpoint,
            Some(BoundSocket::Unix(..)) => {
                close(&"it is a Unix socket: the broker binds those itself");
                continue;
            }
            Some(BoundSocket::ConnectedUdp(_)) | None => {
                close(&"it is no listener");
                continue;
            }
        };
        let Some(listener) = config.static_listener(&endpoint) else {
            close(&format_args!(
                "no broker stored it, and the configuration has no static listener on {endpoint}"
            ));
            continue;
        };
        if registry.contains(&endpoint) {
            // The store has a copy of a socket that an earlier broker adopted.
            continue;
        }
        let unit = format!("descriptor {number} of the service manager ({name:?} in LISTEN_FDNAMES)");
        let failure = |problem: &dyn Display, remedy: &str| {
            let place = config.place(listener.endpoint.span);
            Failure::new(
                Exit::Unavailable,
                STEP,
                format_args!("{place}: {unit} is at {endpoint}, but {problem}"),
                remedy,
            )
        };
        if let Some((problem, remedy)) = difference(&endpoint, &descriptor) {
            return Err(failure(&problem, remedy));
        }
        let id = registry.next_id();
        let options = ListenOptions::default();
        let exported = ExportedListener { id, endpoint: endpoint.clone(), options, user: None, file: None };
        let remedy = "remove the endpoint from the .socket unit: the broker binds it itself";
        let imported = registry.import(exported, descriptor, Configured::Static(listener.name()));
        imported.map_err(|error| failure(&error, remedy))?;
        registry.apply_settings(id, &listener.socket).map_err(|error| failure(&error, remedy))?;
        tracing::info!(%endpoint, name, "adopted a listener of the service manager");
    }
    Ok(closed)
}

/// What differs from a socket of the broker and cannot be changed, and what to do.
fn difference(endpoint: &Endpoint, socket: &OwnedFd) -> Option<(&'static str, &'static str)> {
    let inet = endpoint.inet()?;
    let is_set = |option: nix::Result<bool>| option != Ok(false);
    if inet.address.is_ipv6() && sockopt::is_ipv6_only(socket.as_fd()) != Ok(true) {
        return Some(("it serves IPv4 too", "set BindIPv6Only=ipv6-only in the .socket unit"));
    }
    if is_set(sockopt::reuses_port(socket.as_fd())) {
        return Some(("other sockets can share its endpoint", "remove ReusePort= from the .socket unit"));
    }
    if inet.scope.is_empty() && sockopt::bound_interface(socket.as_fd()) != Ok(0) {
        return Some(("it is bound to one interface", "remove BindToDevice= from the .socket unit"));
    }
    if is_set(sockopt::is_filter_locked(socket.as_fd())) {
        return Some(("a filter is locked into it", "remove what attaches a filter to it"));
    }
    None
}
