//! The kernel's state of this host: sockets, addresses, packet filter rules, processes, memory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::process::Command;

use serde_json::Value;

use crate::lan;
use crate::namespaces::run;
use crate::resources::Descriptors;

/// The socket tables in /proc/net, and the column of the timer where a table has one.
const SOCKETS: [(&str, Option<usize>); 7] = [
    ("tcp", Some(5)),
    ("tcp6", Some(5)),
    ("udp", None),
    ("udp6", None),
    ("unix", None),
    ("packet", None),
    ("netlink", None),
];
/// The timer of a connection that outlives its socket, in the state TIME_WAIT or FIN_WAIT2. See proc_net_tcp of the kernel's
/// documentation.
const TIME_WAIT: &str = "03:";

/// The number of sockets of each kind, without connections that outlive theirs.
pub fn sockets() -> BTreeMap<&'static str, usize> {
    SOCKETS.iter().map(|(table, _)| (*table, list_sockets(table).len())).collect()
}

/// The sockets of one kind, without connections that outlive theirs, as the kernel lists them.
pub fn list_sockets(kind: &str) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/net/{kind}")).unwrap_or_default();
    let timer = SOCKETS.iter().find(|(table, _)| *table == kind).and_then(|(_, timer)| *timer);
    let live = |line: &&str| {
        let timer = timer.and_then(|at| line.split_whitespace().nth(at));
        timer.is_none_or(|timer| !timer.starts_with(TIME_WAIT))
    };
    text.lines().skip(1).filter(live).map(str::to_owned).collect()
}

/// The addresses of [`lan::INTERFACE`] other than the host's own.
pub fn addresses() -> BTreeSet<IpAddr> {
    let text = lan::ip(&format!("-j addr show dev {}", lan::INTERFACE));
    let links: Vec<Value> = serde_json::from_str(&text).unwrap();
    let rows = links.iter().filter_map(|link| link["addr_info"].as_array()).flatten();
    // The prefix of the host's own addresses is the network's.
    let whole = rows.filter(|row| row["prefixlen"] == 32 || row["prefixlen"] == 128);
    whole.filter_map(|row| row["local"].as_str()?.parse().ok()).collect()
}

/// The packet filter rules, as nft(8) lists them.
pub fn rules() -> Value {
    let text = run(Command::new("nft").args(["-j", "list", "ruleset"]), "nftables");
    serde_json::from_str(&text).unwrap()
}

/// The elements of the sets in these rules, each with the name of its set and without its timeout.
pub fn elements(rules: &Value) -> Vec<(String, IpAddr)> {
    let sets = rules["nftables"].as_array().into_iter().flatten().filter_map(|object| object.get("set"));
    sets.flat_map(|set| {
        let name = set["name"].as_str().unwrap_or_default();
        let elements = set["elem"].as_array().into_iter().flatten();
        elements.filter_map(move |one| {
            let text = one.as_str().or_else(|| one["elem"]["val"].as_str())?;
            Some((name.to_owned(), text.parse().ok()?))
        })
    })
    .collect()
}

/// The names of the packet filter's tables.
pub fn filters(rules: &Value) -> Vec<String> {
    let objects = rules["nftables"].as_array().into_iter().flatten();
    objects.filter_map(|object| Some(object.get("table")?["name"].as_str()?.to_owned())).collect()
}

/// The processes of this host, including zombies.
pub fn processes() -> BTreeSet<u32> {
    let entries = fs::read_dir("/proc").unwrap();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// The id, name and state of a process.
pub fn name(pid: u32) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// The descriptors of a process, without the digits in their names, such as process ids.
pub fn descriptors(pid: u32) -> Descriptors {
    let plain = |text: String| text.chars().filter(|letter| !letter.is_ascii_digit()).collect();
    Descriptors(Descriptors::of(pid).0.into_iter().map(plain).collect())
}

/// The memory of a process in kB.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// Rss.
    pub resident: u64,
    /// Pss.
    pub share: u64,
}

impl Memory {
    /// The current memory of a process.
    pub fn of(pid: u32) -> Self {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().split(' ').next()?.parse().ok()
        };
        Self { resident: field("Rss:").unwrap_or_default(), share: field("Pss:").unwrap_or_default() }
    }
}
