//! The names of listeners in the descriptor store. A name encodes the properties that the next broker needs and cannot
//! read from the kernel. See sd_pid_notify_with_fds(3), FDNAME=.
//!
//! Promises: a name has no `:` and at most [`MAX_NAME`] bytes; decoding has the bounds of a peer's request.

use std::fmt::Write as _;

use portreeve_protocol::message::ListenOptions;
use portreeve_protocol::takeover::{ExportedListener, SocketFile};
use portreeve_protocol::{Endpoint, Kind, Text, codec, frame};
use serde::{Deserialize, Serialize};

/// The longest name that a service manager accepts.
pub const MAX_NAME: usize = 255;
/// The prefix of every name, with the version of the encoding.
const PREFIX: &str = "portreeve-1-";

/// The name of the map of the allowlist, with which the next broker can revoke the listeners that it imports.
pub const ALLOWLIST_NAME: &str = "portreeve-allowlist-1";

/// Whether a broker stores descriptors under such names, of this or another version of the encoding.
pub fn is_fdstore_name(name: &str) -> bool {
    name.starts_with("portreeve-") && !name.ends_with(".socket")
}

/// The properties that a name encodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdstoreName {
    /// Where it listens.
    pub endpoint: Endpoint,
    /// Its requested options.
    pub options: ListenOptions,
    /// The user whose session owns it; absent for the worker's.
    pub user: Option<u32>,
    /// The file of a Unix socket; absent for TCP and UDP.
    pub file: Option<SocketFile>,
}

impl From<ExportedListener> for FdstoreName {
    fn from(exported: ExportedListener) -> Self {
        let ExportedListener { id: _, endpoint, options, user, file } = exported;
        Self { endpoint, options, user, file }
    }
}

impl FdstoreName {
    /// The name: the properties in hexadecimal digits, then for a Unix socket a `-` and its path. `None` for listeners that are
    /// not stored: Unix sockets without a file, or with a path that no name can contain.
    pub fn encode(&self) -> Option<String> {
        let (endpoint, path) = match &self.endpoint {
            inet @ (Endpoint::Tcp(_) | Endpoint::Udp(_)) => (inet.clone(), None),
            Endpoint::UnixStream(path) => (Endpoint::UnixStream(Text::default()), Some(path)),
            Endpoint::UnixSeqpacket(path) => (Endpoint::UnixSeqpacket(Text::default()), Some(path)),
        };
        if path.is_some() != self.file.is_some() {
            return None;
        }
        let mut buffer = [0; MAX_NAME];
        let frame = codec::encode(&mut buffer, Kind(0), 0, 0, &Self { endpoint, ..self.clone() }).ok()?;
        let mut name = PREFIX.to_owned();
        for byte in frame.get(frame::HEADER_LENGTH..)? {
            write!(name, "{byte:02x}").ok()?;
        }
        if let Some(path) = path {
            path.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b':').then_some(())?;
            write!(name, "-{}", path.as_str()).ok()?;
        }
        (name.len() <= MAX_NAME).then_some(name)
    }

    /// Decodes a name; `None` for a name that no broker created.
    pub fn decode(name: &str) -> Option<Self> {
        let rest = name.strip_prefix(PREFIX)?;
        let (hex, path) = rest.split_once('-').map_or((rest, None), |(hex, path)| (hex, Some(path)));
        let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let pair = |pair: &[u8]| match pair {
            [high, low] => Some(digit(high)? << 4 | digit(low)?),
            _ => None,
        };
        let body: Option<Vec<u8>> = hex.as_bytes().chunks(2).map(pair).collect();
        let decoded: Self = codec::decode(&body?).ok()?;
        let endpoint = match (&decoded.endpoint, path) {
            (Endpoint::Tcp(_) | Endpoint::Udp(_), None) => return Some(decoded),
            (Endpoint::UnixStream(empty), Some(path)) if empty.is_empty() => {
                Endpoint::UnixStream(Text::new(path).ok()?)
            }
            (Endpoint::UnixSeqpacket(empty), Some(path)) if empty.is_empty() => {
                Endpoint::UnixSeqpacket(Text::new(path).ok()?)
            }
            _ => return None,
        };
        decoded.file.map(|_| Self { endpoint, ..decoded })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_decodes_to_what_was_encoded_and_fits() {
        let longest = ListenOptions {
            backlog: Some(u32::MAX),
            device: Text::new("fifteen-letters").unwrap(),
            receive_buffer: Some(1),
            send_buffer: Some(1),
            no_delay: Some(true),
            mode: Some(0o660),
            ..ListenOptions::default()
        };
        for endpoint in ["*:25", "[::]:53/udp", "[fe80::1%fifteen-letters]:25"] {
            for (options, user) in [(ListenOptions::default(), None), (longest.clone(), Some(8))] {
                let stored = FdstoreName { endpoint: endpoint.parse().unwrap(), options, user, file: None };
                let name = stored.encode().unwrap();
                assert!(name.len() <= MAX_NAME && !name.contains(':'), "{} {name}", name.len());
                assert_eq!(FdstoreName::decode(&name), Some(stored));
            }
        }
    }

    #[test]
    fn a_foreign_fdstore_name_is_not_parsed() {
        let stored = FdstoreName {
            endpoint: "*:25".parse().unwrap(),
            options: ListenOptions::default(),
            user: None,
            file: None,
        };
        let name = stored.encode().unwrap();
        let (short, long) = (&name[..name.len() - 1], format!("{name}0"));
        for other in ["", "unknown", "portreeve-1-", "portreeve-2-00", short, &long, &format!("{name}00")] {
            assert_eq!(FdstoreName::decode(other), None, "{other}");
        }
    }

    #[test]
    fn the_name_of_a_unix_socket_has_its_path_unless_a_name_cannot_contain_it() {
        let file = Some(SocketFile { device: u64::MAX, inode: u64::MAX });
        let stored = |path: &str| FdstoreName {
            endpoint: path.parse().unwrap(),
            options: ListenOptions { mode: Some(0o660), backlog: Some(7), ..ListenOptions::default() },
            user: Some(u32::MAX),
            file,
        };
        let longest = format!("/run/{}", "a".repeat(102));
        for path in ["/run/mail.sock", "seqpacket:/run/a-b c", &longest] {
            let name = stored(path).encode().unwrap();
            assert!(name.len() <= MAX_NAME && !name.contains(':'), "{} {name}", name.len());
            assert_eq!(FdstoreName::decode(&name), Some(stored(path)), "{path}");
            let (before, _) = name.rsplit_once("-/").unwrap();
            assert_eq!(FdstoreName::decode(before), None);
        }
        for path in ["/run/a:b", "/run/a\nFDNAME=b", "/run/\u{e9}"] {
            let endpoint = Endpoint::UnixStream(Text::new(path).unwrap());
            assert_eq!(FdstoreName { endpoint, ..stored("/run/x") }.encode(), None, "{path:?}");
        }
        assert_eq!(FdstoreName { file: None, ..stored("/run/mail.sock") }.encode(), None);
    }
}
