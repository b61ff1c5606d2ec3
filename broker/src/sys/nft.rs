//! nf_tables transactions: tables, sets, chains, two kinds of rules, and elements.
//!
//! Promises: a transaction takes effect whole or not at all. See include/uapi/linux/netfilter/nf_tables.h and
//! nfnetlink.h. No maintained crate speaks this protocol without libnftnl or the nft program, and a confined broker runs
//! no program.

use std::net::IpAddr;
use std::time::Duration;

use netlink_packet_core::{DefaultNla, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};
use nix::errno::Errno;

use super::netlink_body::{self, Body, nest, text};
use super::{Batch, Netlink};

/// The name of the broker's tables.
pub(super) const TABLE: &str = "portreeve";
/// NFNL_SUBSYS_NFTABLES.
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
pub(super) const DELETE_TABLE: u16 = SUBSYSTEM << 8 | 2;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
pub(super) const DELETE_CHAIN: u16 = SUBSYSTEM << 8 | 5;
pub(super) const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;
pub(super) const GET_RULE: u16 = SUBSYSTEM << 8 | 7;
pub(super) const DELETE_RULE: u16 = SUBSYSTEM << 8 | 8;
const NEW_SET: u16 = SUBSYSTEM << 8 | 9;
pub(super) const DELETE_SET: u16 = SUBSYSTEM << 8 | 11;
pub(super) const NEW_ELEMENT: u16 = SUBSYSTEM << 8 | 12;
pub(super) const GET_ELEMENT: u16 = SUBSYSTEM << 8 | 13;
pub(super) const DELETE_ELEMENT: u16 = SUBSYSTEM << 8 | 14;
/// NFT_SET_TIMEOUT.
const SET_TIMEOUT: u32 = 0x10;
/// NFT_META_NFPROTO.
const PROTOCOL: u32 = 15;
/// NF_IP_PRI_RAW: before the host's own filter rules decide.
const PRIORITY: i32 = -300;
/// The length of struct nfgenmsg.
pub(super) const NFGENMSG: usize = 4;
/// The attribute of a table's name, in the messages about a table and about what it contains.
pub(super) const TABLE_NAME: u16 = 1;
/// NFTA_LIST_ELEM.
pub(super) const LIST_ELEMENT: u16 = 1;

/// An address in a set, and its timeout from now on; `None` without a timeout.
pub type Element = (IpAddr, Option<Duration>);

/// The family of a table; the value is its NFPROTO_ number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet = 1,
    /// ARP.
    Arp = 3,
}

/// The type of the addresses in a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// IPv4 addresses.
    V4,
    /// IPv6 addresses.
    V6,
}

/// The direction of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To this host.
    In,
    /// From this host.
    Out,
}

/// A set.
#[derive(Clone, Copy, Debug)]
pub struct Set<'s> {
    /// The family of its table.
    pub family: Family,
    /// The type of its addresses.
    pub key: Key,
    /// Its name, without the suffix of its key.
    pub name: &'s str,
    /// Whether its elements may have a timeout.
    pub timeout: bool,
}

/// The sets that an address belongs to: the family of their table, and their key.
pub const TABLES: [(Family, Key); 3] =
    [(Family::Inet, Key::V4), (Family::Arp, Key::V4), (Family::Inet, Key::V6)];

impl Family {
    /// The keys of the sets in its table.
    pub fn keys(self) -> impl Iterator<Item = Key> {
        [Key::V4, Key::V6].into_iter().filter(move |key| self == Family::Inet || *key == Key::V4)
    }

    /// The type of its packets' protocols in nft(8), nf_proto or ether_type, and its length in bytes.
    fn protocol_type(self) -> (u32, u32) {
        match self {
            Family::Inet => (2, 1),
            Family::Arp => (10, 2),
        }
    }

    /// The protocols of its packets as the keys of elements: NFPROTO_IPV4 and NFPROTO_IPV6; ETH_P_IP.
    pub(super) fn protocols(self) -> Vec<DefaultNla> {
        let protocols = match self {
            Family::Inet => self.keys().map(|key| vec![key.protocol()]).collect(),
            Family::Arp => vec![vec![0x08, 0x00]],
        };
        protocols.into_iter().map(|protocol| nest(1, &[DefaultNla::new(1, protocol)])).collect()
    }

    /// The hook: NF_INET_LOCAL_IN, NF_INET_LOCAL_OUT, NF_ARP_IN, NF_ARP_OUT.
    fn hook(self, direction: Direction) -> u32 {
        match (self, direction) {
            (Family::Inet, Direction::In) => 1,
            (Family::Inet, Direction::Out) => 3,
            (Family::Arp, Direction::In) => 0,
            (Family::Arp, Direction::Out) => 1,
        }
    }
}

impl Direction {
    /// The name of its chain.
    fn chain(self) -> &'static str {
        match self {
            Direction::In => "in",
            Direction::Out => "out",
        }
    }
}

