//! The fence: nf_tables rules that silence a leased address at the end of its lease, to the millisecond, even when no
//! process of the broker runs any more.
//!
//! Promises: IP packets and ARP to and from a leased address pass while the set `allowed` contains it, and are dropped
//! afterwards. Addresses that their holder renews together are in a set of that holder instead, and pass while another set of
//! the holder contains the protocol of the packet: one element of each protocol for all of them. A renewal leaves no gap and
//! never revives an expired lease; no other address is affected. Owns the tables `portreeve` of the families inet and arp, and
//! changes no other. See nft(8).

mod holders;

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::SockProtocol;

use crate::holder::Holder;
use crate::sys::nft::{self, Direction, Element, Family, Key, Set, Transaction};
use crate::sys::nft_monitor::NftMonitor;
use crate::sys::{BootTime, Netlink, nft_query};
use holders::members_of;

/// The largest number of addresses in one transaction: the limit of a request, because each transaction makes the kernel
/// wait. Their elements fit in one message, in which attributes have 16-bit lengths.
pub(super) const MAX_ADDRESSES: usize = 256;

/// Leases that end sooner are not looked for in the fence: the kernel counts their time in ticks of up to 10 ms.
const MIN_REMAINING: Duration = Duration::from_millis(50);

/// The set of every fenced address, and the set of those with a lease that has not expired.
const LEASED: &str = "leased";
const ALLOWED: &str = "allowed";

/// The addresses that a holder renews together.
#[derive(Clone, Debug)]
pub struct Members {
    /// The holder.
    pub holder: Holder,
    /// The end of their leases.
    pub deadline: BootTime,
    /// The addresses.
    pub addresses: Vec<IpAddr>,
    /// The addresses whose lease ends so soon that they may be missing.
    pub ending: Vec<IpAddr>,
}

/// What the fence has to contain.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    /// The addresses with an element of their own, each with the end of its lease.
    pub open: Vec<(IpAddr, Option<BootTime>)>,
    /// The addresses that pass while their holder renews.
    pub members: Vec<Members>,
    /// The addresses that must not pass.
    pub blocked: Vec<IpAddr>,
}

impl Contents {
    /// Every address that passes.
    pub fn passing(&self) -> impl Iterator<Item = IpAddr> {
        let members = self.members.iter().flat_map(|members| members.addresses.iter().copied());
        self.open.iter().map(|(address, _)| *address).chain(members)
    }
}

/// What the fence lets pass no longer, although the lease runs: it may end early, because a deadline is told anew with an allowance
/// for the time that telling takes.
#[derive(Clone, Debug, Default)]
pub struct Ended {
    /// The addresses with an element of their own, each with the end of its lease.
    pub addresses: Vec<(IpAddr, Option<BootTime>)>,
    /// The holders that renew their addresses together, each with the end of their leases.
    pub holders: Vec<(Holder, BootTime)>,
}

impl Ended {
    /// Whether that is nothing.
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.holders.is_empty()
    }
}

/// The fence.
#[derive(Debug)]
pub struct Fence {
    netlink: Netlink,
    monitor: NftMonitor,
    /// The holders that have sets and rules.
    holders: RefCell<HashSet<Holder>>,
}

impl Fence {
    /// Opens its sockets; filters nothing yet.
    ///
    /// # Errors
    /// As socket(2); EPROTONOSUPPORT if the kernel has no nfnetlink; EPERM without CAP_NET_ADMIN.
    pub fn open() -> nix::Result<Self> {
        let netlink = Netlink::open(SockProtocol::NetlinkNetFilter)?;
        let monitor = NftMonitor::open(&netlink)?;
        Ok(Self { netlink, monitor, holders: RefCell::default() })
    }

    /// What reports that another program removed parts of the fence.
    pub fn monitor(&self) -> &NftMonitor {
        &self.monitor
    }

    /// Creates the tables, empty; deletes those of an earlier broker first.
    ///
    /// # Errors
    /// EOPNOTSUPP or EINVAL if the kernel has no nf_tables.
    pub fn create(&self) -> Result<(), Errno> {
        self.delete()?;
        let mut create = Transaction::new(&self.netlink);
        for family in [Family::Inet, Family::Arp] {
            create.create_table(family);
            for key in family.keys() {
                create.create_set(&Set { family, key, name: LEASED, timeout: false });
                create.create_set(&Set { family, key, name: ALLOWED, timeout: true });
            }
            for direction in [Direction::In, Direction::Out] {
                create.create_chain(family, direction);
                for key in family.keys() {
                    create.add_drop_rule(family, key, direction, LEASED, ALLOWED);
                }
            }
        }
        first_error(create.commit()?)?;
        self.holders.borrow_mut().clear();
        Ok(())
    }

