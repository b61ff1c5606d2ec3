//! The broker's configuration and its variants: a base, one that allows more, and one that allows one peer less.

use std::path::PathBuf;

use super::hostile_peer;
use super::model::RETAIN;
use crate::chroot::Chroot;
use crate::{Host, sample};

/// The user who is denied UDP listeners in the restricted variant.
pub const RESTRICTED_USER: u32 = 3003;
/// The port of the additional listener in the extended variant.
pub const EXTRA_PORT: u16 = 27;

/// A variant of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// As at the start.
    Base,
    /// With an additional static listener, peer and permit, and a higher quota.
    Extended,
    /// One peer has lost a permit.
    Restricted,
}

/// What all variants have in common.
pub struct Configuration {
    chroot: PathBuf,
    users: Vec<u32>,
    hostile: String,
    versions: u64,
}

impl Configuration {
    /// The configuration for peers with these user ids.
    pub fn new(host: &Host, users: &[u32]) -> Self {
        let chroot = Chroot::new(host, "chroot");
        chroot.worker_directory("/Maildir");
        hostile_peer::create_directory(host);
        let hostile = hostile_peer::permits(host);
        Self { chroot: chroot.path.clone(), users: users.to_vec(), hostile, versions: 0 }
    }

    /// The text of a variant, which differs each time.
    pub fn text(&mut self, variant: Variant) -> String {
        self.versions += 1;
        let peer = |user: &u32| {
            let datagrams =
                if variant == Variant::Restricted && *user == RESTRICTED_USER { "" } else { "datagrams" };
            format!("peer {user} {{ allow = ( status listen address ) permit = ( any {datagrams} ) }}\n")
        };
        let peers: String = self.users.iter().map(peer).collect();
        let (listener, more) = match variant {
            Variant::Extended => (
                format!(r#"Listen "127.0.0.1:{EXTRA_PORT}" {{}}"#),
                r#"permit "more" { listen = ( "127.0.0.2:1-65535" ) }
                peer 3091 { allow = ( status listen ) permit = ( more ) }
                max_listeners = 20000"#,
            ),
            _ => (String::new(), ""),
        };
        sample::addresses(&format!(
            r#"# {version:.>length$}
            security {{ chroot = "{chroot}" }}
            worker {{
                command = ( /run/host/bin/smtp_worker "--listen" "127.0.0.1:25" )
                stable_after = 0
                stop_timeout = 5
                orphan_timeout = 600
            }}
            ESMTP_Listener {{ Listen "127.0.0.1:26" {{}} {listener} }}
            cluster {{ topology "10.3.0.0/16" {{ interface = eth1 }} }}
            broker {{
                {hostile}
                retain = {retain}
                permit "datagrams" {{ listen = ( "127.0.0.1:1-65535/udp" ) }}
                {peers}
                {more}
            }}"#,
            hostile = self.hostile,
            version = self.versions,
            length = (self.versions % 50) as usize + 8,
            chroot = self.chroot.display(),
            retain = RETAIN.as_secs(),
        ))
    }
}
