//! The directories of the Unix sockets that a configuration names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use portreeve_protocol::Endpoint;

use super::Findings;
use crate::config::{Config, ListenPattern, Span};
use crate::sys::Directories;

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

/// Warns of each that is not as a start needs it: it may well be made only then, under /run for example.
pub fn check_directories(config: &Config, findings: &mut Findings) {
    for (path, span) in socket_directories(config) {
        let Err((path, errno)) = Directories::open(&[path]) else {
            continue;
        };
        let (message, help) = match errno {
            Errno::EACCES => {
                findings.unseen(config, span, &format!("the directory {path:?} of this Unix socket"));
                continue;
            }
            Errno::ENOENT => (
                format!("the directory {path:?} of this Unix socket does not exist now"),
                "have it before portreeved starts, owned by root (RuntimeDirectory= of a unit, tmpfiles.d)",
            ),
            Errno::ELOOP => (
                format!("the path {path:?} of this Unix socket's directory has a symbolic link in it"),
                "write where the link leads to",
            ),
            errno => (
                format!("the directory {path:?} of this Unix socket cannot be opened: {}", errno.desc()),
                "name a directory that belongs to root",
            ),
        };
        findings.tell(config.warning(span, message, help));
    }
}