    /// Deletes the tables; nothing is filtered any more.
    ///
    /// # Errors
    /// As [`Fence::create`].
    pub fn delete(&self) -> Result<(), Errno> {
        for family in [Family::Inet, Family::Arp] {
            let mut delete = Transaction::new(&self.netlink);
            delete.delete_table(family);
            match first_error(delete.commit()?) {
                Err(errno) if errno != Errno::ENOENT => return Err(errno),
                _ => {}
            }
        }
        Ok(())
    }

    /// Compares the fence with what it has to contain. Returns what it lets pass no longer although it should, if that is all that is
    /// wrong; `None` if parts of it are missing.
    ///
    /// # Errors
    /// The kernel refused to tell.
    pub fn compare(&self, contents: &Contents) -> Result<Option<Ended>, Errno> {
        if !self.has_rules()? {
            return Ok(None);
        }
        let without_end = |address: &IpAddr| (*address, None);
        let open = contents.open.iter().map(|(address, _)| address);
        let leased: Vec<_> = open.chain(&contents.blocked).map(without_end).collect();
        if !self.missing(LEASED, &leased)?.is_empty() {
            return Ok(None);
        }
        let mut ended = Ended { addresses: self.missing(ALLOWED, &contents.open)?, holders: Vec::new() };
        for members in contents.members.iter().filter(|members| !members.addresses.is_empty()) {
            let addresses: Vec<_> = members.addresses.iter().map(without_end).collect();
            if !self.missing(&members_of(members.holder), &addresses)?.is_empty() {
                return Ok(None);
            }
            if self.holder_remaining(members.holder)?.is_none()
                && must_pass_until(Some(members.deadline), BootTime::now())
            {
                ended.holders.push((members.holder, members.deadline));
            }
        }
        for holder in self.holders.borrow().iter() {
            let own = contents.members.iter().filter(|members| members.holder == *holder);
            let own: HashSet<IpAddr> =
                own.flat_map(|members| members.addresses.iter().chain(&members.ending)).copied().collect();
            for (family, key) in nft::TABLES {
                let present = self.elements(family, key, &members_of(*holder))?;
                if !present.is_subset(&own) {
                    return Ok(None);
                }
            }
        }
        Ok(Some(ended))
    }

    /// The elements of a set; none if there is no such set.
    fn elements(&self, family: Family, key: Key, name: &str) -> Result<HashSet<IpAddr>, Errno> {
        match nft_query::elements(&self.netlink, family, &set(key, name)) {
            Err(Errno::ENOENT) => Ok(HashSet::new()),
            elements => Ok(elements?.into_iter().collect()),
        }
    }

    /// Those of the addresses that the sets of this name lack, but for those that may have reached their deadline meanwhile.
    fn missing(
        &self,
        name: &str,
        addresses: &[(IpAddr, Option<BootTime>)],
    ) -> Result<Vec<(IpAddr, Option<BootTime>)>, Errno> {
        let mut missing = Vec::new();
        for (family, key) in nft::TABLES {
            let present = self.elements(family, key, name)?;
            let now = BootTime::now();
            let of_table = addresses.iter().filter(|(address, _)| key.is_type_of(*address));
            let required = of_table.filter(|(_, deadline)| must_pass_until(*deadline, now));
            let absent: Vec<_> = required.filter(|(address, _)| !present.contains(address)).collect();
            // While the kernel resizes a set, a list of it may lack elements that it has.
            for absent in absent.chunks(MAX_ADDRESSES) {
                let keys: Vec<IpAddr> = absent.iter().map(|(address, _)| *address).collect();
                let remaining = nft_query::remaining(&self.netlink, family, &set(key, name), &keys)?;
                let now = BootTime::now();
                let absent = absent.iter().zip(remaining).filter(|(_, remaining)| remaining.is_none());
                missing.extend(
                    absent.map(|(one, _)| **one).filter(|(_, deadline)| must_pass_until(*deadline, now)),
                );
            }
        }
        // One may be missing in two tables.
        missing.sort_unstable();
        missing.dedup();
        Ok(missing)
    }

