//! What is opened while the broker is still root: the control socket, the static listeners, and what addresses are
//! put on interfaces by.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::rc::Rc;

use nix::sys::resource::rlim_t;
use nix::unistd::Gid;
use portreeve_protocol::FaultCode;

use crate::address::Addresses;
use crate::config::Config;
use crate::events::Events;
use crate::failure::{Exit, Failure};
use crate::inject;
use crate::listener::{Changes, Directories, Filter, Registry};
use crate::plan::{self, Findings, Plan};
use crate::server::{Awaited, Notifier, Store, control_socket};
use crate::takeover::{Offered, Predecessor};

/// Descriptors that are no listeners: sessions, the runtime's own, copies on their way.
const RESERVED: usize = 1024;
/// The capabilities' numbers, see include/uapi/linux/capability.h.
const NET_ADMIN: u8 = 12;
const NET_RAW: u8 = 13;

pub fn control(
    config: &Config,
    group: Gid,
    registry: &mut Registry,
) -> Result<Option<UnixListener>, Failure> {
    let Some(path) = &config.broker.socket else {
        return Ok(None);
    };
    let (text, place) = (path.value.to_string_lossy(), config.place(path.span));
    control_socket::bind(registry, &text, (group, config.broker.socket_mode), &place).map(Some)
}

/// A registry that can hold as many listeners as there are descriptors, and reach the directories that the
/// configuration's Unix sockets are in.
pub fn empty_registry(config: &Config, descriptors: rlim_t) -> Result<Registry, Failure> {
    let capacity = usize::try_from(descriptors).unwrap_or(usize::MAX).saturating_sub(RESERVED);
    let needed = plan::socket_directories(config);
    let paths: Vec<PathBuf> = needed.keys().cloned().collect();
    let directories = Directories::open(&paths).map_err(|(path, errno)| {
        let place = needed.get(&path).map_or_else(String::new, |span| config.place(*span));
        Failure::new(
            Exit::CannotCreate,
            "sockets",
            format_args!(
                "{place}: the directory {path:?} of a Unix socket cannot be opened: {}",
                errno.desc()
            ),
            "create it, owned by root; no part of its path may be a symbolic link",
        )
    })?;
    Ok(Registry::new(capacity, Filter::load(), directories))
}

/// What addresses are put on interfaces by, where the configuration has any and the capabilities allow it.
pub fn addresses(config: &Config, plan: &Plan, events: &Rc<Events>) -> Result<Option<Addresses>, Failure> {
    let retains = |capability: u8| plan.retained.effective.bits() & (1 << capability) != 0;
    if !retains(NET_ADMIN) || !plan::names_addresses(config) {
        return Ok(None);
    }
    let addresses = Addresses::open(plan::address_settings(config), retains(NET_RAW), events.clone())?;
    let own = addresses.host_owned(&plan::floating(config))?;
    let mut findings = Findings::default();
    config.own_addresses(&own).into_iter().for_each(|own| findings.error("addresses", Exit::Config, own));
    match findings.first_failure() {
        Some(failure) => Err(failure),
        None => Ok(Some(addresses)),
    }
}

/// Meets the broker that is to be replaced, and takes the control socket from it.
pub fn succeed(config: &Config, registry: &mut Registry) -> Result<(Predecessor, Offered), Failure> {
    let Some(path) = &config.broker.socket else {
        let what = "the broker scope names no socket, over which the running broker could be asked";
        return Err(Failure::new(
            Exit::Config,
            "takeover",
            what,
            "add the running broker's, or restart instead",
        ));
    };
    let (predecessor, offered) = Predecessor::meet(&path.value)?;
    inject::point("takeover.control")?;
    let text = path.value.to_string_lossy();
    control_socket::take(registry, &text, &predecessor.offer.control, &offered.control)?;
    Ok((predecessor, offered))
}

/// The service manager's store of descriptors, where it has one: kept up to date from here on.
pub fn store(notifier: &Rc<Notifier>, registry: &mut Registry) -> Option<Rc<Store>> {
    let most = notifier.store();
    (most > 0).then(|| {
        let changes = Rc::new(Changes::default());
        registry.tell(changes.clone());
        Rc::new(Store::new(notifier.clone(), changes, most))
    })
}

/// Binds the static listeners but those that are there already. Those whose endpoint is in use are awaited from another broker, where there is one.
pub fn bind_static(
    config: &Config,
    registry: &mut Registry,
    mut awaited: Option<&mut Vec<Awaited>>,
) -> Result<(), Failure> {
    for listener in config.listeners.iter().filter(|listener| listener.is_static()) {
        let endpoint = listener.endpoint.value.clone();
        if registry.holds(&endpoint) {
            continue;
        }
        let name = listener.name();
        if let Err(fault) = registry.bind_static(endpoint.clone(), &listener.socket, &name) {
            let what = format!("{}: {}", config.place(listener.endpoint.span), &*fault.message);
            let taken = Failure::new(Exit::Unavailable, "listen", what, &*fault.remedy);
            match &mut awaited {
                Some(awaited) if fault.code == FaultCode::InUse => {
                    awaited.push(Awaited { endpoint, name, taken });
                }
                _ => return Err(taken),
            }
        }
    }
    Ok(())
}
