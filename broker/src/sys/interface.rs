//! Network interfaces: find one by name or index, list all, set one up, down or to another MTU.
//!
//! Promises: a change is made to the interface with that index, whatever its name is by then. See rtnetlink(7).

use netlink_packet_core::Parseable as _;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVrf, LinkAttribute, LinkFlags, LinkInfo,
    LinkLayerType, LinkMessage, Prop,
};
use nix::errno::Errno;

use super::netlink::Netlink;

/// The kind of the message that reports an interface or a change of it.
pub const RTM_NEWLINK: u16 = 16;
/// The kind of the message that reports a deleted interface.
pub const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;

/// An Ethernet (MAC) address.
pub type Mac = [u8; 6];

/// A VRF: a group of interfaces with a routing table of its own. An address on one of them is local in this table only, and only
/// to sockets that are bound to its device or to one of its ports. See Documentation/networking/vrf.rst of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Vrf {
    /// The index of its device.
    pub index: u32,
    /// The number of its routing table.
    pub table: u32,
}

/// An interface as the kernel reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its alternative names: ip-link(8), `property`; Linux 5.5.
    pub altnames: Vec<String>,
    /// Whether it is up: IFF_UP.
    pub up: bool,
    /// Whether it is up and has a carrier: IFF_UP and IFF_LOWER_UP.
    pub carrier: bool,
    /// Its MAC address; `None` if it is not Ethernet.
    pub mac: Option<Mac>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The VRF of which it is a port or the device.
    pub vrf: Option<Vrf>,
}

/// What to change; `None` leaves a value as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Up or down.
    pub up: Option<bool>,
    /// The MTU in bytes.
    pub mtu: Option<u32>,
}

impl Interface {
    /// Whether this is its name, or one of its alternative names.
    pub fn has_name(&self, name: &str) -> bool {
        self.name == name || self.altnames.iter().any(|other| other == name)
    }

    /// Finds an interface by its name or an alternative name. See rtnetlink(7), RTM_GETLINK; Linux 2.6.33, alternative names
    /// since 5.5.
    ///
    /// # Capabilities
    /// None.
    ///
    /// # Errors
    /// ENODEV if it does not exist; EINVAL or ERANGE for a name that no interface can have.
    pub fn by_name(netlink: &Netlink, name: &str) -> Result<Self, Errno> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        Self::query(netlink, &message)
    }

    /// Finds an interface by index. See rtnetlink(7), RTM_GETLINK; Linux 2.6.
    ///
    /// # Capabilities
    /// None.
    ///
    /// # Errors
    /// ENODEV if it does not exist.
    pub fn by_index(netlink: &Netlink, index: u32) -> Result<Self, Errno> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        Self::query(netlink, &message)
    }

    /// Lists every interface. See rtnetlink(7), RTM_GETLINK; Linux 2.2.
    ///
    /// # Capabilities
    /// None.
    ///
    /// # Errors
    /// The kernel's refusal; EINTR as [`Netlink::dump`].
    pub fn list(netlink: &Netlink) -> Result<Vec<Self>, Errno> {
        netlink.dump(RTM_GETLINK, &LinkMessage::default(), |kind, body| {
            if kind == RTM_NEWLINK { Self::parse(body) } else { None }
        })
    }

    fn query(netlink: &Netlink, message: &LinkMessage) -> Result<Self, Errno> {
        Self::parse(&netlink.query(RTM_GETLINK, message)?).ok_or(Errno::EPROTO)
    }

    /// Parses the body of RTM_NEWLINK or RTM_DELLINK. A bridge reports its ports in such messages too, and RTM_DELLINK
    /// when a port leaves the bridge; those are ignored.
    pub fn parse(body: &[u8]) -> Option<Self> {
        let message = LinkMessage::parse(body).ok()?;
        if message.header.interface_family != AddressFamily::Unspec {
            return None;
        }
        let ethernet = message.header.link_layer_type == LinkLayerType::Ether;
        let flags = message.header.flags;
        let mut interface = Self {
            index: message.header.index,
            name: String::new(),
            altnames: Vec::new(),
            up: flags.contains(LinkFlags::Up),
            carrier: flags.contains(LinkFlags::Up) && flags.contains(LinkFlags::LowerUp),
            mac: None,
            mtu: 0,
            vrf: None,
        };
        let (mut master, mut info) = (None, Vec::new());
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => interface.name = name,
                LinkAttribute::PropList(properties) => {
                    interface.altnames.extend(properties.into_iter().filter_map(|property| match property {
                        Prop::AltIfName(name) => Some(name),
                        _ => None,
                    }));
                }
                LinkAttribute::Mtu(mtu) => interface.mtu = mtu,
                LinkAttribute::Address(address) if ethernet => interface.mac = address.try_into().ok(),
                LinkAttribute::Controller(index) => master = Some(index),
                LinkAttribute::LinkInfo(of_kind) => info = of_kind,
                _ => {}
            }
        }
        interface.vrf = vrf(interface.index, master, &info);
        Some(interface)
    }

    /// Changes the interface. See rtnetlink(7), RTM_NEWLINK; Linux 2.6.
    ///
    /// # Capabilities
    /// CAP_NET_ADMIN.
    ///
    /// # Errors
    /// ENODEV if it was deleted; EINVAL for an MTU that it cannot have; EPERM.
    pub fn change(&self, netlink: &Netlink, change: Change) -> Result<(), Errno> {
        let mut message = LinkMessage::default();
        message.header.index = self.index;
        if let Some(up) = change.up {
            message.header.change_mask = LinkFlags::Up;
            message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        }
        message.attributes.extend(change.mtu.map(LinkAttribute::Mtu));
        let outcomes = netlink.change_each(RTM_NEWLINK, 0, &[message]);
        outcomes.into_iter().next().unwrap_or(Err(Errno::EPROTO))
    }
}

