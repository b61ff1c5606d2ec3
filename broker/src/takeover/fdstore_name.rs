//! The names of listeners in the descriptor store. A name encodes the properties that the next broker needs and cannot
//! read from the kernel. See sd_pid_notify_with_fds(3), FDNAME=.
//!
//! Promises: a name has no `:` and at most [`MAX_NAME`] bytes; decoding has the bounds of a peer's request.

use std::fmt::Write as _;

use portreeve_protocol::message::ListenOptions;
use portreeve_protocol::{Endpoint, Kind, codec, frame};
use serde::{Deserialize, Serialize};

/// The longest name that a service manager accepts.
pub const MAX_NAME: usize = 255;
/// The prefix of every name, with the version of the encoding.
const PREFIX: &str = "portreeve-1-";

/// The name of the map of the allowlist, with which the next broker can revoke the listeners that it imports.
pub const ALLOWLIST_NAME: &str = "portreeve-allowlist-1";

/// The properties that a name encodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdstoreName {
    /// Where it listens.
    pub endpoint: Endpoint,
    /// Its requested options.
    pub options: ListenOptions,
    /// The user whose session owns it; absent for the worker's.
    pub user: Option<u32>,
}

impl FdstoreName {
    /// The name; `None` for listeners that are not stored: Unix sockets, because their files are removed when the broker ends.
    pub fn encode(&self) -> Option<String> {
        self.endpoint.inet()?;
        let mut buffer = [0; MAX_NAME];
        let frame = codec::encode(&mut buffer, Kind(0), 0, 0, self).ok()?;
        let mut name = PREFIX.to_owned();
        for byte in frame.get(frame::HEADER_LENGTH..)? {
            write!(name, "{byte:02x}").ok()?;
        }
        (name.len() <= MAX_NAME).then_some(name)
    }

    /// Decodes a name; `None` for a name that no broker created.
    pub fn decode(name: &str) -> Option<Self> {
        let hex = name.strip_prefix(PREFIX)?.as_bytes();
        let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let pair = |pair: &[u8]| match pair {
            [high, low] => Some(digit(high)? << 4 | digit(low)?),
            _ => None,
        };
        let body: Option<Vec<u8>> = hex.chunks(2).map(pair).collect();
        codec::decode(&body?).ok()
    }
}

#[cfg(test)]
mod tests {
    use portreeve_protocol::Text;

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
                let stored = FdstoreName { endpoint: endpoint.parse().unwrap(), options, user };
                let name = stored.encode().unwrap();
                assert!(name.len() <= MAX_NAME && !name.contains(':'), "{} {name}", name.len());
                assert_eq!(FdstoreName::decode(&name), Some(stored));
            }
        }
    }

    #[test]
    fn a_foreign_fdstore_name_is_not_parsed() {
        let stored =
            FdstoreName { endpoint: "*:25".parse().unwrap(), options: ListenOptions::default(), user: None };
        let name = stored.encode().unwrap();
        let (short, long) = (&name[..name.len() - 1], format!("{name}0"));
        for other in ["", "unknown", "portreeve-1-", "portreeve-2-00", short, &long, &format!("{name}00")] {
            assert_eq!(FdstoreName::decode(other), None, "{other}");
        }
        let file = FdstoreName { endpoint: "/run/mail.sock".parse().unwrap(), ..stored };
        assert_eq!(file.encode(), None);
    }
}
