//! The keys of a group in the engine and their values.
//!
//! Values are JSON, so that an operator can read them with etcdctl. A key or a value of something else, or of a later
//! version, is [`Key::Foreign`] or [`Value::Unreadable`]: a state with a name, never a panic and never ignored.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The name of a node, or the digest of a declaration.
pub type Name = Arc<str>;

/// A key under `/portreeve/GROUP/`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// `beat/NODE`: shows that the node lives.
    Beat(Name),
    /// `node/NODE`: what the node is and can do.
    Node(Name),
    /// `have/DIGEST/n`: a piece of a declaration. Nodes with the same configuration share its pieces.
    Have(Name, u32),
    /// `claim/ADDRESS`: who holds the address; never deleted.
    Claim(IpAddr),
    /// `want/ADDRESS`: an operator's pin.
    Want(IpAddr),
    /// `drain/NODE`: an operator takes the node out of use.
    Drain(Name),
    /// `freeze`: an operator stops voluntary moves.
    Freeze,
    /// Any other key.
    Foreign(String),
}

impl Key {
    /// The prefix of all keys of a group.
    pub fn prefix(group: &str) -> String {
        format!("/portreeve/{group}/")
    }

    /// Parses what follows the prefix.
    pub fn parse(path: &str) -> Self {
        let parts: Vec<&str> = path.split('/').collect();
        let address = |text: &str| text.parse::<IpAddr>().ok();
        let known = match parts.as_slice() {
            ["beat", node] => Some(Key::Beat((*node).into())),
            ["node", node] => Some(Key::Node((*node).into())),
            ["have", digest, piece] => piece.parse().ok().map(|piece| Key::Have((*digest).into(), piece)),
            ["claim", text] => address(text).map(Key::Claim),
            ["want", text] => address(text).map(Key::Want),
            ["drain", node] => Some(Key::Drain((*node).into())),
            ["freeze"] => Some(Key::Freeze),
            _ => None,
        };
        // One key has one path: `claim/::0001` is nobody's.
        known.filter(|key| key.to_string() == path).unwrap_or_else(|| Key::Foreign(path.to_owned()))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Beat(node) => write!(out, "beat/{node}"),
            Key::Node(node) => write!(out, "node/{node}"),
            Key::Have(digest, piece) => write!(out, "have/{digest}/{piece}"),
            Key::Claim(address) => write!(out, "claim/{address}"),
            Key::Want(address) => write!(out, "want/{address}"),
            Key::Drain(node) => write!(out, "drain/{node}"),
            Key::Freeze => out.write_str("freeze"),
            Key::Foreign(path) => out.write_str(path),
        }
    }
}

/// The time that a node spends in the cluster without a gap. `created` is the create_revision of its beat; the nonce tells
/// sessions apart whose engine lost its data between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Session {
    /// The create_revision of the node's beat.
    pub created: i64,
    /// A number that no other session of the node has.
    pub nonce: u64,
}

/// The value of `beat/NODE`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Beat {
    /// The session's nonce.
    pub nonce: u64,
    /// Tells the boots of all hosts apart, and the network namespaces of one.
    pub boot: String,
    /// A random number of the process that wrote it. A process that resumes the session of another keeps its nonce, and no
    /// two beats may be equal: observers and comparisons see a change only if the value changes.
    pub process: u64,
    /// Differs in each attempt of the process to write the beat.
    pub sequence: u64,
    /// How long the node's addresses outlive the sending of this beat.
    pub lease_ms: u64,
    /// How late the kernel of the node may end an address.
    pub late_ms: u64,
    /// If not empty, only these nodes may evict this one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roster: Vec<Name>,
}

/// What a node declares about itself. The order is that of a node's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeState {
    /// It joined a cluster that works, and is not mature.
    Joining,
    /// It joined when no node was ready: it counts for placement, so that the first node does not get all addresses.
    Founding,
    /// It holds addresses.
    Ready,
    /// A check fails, or an interface or the broker does not work.
    Sick,
    /// It hands its addresses over and leaves.
    Leaving,
    /// Its session has ended.
    Gone,
}