/// The VRF of an interface, from IFLA_MASTER and IFLA_LINKINFO. The latter names the kind of the interface and of its master.
fn vrf(index: u32, master: Option<u32>, info: &[LinkInfo]) -> Option<Vrf> {
    let is_vrf = info.contains(&LinkInfo::Kind(InfoKind::Vrf));
    let is_port = info.contains(&LinkInfo::PortKind(InfoPortKind::Vrf));
    let table = info.iter().find_map(|part| match part {
        LinkInfo::Data(InfoData::Vrf(data)) if is_vrf => table(data),
        LinkInfo::PortData(InfoPortData::VrfPort(data)) if is_port => table(data),
        _ => None,
    });
    let index = if is_vrf { index } else { master? };
    Some(Vrf { index, table: table? })
}

fn table(data: &[InfoVrf]) -> Option<u32> {
    data.iter().find_map(|part| match part {
        InfoVrf::TableId(table) => Some(*table),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Emitable as _;

    use super::*;

    fn parse(index: u32, attributes: Vec<LinkAttribute>) -> Interface {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = attributes;
        let mut body = vec![0; message.buffer_len()];
        message.emit(&mut body);
        Interface::parse(&body).unwrap()
    }

    #[test]
    fn a_port_and_the_device_of_a_vrf_are_in_that_vrf_and_other_interfaces_are_in_none() {
        let table = || vec![InfoVrf::TableId(100)];
        let port =
            |kind, data| LinkAttribute::LinkInfo(vec![LinkInfo::PortKind(kind), LinkInfo::PortData(data)]);
        let device = vec![LinkInfo::Kind(InfoKind::Vrf), LinkInfo::Data(InfoData::Vrf(table()))];
        let vrf = Some(Vrf { index: 7, table: 100 });
        let of_vrf = port(InfoPortKind::Vrf, InfoPortData::VrfPort(table()));
        assert_eq!(parse(3, vec![LinkAttribute::Controller(7), of_vrf]).vrf, vrf);
        assert_eq!(parse(7, vec![LinkAttribute::LinkInfo(device)]).vrf, vrf);
        let of_bridge = port(InfoPortKind::Bridge, InfoPortData::BridgePort(Vec::new()));
        assert_eq!(parse(3, vec![LinkAttribute::Controller(7), of_bridge]).vrf, None);
        assert_eq!(parse(3, Vec::new()).vrf, None);
    }
}
