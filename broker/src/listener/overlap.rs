//! Endpoints that overlap: a packet or connection to one of them could reach a socket at the other.
//!
//! The kernel lets sockets with SO_REUSEPORT share an endpoint if one user created them all, see socket(7). The broker
//! creates every socket as root, so that rule separates nobody here. The registry therefore refuses an endpoint that overlaps
//! with a listener of another holder before it binds anything, whatever the socket options. Between listeners of one holder
//! the kernel decides.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::os::fd::AsFd;

use portreeve_protocol::message::{ListenOptions, ListenerId};
use portreeve_protocol::{Endpoint, Fault, InetEndpoint};

use super::entry::Owner;
use super::fault::in_use_at;
use super::registry::Registry;
use crate::holder::Holder;
use crate::sys::{socket, sockopt};

/// The interface of a socket that receives from all interfaces.
const EVERY_INTERFACE: u32 = 0;

/// The packets that a TCP or UDP socket receives, as far as other sockets could receive them too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reach {
    udp: bool,
    port: u16,
    /// An IPv4-mapped address is the IPv4 address.
    address: IpAddr,
    /// An IPv6 wildcard that receives IPv4 packets too.
    dual_stack: bool,
    /// The number of the only interface; [`EVERY_INTERFACE`] if there is no such limit.
    interface: u32,
}

impl Reach {
    /// The reach of a socket; `None` for a Unix socket.
    fn new(
        endpoint: &Endpoint,
        options: &ListenOptions,
        interface: impl FnOnce(&str) -> u32,
    ) -> Option<Self> {
        let (udp, inet) = match endpoint {
            Endpoint::Tcp(inet) => (false, inet),
            Endpoint::Udp(inet) => (true, inet),
            Endpoint::UnixStream(_) | Endpoint::UnixSeqpacket(_) => return None,
        };
        Some(Self {
            udp,
            port: inet.port,
            address: inet.address.to_canonical(),
            dual_stack: options.dual_stack && inet.address == IpAddr::from(Ipv6Addr::UNSPECIFIED),
            interface: match interface_name(inet, &options.device) {
                "" => EVERY_INTERFACE,
                name => interface(name),
            },
        })
    }

    /// The reach of a socket that is requested. An interface that does not exist counts as every interface: binding to it
    /// fails anyway, unless it appears in between.
    pub fn requested(endpoint: &Endpoint, options: &ListenOptions) -> Option<Self> {
        Self::new(endpoint, options, |name| socket::interface_index(name).unwrap_or(EVERY_INTERFACE))
    }

    /// The reach of a bound socket. The interface of a TCP socket is the one that the kernel reports, because it may have
    /// another name by now; its holder cannot change it without cap_net_raw. The holder of a UDP socket can, so its interface
    /// is the requested one.
    pub fn bound(endpoint: &Endpoint, options: &ListenOptions, socket: impl AsFd) -> Option<Self> {
        if matches!(endpoint, Endpoint::Udp(_)) {
            return Self::requested(endpoint, options);
        }
        Self::new(endpoint, options, |_| sockopt::bound_interface(socket).unwrap_or(EVERY_INTERFACE))
    }

    fn of_any_interface(endpoint: &Endpoint) -> Option<Self> {
        Self::new(endpoint, &ListenOptions::default(), |_| EVERY_INTERFACE)
    }

    /// The keys of the listeners with this transport and port at the addresses from `first` to `last`.
    fn keys(&self, first: IpAddr, last: IpAddr) -> RangeInclusive<Key> {
        let key = |address, id| Self { address, ..*self }.key(ListenerId(id));
        key(first, 0)..=key(last, u64::MAX)
    }

    /// The place of a listener with this reach.
    fn key(&self, id: ListenerId) -> Key {
        let (is_ipv6, address) = match self.address {
            IpAddr::V4(address) => (false, address.to_bits().into()),
            IpAddr::V6(address) => (true, address.to_bits()),
        };
        let port = u32::from(self.port) << 2 | u32::from(self.udp) << 1 | u32::from(is_ipv6);
        Key { port, address, id }
    }

    fn overlaps(&self, other: &Self) -> bool {
        let interfaces =
            self.interface == other.interface || [self.interface, other.interface].contains(&EVERY_INTERFACE);
        let addresses = self.address == other.address || self.covers(other) || other.covers(self);
        (self.udp, self.port) == (other.udp, other.port) && interfaces && addresses
    }

