//! The configuration of a soak's broker and how it changes: what all may do, more than that, and less for one of them.

use std::path::PathBuf;

use super::ledger::RETAIN;
use crate::chroot::Chroot;
use crate::{Host, sample};

/// The user that loses its permit for UDP where the configuration is narrow.
pub const NARROWED: u32 = 3003;
/// The port of the listener that a wide configuration has beside the others.
pub const EXTRA: u16 = 27;

/// How far a configuration goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// As at the start.
    Plain,
    /// There is another static listener, another peer, another permit and more quota.
    Wide,
    /// One peer has lost a permit.
    Narrow,
}

/// What all its variants have in common.
pub struct Configuration {
    chroot: PathBuf,
    users: Vec<u32>,
    versions: u64,
}

impl Configuration {
    /// That of peers that are these users.
    pub fn new(host: &Host, users: &[u32]) -> Self {
        let chroot = Chroot::new(host, "chroot");
        chroot.worker_directory("/Maildir");
        Self { chroot: chroot.path.clone(), users: users.to_vec(), versions: 0 }
    }

    /// A text that goes so far, and is another each time.
    pub fn text(&mut self, reach: Reach) -> String {
        self.versions += 1;
        let peer = |user: &u32| {
            let datagrams = if reach == Reach::Narrow && *user == NARROWED { "" } else { "datagrams" };
            format!("peer {user} {{ allow = ( status listen address ) permit = ( any {datagrams} ) }}\n")
        };
        let peers: String = self.users.iter().map(peer).collect();
        let (listener, more) = match reach {
            Reach::Wide => (
                format!(r#"Listen "127.0.0.1:{EXTRA}" {{}}"#),
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
            }}
            ESMTP_Listener {{ Listen "127.0.0.1:26" {{}} {listener} }}
            broker {{
                retain = {retain}
                permit "datagrams" {{ listen = ( "127.0.0.1:1-65535/udp" ) }}
                {peers}
                {more}
            }}"#,
            version = self.versions,
            length = (self.versions % 50) as usize + 8,
            chroot = self.chroot.display(),
            retain = RETAIN.as_secs(),
        ))
    }
}
