//! Network interfaces: find one by name or index, list all, set one up, down or to another MTU.
//!
//! Promises: a change is made to the interface with that index, whatever its name is by then. See rtnetlink(7) for struct
//! ifinfomsg, and include/uapi/linux/if_link.h for the attributes.

use netlink_packet_core::{DefaultNla, NlasIterator, parse_string, parse_u32};
use nix::errno::Errno;

use super::netlink::Netlink;
use super::netlink_body::{Body, attribute, number, text};

/// The kind of the message that reports an interface or a change of it.
pub const RTM_NEWLINK: u16 = 16;
/// The kind of the message that reports a deleted interface.
pub const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
/// The length of struct ifinfomsg.
const IFINFOMSG: usize = 16;
const UP: u32 = libc::IFF_UP.cast_unsigned();
const LOWER_UP: u32 = libc::IFF_LOWER_UP.cast_unsigned();
/// The attribute of a VRF's device, and of its ports, that holds the number of the routing table: IFLA_VRF_TABLE and
/// IFLA_VRF_PORT_TABLE.
const VRF_TABLE: u16 = 1;

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
        Self::query(netlink, &message(0, 0, 0, vec![text(libc::IFLA_IFNAME, name)]))
    }

    /// Finds an interface by index. See rtnetlink(7), RTM_GETLINK; Linux 2.6.
    ///
    /// # Capabilities
    /// None.
    ///
    /// # Errors
    /// ENODEV if it does not exist.
    pub fn by_index(netlink: &Netlink, index: u32) -> Result<Self, Errno> {
        Self::query(netlink, &message(index, 0, 0, Vec::new()))
    }

    /// Lists every interface. See rtnetlink(7), RTM_GETLINK; Linux 2.2.
    ///
    /// # Capabilities
    /// None.
    ///
    /// # Errors
    /// The kernel's refusal; EINTR as [`Netlink::dump`].
    pub fn list(netlink: &Netlink) -> Result<Vec<Self>, Errno> {
        netlink.dump(RTM_GETLINK, &message(0, 0, 0, Vec::new()), |kind, body| {
            if kind == RTM_NEWLINK { Self::parse(body) } else { None }
        })
    }

    fn query(netlink: &Netlink, message: &Body<4>) -> Result<Self, Errno> {
        Self::parse(&netlink.query(RTM_GETLINK, message)?).ok_or(Errno::EPROTO)
    }

    /// Parses the body of RTM_NEWLINK or RTM_DELLINK. A bridge reports its ports in such messages too, and RTM_DELLINK
    /// when a port leaves the bridge; those are ignored.
    pub fn parse(body: &[u8]) -> Option<Self> {
        let (words, _) = body.as_chunks::<4>();
        let &[[family, _, hardware @ ..], index, flags, _, ..] = words else { return None };
        if i32::from(family) != libc::AF_UNSPEC {
            return None;
        }
        let is_ethernet = u16::from_ne_bytes(hardware) == libc::ARPHRD_ETHER;
        let (index, flags) = (u32::from_ne_bytes(index), u32::from_ne_bytes(flags));
        let attributes = body.get(IFINFOMSG..)?;
        let mut interface = Self {
            index,
            name: String::new(),
            altnames: Vec::new(),
            up: flags & UP != 0,
            carrier: flags & UP != 0 && flags & LOWER_UP != 0,
            mac: None,
            mtu: 0,
            vrf: vrf(index, attributes),
        };
        for attribute in NlasIterator::new(attributes) {
            let attribute = attribute.ok()?;
            let value = attribute.value();
            match attribute.kind() {
                libc::IFLA_IFNAME => interface.name = parse_string(value).ok()?,
                libc::IFLA_PROP_LIST => interface.altnames.extend(altnames(value)?),
                libc::IFLA_MTU => interface.mtu = parse_u32(value).ok()?,
                libc::IFLA_ADDRESS if is_ethernet => interface.mac = value.try_into().ok(),
                _ => {}
            }
        }
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
        let up = if change.up == Some(true) { UP } else { 0 };
        let mask = if change.up.is_some() { UP } else { 0 };
        let mtu = change.mtu.map(|mtu| number(libc::IFLA_MTU, mtu));
        let message = message(self.index, up, mask, mtu.into_iter().collect());
        let outcomes = netlink.change_each(RTM_NEWLINK, 0, &[message]);
        outcomes.into_iter().next().unwrap_or(Err(Errno::EPROTO))
    }
}

