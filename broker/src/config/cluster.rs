//! The `cluster` scope: which block of addresses belongs on which interface, and how that is kept true.

use std::net::IpAddr;
use std::time::Duration;

use super::cidr::Cidr;
use super::reader::Reader;
use super::source::{Span, Spanned};

/// What `cluster` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// This host's name in the cluster.
    pub nodename: Option<Spanned<String>>,
    /// Announce an address to all hosts by broadcast; otherwise to those that are known.
    pub arp_all_hosts: bool,
    /// How often all addresses are compared with what the kernel has.
    pub if_check_interval: Duration,
    /// How often a minute an address that somebody removed is put back.
    pub if_down_limit: u32,
    /// The blocks of addresses, in the order of the file.
    pub topology: Vec<Topology>,
    /// Where the scope stands, if it does.
    pub span: Option<Span>,
}

/// One `topology` scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// The block.
    pub block: Spanned<Cidr>,
    /// The interface that its addresses are put on.
    pub interface: Spanned<String>,
    /// The prefix length that an address is put on with; 32 or 128 where none is named.
    pub mask: u8,
}

impl Default for Cluster {
    fn default() -> Self {
        Cluster {
            nodename: None,
            arp_all_hosts: true,
            if_check_interval: Duration::from_secs(30),
            if_down_limit: 4,
            topology: Vec::new(),
            span: None,
        }
    }
}

impl Cluster {
    /// The block that decides where an address goes: the one with the longest prefix.
    pub fn block_of(&self, address: IpAddr) -> Option<&Topology> {
        let blocks = self.topology.iter();
        blocks
            .filter(|topology| topology.block.value.contains(address))
            .max_by_key(|topology| topology.block.value.prefix())
    }

    pub(crate) fn read(mut reader: Reader<'_, '_>) -> Self {
        let default = Cluster::default();
        Cluster {
            nodename: reader.text("nodename"),
            arp_all_hosts: reader.boolean("arp_all_hosts").unwrap_or(default.arp_all_hosts),
            if_check_interval: reader
                .seconds("if_check_interval", 1..=86_400)
                .unwrap_or(default.if_check_interval),
            if_down_limit: reader.number("if_down_limit", 0..=1_000).unwrap_or(default.if_down_limit),
            topology: reader
                .scopes("topology")
                .filter_map(|section| Topology::read(Reader::new(section, reader.sources, reader.problems)))
                .collect(),
            span: Some(reader.section.name),
        }
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
                let message = format!("{:?} is not a block of addresses", text.value);
                reader.error(text.span, message, error.to_string());
                return None;
            }
        };
        let bits = block.value.bits();
        let mask = mask.map_or(Some(bits), |mask| u8::try_from(mask).ok().filter(|mask| *mask <= bits));
        let Some(mask) = mask else {
            let place = reader.section.option("cidrmask").map_or(block.span, |option| option.value.span());
            let message = format!("a mask of {} has at most {bits} bits", block.value);
            reader.error(place, message, format!("write cidrmask = {bits}, or remove it"));
            return None;
        };
        if reader.section.option("interface").is_none() {
            let message = format!("the topology of {} names no interface", block.value);
            reader.error(block.span, message, "write interface = \"eth1\" in it");
        }
        Some(Topology { block, interface: interface?, mask })
    }
}

/// The name of a network interface, see netdevice(7).
pub(super) fn interface(text: &str) -> Result<String, String> {
    let most = portreeve_protocol::endpoint::MAX_INTERFACE;
    let plain = text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':');
    match plain && text.len() <= most && text != "." && text != ".." {
        true => Ok(text.to_owned()),
        false => Err(format!("an interface has a name of at most {most} characters, without / and :")),
    }
}
