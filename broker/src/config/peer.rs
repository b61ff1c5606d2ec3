//! A `peer` scope of `broker`: a user or group, and the requests that it is allowed over the control socket.

use std::collections::HashSet;

use portreeve_protocol::message::OPERATIONS;

use super::nearest::nearest;
use super::reader::Reader;
use super::source::Spanned;

/// One `peer` scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The user or group.
    pub name: Spanned<PeerName>,
    /// The allowed operations, in lower case. A word of [`GROUPS`] stands for all operations of that group.
    pub allow: Vec<Spanned<String>>,
    /// The names of the permits that those operations can use; each exists.
    pub permit: Vec<Spanned<String>>,
}

/// A user or a group, by name or number.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PeerName {
    /// `name`
    User(String),
    /// `@name`
    Group(String),
}

impl PeerName {
    /// Whether it is a number, which stands for itself.
    pub fn is_number(&self) -> bool {
        let (PeerName::User(name) | PeerName::Group(name)) = self;
        name.bytes().all(|byte| byte.is_ascii_digit())
    }
}

impl std::fmt::Display for PeerName {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            PeerName::User(name) => out.write_str(name),
            PeerName::Group(name) => write!(out, "@{name}"),
        }
    }
}

/// Words of `allow` and the operations that each stands for. Every operation that can be allowed is in one of them, so that
/// an error about an unknown word lists it.
pub const GROUPS: &[(&str, &[&str])] = &[
    ("listen", &["listen", "listen-many", "stop"]),
    (
        "address",
        &[
            "add-address",
            "renew-address",
            "renew-all",
            "remove-address",
            "move-address",
            "announce",
            "list-addresses",
        ],
    ),
    ("link", &["set-link"]),
    ("limit", &["set-limit"]),
    ("status", &["status"]),
    ("policy", &["policy"]),
    ("cluster", &["cluster"]),
    ("metrics", &["metrics"]),
    ("events", &["subscribe"]),
    ("reload", &["reload"]),
    ("worker", &["worker", "restart-worker", "signal-worker"]),
];

/// Every word that `allow` accepts. Takeover is reserved for root and cannot be allowed to a peer.
fn words() -> impl Iterator<Item = &'static str> {
    let operations = OPERATIONS.iter().map(|(_, name)| *name).filter(|name| *name != "takeover");
    GROUPS.iter().map(|(word, _)| *word).chain(operations)
}

impl Peer {
    pub(crate) fn read(mut reader: Reader<'_, '_>, permits: &HashSet<String>) -> Option<Self> {
        let mut allow = reader.list("allow").unwrap_or_default();
        for word in &mut allow {
            word.value.make_ascii_lowercase();
            if words().any(|known| known == word.value) {
                continue;
            }
            let help = match nearest(&word.value, words()) {
                Some(meant) => format!("did you mean {meant}?"),
                None => {
                    let known: Vec<&str> = GROUPS.iter().map(|(word, _)| *word).collect();
                    format!("known operations: {}", known.join(", "))
                }
            };
            let message = format!("{:?} is not an operation", word.value);
            reader.problems.error(word.span, message, help);
        }
        let permit = reader.list("permit").unwrap_or_default();
        for name in &permit {
            if permits.contains(&name.value) || reader.problems.is_full() {
                continue;
            }
            let help = match nearest(&name.value, permits.iter().map(String::as_str)) {
                Some(meant) => format!("did you mean {meant}?"),
                None => format!("write permit \"{}\" {{ … }} in the broker scope", name.value),
            };
            let message = format!("there is no permit {:?}", name.value);
            reader.problems.error(name.span, message, help);
        }
        reader.no_other_options();
        reader.no_other_scopes();
        let text = reader.instance("USER or @GROUP")?;
        let name = match text.value.strip_prefix('@') {
            Some("") => {
                reader.error(text.span, "the group has no name", "write the name after @");
                return None;
            }
            Some(group) => PeerName::Group(group.to_owned()),
            None => PeerName::User(text.value.clone()),
        };
        Some(Peer { name: text.map(|_| name), allow, permit })
    }
}
