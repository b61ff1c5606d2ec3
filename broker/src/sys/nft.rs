//! nf_tables transactions: tables, sets, chains, one kind of rule, and elements; and queries of what the kernel has of them.
//!
//! Promises: a transaction takes effect whole or not at all. See include/uapi/linux/netfilter/nf_tables.h and
//! nfnetlink.h. No maintained crate speaks this protocol without libnftnl or the nft program, and a confined broker runs
//! no program.

use std::net::IpAddr;
use std::time::Duration;

use netlink_packet_core::{
    DefaultNla, Emitable, NLA_F_NESTED, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NlasIterator,
};
use nix::errno::Errno;

use super::{Batch, Netlink, rtnl};

/// The name of the broker's tables.
const TABLE: &str = "portreeve";
/// NFNL_SUBSYS_NFTABLES.
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const DELETE_TABLE: u16 = SUBSYSTEM << 8 | 2;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
const DELETE_CHAIN: u16 = SUBSYSTEM << 8 | 5;
const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;
const GET_RULE: u16 = SUBSYSTEM << 8 | 7;
const DELETE_RULE: u16 = SUBSYSTEM << 8 | 8;
const NEW_SET: u16 = SUBSYSTEM << 8 | 9;
const DELETE_SET: u16 = SUBSYSTEM << 8 | 11;
const NEW_ELEMENT: u16 = SUBSYSTEM << 8 | 12;
const GET_ELEMENT: u16 = SUBSYSTEM << 8 | 13;
const DELETE_ELEMENT: u16 = SUBSYSTEM << 8 | 14;
/// NFT_SET_TIMEOUT.
const SET_TIMEOUT: u32 = 0x10;
/// NF_IP_PRI_RAW: before the host's own filter rules decide.
const PRIORITY: i32 = -300;
/// The length of struct nfgenmsg.
const NFGENMSG: usize = 4;
/// The attribute of a table's name, in the messages about a table and about what it contains.
const TABLE_NAME: u16 = 1;
/// The length of struct nlattr.
const ATTRIBUTE_HEADER: usize = 4;
/// NFTA_LIST_ELEM.
const LIST_ELEMENT: u16 = 1;

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
pub struct Set {
    /// The family of its table.
    pub family: Family,
    /// The type of its addresses.
    pub key: Key,
    /// Its name, without the suffix of its key.
    pub name: &'static str,
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
        batch.push(BATCH_BEGIN, 0, &Body { family: 0, resource: SUBSYSTEM, attributes: Vec::new() });
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
        self.batch.push(BATCH_END, 0, &Body { family: 0, resource: SUBSYSTEM, attributes: Vec::new() });
        let mut outcomes = self.netlink.change_batch(&self.batch)?.into_iter();
        // An error of the whole transaction is reported for BATCH_BEGIN.
        outcomes.next().unwrap_or(Ok(()))?;
        Ok(outcomes.enumerate().filter_map(|(at, outcome)| Some((at, outcome.err()?))).collect())
    }

    fn push(&mut self, kind: u16, flags: u16, family: Family, attributes: Vec<DefaultNla>) {
        self.batch.push(kind, flags, &Body { family: family as u8, resource: 0, attributes });
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
    pub fn create_set(&mut self, set: &Set) {
        self.sets += 1;
        let attributes = vec![
            text(1, TABLE),
            text(2, &format!("{}{}", set.name, set.key.suffix())),
            number(3, if set.timeout { SET_TIMEOUT } else { 0 }),
            number(4, set.key.type_number()),
            number(5, set.key.length()),
            number(10, self.sets),
        ];
        self.push(NEW_SET, NLM_F_CREATE, set.family, attributes);
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
        let name = |set: &str| format!("{set}{}", key.suffix());
        let mut steps = Vec::new();
        if family == Family::Inet {
            // Load the packet's protocol into register 1; continue if it is the key's.
            steps.push(expression("meta", &[number(1, 1), number(2, 15)]));
            let protocol = nest(3, &[DefaultNla::new(1, vec![key.protocol()])]);
            steps.push(expression("cmp", &[number(1, 1), number(2, 0), protocol]));
        }
        let offset = key.offset(family, direction);
        let address = [number(1, 1), number(2, 1), number(3, offset), number(4, key.length())];
        steps.push(expression("payload", &address));
        steps.push(expression("lookup", &[text(1, &name(members)), number(2, 1)]));
        // NFT_LOOKUP_F_INV: continue if the address is not in the set.
        steps.push(expression("lookup", &[text(1, &name(allowed)), number(2, 1), number(5, 1)]));
        let verdict = nest(2, &[nest(2, &[number(1, 0)])]);
        steps.push(expression("immediate", &[number(1, 0), verdict]));
        let attributes = vec![text(1, TABLE), text(2, direction.chain()), nest(4, &steps)];
        self.push(NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, family, attributes);
    }

    /// Adds elements with their timeouts. With `exclusive`, EEXIST if the set contains one of them.
    pub fn add_elements(&mut self, family: Family, set: &str, elements: &[Element], exclusive: bool) {
        let elements = elements.iter().map(|(address, timeout)| {
            let mut element = vec![value(*address)];
            let millis = timeout.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1));
            element.extend(millis.map(|millis| DefaultNla::new(4, millis.to_be_bytes().to_vec())));
            nest(LIST_ELEMENT, &element)
        });
        let flags = NLM_F_CREATE | if exclusive { NLM_F_EXCL } else { 0 };
        self.push(NEW_ELEMENT, flags, family, element_list(set, elements));
    }

    /// Deletes elements, whatever their timeout; ENOENT if the set does not contain one of them or it timed out.
    pub fn delete_elements(&mut self, family: Family, set: &str, elements: &[Element]) {
        let elements = elements.iter().map(|(address, _)| nest(LIST_ELEMENT, &[value(*address)]));
        self.push(DELETE_ELEMENT, 0, family, element_list(set, elements));
    }
}

