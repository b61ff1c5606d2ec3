//! Resources that could leak: the descriptors of a process and the sockets in the kernel's tables.

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The descriptors of a process: the target of each link in /proc/PID/fd, sorted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptors(pub Vec<String>);

impl Descriptors {
    /// The current descriptors of a process.
    pub fn of(pid: u32) -> Self {
        let directory = format!("/proc/{pid}/fd");
        let entries = fs::read_dir(&directory).unwrap_or_else(|error| panic!("{directory}: {error}"));
        let mut links: Vec<String> = entries
            .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
            .map(|link| kind(&link.to_string_lossy()))
            .collect();
        links.sort_unstable();
        Self(links)
    }

    /// The descriptors that are not in `earlier`.
    pub fn not_in(&self, earlier: &Self) -> Vec<String> {
        let mut rest = earlier.0.clone();
        let is_new = |link: &&String| match rest.iter().position(|old| old == *link) {
            Some(index) => {
                rest.swap_remove(index);
                false
            }
            None => true,
        };
        self.0.iter().filter(is_new).cloned().collect()
    }
}

/// A link's target without the inode of a socket or pipe: a descriptor that replaces another is not a leak.
fn kind(link: &str) -> String {
    match link.split_once(":[") {
        Some((kind @ ("socket" | "pipe"), _)) => kind.to_owned(),
        _ => link.to_owned(),
    }
}

/// The local addresses of the listening TCP sockets in this network namespace, sorted.
pub fn tcp_listeners() -> Vec<SocketAddr> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|table| fs::read_to_string(table).unwrap());
    let mut found: Vec<SocketAddr> =
        tables.iter().flat_map(|table| table.lines().skip(1)).filter_map(row).collect();
    found.sort_unstable();
    found
}

/// For the message of a failed test: the listening TCP sockets of this network namespace, each with the processes that
/// have it open.
pub fn tcp_listener_holders() -> String {
    let mut rows: Vec<(SocketAddr, String)> = Vec::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let text = fs::read_to_string(table).unwrap_or_default();
        rows.extend(text.lines().skip(1).filter_map(|line| {
            Some((row(line)?, format!("socket:[{}]", line.split_whitespace().nth(INODE)?)))
        }));
    }
    let mut text = String::new();
    for (address, link) in rows {
        let holders = processes_with(&link);
        let holders = if holders.is_empty() { "no process here".to_owned() } else { holders.join(", ") };
        let _ = write!(text, "\n{address} is held by {holders}"); // writing to a string cannot fail
    }
    text
}

/// The processes that have a descriptor whose link is `target`: name, process id and parent of each.
fn processes_with(target: &str) -> Vec<String> {
    let entries = fs::read_dir("/proc").into_iter().flatten();
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let has = |pid: &u32| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        descriptors
            .map(|entry| entry.path())
            .any(|path| fs::read_link(path).is_ok_and(|link| link.as_os_str() == target))
    };
    let describe = |pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let field =
            |name| status.lines().find_map(|line: &str| line.strip_prefix(name)).unwrap_or("?").trim();
        format!("{} (pid {pid}, parent {})", field("Name:"), field("PPid:"))
    };
    pids.filter(has).map(describe).collect()
}

/// The number of sockets with this local port in a table of /proc/net, such as `udp`.
pub fn sockets_on_port(table: &str, port: u16) -> usize {
    let text = fs::read_to_string(format!("/proc/net/{table}")).unwrap();
    let suffix = format!(":{port:04X}");
    let local = |line: &str| line.split_whitespace().nth(1).is_some_and(|local| local.ends_with(&suffix));
    text.lines().skip(1).filter(|line| local(line)).count()
}

const LISTEN: &str = "0A";
/// The column of the inode; see proc_net_tcp(5).
const INODE: usize = 9;

/// Parses a row of proc_net_tcp(5): the address is in 32-bit words in host byte order, the port is a number.
fn row(line: &str) -> Option<SocketAddr> {
    let mut fields = line.split_whitespace().skip(1);
    let (address, port) = fields.next()?.split_once(':')?;
    if fields.nth(1)? != LISTEN {
        return None;
    }
    let port = u16::from_str_radix(port, 16).ok()?;
    let words: Option<Vec<[u8; 4]>> = (0..address.len() / 8)
        .map(|word| Some(u32::from_str_radix(address.get(word * 8..word * 8 + 8)?, 16).ok()?.to_ne_bytes()))
        .collect();
    let address = match words?.as_slice() {
        [v4] => IpAddr::from(Ipv4Addr::from(*v4)),
        words => IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(words.concat()).ok()?)),
    };
    Some(SocketAddr::new(address, port))
}