/// The value of `node/NODE`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NodeRecord {
    /// The nonce of its session.
    pub nonce: u64,
    /// The create_revision of its beat; `None`: the revision of this value, which the same transaction wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<i64>,
    /// The coordinator's version.
    pub version: String,
    /// What it is.
    pub state: NodeState,
    /// Why it is that.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// The digest of its declaration.
    pub declares: Name,
    /// Whether its addresses move voluntarily; `None`: a coordinator wrote it that did not say. Only checks use it.
    #[serde(rename = "automatic", default, skip_serializing_if = "Option::is_none")]
    pub is_auto: Option<bool>,
    /// How often it joined without staying for ten minutes.
    pub joins: u32,
    /// Where it accepts requests of other nodes for promises: an address and a port; empty: nowhere.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub peer: String,
    /// The blocks whose interface is down.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub down: Vec<Block>,
    /// The addresses that its broker refuses to add.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<IpAddr>,
}

/// A block of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Block {
    /// Its first address.
    pub address: IpAddr,
    /// The length of its prefix.
    pub prefix: u8,
}

impl Block {
    /// Whether it contains the address.
    pub fn contains(self, address: IpAddr) -> bool {
        let bits = |address: IpAddr| match address {
            IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
            IpAddr::V6(address) => address.to_bits(),
        };
        let differing = bits(self.address) ^ bits(address);
        self.address.is_ipv4() == address.is_ipv4() && differing.leading_zeros() >= u32::from(self.prefix)
    }
}

/// A piece of a declaration: addresses that lead, each with its preferred node.
pub type Piece = BTreeMap<IpAddr, Option<Name>>;

/// How far the holding of an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The owner took it after the session of the previous one.
    Held,
    /// The previous owner removed it and handed it over: the owner adds it without probing.
    Granted,
    /// Nobody holds it. The owner is the last one.
    Free,
}

/// The value of `claim/ADDRESS`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Claim {
    /// Rises with each change.
    pub epoch: u64,
    /// The owner.
    pub node: Name,
    /// The owner's session.
    pub session: Session,
    /// How far it is.
    pub phase: Phase,
}

/// The value of `want/ADDRESS`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Want {
    /// The node that must hold it if it can.
    pub node: Name,
    /// Who asked for it.
    #[serde(default)]
    pub by: String,
    /// How long the pin lasts from when a coordinator first sees it; `None`: until an operator removes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub for_ms: Option<u64>,
    /// The expected end by the operator's clock, to be shown only.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub until: String,
}

/// The value of `drain/NODE` and of `freeze`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Order {
    /// Who gave it.
    pub by: String,
    /// When, by the operator's clock, to be shown only.
    pub since: String,
    /// Why.
    pub why: String,
    /// Drain only: also give up addresses that no other node can hold.
    pub release: bool,
}

/// A value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Value {
    /// Of [`Key::Beat`].
    Beat(Beat),
    /// Of [`Key::Node`].
    Node(NodeRecord),
    /// Of [`Key::Have`].
    Have(Piece),
    /// Of [`Key::Claim`].
    Claim(Claim),
    /// Of [`Key::Want`].
    Want(Want),
    /// Of [`Key::Drain`] and [`Key::Freeze`].
    Order(Order),
    /// What it should be, and why it is not.
    Unreadable(String),
}

/// A key with its value at one revision.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// The key.
    pub key: Key,
    /// The revision that created it.
    pub created: i64,
    /// The revision that last changed or deleted it.
    pub modified: i64,
    /// The text, which comparisons use.
    pub text: Arc<str>,
    /// The value; `None`: deleted.
    pub value: Option<Value>,
}