impl Key {
    /// The suffix of the names of its sets.
    pub fn suffix(self) -> &'static str {
        match self {
            Key::V4 => "4",
            Key::V6 => "6",
        }
    }

    /// Whether an address is of this type.
    pub fn is_type_of(self, address: IpAddr) -> bool {
        (self == Key::V4) == address.is_ipv4()
    }

    /// Its length in bytes.
    fn length(self) -> u32 {
        match self {
            Key::V4 => 4,
            Key::V6 => 16,
        }
    }

    /// The number of its type in nft(8): ipv4_addr, ipv6_addr.
    fn type_number(self) -> u32 {
        match self {
            Key::V4 => 7,
            Key::V6 => 8,
        }
    }

    /// The offset of the host's address in the packet: the destination of a packet to this host, the source of one from
    /// it.
    fn offset(self, family: Family, direction: Direction) -> u32 {
        match (family, self, direction) {
            (Family::Arp, _, Direction::In) => 24,
            (Family::Arp, _, Direction::Out) => 14,
            (Family::Inet, Key::V4, Direction::In) => 16,
            (Family::Inet, Key::V4, Direction::Out) => 12,
            (Family::Inet, Key::V6, Direction::In) => 24,
            (Family::Inet, Key::V6, Direction::Out) => 8,
        }
    }

    /// NFPROTO_IPV4 or NFPROTO_IPV6.
    fn protocol(self) -> u8 {
        match self {
            Key::V4 => 2,
            Key::V6 => 10,
        }
    }
}

/// Changes that take effect together.
pub struct Transaction<'n> {
    netlink: &'n Netlink,
    batch: Batch,
    sets: u32,
}

impl<'n> Transaction<'n> {
    /// Creates an empty transaction.
    pub fn new(netlink: &'n Netlink) -> Self {
        let mut batch = netlink.batch();
        batch.push(BATCH_BEGIN, 0, &body(0, SUBSYSTEM, Vec::new()));
        Self { netlink, batch, sets: 0 }
    }

    /// Commits it. Returns the position and error of each change that failed; when one failed, none took effect. See
    /// nft(8) and netlink(7); Linux 3.13, the family inet since 3.14, timeouts of elements since 4.1.
    ///
    /// # Capabilities
    /// CAP_NET_ADMIN.
    ///
    /// # Errors
    /// The kernel refused the transaction as a whole.
    pub fn commit(mut self) -> Result<Vec<(usize, Errno)>, Errno> {
        if self.batch.len() == 1 {
            return Ok(Vec::new());
        }
        self.batch.acknowledge_last();
        self.batch.push(BATCH_END, 0, &body(0, SUBSYSTEM, Vec::new()));
        let mut outcomes = self.netlink.change_batch(&self.batch)?.into_iter();
        // An error of the whole transaction is reported for BATCH_BEGIN.
        outcomes.next().unwrap_or(Ok(()))?;
        Ok(outcomes.enumerate().filter_map(|(at, outcome)| Some((at, outcome.err()?))).collect())
    }

    fn push(&mut self, kind: u16, flags: u16, family: Family, attributes: Vec<DefaultNla>) {
        self.batch.push(kind, flags, &body(family as u8, 0, attributes));
    }

    /// Creates the broker's table of a family.
    pub fn create_table(&mut self, family: Family) {
        self.push(NEW_TABLE, NLM_F_CREATE, family, vec![text(1, TABLE)]);
    }

    /// Deletes the broker's table of a family with its sets and chains; ENOENT if it does not exist.
    pub fn delete_table(&mut self, family: Family) {
        self.push(DELETE_TABLE, 0, family, vec![text(1, TABLE)]);
    }

    /// Creates a set.
    pub fn create_set(&mut self, set: &Set<'_>) {
        let flags = if set.timeout { SET_TIMEOUT } else { 0 };
        let name = format!("{}{}", set.name, set.key.suffix());
        self.push_set(set.family, &name, flags, (set.key.type_number(), set.key.length()));
    }

    /// Creates a set of the protocols of a table's packets, with timeouts.
    pub fn create_protocol_set(&mut self, family: Family, name: &str) {
        self.push_set(family, name, SET_TIMEOUT, family.protocol_type());
    }

    fn push_set(&mut self, family: Family, name: &str, flags: u32, (key_type, length): (u32, u32)) {
        self.sets += 1;
        let attributes = vec![
            text(1, TABLE),
            text(2, name),
            number(3, flags),
            number(4, key_type),
            number(5, length),
            number(10, self.sets),
        ];
        self.push(NEW_SET, NLM_F_CREATE, family, attributes);
    }

    /// Creates the chain of one direction.
    pub fn create_chain(&mut self, family: Family, direction: Direction) {
        let hook = [number(1, family.hook(direction)), number(2, PRIORITY.cast_unsigned())];
        let attributes = vec![text(1, TABLE), text(3, direction.chain()), nest(4, &hook), text(7, "filter")];
        self.push(NEW_CHAIN, NLM_F_CREATE, family, attributes);
    }

    /// Adds the rule that drops packets whose local address is in set `members` and not in set `allowed`.
    pub fn add_drop_rule(
        &mut self,
        family: Family,
        key: Key,
        direction: Direction,
        members: &str,
        allowed: &str,
    ) {
        let allowed = format!("{allowed}{}", key.suffix());
        self.push_rule(family, key, direction, members, Vec::new(), &allowed);
    }