    /// Whether this is a wildcard address that includes the other address.
    fn covers(&self, other: &Self) -> bool {
        self.address.is_unspecified()
            && (self.dual_stack || self.address.is_ipv4() == other.address.is_ipv4())
    }

    /// Ranges of addresses that include every address of a reach that overlaps with this one.
    fn ranges(&self) -> impl Iterator<Item = (IpAddr, IpAddr)> + use<> {
        let all4 = (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::BROADCAST.into());
        let all6 = (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::from([0xff; 16]).into());
        let single = |address: IpAddr| Some((address, address));
        let wildcard = self.address.is_unspecified();
        // Ranges do not share an address.
        let (v4, v6, own) = match self.address {
            IpAddr::V4(_) if wildcard => (Some(all4), single(Ipv6Addr::UNSPECIFIED.into()), None),
            IpAddr::V6(_) if wildcard => (self.dual_stack.then_some(all4), Some(all6), None),
            IpAddr::V4(_) => (
                single(Ipv4Addr::UNSPECIFIED.into()),
                single(Ipv6Addr::UNSPECIFIED.into()),
                single(self.address),
            ),
            IpAddr::V6(_) => (None, single(Ipv6Addr::UNSPECIFIED.into()), single(self.address)),
        };
        [v4, v6, own].into_iter().flatten()
    }
}

/// The interface to which a socket is bound; empty for none. `device` is the requested one.
pub(super) fn interface_name<'a>(inet: &'a InetEndpoint, device: &'a str) -> &'a str {
    if device.is_empty() { &inet.scope } else { device }
}

/// The place of a listener in the index, as numbers, which are compared fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    /// The port, the transport, and in the last bit whether the address is an IPv6 address.
    port: u32,
    address: u128,
    id: ListenerId,
}

impl Key {
    fn address(&self) -> IpAddr {
        match u32::try_from(self.address) {
            Ok(address) if self.port & 1 == 0 => Ipv4Addr::from_bits(address).into(),
            _ => Ipv6Addr::from_bits(self.address).into(),
        }
    }
}

/// The rest of a listener's reach, and its holder.
#[derive(Clone, Copy, Debug)]
struct Value {
    dual_stack: bool,
    interface: u32,
    holder: Holder,
}

/// TCP and UDP listeners by port and address.
#[derive(Debug, Default)]
pub(super) struct OverlapIndex {
    listeners: BTreeMap<Key, Value>,
    /// How many of them have a wildcard address.
    wildcards: usize,
}

impl OverlapIndex {
    pub fn insert(&mut self, id: ListenerId, reach: Reach, holder: Holder) {
        self.wildcards += usize::from(reach.address.is_unspecified());
        let Reach { dual_stack, interface, .. } = reach;
        self.listeners.insert(reach.key(id), Value { dual_stack, interface, holder });
    }

    pub fn remove(&mut self, id: ListenerId, endpoint: &Endpoint) {
        let Some(reach) = Reach::of_any_interface(endpoint) else { return };
        if self.listeners.remove(&reach.key(id)).is_some() {
            self.wildcards -= usize::from(reach.address.is_unspecified());
        }
    }

    /// Gives a listener another number.
    pub fn renumber(&mut self, before: ListenerId, id: ListenerId, endpoint: &Endpoint) {
        let Some(reach) = Reach::of_any_interface(endpoint) else { return };
        if let Some(value) = self.listeners.remove(&reach.key(before)) {
            self.listeners.insert(reach.key(id), value);
        }
    }

    /// The listeners of the transport, port and address of an endpoint.
    pub fn at_address(&self, endpoint: &Endpoint) -> impl Iterator<Item = ListenerId> {
        let keys = Reach::of_any_interface(endpoint).map(|reach| reach.keys(reach.address, reach.address));
        keys.into_iter().flat_map(|keys| self.listeners.range(keys)).map(|(key, _)| key.id)
    }

    pub fn clear(&mut self) {
        self.listeners.clear();
        self.wildcards = 0;
    }

