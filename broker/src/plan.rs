//! What the configuration means on this host: names resolved, texts read, everything checked that can be checked
//! without changing anything. `check` stops here; starting goes on.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Uid};
use portreeve_protocol::Endpoint;

use crate::capability::{self, CapabilitySet, State};
use crate::config::{Config, Diagnostic, ListenPattern, PeerName, Severity, Span, Spanned};
use crate::confine::identity::{self, Identity};
use crate::failure::{Exit, Failure};
use crate::policy::{self, Policy};

/// The configuration, understood.
#[derive(Debug)]
pub struct Plan {
    /// Who the worker is.
    pub identity: Identity,
    /// What the broker retains.
    pub retained: State,
    /// What may be asked.
    pub policy: Policy,
    /// What the operator should know and nothing fails for.
    pub warnings: Vec<String>,
}

impl Plan {
    /// Works it out.
    pub fn new(config: &Config, warnings: &[Diagnostic]) -> Result<Self, Failure> {
        let mut warnings: Vec<String> = warnings.iter().map(Diagnostic::one_line).collect();
        let identity = identity(config)?;
        let retained = retained(config)?;
        if identity.user.is_root() {
            warnings.push(
                "security.user is root: the capability sets are exclusive, so the worker holds none and has lost \
                 root's access to other users' files; give it a user of its own, or chown its files to root"
                    .to_owned(),
            );
        }
        let policy = decide_by(config)?;
        let unserved = policy::unserved(config, retained.effective.bits(), unprivileged_port_start());
        if let Some(first) = unserved.iter().find(|diagnostic| diagnostic.severity == Severity::Error) {
            return Err(Failure::new(Exit::Config, "policy", first.one_line(), "nothing was started"));
        }
        warnings.extend(unserved.iter().map(Diagnostic::one_line));
        Ok(Self { identity, retained, policy, warnings })
    }
}

fn identity(config: &Config) -> Result<Identity, Failure> {
    let security = &config.security;
    let place = |name: &Option<Spanned<String>>, option: &str| match name {
        Some(name) => config.place(name.span),
        None => format!("security.{option}, by default"),
    };
    let groups = security.supplemental_groups.iter();
    Ok(Identity {
        user: identity::user(security.user_name(), place(&security.user, "user"))?,
        group: identity::group(security.group_name(), place(&security.group, "group"))?,
        groups: groups
            .map(|group| identity::group(&group.value, config.place(group.span)))
            .collect::<Result<_, _>>()?,
    })
}

/// What security.capabilities says, of which this process can keep every bit.
fn retained(config: &Config) -> Result<State, Failure> {
    const STEP: &str = "security.capabilities";
    let Some(capabilities) = &config.security.capabilities else {
        return Ok(State::default());
    };
    let state = capability::parse(&capabilities.value).map_err(|error| {
        let place = config.place(config.within(capabilities, error.span.clone()));
        Failure::new(Exit::Config, STEP, format_args!("{place}: {}", error.problem), error.remedy())
    })?;
    let place = config.place(capabilities.span);
    let loose = state.effective.difference(state.permitted);
    if loose != CapabilitySet::EMPTY {
        return Err(Failure::new(
            Exit::Config,
            STEP,
            format_args!("{place}: {loose} would be effective and not permitted, which the kernel refuses"),
            format_args!("write {loose}+ep"),
        ));
    }
    Ok(state)
}

/// Fails when this process cannot keep what the configuration retains: another process may have to be asked.
pub fn available(config: &Config, retained: &State) -> Result<(), Failure> {
    const STEP: &str = "security.capabilities";
    let held = rustix::thread::capabilities(None).map_err(|error| Failure::os(STEP, "capget", error))?;
    let held = CapabilitySet::from_bits(held.permitted.bits());
    let bounding: CapabilitySet = (0..=capability::last_cap())
        .filter(|number| {
            let bit = rustix::thread::CapabilitySet::from_bits_retain(1 << number);
            matches!(rustix::thread::capability_is_in_bounding_set(bit), Ok(true))
        })
        .collect();
    let place =
        config.security.capabilities.as_ref().map_or_else(String::new, |text| config.place(text.span));
    let wanted = retained.permitted.union(retained.inheritable);
    let beyond = wanted.difference(bounding);
    let missing = wanted.difference(held);
    let (lacking, which) = match () {
        () if beyond != CapabilitySet::EMPTY => (beyond, "bounding set"),
        () if missing != CapabilitySet::EMPTY => (missing, "permitted set"),
        () => return Ok(()),
    };
    Err(Failure::new(
        Exit::NoPermission,
        STEP,
        format_args!("{place}: {lacking} cannot be retained, because portreeved's {which} lacks it"),
        "start portreeved with it (a container's or unit's capability list, CapabilityBoundingSet=), or remove it here",
    ))
}

