//! Resolves accounts in the reader, from the current passwd(5) and group(5) files of the host.
//!
//! Other name services load code and connect to other processes, which the reader cannot do. For a name that was in neither
//! file when the broker started, the result from then is used. An account that was in a file and is not there any more has
//! been deleted. A file that cannot be read as a whole says nothing about any account.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::PathBuf;

use nix::unistd::{Gid, Uid};

use crate::config::{Config, PeerName};
use crate::confine::identity;

/// The directory of the files.
pub const DIRECTORY: &str = "/etc";
/// The maximum number of bytes read from one file.
const MAX_BYTES: u64 = 64 << 20;
const PASSWD: &str = "passwd";
const GROUP: &str = "group";

/// The results of the name services at the start of the broker, for the names that are in neither file.
pub type Known = HashMap<PeerName, u32>;

/// Why a file of accounts cannot be used.
#[derive(Debug)]
pub struct Unreadable {
    /// Its path.
    pub file: String,
    /// Why.
    pub error: io::Error,
}

/// The directories in which the files are, with links resolved.
pub fn directories() -> impl Iterator<Item = PathBuf> {
    let real = [PASSWD, GROUP].map(|file| PathBuf::from(format!("{DIRECTORY}/{file}")).canonicalize().ok());
    let parents = real.into_iter().flatten().filter_map(|file| Some(file.parent()?.to_owned()));
    std::iter::once(DIRECTORY.into()).chain(parents)
}

/// Resolves every peer of the configuration that is in neither file with the name services.
pub fn by_name_services(config: &Config) -> Known {
    let names: Vec<PeerName> = config.broker.peers.iter().map(|peer| peer.name.value.clone()).collect();
    // Without a file, each of its accounts comes from another name service.
    let in_files = by_files(names, &Known::new()).unwrap_or_default();
    let id = |name: &PeerName| match name {
        PeerName::User(user) => identity::user(user).map(Uid::as_raw).ok(),
        PeerName::Group(group) => identity::group(group).map(Gid::as_raw).ok(),
    };
    let names = config.broker.peers.iter().map(|peer| &peer.name.value);
    let others = names.filter(|name| in_files.get(*name).copied().flatten().is_none());
    others.filter_map(|name| Some((name.clone(), id(name)?))).collect()
}

/// Resolves the names, each once.
///
/// # Errors
/// A file that a name needs exists and cannot be read.
pub fn by_files(names: Vec<PeerName>, known: &Known) -> Result<HashMap<PeerName, Option<u32>>, Unreadable> {
    let [mut users, mut groups] = [None, None];
    let mut resolved = HashMap::new();
    for name in names {
        let (table, file, key) = match &name {
            PeerName::User(key) => (&mut users, PASSWD, key),
            PeerName::Group(key) => (&mut groups, GROUP, key),
        };
        let table = match table {
            Some(table) => table,
            None => table.insert(ids(&text(file)?)),
        };
        let id = table.get(key.as_str()).or_else(|| known.get(&name)).copied();
        resolved.insert(name, id);
    }
    Ok(resolved)
}

fn text(file: &str) -> Result<String, Unreadable> {
    let path = format!("{DIRECTORY}/{file}");
    let mut bytes = Vec::new();
    match File::open(&path).and_then(|opened| opened.take(MAX_BYTES + 1).read_to_end(&mut bytes)) {
        Ok(length) if length as u64 > MAX_BYTES => {
            Err(Unreadable { file: path, error: io::Error::from_raw_os_error(libc::EFBIG) })
        }
        Ok(_) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        // A missing file has no accounts.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(Unreadable { file: path, error }),
    }
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
    fn a_name_that_was_in_neither_file_keeps_the_id_of_the_start() {
        let name = |name: &str| PeerName::User(name.to_owned());
        let known = HashMap::from([(name("no-such-user"), 4711), (name("root"), 4712)]);
        let resolved =
            by_files(vec![name("no-such-user"), name("root"), name("nobody-at-all")], &known).unwrap();
        assert_eq!(resolved[&name("no-such-user")], Some(4711));
        assert_eq!(resolved[&name("root")], Some(0));
        assert_eq!(resolved[&name("nobody-at-all")], None);
    }
}
