//! Messages to nf_tables: transactions of tables, sets, chains, one kind of rule, and elements.
//!
//! Promises: a transaction is done whole or not at all. Touches nothing itself but what the socket of its transaction
//! reaches. Source: include/uapi/linux/netfilter/nf_tables.h and nfnetlink.h of the kernel; no maintained crate speaks
//! it without libnftnl or the nft program, and a confined broker runs no program.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use netlink_packet_core::{DefaultNla, Emitable, NLA_F_NESTED, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};
use nix::errno::Errno;

use super::{Batch, Netlink};

/// The name of our tables.
const TABLE: &str = "portreeve";
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const DELETE_TABLE: u16 = SUBSYSTEM << 8 | 2;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;
const NEW_SET: u16 = SUBSYSTEM << 8 | 9;
const NEW_ELEMENT: u16 = SUBSYSTEM << 8 | 12;
const DELETE_ELEMENT: u16 = SUBSYSTEM << 8 | 14;
/// NFT_SET_TIMEOUT.
const HAS_TIMEOUT: u32 = 0x10;
/// Before whatever the host's own rules have decided: NF_IP_PRI_RAW.
const PRIORITY: i32 = -300;
/// NFTA_LIST_ELEM.
const ELEMENT: u16 = 1;

/// An address in a set, and for how long from now on; `None` for ever.
pub type Element = (IpAddr, Option<Duration>);

/// The family of a table, by its NFPROTO_ number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet = 1,
    /// ARP.
    Arp = 3,
}

/// What a set holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// IPv4 addresses.
    V4,
    /// IPv6 addresses.
    V6,
}

/// A set.
pub struct Set {
    /// The family of its table.
    pub family: Family,
    /// What it holds.
    pub key: Key,
    /// Its name, before the suffix of its key.
    pub name: &'static str,
    /// Whether its elements may end by themselves.
    pub timeout: bool,
}

/// The tables, by their family, that addresses are in, and what their sets hold.
pub const TABLES: [(Family, Key); 3] =
    [(Family::Inet, Key::V4), (Family::Arp, Key::V4), (Family::Inet, Key::V6)];

impl Family {
    /// What the sets of its table hold.
    pub fn keys(self) -> impl Iterator<Item = Key> {
        [Key::V4, Key::V6].into_iter().filter(move |key| self == Family::Inet || *key == Key::V4)
    }

    /// The hook of what comes in or goes out: NF_INET_LOCAL_IN and its like.
    fn hook(self, inward: bool) -> u32 {
        match (self, inward) {
            (Family::Inet, true) => 1,
            (Family::Inet, false) => 3,
            (Family::Arp, true) => 0,
            (Family::Arp, false) => 1,
        }
    }
}