/// Whether a message reports that something was removed.
pub(super) fn is_removal(kind: u16) -> bool {
    [DELETE_TABLE, DELETE_CHAIN, DELETE_RULE, DELETE_SET, DELETE_ELEMENT].contains(&kind)
}

/// The number of rules in the broker's table of a family; 0 if there is no such table. See nft(8), `list`; Linux 3.13.
///
/// # Capabilities
/// CAP_NET_ADMIN before Linux 6.2.
///
/// # Errors
/// The kernel's refusal; EINTR as [`Netlink::dump`].
pub fn count_rules(netlink: &Netlink, family: Family) -> Result<usize, Errno> {
    let query = Body { family: family as u8, resource: 0, attributes: vec![text(TABLE_NAME, TABLE)] };
    // The kernel may list the rules of all tables of the family.
    let own = |kind, body: &[u8]| (kind == NEW_RULE && is_of_own_table(body)).then_some(());
    let rules = netlink.dump(GET_RULE, &query, own)?;
    Ok(rules.len())
}

/// The elements of a set that have not timed out. See nft(8), `list set`; Linux 3.13.
///
/// # Capabilities
/// As [`count_rules`].
///
/// # Errors
/// ENOENT if there is no such set; otherwise as [`count_rules`].
pub fn elements(netlink: &Netlink, family: Family, set: &str) -> Result<Vec<IpAddr>, Errno> {
    let query = Body { family: family as u8, resource: 0, attributes: element_list(set, std::iter::empty()) };
    let parse = |kind, body: &[u8]| if kind == NEW_ELEMENT { parse_elements(body) } else { None };
    Ok(netlink.dump(GET_ELEMENT, &query, parse)?.into_iter().flatten().collect())
}

/// Whether a set has each element. See nft(8), `get element`; Linux 4.15.
///
/// # Capabilities
/// As [`count_rules`].
///
/// # Errors
/// The queries failed as a whole.
pub fn has_elements(
    netlink: &Netlink,
    family: Family,
    set: &str,
    elements: &[IpAddr],
) -> Result<Vec<bool>, Errno> {
    let query = |address: &IpAddr| {
        let element = nest(LIST_ELEMENT, &[value(*address)]);
        Body { family: family as u8, resource: 0, attributes: element_list(set, std::iter::once(element)) }
    };
    let queries: Vec<Body> = elements.iter().map(query).collect();
    let replies = netlink.query_all(GET_ELEMENT, &queries, |_| Some(()))?;
    Ok(replies.iter().map(Result::is_ok).collect())
}

/// The addresses in the body of a message about elements.
fn parse_elements(body: &[u8]) -> Option<Vec<IpAddr>> {
    let list = attribute(body.get(NFGENMSG..)?, 3)?;
    let address = |element: &[u8]| rtnl::ip(attribute(attribute(element, 1)?, 1)?);
    Some(NlasIterator::new(list).flatten().filter_map(|element| address(element.value())).collect())
}

/// Whether the body of a message, with struct nfgenmsg, is about a table of the broker's name or about a part of it.
pub(super) fn is_of_own_table(body: &[u8]) -> bool {
    let name = attribute(body.get(NFGENMSG..).unwrap_or_default(), TABLE_NAME);
    name.is_some_and(|name| name.strip_suffix(b"\0") == Some(TABLE.as_bytes()))
}

/// The value of the first attribute of this kind.
fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    let found = NlasIterator::new(bytes).flatten().find(|attribute| attribute.kind() == kind)?;
    let length = usize::from(found.length());
    found.into_inner().get(ATTRIBUTE_HEADER..length)
}

fn element_list(set: &str, elements: impl Iterator<Item = DefaultNla>) -> Vec<DefaultNla> {
    vec![text(1, TABLE), text(2, set), nest(3, &elements.collect::<Vec<_>>())]
}

fn value(address: IpAddr) -> DefaultNla {
    let bytes = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    nest(1, &[DefaultNla::new(1, bytes)])
}

fn expression(name: &str, data: &[DefaultNla]) -> DefaultNla {
    nest(LIST_ELEMENT, &[text(1, name), nest(2, data)])
}

fn text(kind: u16, text: &str) -> DefaultNla {
    DefaultNla::new(kind, [text.as_bytes(), b"\0"].concat())
}

fn number(kind: u16, number: u32) -> DefaultNla {
    DefaultNla::new(kind, number.to_be_bytes().to_vec())
}

fn nest(kind: u16, inner: &[DefaultNla]) -> DefaultNla {
    let mut bytes = vec![0; inner.buffer_len()];
    inner.emit(&mut bytes);
    DefaultNla::new(kind | NLA_F_NESTED, bytes)
}

/// struct nfgenmsg and the attributes after it.
struct Body {
    family: u8,
    resource: u16,
    attributes: Vec<DefaultNla>,
}

impl Emitable for Body {
    fn buffer_len(&self) -> usize {
        4 + self.attributes.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        let [high, low] = self.resource.to_be_bytes();
        if let Some((head, rest)) = buffer.split_at_mut_checked(4) {
            head.copy_from_slice(&[self.family, 0, high, low]);
            self.attributes.as_slice().emit(rest);
        }
    }
}