    /// The listeners that overlap with a reach, and their holders.
    fn overlapping(&self, reach: Reach) -> impl Iterator<Item = (ListenerId, Holder)> {
        let may_have_any = move |(first, _): &(IpAddr, IpAddr)| {
            self.wildcards > 0 || reach.address.is_unspecified() || !first.is_unspecified()
        };
        reach
            .ranges()
            .filter(may_have_any)
            .flat_map(move |(first, last)| self.listeners.range(reach.keys(first, last)))
            .filter(move |(key, value)| {
                let Value { dual_stack, interface, .. } = **value;
                reach.overlaps(&Reach { address: key.address(), dual_stack, interface, ..reach })
            })
            .map(|(key, value)| (key.id, value.holder))
    }
}

impl Registry {
    /// Refuses an endpoint that overlaps with a listener of another holder, except those that are about to close.
    pub(super) fn check_overlap(
        &self,
        endpoint: &Endpoint,
        options: &ListenOptions,
        holder: Holder,
        closing: &[ListenerId],
    ) -> Result<(), Fault> {
        let mut others = self.overlapping(endpoint, options);
        match others.find(|(id, other)| *other != holder && !closing.contains(id)) {
            Some((id, _)) => Err(self.in_use_by(endpoint, id)),
            None => Ok(()),
        }
    }