    /// Whether the fence has its rules, and lets the packets of each of these addresses pass until its timeout. Each with the
    /// holder that renews it with all others, if one does.
    ///
    /// # Errors
    /// The kernel refused to tell.
    pub fn is_open_for(&self, addresses: &[(IpAddr, Option<Holder>)]) -> Result<bool, Errno> {
        if !self.has_rules()? {
            return Ok(false);
        }
        let mut of_holder: HashMap<Option<Holder>, Vec<IpAddr>> = HashMap::new();
        addresses.iter().for_each(|(address, holder)| of_holder.entry(*holder).or_default().push(*address));
        for (holder, addresses) in of_holder {
            let names = match holder {
                None => vec![LEASED.to_owned(), ALLOWED.to_owned()],
                Some(holder) => vec![members_of(holder)],
            };
            for name in names {
                for (family, key) in nft::TABLES {
                    let of_table: Vec<IpAddr> =
                        addresses.iter().copied().filter(|address| key.is_type_of(*address)).collect();
                    let set = set(key, &name);
                    if nft_query::remaining(&self.netlink, family, &set, &of_table)?.contains(&None) {
                        return Ok(false);
                    }
                }
            }
            if let Some(holder) = holder
                && self.holder_remaining(holder)?.is_none()
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// How long the fence still lets an address with an element of its own pass: `Some(None)` without end, `None` if it is blocked
    /// in one of its tables.
    ///
    /// # Errors
    /// The kernel refused to tell.
    pub fn remaining(&self, address: IpAddr) -> Result<Option<Option<Duration>>, Errno> {
        let mut remaining = Vec::new();
        for (family, key) in nft::TABLES.into_iter().filter(|(_, key)| key.is_type_of(address)) {
            remaining.extend(nft_query::remaining(&self.netlink, family, &set(key, ALLOWED), &[address])?);
        }
        Ok(longest(remaining))
    }

    /// Whether the kernel has every rule.
    pub fn has_rules(&self) -> Result<bool, Errno> {
        for family in [Family::Inet, Family::Arp] {
            // Each in two directions: for addresses with elements of their own, and for each holder.
            let rules = 2 * family.keys().count() * (1 + self.holders.borrow().len());
            if nft_query::count_rules(&self.netlink, family)? < rules {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Blocks the packets of addresses that have no lease, if the host has them.
    ///
    /// # Errors
    /// The kernel refused it.
    pub fn block(&self, addresses: &[IpAddr]) -> Result<(), Errno> {
        for chunk in without_timeout(addresses).chunks(MAX_ADDRESSES) {
            let mut block = Transaction::new(&self.netlink);
            for (family, key, elements_of_table) in by_table(chunk) {
                block.add_elements(family, &set(key, LEASED), &elements_of_table, false);
            }
            first_error(block.commit()?)?;
        }
        Ok(())
    }

    /// Lets the packets of addresses pass from now on, each until its timeout, whatever its timeout was before.
    ///
    /// # Errors
    /// The kernel refused it; ENOMEM.
    pub fn open_for(&self, addresses: &[Element]) -> Result<(), Errno> {
        for chunk in addresses.chunks(MAX_ADDRESSES) {
            match self.try_open(chunk) {
                Err(Errno::EEXIST) => {
                    let addresses: Vec<IpAddr> = chunk.iter().map(|(address, _)| *address).collect();
                    self.close(&addresses)?;
                    self.try_open(chunk)?;
                }
                other => other?,
            }
        }
        Ok(())
    }

    /// Opens the fence for addresses; EEXIST, with no effect, if it is open for one of them.
    fn try_open(&self, addresses: &[Element]) -> Result<(), Errno> {
        let mut open = Transaction::new(&self.netlink);
        for (family, key, elements_of_table) in by_table(addresses) {
            let leased: Vec<Element> =
                elements_of_table.iter().map(|(address, _)| (*address, None)).collect();
            open.add_elements(family, &set(key, LEASED), &leased, false);
            open.add_elements(family, &set(key, ALLOWED), &elements_of_table, true);
        }
        first_error(open.commit()?)
    }

    /// Restarts the timeouts of addresses, and returns those that had expired.
    ///
    /// # Errors
    /// The kernel refused it.
    pub fn renew(&self, addresses: &[Element]) -> Result<Vec<IpAddr>, Errno> {
        let mut expired = Vec::new();
        for chunk in addresses.chunks(MAX_ADDRESSES) {
            let (mut remaining, mut per_message) = (chunk.to_vec(), MAX_ADDRESSES);
            loop {
                let failed = self.try_renew(&remaining, per_message)?;
                if failed.is_empty() {
                    break;
                }
                if per_message == 1 {
                    remaining.retain(|(address, _)| !failed.contains(address));
                    expired.extend(failed);
                }
                // One expired address aborts the transaction. With one address a message the failed message identifies
                // it, and the others are tried again without it.
                per_message = 1;
            }
        }
        Ok(expired)
    }

    /// Renews addresses, `per_message` of them in each message. If one has expired, returns the first address of each
    /// message that failed, and renews none.
    fn try_renew(&self, addresses: &[Element], per_message: usize) -> Result<Vec<IpAddr>, Errno> {
        let mut renew = Transaction::new(&self.netlink);
        let mut changed = Vec::new();
        for (family, key, elements_of_table) in by_table(addresses) {
            for group in elements_of_table.chunks(per_message) {
                renew.delete_elements(family, &set(key, ALLOWED), group);
                renew.add_elements(family, &set(key, ALLOWED), group, false);
                changed.extend(group.first().map(|(address, _)| [*address; 2]));
            }
        }
        let failures = renew.commit()?;
        if failures.iter().any(|(_, errno)| *errno != Errno::ENOENT) {
            first_error(failures)?;
            return Ok(Vec::new());
        }
        let changed = changed.as_flattened();
        Ok(failures.iter().filter_map(|(at, _)| changed.get(*at).copied()).collect())
    }

    /// Blocks the packets of addresses.
    ///
    /// # Errors
    /// The kernel refused it.
    pub fn close(&self, addresses: &[IpAddr]) -> Result<(), Errno> {
        self.delete_from(ALLOWED, addresses)
    }

    /// Stops filtering addresses that the host no longer has.
    ///
    /// # Errors
    /// The kernel refused it.
    pub fn forget(&self, addresses: &[IpAddr]) -> Result<(), Errno> {
        self.delete_from(LEASED, addresses)
    }

    fn delete_from(&self, name: &'static str, addresses: &[IpAddr]) -> Result<(), Errno> {
        for chunk in without_timeout(addresses).chunks(MAX_ADDRESSES) {
            let deleted = match self.try_delete(name, chunk, false) {
                // An element that the set does not contain aborts the transaction, unless the transaction adds it first.
                Err(Errno::ENOENT) => self.try_delete(name, chunk, true),
                other => other,
            };
            match deleted {
                Err(Errno::ENOENT) => {} // there is no set
                other => other?,
            }
        }
        Ok(())
    }

    fn try_delete(&self, name: &'static str, elements: &[Element], add_first: bool) -> Result<(), Errno> {
        let mut delete = Transaction::new(&self.netlink);
        for (family, key, elements_of_table) in by_table(elements) {
            if add_first {
                delete.add_elements(family, &set(key, name), &elements_of_table, false);
            }
            delete.delete_elements(family, &set(key, name), &elements_of_table);
        }
        first_error(delete.commit()?)
    }
}

/// Whether the fence must let an address with this deadline pass.
pub(super) fn must_pass_until(deadline: Option<BootTime>, now: BootTime) -> bool {
    deadline.is_none_or(|deadline| now.duration_until(deadline) >= MIN_REMAINING)
}

fn without_timeout(addresses: &[IpAddr]) -> Vec<Element> {
    addresses.iter().map(|address| (*address, None)).collect()
}

/// The longest of these times; `None` if there is none, or one of them is missing. `Some(None)` is without end.
fn longest(times: Vec<Option<Option<Duration>>>) -> Option<Option<Duration>> {
    let times: Option<Vec<Option<Duration>>> = times.into_iter().collect();
    times?.into_iter().max_by_key(|time| (time.is_none(), *time))
}

/// Groups the elements by the sets that they belong to.
fn by_table(elements: &[Element]) -> impl Iterator<Item = (Family, Key, Vec<Element>)> {
    nft::TABLES.into_iter().filter_map(|(family, key)| {
        let matching: Vec<Element> =
            elements.iter().filter(|(address, _)| key.is_type_of(*address)).copied().collect();
        (!matching.is_empty()).then_some((family, key, matching))
    })
}

fn set(key: Key, name: &str) -> String {
    format!("{name}{}", key.suffix())
}

/// The most important error of a transaction: any other error comes before EEXIST.
fn first_error(failures: Vec<(usize, Errno)>) -> Result<(), Errno> {
    match failures.into_iter().map(|(_, errno)| errno).min_by_key(|errno| *errno == Errno::EEXIST) {
        Some(errno) => Err(errno),
        None => Ok(()),
    }
}
