//! Queries of what the kernel has of the broker's nf_tables: rules and elements. See include/uapi/linux/netfilter/nf_tables.h.

use std::net::IpAddr;
use std::time::Duration;

use netlink_packet_core::{DefaultNla, NlasIterator};
use nix::errno::Errno;

use super::netlink_body::{attribute, nest, text};
use super::nft::{
    DELETE_CHAIN, DELETE_ELEMENT, DELETE_RULE, DELETE_SET, DELETE_TABLE, Family, GET_ELEMENT, GET_RULE,
    LIST_ELEMENT, NEW_ELEMENT, NEW_RULE, NFGENMSG, TABLE, TABLE_NAME, body, element_list, value,
};
use super::{Netlink, rtnl};

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
    let query = body(family as u8, 0, vec![text(TABLE_NAME, TABLE)]);
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
    let query = body(family as u8, 0, element_list(set, std::iter::empty()));
    let parse = |kind, body: &[u8]| if kind == NEW_ELEMENT { parse_elements(body) } else { None };
    Ok(netlink.dump(GET_ELEMENT, &query, parse)?.into_iter().flatten().collect())
}

/// How long each element of a set still lasts: `Some(None)` without end, `None` if the set does not have it. See nft(8), `get
/// element`; Linux 4.15.
///
/// # Capabilities
/// As [`count_rules`].
///
/// # Errors
/// The queries failed as a whole.
pub fn remaining(
    netlink: &Netlink,
    family: Family,
    set: &str,
    elements: &[IpAddr],
) -> Result<Vec<Option<Option<Duration>>>, Errno> {
    query_elements(netlink, family, set, elements.iter().map(|address| value(*address)))
}

/// How long each protocol of a table's packets lasts in a set, as [`remaining`].
///
/// # Capabilities
/// As [`count_rules`].
///
/// # Errors
/// The queries failed as a whole.
pub fn protocols_remaining(
    netlink: &Netlink,
    family: Family,
    set: &str,
) -> Result<Vec<Option<Option<Duration>>>, Errno> {
    query_elements(netlink, family, set, family.protocols().into_iter())
}

fn query_elements(
    netlink: &Netlink,
    family: Family,
    set: &str,
    keys: impl Iterator<Item = DefaultNla>,
) -> Result<Vec<Option<Option<Duration>>>, Errno> {
    let query = |key: DefaultNla| {
        let element = nest(LIST_ELEMENT, &[key]);
        body(family as u8, 0, element_list(set, std::iter::once(element)))
    };
    let queries: Vec<_> = keys.map(query).collect();
    let replies = netlink.query_all(GET_ELEMENT, &queries, |body| Some(expiration(body)))?;
    Ok(replies.into_iter().map(Result::ok).collect())
}

/// When the first element in the body of a message times out.
fn expiration(body: &[u8]) -> Option<Duration> {
    let list = attribute(body.get(NFGENMSG..)?, 3)?;
    let millis = attribute(attribute(list, LIST_ELEMENT)?, 5)?;
    Some(Duration::from_millis(u64::from_be_bytes(*millis.first_chunk()?)))
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
