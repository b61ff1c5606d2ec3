//! The directories of the Unix sockets that a configuration names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use portreeve_protocol::Endpoint;

use super::Findings;
use crate::config::{Config, ListenPattern, Span};
use crate::sys::SocketDirectories;

/// The directories of the control socket and the Unix listeners, each with the place that names it first.
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

/// Warns about directories that a start could not use. They may be created later, for example below /run.
pub fn check_directories(config: &Config, findings: &mut Findings) {
    for (path, span) in socket_directories(config) {
        let Err((path, errno)) = SocketDirectories::open(&[path]) else {
            continue;
        };
        let (message, help) = match errno {
            Errno::EACCES => {
                findings.no_permission(config, span, &format!("the directory {path:?} of this Unix socket"));
                continue;
            }
            Errno::ENOENT => (
                format!("the directory {path:?} of this Unix socket does not exist now"),
                "create it before portreeved starts, owned by root (RuntimeDirectory= of a unit, tmpfiles.d)",
            ),
            Errno::ELOOP => (
                format!("the path {path:?} of this Unix socket's directory contains a symbolic link"),
                "write the path that the link points to",
            ),
            errno => (
                format!("the directory {path:?} of this Unix socket cannot be opened: {}", errno.desc()),
                "name a directory that root owns",
            ),
        };
        findings.add(config.warning(span, message, help));
    }
}