    /// The listeners whose endpoints overlap with this one, and their holders.
    pub(super) fn overlapping<'r>(
        &'r self,
        endpoint: &Endpoint,
        options: &ListenOptions,
    ) -> impl Iterator<Item = (ListenerId, Holder)> + use<'r> {
        let inet = Reach::requested(endpoint, options);
        let unix = self.at_path(endpoint).filter(|_| inet.is_none());
        inet.map(|reach| self.overlaps.overlapping(reach)).into_iter().flatten().chain(unix)
    }

    /// The Unix listener of either type at the path of an endpoint.
    fn at_path(&self, endpoint: &Endpoint) -> Option<(ListenerId, Holder)> {
        let path = match endpoint {
            Endpoint::UnixStream(path) | Endpoint::UnixSeqpacket(path) => path,
            Endpoint::Tcp(_) | Endpoint::Udp(_) => return None,
        };
        let kinds = [Endpoint::UnixStream(path.clone()), Endpoint::UnixSeqpacket(path.clone())];
        let id = kinds.iter().find_map(|endpoint| self.id_at(endpoint))?;
        Some((id, self.entry(id)?.holder()))
    }

    /// The listeners of users whose endpoints overlap with that of a configured listener.
    pub fn users_at(&self, endpoint: &Endpoint) -> Vec<ListenerId> {
        let others = self.overlapping(endpoint, &ListenOptions::default());
        others.filter(|(_, holder)| *holder != Holder::Worker).map(|(id, _)| id).collect()
    }

    /// Whether an imported listener of a user overlaps with one of the worker, or with an earlier one of another user. A broker
    /// of an earlier release allowed that.
    pub fn is_shared_with_another_holder(&self, id: ListenerId) -> bool {
        let Some(entry) = self.entry(id).filter(|entry| entry.user.is_some()) else {
            return false;
        };
        let default = ListenOptions::default();
        let options = entry.options.as_deref().unwrap_or(&default);
        let mut others = self.overlapping(&entry.endpoint, options);
        others.any(|(other, holder)| holder == Holder::Worker || holder != entry.holder() && other < id)
    }

    /// Whether listeners overlap with this endpoint, and all of them are among those that are about to close.
    pub fn is_occupied_by(&self, endpoint: &Endpoint, closing: &[ListenerId]) -> bool {
        let mut others = self.overlapping(endpoint, &ListenOptions::default()).peekable();
        others.peek().is_some() && others.all(|(id, _)| closing.contains(&id))
    }

    /// Whether a listener overlaps with this endpoint.
    pub fn is_occupied(&self, endpoint: &Endpoint) -> bool {
        self.overlapping(endpoint, &ListenOptions::default()).next().is_some()
    }

    /// The fault of an endpoint that overlaps with this listener.
    pub(super) fn in_use_by(&self, endpoint: &Endpoint, id: ListenerId) -> Fault {
        let (other, owner) =
            self.entry(id).map_or((endpoint, Owner::Worker), |entry| (&*entry.endpoint, entry.owner));
        in_use_at(endpoint, other, owner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORKER: Holder = Holder::Worker;
    const USER: Holder = Holder::User(1000);

    fn reach(text: &str) -> Reach {
        let (text, dual_stack) = match text.strip_suffix(" dual") {
            Some(text) => (text, true),
            None => (text, false),
        };
        let (text, interface) = match text.split_once(" on ") {
            Some((text, number)) => (text, number.parse().unwrap()),
            None => (text, EVERY_INTERFACE),
        };
        let (udp, text) = text.strip_suffix("/udp").map_or((false, text), |text| (true, text));
        let address: std::net::SocketAddr = text.parse().unwrap();
        let inet = InetEndpoint { address: address.ip(), port: address.port(), scope: Default::default() };
        let endpoint = if udp { Endpoint::Udp(inet) } else { Endpoint::Tcp(inet) };
        let options = ListenOptions { dual_stack, ..ListenOptions::default() };
        Reach { interface, ..Reach::new(&endpoint, &options, |_| EVERY_INTERFACE).unwrap() }
    }

    /// Every pair of these either overlaps or not, as the rows say: each list names those with which the first one overlaps.
    const OVERLAPS: &[(&str, &[&str])] = &[
        (
            "0.0.0.0:443",
            &["192.0.2.1:443", "127.0.0.1:443", "[::]:443 dual", "0.0.0.0:443 on 2", "192.0.2.1:443 on 3"],
        ),
        (
            "192.0.2.1:443",
            &["[::]:443 dual", "[::ffff:192.0.2.1]:443", "0.0.0.0:443 on 2", "192.0.2.1:443 on 3"],
        ),
        ("127.0.0.1:443", &["[::]:443 dual", "0.0.0.0:443 on 2"]),
        ("[::]:443", &["[2001:db8::1]:443", "[::]:443 dual", "[fe80::1]:443 on 2", "[fe80::1]:443 on 3"]),
        (
            "[::]:443 dual",
            &[
                "[2001:db8::1]:443",
                "[::ffff:192.0.2.1]:443",
                "0.0.0.0:443 on 2",
                "192.0.2.1:443 on 3",
                "[fe80::1]:443 on 2",
                "[fe80::1]:443 on 3",
            ],
        ),
        ("[2001:db8::1]:443", &[]),
        ("[::ffff:192.0.2.1]:443", &["0.0.0.0:443", "0.0.0.0:443 on 2", "192.0.2.1:443 on 3"]),
        ("0.0.0.0:443 on 2", &[]),
        ("192.0.2.1:443 on 3", &[]),
        ("[fe80::1]:443 on 2", &[]),
        ("[fe80::1]:443 on 3", &[]),
        ("0.0.0.0:443/udp", &["192.0.2.1:443/udp"]),
        ("192.0.2.1:443/udp", &[]),
        ("0.0.0.0:444", &[]),
    ];

    fn expected(first: &str, second: &str) -> bool {
        let names = |one: &str, other: &str| {
            OVERLAPS.iter().any(|(name, others)| *name == one && others.contains(&other))
        };
        first == second || names(first, second) || names(second, first)
    }

    #[test]
    fn each_pair_of_endpoints_overlaps_exactly_if_a_packet_can_reach_both() {
        for (first, _) in OVERLAPS {
            let mut index = OverlapIndex::default();
            index.insert(ListenerId(7), reach(first), USER);
            for (second, _) in OVERLAPS {
                let wanted = expected(first, second);
                assert_eq!(reach(first).overlaps(&reach(second)), wanted, "{first} and {second}");
                let found: Vec<_> = index.overlapping(reach(second)).collect();
                let listed = if wanted { vec![(ListenerId(7), USER)] } else { Vec::new() };
                assert_eq!(found, listed, "{second} finds {first}");
            }
        }
    }

    #[test]
    fn the_index_finds_each_overlapping_listener_once_among_ten_thousand() {
        let mut index = OverlapIndex::default();
        for number in 0..10_000_u32 {
            let address = Ipv4Addr::from(0x0a00_0001 + number);
            let holder = if number == 5_000 { WORKER } else { USER };
            index.insert(ListenerId(number.into()), reach(&format!("{address}:443")), holder);
        }
        let one = |text: &str| -> Vec<_> { index.overlapping(reach(text)).collect() };
        assert_eq!(one("10.0.19.137:443"), [(ListenerId(5_000), WORKER)]);
        assert!(
            one("10.0.19.137:444").is_empty()
                && one("192.0.2.1:443").is_empty()
                && one("[::]:443").is_empty()
        );
        assert_eq!((one("0.0.0.0:443").len(), one("[::]:443 dual").len()), (10_000, 10_000));
    }
}
