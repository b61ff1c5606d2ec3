//! The state that a reload cannot change, because it was fixed while the broker was still root.

use std::cell::RefCell;
use std::collections::HashSet;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use portreeve_protocol::{Endpoint, Fault, FaultCode};

use crate::capability::State;
use crate::config::{Config, Listener, PeerName, Resource, Resources, Snapshot};

/// The state that start-up fixed.
pub struct Started {
    /// The configuration's main file.
    pub path: PathBuf,
    /// The capabilities that the broker retains.
    pub retained: State,
    /// The first port that needs no capability.
    pub unprivileged_port_start: u16,
    /// The TCP ports that Landlock lets the broker bind; `None` if it does not limit them.
    pub tcp_ports: Option<Vec<RangeInclusive<u16>>>,
    /// Whether the broker can add addresses to interfaces.
    pub addresses: bool,
    /// The resources of which its seccomp filter lets it set limits of peers.
    pub limits: Resources,
}

/// The state that only a restart changes, and the options in force.
pub struct RestartOnly {
    pub(super) started: Started,
    /// The options in force; those that need a restart keep their value from the start.
    pub(super) in_force: RefCell<Snapshot>,
    /// The accounts that the `peer` scopes in force name. Each existed at the start or at a reload.
    pub(super) accounts: RefCell<HashSet<PeerName>>,
    /// The listeners of the configuration in force.
    pub(super) listeners: RefCell<Vec<Listener>>,
}

/// The options that only a restart changes, by name, and why. A name that ends with a space stands for a whole scope.
const NEEDS_RESTART: [(&str, &str); 9] = [
    ("security ", "the processes take on their identity when they start"),
    ("worker ", "the launcher gets it when the broker starts"),
    ("broker socket", "the control socket is bound while the broker is root"),
    ("broker socket_mode", "the control socket is bound while the broker is root"),
    ("broker socket_group", "the control socket is bound while the broker is root"),
    ("broker require_landlock", "it applies when the broker confines itself"),
    ("broker require_seccomp", "it applies when the broker confines itself"),
    ("broker reload", "the reader process is forked when the broker starts"),
    ("cluster arp_all_hosts", "the sockets for it are opened while the broker is root"),
];

/// Why a limit of a resource cannot be set.
const NO_LIMIT: &str =
    "the seccomp filter was set when the broker started, and no rule permitted a limit of this resource then";

/// Why an option cannot change without a restart, if it cannot.
pub(super) fn needs_restart(option: &str) -> Option<&'static str> {
    let matches = |name: &str| if name.ends_with(' ') { option.starts_with(name) } else { option == name };
    NEEDS_RESTART.iter().find(|(name, _)| matches(name)).map(|(_, reason)| *reason)
}

impl RestartOnly {
    /// The state after start-up with a configuration.
    pub fn new(started: Started, config: &Config) -> Self {
        let accounts = config.broker.peers.iter().map(|peer| peer.name.value.clone()).collect();
        let listeners = RefCell::new(config.listeners.clone());
        Self {
            started,
            in_force: RefCell::new(Snapshot::of(config)),
            accounts: RefCell::new(accounts),
            listeners,
        }
    }

    /// Why an endpoint can be bound only after a restart, if so.
    pub fn out_of_reach(&self, endpoint: &Endpoint, has_directory: impl Fn(&Path) -> bool) -> Option<String> {
        match endpoint {
            Endpoint::Tcp(inet) => {
                let ports = self.started.tcp_ports.as_ref()?;
                let known = ports.iter().any(|range| range.contains(&inet.port));
                (!known).then(|| {
                    format!(
                        "the Landlock rules were fixed when the broker started, without TCP port {}",
                        inet.port
                    )
                })
            }
            Endpoint::UnixStream(path) | Endpoint::UnixSeqpacket(path) => {
                let directory = Path::new(path.as_str()).parent()?;
                (!has_directory(directory))
                    .then(|| format!("the broker's root was set up when it started, without {directory:?}"))
            }
            Endpoint::Udp(_) => None,
        }
    }

    /// The TCP ports of a policy that Landlock does not let the broker bind, as text; empty if there are none.
    pub(super) fn ports_out_of_reach(&self, permitted: &[RangeInclusive<u16>]) -> String {
        let Some(known) = &self.started.tcp_ports else {
            return String::new();
        };
        let new = |port: &u16| !known.iter().any(|range| range.contains(port));
        let mut ranges: Vec<RangeInclusive<u16>> = Vec::new();
        for port in permitted.iter().flat_map(|range| range.clone()).filter(new) {
            match ranges.last_mut() {
                Some(last) if last.end().checked_add(1) == Some(port) => *last = *last.start()..=port,
                _ => ranges.push(port..=port),
            }
        }
        let words: Vec<String> = ranges
            .iter()
            .map(|range| match range.start() == range.end() {
                true => range.start().to_string(),
                false => format!("{}-{}", range.start(), range.end()),
            })
            .collect();
        words.join(" ")
    }

    /// Why no limit of this resource can be set before a restart, if so.
    pub fn no_limit(&self, resource: Resource) -> Option<&'static str> {
        (!self.started.limits.contains(resource)).then_some(NO_LIMIT)
    }

    /// The resources of which a policy permits limits that cannot be set before a restart, and why; `None` if there are
    /// none.
    pub(super) fn limits_out_of_reach(&self, permitted: Resources) -> Option<(String, &'static str)> {
        let names: Vec<_> = permitted.names_not_in(self.started.limits).collect();
        (!names.is_empty()).then(|| (names.join(" "), NO_LIMIT))
    }

    /// The fault if there is no reader process.
    pub(super) fn no_reader(&self, was_started: bool) -> Fault {
        match was_started {
            true => Fault::new(FaultCode::Os, "cannot read the configuration: the reader process has exited")
                .remedy("restart portreeved; until then the old configuration stays in force"),
            false => Fault::new(
                FaultCode::Unsupported,
                "reload = false in the broker scope: the configuration cannot be reloaded",
            )
            .remedy("set reload = true in the broker scope and restart portreeved"),
        }
    }
}