/// struct ifinfomsg with the flags and the mask of those to change, and the attributes after it.
fn message(index: u32, flags: u32, mask: u32, attributes: Vec<DefaultNla>) -> Body<4> {
    Body { fixed: [[0; 4], index.to_ne_bytes(), flags.to_ne_bytes(), mask.to_ne_bytes()], attributes }
}

/// The names in IFLA_PROP_LIST; `None` if it is malformed.
fn altnames(properties: &[u8]) -> Option<Vec<String>> {
    let mut names = Vec::new();
    for property in NlasIterator::new(properties) {
        let property = property.ok()?;
        if property.kind() == libc::IFLA_ALT_IFNAME {
            names.push(parse_string(property.value()).ok()?);
        }
    }
    Some(names)
}

/// The VRF of an interface, from IFLA_MASTER and IFLA_LINKINFO. The latter names the kind of the interface and of its master.
fn vrf(index: u32, attributes: &[u8]) -> Option<Vrf> {
    let info = attribute(attributes, libc::IFLA_LINKINFO)?;
    let is_vrf = |kind| matches!(attribute(info, kind), Some(b"vrf\0" | b"vrf"));
    let (index, data) = if is_vrf(libc::IFLA_INFO_KIND) {
        (index, libc::IFLA_INFO_DATA)
    } else if is_vrf(libc::IFLA_INFO_SLAVE_KIND) {
        (parse_u32(attribute(attributes, libc::IFLA_MASTER)?).ok()?, libc::IFLA_INFO_SLAVE_DATA)
    } else {
        return None;
    };
    let table = attribute(attribute(info, data)?, VRF_TABLE)?;
    Some(Vrf { index, table: parse_u32(table).ok()? })
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Emitable as _;

    use super::*;
    use crate::sys::netlink_body::nest;

    const ETHERNET: u16 = libc::ARPHRD_ETHER;

    fn bytes(hardware: u16, index: u32, flags: u32, attributes: Vec<DefaultNla>) -> Vec<u8> {
        let mut message = message(index, flags, 0, attributes);
        message.fixed[0][2..].copy_from_slice(&hardware.to_ne_bytes());
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        bytes
    }

    /// What an Ethernet interface that is up and has everything sends.
    fn full() -> Vec<u8> {
        let altnames = [text(libc::IFLA_ALT_IFNAME, "uplink"), text(libc::IFLA_ALT_IFNAME, "enp0s25")];
        let port = [
            text(libc::IFLA_INFO_SLAVE_KIND, "vrf"),
            nest(libc::IFLA_INFO_SLAVE_DATA, &[number(VRF_TABLE, 100)]),
        ];
        let attributes = vec![
            text(libc::IFLA_IFNAME, "eth0"),
            DefaultNla::new(200, vec![1, 2, 3]),
            number(libc::IFLA_MTU, 1500),
            number(libc::IFLA_MASTER, 7),
            DefaultNla::new(libc::IFLA_ADDRESS, vec![2, 0, 0, 0, 0, 1]),
            nest(libc::IFLA_LINKINFO, &port),
            nest(libc::IFLA_PROP_LIST, &altnames),
        ];
        bytes(ETHERNET, 3, UP | LOWER_UP, attributes)
    }

    fn vrf_of(index: u32, attributes: Vec<DefaultNla>) -> Option<Vrf> {
        Interface::parse(&bytes(ETHERNET, index, 0, attributes)).unwrap().vrf
    }

    #[test]
    fn every_value_is_parsed_and_unknown_attributes_are_ignored() {
        let expected = Interface {
            index: 3,
            name: "eth0".to_owned(),
            altnames: vec!["uplink".to_owned(), "enp0s25".to_owned()],
            up: true,
            carrier: true,
            mac: Some([2, 0, 0, 0, 0, 1]),
            mtu: 1500,
            vrf: Some(Vrf { index: 7, table: 100 }),
        };
        assert_eq!(Interface::parse(&full()), Some(expected));
    }

    #[test]
    fn only_an_interface_that_is_up_has_a_carrier_and_only_ethernet_has_a_mac_address() {
        let parse = |hardware, flags, address| {
            let attributes = vec![DefaultNla::new(libc::IFLA_ADDRESS, address)];
            let interface = Interface::parse(&bytes(hardware, 1, flags, attributes)).unwrap();
            (interface.up, interface.carrier, interface.mac)
        };
        assert_eq!(parse(ETHERNET, LOWER_UP, vec![2; 6]), (false, false, Some([2; 6])));
        assert_eq!(parse(ETHERNET, UP, vec![2; 4]), (true, false, None));
        assert_eq!(parse(libc::ARPHRD_LOOPBACK, UP, vec![2; 6]), (true, false, None));
    }

    #[test]
    fn a_port_and_the_device_of_a_vrf_are_in_that_vrf_and_other_interfaces_are_in_none() {
        let port = |kind| {
            let data = nest(libc::IFLA_INFO_SLAVE_DATA, &[number(VRF_TABLE, 100)]);
            nest(libc::IFLA_LINKINFO, &[text(libc::IFLA_INFO_SLAVE_KIND, kind), data])
        };
        let device = |kind| {
            let data = nest(libc::IFLA_INFO_DATA, &[number(VRF_TABLE, 100)]);
            nest(libc::IFLA_LINKINFO, &[text(libc::IFLA_INFO_KIND, kind), data])
        };
        let master = || number(libc::IFLA_MASTER, 7);
        let vrf = Some(Vrf { index: 7, table: 100 });
        assert_eq!(vrf_of(3, vec![master(), port("vrf")]), vrf);
        assert_eq!(vrf_of(7, vec![device("vrf")]), vrf);
        assert_eq!(vrf_of(3, vec![master(), port("bridge")]), None);
        assert_eq!(vrf_of(7, vec![master(), device("bridge")]), None);
        assert_eq!(vrf_of(3, Vec::new()), None);
    }

    #[test]
    fn a_vrf_is_unknown_without_its_table_or_its_device() {
        let info =
            |kind, data: &[DefaultNla]| nest(libc::IFLA_LINKINFO, &[&[text(kind, "vrf")], data].concat());
        let device = |data: &[DefaultNla]| vrf_of(7, vec![info(libc::IFLA_INFO_KIND, data)]);
        assert_eq!(device(&[]), None);
        assert_eq!(device(&[nest(libc::IFLA_INFO_DATA, &[])]), None);
        assert_eq!(device(&[DefaultNla::new(libc::IFLA_INFO_DATA, vec![8, 0, 1])]), None);
        assert_eq!(device(&[nest(libc::IFLA_INFO_DATA, &[text(VRF_TABLE, "9")])]), None);
        let data = nest(libc::IFLA_INFO_SLAVE_DATA, &[number(VRF_TABLE, 100)]);
        assert_eq!(vrf_of(3, vec![info(libc::IFLA_INFO_SLAVE_KIND, &[data])]), None);
    }

    #[test]
    fn a_malformed_message_is_refused() {
        let refused = |attributes| Interface::parse(&bytes(ETHERNET, 1, 0, attributes)).is_none();
        assert!(refused(vec![DefaultNla::new(libc::IFLA_MTU, vec![0; 3])]));
        assert!(refused(vec![DefaultNla::new(libc::IFLA_IFNAME, vec![0xff, 0])]));
        assert!(refused(vec![DefaultNla::new(libc::IFLA_PROP_LIST, vec![9, 0, 53, 0])]));
        let not_utf8 = DefaultNla::new(libc::IFLA_ALT_IFNAME, vec![0xff, 0]);
        assert!(refused(vec![nest(libc::IFLA_PROP_LIST, &[not_utf8])]));
        let with_tail = |tail: &[u8]| [bytes(ETHERNET, 1, 0, Vec::new()).as_slice(), tail].concat();
        // An attribute shorter than its own header, one that ends after the message, and half a header.
        for tail in [&[3, 0, 4, 0][..], &[0, 0, 4, 0], &[9, 0, 4, 0, 0, 0, 0, 0], &[4, 0]] {
            assert_eq!(Interface::parse(&with_tail(tail)), None, "{tail:?}");
        }
        let mut of_bridge = full();
        of_bridge[0] = 7;
        assert_eq!(Interface::parse(&of_bridge), None);
    }

    #[test]
    fn a_message_cut_anywhere_or_with_any_byte_changed_never_panics() {
        let full = full();
        for length in 0..full.len() {
            let cut = Interface::parse(&full[..length]);
            assert!(length >= IFINFOMSG || cut.is_none());
            for byte in [0, 1, 3, 0x7f, 0xff] {
                let mut changed = full.clone();
                changed[length] = byte;
                Interface::parse(&changed);
            }
        }
    }

    #[test]
    fn a_message_is_struct_ifinfomsg_and_its_attributes() {
        let message = message(3, UP, UP | LOWER_UP, vec![number(libc::IFLA_MTU, 1500)]);
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        let (fixed, attributes) = bytes.split_at(IFINFOMSG);
        assert_eq!(fixed, [0, 3, 0x1, 0x10001].map(u32::to_ne_bytes).as_flattened());
        assert_eq!(attribute(attributes, libc::IFLA_MTU), Some(&1500_u32.to_ne_bytes()[..]));
    }
}