fn decide_by(config: &Config) -> Result<Policy, Failure> {
    let mut unknown = None;
    let mut resolve = |name: &PeerName| {
        let found = match name {
            PeerName::User(user) => identity::user(user, "broker.peer").map(Uid::as_raw),
            PeerName::Group(group) => identity::group(group, "broker.peer").map(Gid::as_raw),
        };
        found.map_err(|failure| unknown = Some(failure)).ok()
    };
    let policy = Policy::new(config, &mut resolve);
    policy.map_err(|report| {
        let what = report.one_lines().collect::<Vec<_>>().join("; ");
        Failure::new(Exit::NoUser, "broker.peer", what, "create the account, or remove the peer scope")
    })
}

/// The first port that needs no capability: net.ipv4.ip_unprivileged_port_start, see ip(7).
fn unprivileged_port_start() -> u16 {
    let path = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
    let text = std::fs::read_to_string(path).unwrap_or_default();
    // Older kernels have no such setting and this port.
    text.trim().parse().unwrap_or(1024)
}

/// The directories in which the control socket and the Unix listeners of the configuration are, and where each is
/// named first.
pub fn socket_directories(config: &Config) -> BTreeMap<PathBuf, Span> {
    let parent = |path: &str| Path::new(path).parent().map(Path::to_owned);
    let control = config.broker.socket.iter();
    let control = control.filter_map(|socket| Some((socket.value.parent()?.to_owned(), socket.span)));
    let listeners = config.listeners.iter().filter_map(|listener| match &listener.endpoint.value {
        Endpoint::UnixStream(path) | Endpoint::UnixSeqpacket(path) => {
            Some((parent(path)?, listener.endpoint.span))
        }
        Endpoint::Tcp(_) | Endpoint::Udp(_) => None,
    });
    let permits = config.broker.permits.iter().flat_map(|permit| &permit.listen);
    let permits = permits.filter_map(|pattern| match &pattern.value {
        ListenPattern::Path(path) => Some((parent(path)?, pattern.span)),
        ListenPattern::Children(directory) => Some((directory.trim_end_matches('/').into(), pattern.span)),
        ListenPattern::Inet { .. } => None,
    });
    let mut directories = BTreeMap::new();
    for (path, span) in control.chain(listeners).chain(permits) {
        directories.entry(path).or_insert(span);
    }
    directories
}

/// Opens the chroot and refuses one that the worker could write to.
pub fn open_chroot(config: &Config, identity: &Identity) -> Result<Option<OwnedFd>, Failure> {
    let Some(chroot) = &config.security.chroot else {
        return Ok(None);
    };
    let refused = |exit, what: &str, remedy: &str| {
        let place = config.place(chroot.span);
        Failure::new(exit, "security.chroot", format_args!("{place}: {:?} {what}", chroot.value), remedy)
    };
    let mut options = File::options();
    options.read(true).custom_flags(libc::O_DIRECTORY);
    let directory = options.open(Path::new(&chroot.value)).map_err(|error| {
        refused(
            Exit::NoInput,
            &format!("cannot be opened: {error}"),
            "create it, owned by root with mode 0755, or remove the option",
        )
    })?;
    let metadata = directory.metadata().map_err(|error| Failure::os("security.chroot", "fstat", error))?;
    let groups = || identity.groups.iter().chain([&identity.group]);
    let writable = !identity.user.is_root()
        && (metadata.uid() == identity.user.as_raw()
            || (metadata.mode() & 0o020 != 0 && groups().any(|group| group.as_raw() == metadata.gid()))
            || metadata.mode() & 0o002 != 0);
    if writable {
        return Err(refused(
            Exit::Config,
            "is writable by the worker, who could then replace what is trusted in it",
            "chown it to root and chmod it 0755; give the worker writable directories below it",
        ));
    }
    Ok(Some(directory.into()))
}
