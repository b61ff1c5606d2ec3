//! Opens, while the broker is still root, the control socket, the static listeners, and the sockets with which it
//! manages addresses.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::rc::Rc;

use caps::Capability::{self, CAP_NET_ADMIN, CAP_NET_RAW};
use nix::sys::resource::rlim_t;
use nix::unistd::Gid;
use portreeve_protocol::FaultCode;

use crate::address::{Addresses, Reservation};
use crate::config::Config;
use crate::events::Events;
use crate::failure::{Exit, Failure};
use crate::in_flight_limit::InFlightLimit;
use crate::inject;
use crate::launcher::FormerLaunchers;
use crate::listener::{BindPrivileges, ChangeQueue, Owner, Registry, Revocation};
use crate::plan::{self, Findings, Plan};
use crate::sd_notify::Notifier;
use crate::server::{MAX_SESSIONS, control_socket};
use crate::startup::tentative::{Detection, TentativeAddresses};
use crate::sys::SocketDirectories;
use crate::takeover::{AwaitedListener, Fdstore, OfferedSockets, Predecessor, Reason, Stopping};

/// How the broker divides the open files that its limit allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFiles {
    /// The largest number of listeners.
    pub listeners: usize,
    /// The largest number of sessions of the control socket. Each has two descriptors.
    pub sessions: u32,
}

impl OpenFiles {
    /// The most descriptors that are neither listeners nor sessions: those of the runtime, and copies in transit.
    const OTHERS: usize = 512;

    /// Divides them: a quarter of a low limit for sessions, and a quarter for everything else.
    pub fn divide(limit: rlim_t) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let sessions = MAX_SESSIONS.min(u32::try_from(limit / 8).unwrap_or(u32::MAX));
        let reserved = Self::OTHERS.min(limit / 4) + 2 * sessions as usize;
        Self { listeners: limit.saturating_sub(reserved), sessions }
    }

    /// A warning about a limit that is too low for all sessions.
    pub fn warning(self, limit: rlim_t) -> Option<String> {
        let Self { listeners, sessions } = self;
        (sessions < MAX_SESSIONS).then(|| {
            format!(
                "the limit of open files is {limit}: the broker holds at most {listeners} listeners and {sessions} sessions; \
                 start portreeved with a higher hard limit (LimitNOFILE= in the unit, ulimit -H -n)"
            )
        })
    }
}

