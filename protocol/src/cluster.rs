//! Messages about the settings of the cluster: what a coordinator on this host needs from the configuration.
//!
//! A coordinator reads no file of the broker; it requests these settings over its channel instead. The broker tells it
//! where its keys and passwords are, never what they contain.

use serde::{Deserialize, Serialize};

use crate::bounded::{List, Text};

/// The maximum length in bytes of a name that is part of an engine's key: a group or a node.
pub const MAX_KEY_PART: usize = 64;
/// The maximum number of endpoints of the engine.
pub const MAX_ENGINE_ENDPOINTS: usize = 8;
/// The maximum length of an endpoint's URL in bytes: `https://`, a name of 253 bytes, and a port.
pub const MAX_ENGINE_URL: usize = 267;
/// The maximum length in bytes of the path of a file that the coordinator reads.
pub const MAX_FILE_PATH: usize = 255;
/// The maximum length in bytes of the name of an engine's user.
pub const MAX_ENGINE_USER: usize = 64;
/// The maximum length in bytes of the address and the port at which a coordinator accepts connections of others.
pub const MAX_PEER_LISTEN: usize = 64;
/// The maximum number of checks.
pub const MAX_CHECKS: usize = 16;
/// The maximum length in bytes of the name of a check.
pub const MAX_CHECK_NAME: usize = 64;
/// The maximum number of words in the command of a check.
pub const MAX_COMMAND_WORDS: usize = 16;
/// The maximum length in bytes of a word of a check's command.
pub const MAX_COMMAND_WORD: usize = 192;

/// Request: return the settings of the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterRequest {}

/// The reply to [`ClusterRequest`]: the `cluster` scope of the configuration in force, defaults included.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterSettings {
    /// The name of the cluster (`cluster_group`); empty if the configuration names none.
    pub group: Text<MAX_KEY_PART>,
    /// The name of this host in the cluster; empty if the configuration names none.
    pub nodename: Text<MAX_KEY_PART>,
    /// How long this node keeps its addresses after its last successful heartbeat, in milliseconds.
    pub lease_ms: u32,
    /// The time from one heartbeat to the next in milliseconds; at most a third of the lease.
    pub heartbeat_ms: u32,
    /// How long a node that returns must be up before it counts for placement, in milliseconds.
    pub view_mature_ms: u32,
    /// The time between two voluntary moves of a set of addresses in milliseconds.
    pub view_balance_ms: u32,
    /// The maximum number of addresses that one voluntary move covers.
    pub balance_set_size: u32,
    /// Whether addresses return to a preferred node by themselves.
    pub failback: Failback,
    /// What happens to the addresses of this node if the engine is out of reach for all nodes.
    pub on_engine_loss: OnEngineLoss,
    /// The engine; `None` if the configuration has none.
    pub engine: Option<Engine>,
    /// The checks of this node, in the order of the configuration.
    pub checks: List<HealthCheck, MAX_CHECKS>,
    /// Where this node's coordinator accepts connections of those of other nodes, `ADDRESS:PORT` with an IPv6 address in
    /// brackets; empty: nowhere.
    pub peer_listen: Text<MAX_PEER_LISTEN>,
}

/// The key-value store in which the nodes of a cluster agree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Engine {
    /// The URLs of the engine's members, each with scheme, host and port; never empty.
    pub endpoints: List<Text<MAX_ENGINE_URL>, MAX_ENGINE_ENDPOINTS>,
    /// The path of the certificates of the authorities that sign the members' certificates; empty without TLS.
    pub ca: Text<MAX_FILE_PATH>,
    /// The path of this node's own certificate; may be empty.
    pub certificate: Text<MAX_FILE_PATH>,
    /// The path of that certificate's private key; empty if there is no certificate.
    pub key: Text<MAX_FILE_PATH>,
    /// The engine's user; may be empty.
    pub user: Text<MAX_ENGINE_USER>,
    /// The path of a file with that user's password; empty if there is no user.
    pub password_file: Text<MAX_FILE_PATH>,
    /// Whether the coordinator compacts the history of the engine.
    pub compaction: bool,
}

/// A command that decides whether this node may hold addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// The name.
    pub name: Text<MAX_CHECK_NAME>,
    /// The absolute path of the program and its arguments; never empty.
    pub command: List<Text<MAX_COMMAND_WORD>, MAX_COMMAND_WORDS>,
    /// The time from one run to the next in milliseconds.
    pub interval_ms: u32,
    /// After how many failed runs in a row the check fails.
    pub fall: u32,
    /// After how many successful runs in a row a failed check succeeds again.
    pub rise: u32,
}

macro_rules! numbered {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $number:literal $word:literal $variant:ident,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(from = "u8", into = "u8")]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)*
            /// A number of a later version.
            Other(u8),
        }

        impl From<u8> for $name {
            fn from(number: u8) -> Self {
                match number {
                    $($number => $name::$variant,)*
                    other => $name::Other(other),
                }
            }
        }

        impl From<$name> for u8 {
            fn from(value: $name) -> u8 {
                match value {
                    $($name::$variant => $number,)*
                    $name::Other(number) => number,
                }
            }
        }

        impl $name {
            /// The word of the configuration; `other` for a number of a later version.
            pub fn name(self) -> &'static str {
                match self {
                    $($name::$variant => $word,)*
                    $name::Other(_) => "other",
                }
            }
        }
    };
}

numbered! {
    /// Whether addresses return to a preferred node by themselves. The numbers are stable. Treat a number of a later version
    /// as [`Failback::Manual`].
    Failback {
        /// They return once the node is up for long enough.
        #[default]
        1 "auto" Auto,
        /// They stay until an operator moves them.
        2 "manual" Manual,
    }
}

numbered! {
    /// What happens to the addresses of a node if the engine is out of reach for all nodes. The numbers are stable.
    /// Treat a number of a later version as [`OnEngineLoss::Release`].
    OnEngineLoss {
        /// Each node gives them up at the end of its lease.
        #[default]
        1 "release" Release,
        /// Each node keeps them while every other node promises not to take them.
        2 "hold" Hold,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_has_one_value_and_a_later_one_keeps_its_number() {
        for number in 0..=u8::MAX {
            assert_eq!(u8::from(Failback::from(number)), number);
            assert_eq!(u8::from(OnEngineLoss::from(number)), number);
        }
        assert_eq!((Failback::from(2).name(), Failback::from(3).name()), ("manual", "other"));
        assert_eq!((OnEngineLoss::from(2).name(), OnEngineLoss::default().name()), ("hold", "release"));
    }
}