    /// Adds the rule that drops packets whose local address is in set `members`, if the set `protocols` does not have their protocol.
    pub fn add_protocol_rule(
        &mut self,
        family: Family,
        key: Key,
        direction: Direction,
        members: &str,
        protocols: &str,
    ) {
        let load = match family {
            Family::Inet => expression("meta", &[number(1, 1), number(2, PROTOCOL)]),
            // The protocol in the ARP packet.
            Family::Arp => expression("payload", &[number(1, 1), number(2, 1), number(3, 2), number(4, 2)]),
        };
        self.push_rule(family, key, direction, members, vec![load], protocols);
    }

    /// Adds the rule that drops packets whose local address is in set `members`, if set `allowed` does not have the address, or
    /// what `load` then loads into register 1.
    fn push_rule(
        &mut self,
        family: Family,
        key: Key,
        direction: Direction,
        members: &str,
        load: Vec<DefaultNla>,
        allowed: &str,
    ) {
        let mut steps = Vec::new();
        if family == Family::Inet {
            // Load the packet's protocol into register 1; continue if it is the key's.
            steps.push(expression("meta", &[number(1, 1), number(2, PROTOCOL)]));
            let protocol = nest(3, &[DefaultNla::new(1, vec![key.protocol()])]);
            steps.push(expression("cmp", &[number(1, 1), number(2, 0), protocol]));
        }
        let offset = key.offset(family, direction);
        let address = [number(1, 1), number(2, 1), number(3, offset), number(4, key.length())];
        steps.push(expression("payload", &address));
        steps.push(expression("lookup", &[text(1, &format!("{members}{}", key.suffix())), number(2, 1)]));
        steps.extend(load);
        // NFT_LOOKUP_F_INV: continue if the set does not have it.
        steps.push(expression("lookup", &[text(1, allowed), number(2, 1), number(5, 1)]));
        let verdict = nest(2, &[nest(2, &[number(1, 0)])]);
        steps.push(expression("immediate", &[number(1, 0), verdict]));
        let attributes = vec![text(1, TABLE), text(2, direction.chain()), nest(4, &steps)];
        self.push(NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, family, attributes);
    }

    /// Adds elements with their timeouts. With `exclusive`, EEXIST if the set contains one of them.
    pub fn add_elements(&mut self, family: Family, set: &str, elements: &[Element], exclusive: bool) {
        let elements = elements.iter().map(|(address, timeout)| element(value(*address), *timeout));
        let flags = NLM_F_CREATE | if exclusive { NLM_F_EXCL } else { 0 };
        self.push(NEW_ELEMENT, flags, family, element_list(set, elements));
    }

    /// Deletes elements, whatever their timeout; ENOENT if the set does not contain one of them or it timed out.
    pub fn delete_elements(&mut self, family: Family, set: &str, elements: &[Element]) {
        let elements = elements.iter().map(|(address, _)| element(value(*address), None));
        self.push(DELETE_ELEMENT, 0, family, element_list(set, elements));
    }

    /// Adds every protocol of a table's packets to a set, with this timeout. Without effect on those that the set contains.
    pub fn add_protocols(&mut self, family: Family, set: &str, timeout: Duration) {
        let elements = family.protocols().into_iter().map(|protocol| element(protocol, Some(timeout)));
        self.push(NEW_ELEMENT, NLM_F_CREATE, family, element_list(set, elements));
    }

    /// Deletes every protocol of a table's packets from a set; ENOENT if the set does not contain one of them or it timed out.
    pub fn delete_protocols(&mut self, family: Family, set: &str) {
        let elements = family.protocols().into_iter().map(|protocol| element(protocol, None));
        self.push(DELETE_ELEMENT, 0, family, element_list(set, elements));
    }
}

fn element(key: DefaultNla, timeout: Option<Duration>) -> DefaultNla {
    let mut element = vec![key];
    let millis = timeout.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1));
    element.extend(millis.map(|millis| DefaultNla::new(4, millis.to_be_bytes().to_vec())));
    nest(LIST_ELEMENT, &element)
}

pub(super) fn element_list(set: &str, elements: impl Iterator<Item = DefaultNla>) -> Vec<DefaultNla> {
    vec![text(1, TABLE), text(2, set), nest(3, &elements.collect::<Vec<_>>())]
}

pub(super) fn value(address: IpAddr) -> DefaultNla {
    nest(1, &[netlink_body::address(1, address)])
}

fn expression(name: &str, data: &[DefaultNla]) -> DefaultNla {
    nest(LIST_ELEMENT, &[text(1, name), nest(2, data)])
}

fn number(kind: u16, number: u32) -> DefaultNla {
    DefaultNla::new(kind, number.to_be_bytes().to_vec())
}

/// struct nfgenmsg and the attributes after it.
pub(super) fn body(family: u8, resource: u16, attributes: Vec<DefaultNla>) -> Body<1> {
    let [high, low] = resource.to_be_bytes();
    Body { fixed: [[family, 0, high, low]], attributes }
}
