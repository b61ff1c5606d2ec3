//! The start and the end: sockets while the broker may still open them, a clean slate, and nothing left behind.
//!
//! Promises: of the addresses that are there only those are removed that carry the broker's tag, and those that are
//! declared to move and not the host's own; no link is touched.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;

use nix::sys::socket::SockProtocol;
use tokio::sync::Notify;

use super::announce::Queue;
use super::counts::Counts;
use super::fence::Fence;
use super::lease::Table;
use super::left::Untagged;
use super::probe::Heard;
use super::{Addresses, Asked, Settings, news};
use crate::events::Events;
use crate::failure::Failure;
use crate::sys::packet::Packet;
use crate::sys::rtnl::{self, Place, Present};
use crate::sys::{Interface, Netlink};

const STEP: &str = "addresses";
/// As large as the kernel makes a datagram of news.
const DATAGRAM: usize = 32 * 1024;

impl Addresses {
    /// Opens what cannot be opened later. Without `raw`, CAP_NET_RAW, there may be no addresses but only interfaces to change.
    ///
    /// # Errors
    /// The socket that could not be opened.
    pub fn open(settings: Settings, raw: bool, events: Rc<Events>) -> Result<Self, Failure> {
        let os = |call: &'static str| move |error: nix::Error| Failure::os(STEP, call, error);
        let news = news::open().map_err(os("netlink for news"))?;
        Ok(Self {
            settings: settings.into(),
            events,
            route: Netlink::open(SockProtocol::NetlinkRoute).map_err(os("netlink for routes"))?,
            diag: Netlink::open(SockProtocol::NetlinkSockDiag).map_err(os("netlink for sockets"))?,
            fence: Fence::open().ok(),
            packet: raw.then(Packet::open).transpose().map_err(os("a packet socket"))?,
            advertisements: (raw && !settings.all_hosts)
                .then(Packet::open_for_advertisements)
                .transpose()
                .map_err(os("a packet socket for IPv6"))?,
            news,
            inbox: RefCell::new(vec![0; DATAGRAM].into()),
            table: RefCell::new(Table::default()),
            links: RefCell::default(),
            queue: RefCell::new(Queue::default()),
            allowance: RefCell::default(),
            heard: RefCell::new(Heard::default()),
            neighbours: RefCell::default(),
            crowded: RefCell::default(),
            series: Cell::new(0),
            any_missing: Cell::new(false),
            doubt: Cell::new(None),
            silent: RefCell::default(),
            listeners: OnceCell::new(),
            counts: Counts::default(),
            changed: Notify::new(),
        })
    }

    /// Goes on with what another broker keeps, its addresses and its fence, which stand as they are. Gives what the
    /// operator should know.
    ///
    /// # Errors
    /// There is a fence, and this process cannot reach it.
    pub fn succeed(&mut self, fenced: bool) -> Result<Vec<String>, Failure> {
        self.look_at_links()?;
        let mut warnings = Vec::new();
        match (&self.fence, fenced) {
            (None, true) => {
                return Err(Failure::os(STEP, "netlink for the fence", "the running broker has one"));
            }
            (_, true) => {}
            (_, false) => {
                self.fence = None;
                warnings.push(no_fence("; the broker before had none either"));
            }
        }
        Ok(warnings)
    }

    /// Learns which interfaces there are; news tell of changes.
    fn look_at_links(&self) -> Result<(), Failure> {
        let links = Interface::all(&self.route).map_err(|error| Failure::os(STEP, "RTM_GETLINK", error))?;
        self.links.borrow_mut().extend(links.into_iter().map(|link| (link.index, link)));
        Ok(())
    }

    /// Removes what an earlier broker left, and what else is there of `declared`, the addresses that move, and not the
    /// host's own; builds the fence. Gives what the operator should know.
    ///
    /// # Errors
    /// The kernel cannot be asked, or keeps an address that should go.
    pub fn clean_slate(&mut self, declared: &[Asked]) -> Result<Vec<String>, Failure> {
        let mut warnings = Vec::new();
        self.look_at_links()?;
        let (present, untagged) = self.untagged(declared)?;
        let tagged = present.iter().filter(|one| one.ours).map(|one| (one.place, "an earlier broker"));
        let left: Vec<_> =
            tagged.chain(untagged.left.into_iter().map(|place| (place, "another program"))).collect();
        let places: Vec<Place> = left.iter().map(|(place, _)| *place).collect();
        for ((place, who), outcome) in left.iter().zip(self.clear(&places)) {
            let address = place.address;
            match outcome {
                Ok(_) => tracing::info!(%address, index = place.index, who, "removed what was left here"),
                Err(fault) => return Err(Failure::os(STEP, "RTM_DELADDR", fault)),
            }
        }
        let built = self.fence.as_ref().map(Fence::build);
        if !matches!(built, Some(Ok(()))) {
            let why = built.and_then(Result::err).map_or_else(String::new, |error| format!(" ({error})"));
            warnings.push(no_fence(&why));
            self.fence = None;
        }
        Ok(warnings)
    }

    /// Those of the addresses that move which are this host's own.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub fn own_among(&self, declared: &[Asked]) -> Result<Vec<IpAddr>, Failure> {
        self.look_at_links()?;
        Ok(self.untagged(declared)?.1.own)
    }

    /// Every address of the host, and what is to be thought of those that move and do not carry the broker's tag.
    fn untagged(&self, declared: &[Asked]) -> Result<(Vec<Present>, Untagged), Failure> {
        let links = self.links.borrow();
        let index = |name: &str| links.values().find(|link| link.name == name).map(|link| link.index);
        let place = |one: &Asked| Place {
            address: one.address,
            // No interface has the number 0.
            index: index(&one.interface).unwrap_or_default(),
            prefix: one.prefix,
        };
        let declared: HashMap<IpAddr, Place> = declared.iter().map(|one| (one.address, place(one))).collect();
        let present = rtnl::list(&self.route).map_err(|error| Failure::os(STEP, "RTM_GETADDR", error))?;
        let untagged = Untagged::among(&present, &declared);
        Ok((present, untagged))
    }

    /// Gives every address back, and the fence.
    pub fn give_up(&self) {
        let all: Vec<IpAddr> = self.table.borrow().iter().map(|lease| lease.place.address).collect();
        let mut fenced = false;
        for outcome in self.remove(&all, false) {
            match outcome {
                Ok(removed) => fenced |= !removed.verified,
                Err(fault) => {
                    fenced = true;
                    tracing::error!(%fault, "an address could not be removed");
                }
            }
        }
        if let Some(fence) = self.fence.as_ref().filter(|_| !fenced)
            && let Err(error) = fence.clear()
        {
            tracing::error!(%error, "the fence could not be taken away");
        }
    }
}

fn no_fence(why: &str) -> String {
    format!(
        "no fence: this kernel has no nf_tables{why}; an orphaned address may answer a second longer than its lease, or an \
         eighth of it, and IPv6 longer still on a busy host"
    )
}