/// Binds the control socket, if the configuration names one.
pub fn control_socket(
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

/// A registry with room for `capacity` listeners, and with the directories of the Unix
/// sockets that the configuration names.
pub fn empty_registry(
    config: &Config,
    capacity: usize,
    privileges: BindPrivileges,
) -> Result<Registry, Failure> {
    let needed = plan::socket_directories(config);
    let paths: Vec<PathBuf> = needed.keys().cloned().collect();
    let directories = SocketDirectories::open(&paths).map_err(|(path, errno)| {
        let place = needed.get(&path).map_or_else(String::new, |span| config.place(*span));
        Failure::new(
            Exit::CannotCreate,
            "sockets",
            format_args!("{place}: cannot open the directory {path:?} of a Unix socket: {}", errno.desc()),
            "create it, owned by root, and configure a path without symbolic links",
        )
    })?;
    Ok(Registry::new(capacity, Revocation::load(capacity), directories, privileges))
}

/// The manager of addresses, if the configuration names any and the retained capabilities allow it.
/// `reservation` is that of the predecessor, if there is one.
pub fn addresses(
    config: &Config,
    plan: &Plan,
    events: &Rc<Events>,
    reservation: Option<Reservation>,
) -> Result<Option<Addresses>, Failure> {
    let retains = |capability: Capability| plan.retained.effective.contains(capability.index());
    if !retains(CAP_NET_ADMIN) || !plan::names_addresses(config) {
        return Ok(None);
    }
    let settings = plan::address_settings(config);
    let addresses = Addresses::open(settings, retains(CAP_NET_RAW), events.clone(), reservation)?;
    let host_owned = addresses.host_owned(&plan::floating(config))?;
    let mut findings = Findings::default();
    for diagnostic in config.host_owned_errors(&host_owned) {
        findings.error("addresses", Exit::Config, diagnostic);
    }
    match findings.first_failure() {
        Some(failure) => Err(failure),
        None => Ok(Some(addresses)),
    }
}

/// Connects to the running broker, and imports its control socket.
pub fn begin_takeover(
    config: &Config,
    registry: &mut Registry,
    force: bool,
) -> Result<(Predecessor, OfferedSockets), Failure> {
    let Some(path) = &config.broker.socket else {
        let what =
            "cannot take over: the broker scope names no socket at which the running broker could be reached";
        let remedy = "add the socket of the running broker, or restart it instead of taking over";
        return Err(Failure::new(Exit::Config, "takeover", what, remedy));
    };
    let (predecessor, sockets) = Predecessor::connect(&path.value, force)?;
    inject::point("takeover.control")?;
    let text = path.value.to_string_lossy();
    control_socket::import(registry, &text, &predecessor.offer.control, &sockets.control)?;
    Ok((predecessor, sockets))
}

/// The descriptor store, if the service manager has one. From now on the registry records changes for it.
pub fn fdstore(
    notifier: &Rc<Notifier>,
    registry: &mut Registry,
    in_flight_limit: &Rc<InFlightLimit>,
) -> Option<Rc<Fdstore>> {
    let capacity = notifier.fdstore_capacity();
    (capacity > 0).then(|| {
        let changes = Rc::new(ChangeQueue::default());
        registry.record_changes_in(changes.clone());
        Rc::new(Fdstore::new(notifier.clone(), changes, capacity, in_flight_limit.clone()))
    })
}

/// Binds the static listeners that were not imported from the descriptor store, and stops the imported listeners of users
/// that are in the way. Returns the names that those had in the store. In a takeover the static listeners whose endpoint is in
/// use have to come from the predecessor: they are added to `awaited`. Otherwise the worker of a broker that was killed may
/// hold them until it ends, too.
pub fn bind_static(
    config: &Config,
    registry: &mut Registry,
    mut awaited: Option<&mut Vec<AwaitedListener>>,
    former: &mut FormerLaunchers,
) -> Result<Vec<String>, Failure> {
    let mut stopping = Stopping::default();
    let mut tentative = TentativeAddresses::default();
    for listener in config.listeners.iter().filter(|listener| listener.is_static()) {
        let endpoint = listener.endpoint.value.clone();
        if registry.owner_at(&endpoint) == Some(Owner::Worker) {
            continue;
        }
        let (name, users) = (listener.name(), registry.users_at(&endpoint));
        let place = config.place(listener.endpoint.span);
        let mut detection = Detection::NoAddress;
        let bound = loop {
            match registry.bind_static(&endpoint, &listener.socket, &name, &users, None) {
                Err(fault)
                    if fault.code == FaultCode::InUse
                        && awaited.is_none()
                        && former.may_release(&endpoint.to_string()) => {}
                Err(fault) if fault.code == FaultCode::NotLocal && detection == Detection::NoAddress => {
                    detection = tentative.wait(&endpoint);
                    if detection != Detection::Ended {
                        break Err(fault);
                    }
                }
                outcome => break outcome,
            }
        };
        if let Err(fault) = bound {
            let cause = format!("{}{}{}", &*fault.message, detection.remark(), former.remark());
            let failure = || {
                Failure::new(Exit::Unavailable, "listen", format_args!("{place}: {cause}"), &*fault.remedy)
            };
            match &mut awaited {
                Some(awaited) if fault.code == FaultCode::InUse => {
                    let (socket, in_use) = (listener.socket.clone(), failure());
                    awaited.push(AwaitedListener { endpoint, name, socket, in_use });
                }
                _ if listener.socket.optional => {
                    registry.go_on_without(&endpoint, &cause);
                    continue;
                }
                _ => return Err(failure()),
            }
        }
        users.into_iter().for_each(|id| stopping.add(id, Reason::Static));
    }
    Ok(stopping.stop(registry))
}
