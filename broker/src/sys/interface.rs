//! One interface: found by its name or number as it is now, and set up, down or to another MTU.
//!
//! Promises: what is changed is the interface of that number, whatever it is called by then. Touches the host's
//! interfaces through the socket it is given. Source: rtnetlink(7).

use netlink_packet_core::Parseable as _;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};
use nix::errno::Errno;

use super::netlink::Netlink;

/// The kind of the message that tells of an interface as it is now.
pub const RTM_NEWLINK: u16 = 16;
/// The kind of the message that tells of one that is gone.
pub const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;

/// An interface as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether it is up: IFF_UP.
    pub up: bool,
    /// Whether it is up and has a carrier: IFF_UP and IFF_LOWER_UP.
    pub carrier: bool,
    /// Its Ethernet address; `None` where it is no Ethernet.
    pub hardware: Option<[u8; 6]>,
    /// Its MTU in bytes.
    pub mtu: u32,
}

/// What to change; what is `None` stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Up or down.
    pub up: Option<bool>,
    /// The MTU in bytes.
    pub mtu: Option<u32>,
}

impl Interface {
    /// The interface of a name.
    ///
    /// # Errors
    /// ENODEV where there is none.
    pub fn named(netlink: &Netlink, name: &str) -> Result<Self, Errno> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        Self::ask(netlink, &message)
    }

    /// The interface of a number.
    ///
    /// # Errors
    /// ENODEV where there is none.
    pub fn numbered(netlink: &Netlink, index: u32) -> Result<Self, Errno> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        Self::ask(netlink, &message)
    }

    /// Every interface.
    ///
    /// # Errors
    /// What the kernel refused it with.
    pub fn all(netlink: &Netlink) -> Result<Vec<Self>, Errno> {
        netlink.dump(RTM_GETLINK, &LinkMessage::default(), |kind, body| {
            if kind == RTM_NEWLINK { Self::read(body) } else { None }
        })
    }

    fn ask(netlink: &Netlink, message: &LinkMessage) -> Result<Self, Errno> {
        Self::read(&netlink.ask(RTM_GETLINK, message)?).ok_or(Errno::EPROTO)
    }

    /// The interface that a message of the kernel tells of. A bridge tells of its ports by such messages too, and that one
    /// is no port any more by the message of an interface that is gone: those tell nothing here.
    pub fn read(body: &[u8]) -> Option<Self> {
        let message = LinkMessage::parse(body).ok()?;
        if message.header.interface_family != AddressFamily::Unspec {
            return None;
        }
        let ethernet = message.header.link_layer_type == LinkLayerType::Ether;
        let flags = message.header.flags;
        let mut interface = Self {
            index: message.header.index,
            name: String::new(),
            up: flags.contains(LinkFlags::Up),
            carrier: flags.contains(LinkFlags::Up) && flags.contains(LinkFlags::LowerUp),
            hardware: None,
            mtu: 0,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => interface.name = name,
                LinkAttribute::Mtu(mtu) => interface.mtu = mtu,
                LinkAttribute::Address(address) if ethernet => interface.hardware = address.try_into().ok(),
                _ => {}
            }
        }
        Some(interface)
    }

    /// Changes it.
    ///
    /// # Errors
    /// What the kernel refuses the change with.
    pub fn change(&self, netlink: &Netlink, change: Change) -> Result<(), Errno> {
        let mut message = LinkMessage::default();
        message.header.index = self.index;
        if let Some(up) = change.up {
            message.header.change_mask = LinkFlags::Up;
            message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        }
        message.attributes.extend(change.mtu.map(LinkAttribute::Mtu));
        let results = netlink.act_all(RTM_NEWLINK, 0, &[message]);
        let results =
            results.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EPROTO)))?;
        results.into_iter().next().unwrap_or(Err(Errno::EPROTO))
    }
}
