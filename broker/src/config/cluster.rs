//! The `cluster` scope: which interface the addresses of each block belong to, how the broker checks them, and what the
//! coordinator needs to know.

use std::net::IpAddr;
use std::time::Duration;

use super::cidr::Cidr;
use super::coordinator::{Coordinator, key_part, misplaced_and_misspelt};
use super::reader::Reader;
use super::source::{Span, Spanned};

/// The options of the `cluster` scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// This host's name in the cluster.
    pub nodename: Option<Spanned<String>>,
    /// Announce addresses to all hosts by broadcast; otherwise by unicast to the hosts that the kernel knows.
    pub arp_all_hosts: bool,
    /// How often the broker compares all addresses with those of the kernel.
    pub if_check_interval: Duration,
    /// How often per minute the broker adds an address again that another program removed.
    pub if_down_limit: u32,
    /// Whether the host may use the IPv6 addresses as the source of its own connections.
    pub ipv6_as_source: bool,
    /// The blocks of addresses, in the order of the file.
    pub topology: Vec<Topology>,
    /// The settings of the coordinator.
    pub coordinator: Coordinator,
    /// The place of the scope, if the configuration has one.
    pub span: Option<Span>,
}

/// One `topology` scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// The block.
    pub block: Spanned<Cidr>,
    /// The interface to which the broker adds the block's addresses.
    pub interface: Spanned<String>,
    /// The prefix length of an added address; 32 or 128 by default.
    pub mask: u8,
}

impl Default for Cluster {
    fn default() -> Self {
        Cluster {
            nodename: None,
            arp_all_hosts: true,
            if_check_interval: Duration::from_secs(30),
            if_down_limit: 4,
            ipv6_as_source: false,
            topology: Vec::new(),
            coordinator: Coordinator::default(),
            span: None,
        }
    }
}

impl Cluster {
    /// The block that contains an address; if several do, the one with the longest prefix.
    pub fn block_of(&self, address: IpAddr) -> Option<&Topology> {
        let blocks = self.topology.iter();
        blocks
            .filter(|topology| topology.block.value.contains(address))
            .max_by_key(|topology| topology.block.value.prefix())
    }

    pub(crate) fn read(mut reader: Reader<'_, '_>) -> Self {
        let default = Cluster::default();
        let cluster = Cluster {
            nodename: reader.parsed("nodename", key_part),
            arp_all_hosts: reader.boolean("arp_all_hosts").unwrap_or(default.arp_all_hosts),
            if_check_interval: reader
                .seconds("if_check_interval", 1..=86_400)
                .unwrap_or(default.if_check_interval),
            if_down_limit: reader.number("if_down_limit", 0..=1_000).unwrap_or(default.if_down_limit),
            ipv6_as_source: reader.boolean("ipv6_as_source").unwrap_or(default.ipv6_as_source),
            topology: reader
                .scopes("topology")
                .filter_map(|section| Topology::read(Reader::new(section, reader.sources, reader.problems)))
                .collect(),
            coordinator: Coordinator::read(&mut reader),
            span: Some(reader.section.name),
        };
        misplaced_and_misspelt(&mut reader);
        cluster
    }
}

impl Topology {
    fn read(mut reader: Reader<'_, '_>) -> Option<Self> {
        let interface = reader.parsed("interface", interface);
        let mask = reader.number("cidrmask", 0..=128);
        let text = reader.instance("ADDRESS/PREFIX")?;
        let block = match text.value.parse::<Cidr>() {
            Ok(block) => Spanned { value: block, span: text.span },
            Err(error) => {
                let message = format!("{:?} is not an address block", text.value);
                reader.error(text.span, message, error.to_string());
                return None;
            }
        };
        let bits = block.value.bits();
        let mask = mask.map_or(Some(bits), |mask| u8::try_from(mask).ok().filter(|mask| *mask <= bits));
        let Some(mask) = mask else {
            let place = reader.section.option("cidrmask").map_or(block.span, |option| option.value.span());
            let message = format!("cidrmask of {} is more than {bits}", block.value);
            reader.error(place, message, format!("write cidrmask = {bits}, or remove it"));
            return None;
        };
        if reader.section.option("interface").is_none() {
            let message = format!("the topology scope of {} names no interface", block.value);
            reader.error(block.span, message, "add interface = \"eth1\" to it");
        }
        Some(Topology { block, interface: interface?, mask })
    }
}

/// A network interface's name, see netdevice(7).
pub(super) fn interface(text: &str) -> Result<String, String> {
    let max = portreeve_protocol::endpoint::MAX_INTERFACE;
    let plain = text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':');
    match plain && text.len() <= max && text != "." && text != ".." {
        true => Ok(text.to_owned()),
        false => Err(format!("write an interface name of 1 to {max} characters without / and :")),
    }
}
