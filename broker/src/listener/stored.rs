//! The names under which a service manager's descriptor store keeps listeners: all that the kernel does not tell of a
//! socket and the next broker has to know. See sd_pid_notify_with_fds(3), FDNAME=.
//!
//! Promises: a name has no `:` and at most [`LONGEST`] bytes; what is read back is bounded as a peer's request is.

use std::fmt::Write as _;

use portreeve_protocol::message::ListenOptions;
use portreeve_protocol::{Endpoint, Kind, codec, frame};
use serde::{Deserialize, Serialize};

/// The longest name that a service manager takes.
pub const LONGEST: usize = 255;
/// What our names begin with, with the version of what follows.
const PREFIX: &str = "portreeve-1-";

/// What a name says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// Where it listens.
    pub endpoint: Endpoint,
    /// How it was asked for.
    pub options: ListenOptions,
    /// The user whose session owns it; absent for the worker's.
    pub user: Option<u32>,
}

impl Stored {
    /// Its name; `None` for what is not stored: Unix sockets, whose files go with the broker.
    pub fn name(&self) -> Option<String> {
        self.endpoint.inet()?;
        let mut buffer = [0; LONGEST];
        let frame = codec::encode(&mut buffer, Kind(0), 0, 0, self).ok()?;
        let mut name = PREFIX.to_owned();
        for byte in frame.get(frame::HEADER_LENGTH..)? {
            write!(name, "{byte:02x}").ok()?;
        }
        (name.len() <= LONGEST).then_some(name)
    }

    /// What a name says, if it is one of ours.
    pub fn read(name: &str) -> Option<Self> {
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
    fn a_name_tells_what_it_was_made_of_and_fits() {
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
                let stored = Stored { endpoint: endpoint.parse().unwrap(), options, user };
                let name = stored.name().unwrap();
                assert!(name.len() <= LONGEST && !name.contains(':'), "{} {name}", name.len());
                assert_eq!(Stored::read(&name), Some(stored));
            }
        }
    }

    #[test]
    fn what_is_no_name_of_ours_is_none() {
        let stored =
            Stored { endpoint: "*:25".parse().unwrap(), options: ListenOptions::default(), user: None };
        let name = stored.name().unwrap();
        let (short, long) = (&name[..name.len() - 1], format!("{name}0"));
        for other in ["", "unknown", "portreeve-1-", "portreeve-2-00", short, &long, &format!("{name}00")] {
            assert_eq!(Stored::read(other), None, "{other}");
        }
        let file = Stored { endpoint: "/run/mail.sock".parse().unwrap(), ..stored };
        assert_eq!(file.name(), None);
    }
}
