//! Opens the sockets for addresses while the broker still has the privileges for it, and composes the parts.

use std::rc::Rc;

use nix::sys::socket::SockProtocol;

use super::announcer::Announcer;
use super::event_publisher::EventPublisher;
use super::fence::Fence;
use super::frame_socket::FrameSocket;
use super::gateways::Gateways;
use super::host_addresses::HostAddresses;
use super::interface_cache::InterfaceCache;
use super::kernel_lifetime::KernelLifetimes;
use super::multicast_limit::MulticastLimit;
use super::prober::Prober;
use super::reconcile::{Parts, Reconciler};
use super::vrf::VrfListeners;
use super::{Addresses, Reservation, Settings};
use crate::events::Events;
use crate::failure::Failure;
use crate::sys::Netlink;
use crate::sys::packet::PacketSocket;
use crate::sys::rtnl_monitor::RtnlMonitor;

/// The name of this step of the start-up, for failures.
pub(super) const STEP: &str = "addresses";

impl Addresses {
    /// Opens the sockets. Without `raw`, CAP_NET_RAW, addresses cannot be probed or announced; interfaces can be changed.
    /// `reservation` is that of the predecessor, if there is one.
    ///
    /// # Errors
    /// A socket could not be opened, or another broker manages the addresses of this network namespace.
    pub fn open(
        settings: Settings,
        raw: bool,
        events: Rc<Events>,
        reservation: Option<Reservation>,
    ) -> Result<Self, Failure> {
        let os = |call: &'static str| move |errno: nix::Error| Failure::os(STEP, call, errno);
        let monitor = RtnlMonitor::open().map_err(os("opening the netlink socket for notifications"))?;
        let route =
            Netlink::open(SockProtocol::NetlinkRoute).map_err(os("opening the netlink socket for routes"))?;
        let diag = Netlink::open(SockProtocol::NetlinkSockDiag)
            .map_err(os("opening the netlink socket for sock_diag"))?;
        let reservation = match reservation {
            Some(reservation) => Some(reservation),
            None => Reservation::take(&diag)?,
        };
        let fence = Fence::open().ok();
        let packet =
            raw.then(PacketSocket::open_arp).transpose().map_err(os("opening the packet socket for ARP"))?;
        let advertisements = (raw && !settings.broadcast)
            .then(PacketSocket::open_neighbour_advertisements)
            .transpose()
            .map_err(os("opening the packet socket for neighbour advertisements"))?;

        let gateways = (!settings.broadcast).then(Gateways::open).transpose();
        let gateways = gateways.map_err(os("opening the netlink socket for gateways"))?.map(Rc::new);
        let route = Rc::new(route);
        let table = Rc::default();
        let interfaces = Rc::new(InterfaceCache::default());
        let counters = Rc::default();
        let wake = Rc::default();
        let events = Rc::new(EventPublisher::new(events));
        let frames = Rc::new(FrameSocket::new(packet));
        let host = Rc::new(HostAddresses::new(
            Rc::clone(&route),
            diag,
            Rc::clone(&interfaces),
            fence,
            settings.source,
        ));
        let vrf_listeners = VrfListeners::new(Rc::clone(&table), Rc::clone(&interfaces), Rc::clone(&route));
        let vrf_listeners = Rc::new(vrf_listeners);
        let announcer = Rc::new(Announcer::new(
            Rc::clone(&table),
            Rc::clone(&interfaces),
            route,
            Rc::clone(&frames),
            (gateways.clone(), advertisements),
            Rc::clone(&wake),
        ));
        let prober = Prober::new(
            Rc::clone(&table),
            Rc::clone(&interfaces),
            frames,
            Rc::clone(&announcer),
            Rc::clone(&events),
            Rc::clone(&counters),
        );
        let parts = Parts {
            table: Rc::clone(&table),
            interfaces: Rc::clone(&interfaces),
            host: Rc::clone(&host),
            vrf_listeners: Rc::clone(&vrf_listeners),
            announcer: Rc::clone(&announcer),
            events: Rc::clone(&events),
            counters: Rc::clone(&counters),
            wake: Rc::clone(&wake),
        };
        Ok(Self {
            default_lease: settings.default_lease.into(),
            reconcile_interval: settings.reconcile_interval.into(),
            table,
            interfaces,
            host,
            announcer,
            prober,
            reconciler: Reconciler::new(monitor, settings.restore_limit, parts),
            multicast_limit: MulticastLimit::default(),
            kernel_lifetimes: KernelLifetimes::default(),
            vrf_listeners,
            events,
            counters,
            wake,
            gateways,
            reservation,
        })
    }
}