impl Key {
    /// What the names of its sets end with.
    pub fn suffix(self) -> &'static str {
        match self {
            Key::V4 => "4",
            Key::V6 => "6",
        }
    }

    /// Whether it is an address's.
    pub fn is_of(self, address: IpAddr) -> bool {
        (self == Key::V4) == address.is_ipv4()
    }

    fn length(self) -> u32 {
        match self {
            Key::V4 => 4,
            Key::V6 => 16,
        }
    }

    /// The type under which nft(8) shows it.
    fn shown_as(self) -> u32 {
        match self {
            Key::V4 => 7,
            Key::V6 => 8,
        }
    }

    /// Where in the packet the own address is: its target when it comes in, its source when it goes out.
    fn offset(self, family: Family, inward: bool) -> u32 {
        match (family, self, inward) {
            (Family::Arp, _, true) => 24,
            (Family::Arp, _, false) => 14,
            (Family::Inet, Key::V4, true) => 16,
            (Family::Inet, Key::V4, false) => 12,
            (Family::Inet, Key::V6, true) => 24,
            (Family::Inet, Key::V6, false) => 8,
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

/// Changes that are made together.
pub struct Transaction<'n> {
    netlink: &'n Netlink,
    batch: Batch,
    sets: u32,
}

impl<'n> Transaction<'n> {
    /// An empty one.
    pub fn new(netlink: &'n Netlink) -> Self {
        let mut batch = netlink.batch();
        batch.push(BATCH_BEGIN, 0, &Body { family: 0, resource: SUBSYSTEM, attributes: Vec::new() });
        Self { netlink, batch, sets: 0 }
    }

    /// Makes it happen, and tells which of its changes failed with what: then nothing has happened.
    ///
    /// # Errors
    /// The kernel refused all of it at once.
    pub fn commit(mut self) -> io::Result<Vec<(usize, Errno)>> {
        if self.batch.len() == 1 {
            return Ok(Vec::new());
        }
        self.batch.acknowledge();
        self.batch.push(BATCH_END, 0, &Body { family: 0, resource: SUBSYSTEM, attributes: Vec::new() });
        let mut outcomes = self.netlink.act(&self.batch)?.into_iter();
        // Of the beginning it tells what goes for all.
        outcomes.next().unwrap_or(Ok(()))?;
        Ok(outcomes.enumerate().filter_map(|(at, outcome)| Some((at, outcome.err()?))).collect())
    }

    fn push(&mut self, kind: u16, flags: u16, family: Family, attributes: Vec<DefaultNla>) {
        self.batch.push(kind, flags, &Body { family: family as u8, resource: 0, attributes });
    }

    /// Makes our table.
    pub fn table(&mut self, family: Family) {
        self.push(NEW_TABLE, NLM_F_CREATE, family, vec![text(1, TABLE)]);
    }

    /// Takes our table away with all that is in it; ENOENT where there is none.
    pub fn delete_table(&mut self, family: Family) {
        self.push(DELETE_TABLE, 0, family, vec![text(1, TABLE)]);
    }

    /// Makes a set.
    pub fn set(&mut self, set: &Set) {
        self.sets += 1;
        let attributes = vec![
            text(1, TABLE),
            text(2, &format!("{}{}", set.name, set.key.suffix())),
            number(3, if set.timeout { HAS_TIMEOUT } else { 0 }),
            number(4, set.key.shown_as()),
            number(5, set.key.length()),
            number(10, self.sets),
        ];
        self.push(NEW_SET, NLM_F_CREATE, set.family, attributes);
    }

    /// Makes the chain of what comes in or goes out.
    pub fn chain(&mut self, family: Family, inward: bool) {
        let hook = [number(1, family.hook(inward)), number(2, PRIORITY.cast_unsigned())];
        let attributes = vec![text(1, TABLE), text(3, chain(inward)), nest(4, &hook), text(7, "filter")];
        self.push(NEW_CHAIN, NLM_F_CREATE, family, attributes);
    }

    /// Drops what has its own address in the first set and not in the second.
    pub fn drop_rule(&mut self, family: Family, key: Key, inward: bool, of: &str, but: &str) {
        let name = |set: &str| format!("{set}{}", key.suffix());
        let mut steps = Vec::new();
        if family == Family::Inet {
            // Register 1 is the packet's protocol; go on where it is the key's.
            steps.push(expression("meta", &[number(1, 1), number(2, 15)]));
            let protocol = nest(3, &[DefaultNla::new(1, vec![key.protocol()])]);
            steps.push(expression("cmp", &[number(1, 1), number(2, 0), protocol]));
        }
        let offset = key.offset(family, inward);
        let address = [number(1, 1), number(2, 1), number(3, offset), number(4, key.length())];
        steps.push(expression("payload", &address));
        steps.push(expression("lookup", &[text(1, &name(of)), number(2, 1)]));
        steps.push(expression("lookup", &[text(1, &name(but)), number(2, 1), number(5, 1)]));
        let dropped = nest(2, &[nest(2, &[number(1, 0)])]);
        steps.push(expression("immediate", &[number(1, 0), dropped]));
        let attributes = vec![text(1, TABLE), text(2, chain(inward)), nest(4, &steps)];
        self.push(NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, family, attributes);
    }

    /// Adds elements that each end after their time, `None` never. With `alone`, EEXIST where one of them is there.
    pub fn add(&mut self, family: Family, set: &str, elements: &[Element], alone: bool) {
        let elements = elements.iter().map(|(address, time)| {
            let mut element = vec![value(*address)];
            let millis = time.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1));
            element.extend(millis.map(|millis| DefaultNla::new(4, millis.to_be_bytes().to_vec())));
            nest(ELEMENT, &element)
        });
        let flags = NLM_F_CREATE | if alone { NLM_F_EXCL } else { 0 };
        self.push(NEW_ELEMENT, flags, family, listed(set, elements));
    }

    /// Deletes elements, whatever their time; ENOENT where one of them is not there or is over.
    pub fn delete(&mut self, family: Family, set: &str, elements: &[Element]) {
        let elements = elements.iter().map(|(address, _)| nest(ELEMENT, &[value(*address)]));
        self.push(DELETE_ELEMENT, 0, family, listed(set, elements));
    }
}

fn listed(set: &str, elements: impl Iterator<Item = DefaultNla>) -> Vec<DefaultNla> {
    vec![text(1, TABLE), text(2, set), nest(3, &elements.collect::<Vec<_>>())]
}

fn chain(inward: bool) -> &'static str {
    if inward { "in" } else { "out" }
}

fn value(address: IpAddr) -> DefaultNla {
    let bytes = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    nest(1, &[DefaultNla::new(1, bytes)])
}

fn expression(name: &str, data: &[DefaultNla]) -> DefaultNla {
    nest(ELEMENT, &[text(1, name), nest(2, data)])
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

/// struct nfgenmsg, and what follows it.
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
