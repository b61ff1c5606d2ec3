//! The fence: packet filter rules by which a leased address falls silent at the end of its lease, to the millisecond,
//! whoever of the broker's processes lives by then.
//!
//! Promises: packets and ARP to and from an address that was leased pass while its element in the set `allowed` lasts
//! and are dropped afterwards; a renewal leaves no gap and cannot bring a lost lease back; no other address is touched.
//! Owns the tables `portreeve` of the families inet and arp, and touches no other. Sources: nft(8), and
//! include/uapi/linux/netfilter/nf_tables.h of the kernel.

use std::io;
use std::net::IpAddr;

use nix::errno::Errno;
use nix::sys::socket::SockProtocol;

use crate::sys::Netlink;
use crate::sys::nft::{self, Element, Family, Key, Set, Transaction};

/// How many addresses one transaction changes: as many as a request has, for each transaction costs the kernel a wait. The
/// elements of so many fit in one message each time, whose attributes count their bytes in 16 bits.
const ADDRESSES: usize = 256;

/// The sets of one family: every address that was leased, and those whose lease lasts.
const LEASED: &str = "leased";
const ALLOWED: &str = "allowed";

/// The fence.
#[derive(Debug)]
pub struct Fence {
    netlink: Netlink,
}

impl Fence {
    /// Opens its socket; nothing is filtered yet.
    ///
    /// # Errors
    /// As socket(2); EPROTONOSUPPORT where the kernel has no nfnetlink.
    pub fn open() -> nix::Result<Self> {
        Ok(Self { netlink: Netlink::open(SockProtocol::NetlinkNetFilter)? })
    }

    /// Puts the tables in place, empty, whatever an earlier broker left of them.
    ///
    /// # Errors
    /// EOPNOTSUPP or EINVAL where the kernel has no nf_tables.
    pub fn build(&self) -> io::Result<()> {
        self.clear()?;
        let mut build = Transaction::new(&self.netlink);
        for family in [Family::Inet, Family::Arp] {
            build.table(family);
            for key in family.keys() {
                build.set(&Set { family, key, name: LEASED, timeout: false });
                build.set(&Set { family, key, name: ALLOWED, timeout: true });
            }
            for inward in [true, false] {
                build.chain(family, inward);
                for key in family.keys() {
                    build.drop_rule(family, key, inward, LEASED, ALLOWED);
                }
            }
        }
        succeed(build.commit()?)
    }

