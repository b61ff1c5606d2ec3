//! The fence: packet filter rules by which a leased address falls silent at the end of its lease, to the millisecond,
//! whoever of the broker's processes lives by then.
//!
//! Promises: packets and ARP to and from an address that was leased pass while its element in the set `allowed` lasts
//! and are dropped afterwards; a renewal leaves no gap and cannot bring a lost lease back; no other address is touched.
//! Owns the tables `portreeve` of the families inet and arp, and touches no other. Sources: nft(8), and
//! include/uapi/linux/netfilter/nf_tables.h of the kernel.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::SockProtocol;

use super::nft::{self, Family, Key, Set, Transaction};
use crate::link::Netlink;

/// How many addresses one transaction changes, each by up to four messages: as many as a request has, for each costs the
/// kernel a wait. The acknowledgements fit in the receive buffer that the socket has.
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
    pub fn open_for(&self, addresses: &[(IpAddr, Option<Duration>)]) -> io::Result<()> {
        for some in addresses.chunks(ADDRESSES) {
            let again = self.try_open(some)?;
            if !again.is_empty() {
                self.close(&again)?;
                if !self.try_open(some)?.is_empty() {
                    return Err(Errno::EEXIST.into());
                }
            }
        }
        Ok(())
    }

    /// Opens for addresses that none passes of; gives those that do, and then nothing is done.
    fn try_open(&self, addresses: &[(IpAddr, Option<Duration>)]) -> io::Result<Vec<IpAddr>> {
        let mut open = Transaction::new(&self.netlink);
        let mut whose = Vec::new();
        for (address, time) in addresses {
            for (family, key) in nft::tables_of(*address) {
                open.add(family, &set(key, LEASED), *address, None, false);
                open.add(family, &set(key, ALLOWED), *address, *time, true);
                whose.extend([*address; 2]);
            }
        }
        let failures = open.commit()?;
        if failures.iter().any(|(_, errno)| *errno != Errno::EEXIST) {
            succeed(failures)?;
            return Ok(Vec::new());
        }
        Ok(failures.iter().filter_map(|(at, _)| whose.get(*at).copied()).collect())
    }

    /// Gives addresses that pass another time from now on, and says for each whether it did pass still.
    ///
    /// # Errors
    /// The kernel refused it.
    pub fn renew(&self, addresses: &[(IpAddr, Option<Duration>)]) -> io::Result<Vec<bool>> {
        let mut passes = vec![true; addresses.len()];
        for (some, passes) in addresses.chunks(ADDRESSES).zip(passes.chunks_mut(ADDRESSES)) {
            // One that is over aborts the transaction; the rest is tried again, each time with fewer.
            while passes.contains(&true) {
                let mut renew = Transaction::new(&self.netlink);
                let mut index_of = Vec::new();
                for (index, (address, time)) in some.iter().enumerate() {
                    if passes.get(index) == Some(&true) {
                        for (family, key) in nft::tables_of(*address) {
                            renew.delete(family, &set(key, ALLOWED), *address);
                            renew.add(family, &set(key, ALLOWED), *address, *time, false);
                            index_of.extend([index, index]);
                        }
                    }
                }
                let failures = renew.commit()?;
                if failures.is_empty() {
                    break;
                }
                let over: Vec<usize> = failures
                    .iter()
                    .filter(|(_, errno)| *errno == Errno::ENOENT)
                    .filter_map(|(at, _)| index_of.get(*at).copied())
                    .collect();
                if over.is_empty() {
                    succeed(failures)?;
                }
                for index in over {
                    passes.get_mut(index).into_iter().for_each(|passes| *passes = false);
                }
            }
        }
        Ok(passes)
    }

    /// Lets addresses pass no longer.
    ///
    /// # Errors
    /// The kernel refused it.
    pub fn close(&self, addresses: &[IpAddr]) -> io::Result<()> {
        self.forget_in(ALLOWED, addresses)
    }

    /// Filters addresses no longer: they are not this host's any more.
    ///
    /// # Errors
    /// The kernel refused it.
    pub fn forget(&self, addresses: &[IpAddr]) -> io::Result<()> {
        self.forget_in(LEASED, addresses)
    }

    /// What is not in the set is as good as deleted, but aborts a transaction: so each address has its own.
    fn forget_in(&self, name: &'static str, addresses: &[IpAddr]) -> io::Result<()> {
        for address in addresses {
            for (family, key) in nft::tables_of(*address) {
                let mut delete = Transaction::new(&self.netlink);
                delete.delete(family, &set(key, name), *address);
                match succeed(delete.commit()?) {
                    Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }
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