impl Entry {
    /// Decodes a value.
    pub fn decode(key: Key, created: i64, modified: i64, text: Arc<str>) -> Self {
        fn read<T: DeserializeOwned>(text: &str, value: fn(T) -> Value) -> Value {
            serde_json::from_str(text).map_or_else(|error| Value::Unreadable(error.to_string()), value)
        }
        let value = match &key {
            Key::Beat(_) => read(&text, Value::Beat),
            Key::Node(_) => read(&text, Value::Node),
            Key::Have(..) => read(&text, Value::Have),
            Key::Claim(_) => read(&text, Value::Claim),
            Key::Want(_) => read(&text, Value::Want),
            Key::Drain(_) | Key::Freeze => read(&text, Value::Order),
            Key::Foreign(_) => Value::Unreadable("the key is not the coordinator's".to_owned()),
        };
        Entry { key, created, modified, text, value: Some(value) }
    }

    /// The deletion of a key.
    pub fn deleted(key: Key, modified: i64) -> Self {
        Entry { key, created: 0, modified, text: "".into(), value: None }
    }
}

impl Value {
    /// The text in the engine.
    pub fn encode(&self) -> Arc<str> {
        let text = match self {
            Value::Beat(value) => serde_json::to_string(value),
            Value::Node(value) => serde_json::to_string(value),
            Value::Have(value) => serde_json::to_string(value),
            Value::Claim(value) => serde_json::to_string(value),
            Value::Want(value) => serde_json::to_string(value),
            Value::Order(value) => serde_json::to_string(value),
            Value::Unreadable(_) => return "".into(), // nobody writes one
        };
        // These types contain nothing that JSON cannot express.
        text.unwrap_or_default().into()
    }
}

impl Beat {
    /// The lease.
    pub fn lease(&self) -> Duration {
        Duration::from_millis(self.lease_ms)
    }

    /// The lateness.
    pub fn late(&self) -> Duration {
        Duration::from_millis(self.late_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_one_path() {
        for path in
            ["beat/a", "node/a", "have/d/0", "claim/10.0.0.1", "want/2001:db8::1", "drain/a", "freeze"]
        {
            assert_eq!(Key::parse(path).to_string(), path);
            assert!(!matches!(Key::parse(path), Key::Foreign(_)), "{path}");
        }
        for path in
            ["", "beat", "beat/a/b", "claim/2001:db8:0::1", "claim/x", "have/d/x", "have/d/00", "else"]
        {
            assert_eq!(Key::parse(path), Key::Foreign(path.to_owned()));
        }
    }

    #[test]
    fn a_value_that_cannot_be_read_is_a_state() {
        for (path, text) in [("claim/10.0.0.1", "{}"), ("beat/a", ""), ("node/a", "[1]"), ("else", "{}")] {
            let entry = Entry::decode(Key::parse(path), 1, 1, text.into());
            assert!(matches!(entry.value, Some(Value::Unreadable(_))), "{path}");
        }
        let claim = Claim {
            epoch: 7,
            node: "a".into(),
            session: Session { created: 3, nonce: 9 },
            phase: Phase::Granted,
        };
        let text = Value::Claim(claim.clone()).encode();
        assert_eq!(&*text, r#"{"epoch":7,"node":"a","session":{"created":3,"nonce":9},"phase":"granted"}"#);
        let entry = Entry::decode(Key::parse("claim/10.0.0.1"), 1, 1, text);
        assert_eq!(entry.value, Some(Value::Claim(claim)));
    }

    #[test]
    fn a_block_contains_its_addresses_only() {
        let block = |text: &str, prefix| Block { address: text.parse().unwrap(), prefix };
        for (block, address, expected) in [
            (block("10.1.0.0", 16), "10.1.255.1", true),
            (block("10.1.0.0", 16), "10.2.0.1", false),
            (block("10.1.0.0", 16), "::a01:1", false),
            (block("0.0.0.0", 0), "10.1.1.1", true),
            (block("2001:db8::", 32), "2001:db8:1::1", true),
            (block("10.1.1.1", 32), "10.1.1.2", false),
        ] {
            assert_eq!(block.contains(address.parse().unwrap()), expected, "{block:?} {address}");
        }
    }
}