    /// Takes the tables away, with all that they filter.
    ///
    /// # Errors
    /// As [`Fence::build`].
    pub fn clear(&self) -> io::Result<()> {
        for family in [Family::Inet, Family::Arp] {
            let mut clear = Transaction::new(&self.netlink);
            clear.delete_table(family);
            match succeed(clear.commit()?) {
                Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Lets addresses pass for so long, `None` for ever, from now on and whatever was before.
    ///
    /// # Errors
    /// The kernel refused it; ENOSPC, ENOMEM.
    pub fn open_for(&self, addresses: &[Element]) -> io::Result<()> {
        for some in addresses.chunks(ADDRESSES) {
            match self.try_open(some) {
                Err(error) if is(&error, Errno::EEXIST) => {
                    let addresses: Vec<IpAddr> = some.iter().map(|(address, _)| *address).collect();
                    self.close(&addresses)?;
                    self.try_open(some)?;
                }
                done => done?,
            }
        }
        Ok(())
    }

    /// Opens for addresses; EEXIST where one of them passes, and then nothing is done.
    fn try_open(&self, addresses: &[Element]) -> io::Result<()> {
        let mut open = Transaction::new(&self.netlink);
        for (family, key, some) in by_table(addresses) {
            let leased: Vec<Element> = some.iter().map(|(address, _)| (*address, None)).collect();
            open.add(family, &set(key, LEASED), &leased, false);
            open.add(family, &set(key, ALLOWED), &some, true);
        }
        succeed(open.commit()?)
    }

    /// Gives addresses that pass another time from now on, and tells of which the time was over.
    ///
    /// # Errors
    /// The kernel refused it.
    pub fn renew(&self, addresses: &[Element]) -> io::Result<Vec<IpAddr>> {
        let mut over = Vec::new();
        for some in addresses.chunks(ADDRESSES) {
            let (mut left, mut at_once) = (some.to_vec(), ADDRESSES);
            loop {
                let failed = self.try_renew(&left, at_once)?;
                if failed.is_empty() {
                    break;
                }
                if at_once == 1 {
                    left.retain(|(address, _)| !failed.contains(address));
                    over.extend(failed);
                }
                // One that is over aborts the transaction. In a message of its own it can be told from the rest, which is
                // tried again without it.
                at_once = 1;
            }
        }
        Ok(over)
    }

    /// Renews addresses, so many by each message. Where something is over nothing is done, and the first address of each
    /// message that failed is given.
    fn try_renew(&self, addresses: &[Element], at_once: usize) -> io::Result<Vec<IpAddr>> {
        let mut renew = Transaction::new(&self.netlink);
        let mut whose = Vec::new();
        for (family, key, some) in by_table(addresses) {
            for group in some.chunks(at_once) {
                renew.delete(family, &set(key, ALLOWED), group);
                renew.add(family, &set(key, ALLOWED), group, false);
                whose.extend(group.first().map(|(address, _)| [*address; 2]));
            }
        }
        let failures = renew.commit()?;
        if failures.iter().any(|(_, errno)| *errno != Errno::ENOENT) {
            succeed(failures)?;
            return Ok(Vec::new());
        }
        let whose = whose.as_flattened();
        Ok(failures.iter().filter_map(|(at, _)| whose.get(*at).copied()).collect())
    }

    /// Lets addresses pass no longer.
    ///
    /// # Errors
    /// The kernel refused it.
    pub fn close(&self, addresses: &[IpAddr]) -> io::Result<()> {
        self.delete_from(ALLOWED, addresses)
    }

    /// Filters addresses no longer: they are not this host's any more.
    ///
    /// # Errors
    /// The kernel refused it.
    pub fn forget(&self, addresses: &[IpAddr]) -> io::Result<()> {
        self.delete_from(LEASED, addresses)
    }

    fn delete_from(&self, name: &'static str, addresses: &[IpAddr]) -> io::Result<()> {
        let elements: Vec<Element> = addresses.iter().map(|address| (*address, None)).collect();
        for some in elements.chunks(ADDRESSES) {
            match self.try_delete(name, some, false) {
                // What is not in the set is as good as deleted, but aborts a transaction, unless the same one puts it there.
                Err(error) if is(&error, Errno::ENOENT) => self.try_delete(name, some, true)?,
                done => done?,
            }
        }
        Ok(())
    }

    fn try_delete(&self, name: &'static str, elements: &[Element], after_adding: bool) -> io::Result<()> {
        let mut delete = Transaction::new(&self.netlink);
        for (family, key, some) in by_table(elements) {
            if after_adding {
                delete.add(family, &set(key, name), &some, false);
            }
            delete.delete(family, &set(key, name), &some);
        }
        succeed(delete.commit()?)
    }
}

/// The elements that each table has sets for.
fn by_table(elements: &[Element]) -> impl Iterator<Item = (Family, Key, Vec<Element>)> {
    nft::TABLES.into_iter().filter_map(|(family, key)| {
        let of: Vec<Element> = elements.iter().filter(|(address, _)| key.is_of(*address)).copied().collect();
        (!of.is_empty()).then_some((family, key, of))
    })
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
}

fn set(key: Key, name: &str) -> String {
    format!("{name}{}", key.suffix())
}

fn succeed(failures: Vec<(usize, Errno)>) -> io::Result<()> {
    // What exists is the least of the troubles, where there are others.
    match failures.into_iter().map(|(_, errno)| errno).min_by_key(|errno| *errno == Errno::EEXIST) {
        Some(errno) => Err(errno.into()),
        None => Ok(()),
    }
}
