//! What a reload cannot change: it was settled when the broker was still root.

use std::cell::RefCell;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use portreeve_protocol::{Endpoint, Fault, FaultCode};

use crate::capability::State;
use crate::config::{Config, Facts, facts};

/// What the start settled.
pub struct Started {
    /// The configuration's main file.
    pub path: PathBuf,
    /// What the broker retains.
    pub retained: State,
    /// The first port that needs no capability.
    pub unprivileged_port_start: u16,
    /// The TCP ports that Landlock lets the broker bind; `None` where it does not limit them.
    pub tcp_ports: Option<Vec<RangeInclusive<u16>>>,
    /// Whether the broker can put addresses on interfaces.
    pub addresses: bool,
    /// Whether its seccomp filter lets it set limits of peers.
    pub limits: bool,
}

/// What the start settled, and what is in force now.
pub struct Fixed {
    pub(super) started: Started,
    /// In force: of what needs a restart the value of the start.
    pub(super) facts: RefCell<Facts>,
}

/// The facts that only a restart changes, by how they begin, and why.
const RESTART: [(&str, &str); 8] = [
    ("security ", "what the processes are was settled when they were started"),
    ("worker ", "the launcher has it from the start"),
    ("broker socket", "the control socket is bound while the broker is root"),
    ("broker socket_mode", "the control socket is bound while the broker is root"),
    ("broker socket_group", "the control socket is bound while the broker is root"),
    ("broker require_landlock", "it is asked when the broker confines itself"),
    ("broker reload", "the process that reads the configuration is forked at the start"),
    ("cluster arp_all_hosts", "the sockets that it takes are opened while the broker is root"),
];

/// Why a fact cannot change without a restart, if it cannot.
pub(super) fn needs_restart(fact: &str) -> Option<&'static str> {
    let matches = |name: &str| if name.ends_with(' ') { fact.starts_with(name) } else { fact == name };
    RESTART.iter().find(|(name, _)| matches(name)).map(|(_, why)| *why)
}

impl Fixed {
    /// Of the configuration that the broker was started with.
    pub fn new(started: Started, config: &Config) -> Self {
        Self { started, facts: RefCell::new(facts(config)) }
    }

    /// Why an endpoint can be bound only after a restart, if that is so.
    pub fn out_of_reach(&self, endpoint: &Endpoint, has_directory: impl Fn(&Path) -> bool) -> Option<String> {
        match endpoint {
            Endpoint::Tcp(inet) => {
                let ports = self.started.tcp_ports.as_ref()?;
                let known = ports.iter().any(|range| range.contains(&inet.port));
                (!known).then(|| {
                    format!("Landlock's rules are from the start, and TCP port {} is not in them", inet.port)
                })
            }
            Endpoint::UnixStream(path) | Endpoint::UnixSeqpacket(path) => {
                let directory = Path::new(path.as_str()).parent()?;
                (!has_directory(directory))
                    .then(|| format!("the broker's root is from the start, and {directory:?} is not in it"))
            }
            Endpoint::Udp(_) => None,
        }
    }

    /// The TCP ports of a policy that Landlock does not let the broker bind, in words; empty where there are none.
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

    /// Why no limit of a peer can be set before a restart, if that is so.
    pub fn no_limits(&self) -> Option<&'static str> {
        (!self.started.limits)
            .then_some("the seccomp filter is from the start, when nothing permitted a limit")
    }

    /// The fault where nothing can be read.
    pub(super) fn no_reader(&self, was_started: bool) -> Fault {
        match was_started {
            true => Fault::new(
                FaultCode::Os,
                "the process that reads the configuration is gone, so it cannot be read again",
            )
            .remedy("restart portreeved; what is in force stays so"),
            false => Fault::new(
                FaultCode::Unsupported,
                "reload = false in the broker scope: nothing can be read again",
            )
            .remedy("set reload = true in the broker scope and restart portreeved"),
        }
    }
}
