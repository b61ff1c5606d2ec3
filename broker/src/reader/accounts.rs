//! Resolves accounts in the reader, from the current passwd(5) and group(5) files of the host.
//!
//! Other name services load code and connect to other processes, which the reader cannot do. For a name that is in neither
//! file, the result from the start of the broker is used.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;

use nix::unistd::{Gid, Uid};

use crate::config::{Config, PeerName};
use crate::confine::identity;

/// The directory of the files.
pub const DIRECTORY: &str = "/etc";
/// The maximum number of bytes read from one file.
const MAX_BYTES: u64 = 64 << 20;

/// The results of the name services at the start of the broker.
pub type Known = HashMap<PeerName, u32>;

/// Resolves every peer of the configuration with the name services.
pub fn by_name_services(config: &Config) -> Known {
    let id = |name: &PeerName| match name {
        PeerName::User(user) => identity::user(user).map(Uid::as_raw).ok(),
        PeerName::Group(group) => identity::group(group).map(Gid::as_raw).ok(),
    };
    let names = config.broker.peers.iter().map(|peer| &peer.name.value);
    names.filter_map(|name| Some((name.clone(), id(name)?))).collect()
}

/// Resolves the names, each once.
pub fn by_files(names: Vec<PeerName>, known: &Known) -> HashMap<PeerName, Option<u32>> {
    let [mut users, mut groups] = [None, None];
    let mut resolved = HashMap::new();
    for name in names {
        let (table, file, key) = match &name {
            PeerName::User(key) => (&mut users, "passwd", key),
            PeerName::Group(key) => (&mut groups, "group", key),
        };
        let table = table.get_or_insert_with(|| ids(&text(file)));
        let id = table.get(key.as_str()).or_else(|| known.get(&name)).copied();
        resolved.insert(name, id);
    }
    resolved
}

fn text(file: &str) -> String {
    let mut bytes = Vec::new();
    let opened = File::open(format!("{DIRECTORY}/{file}"));
    // A missing file has no accounts.
    let _ = opened.and_then(|opened| opened.take(MAX_BYTES).read_to_end(&mut bytes)); // read as far as possible
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Maps the first field of each line to the third; of a repeated name the first line counts, as in getpwnam(3).
fn ids(text: &str) -> HashMap<String, u32> {
    let mut ids = HashMap::new();
    for line in text.lines() {
        let mut fields = line.split(':');
        if let (Some(name), Some(Ok(id))) = (fields.next(), fields.nth(1).map(str::parse)) {
            ids.entry(name.to_owned()).or_insert(id);
        }
    }
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_repeated_account_lines_the_first_counts() {
        let ids =
            ids("root:x:0:0:root:/root:/bin/sh\n# no account\nmail:x:8:\nmail:x:9:\nbad:x:-1:\nshort:x\n");
        assert_eq!(ids.get("root"), Some(&0));
        assert_eq!(ids.get("mail"), Some(&8));
        assert_eq!(ids.len(), 2);
    }

    #[test]
    fn a_name_in_neither_file_keeps_the_id_of_the_start() {
        let name = |name: &str| PeerName::User(name.to_owned());
        let known = HashMap::from([(name("no-such-user"), 4711), (name("root"), 4712)]);
        let resolved = by_files(vec![name("no-such-user"), name("root"), name("nobody-at-all")], &known);
        assert_eq!(resolved[&name("no-such-user")], Some(4711));
        assert_eq!(resolved[&name("root")], Some(0));
        assert_eq!(resolved[&name("nobody-at-all")], None);
    }
}
