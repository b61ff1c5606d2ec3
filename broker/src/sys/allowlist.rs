//! The allowlist: which sockets may receive packets. A filter that is locked into each listener drops every packet for a
//! socket that is not listed, and only the broker can change the list.
//!
//! Promises: whoever has a copy of a socket can neither detach, replace nor deceive its filter (SO_LOCK_FILTER, socket(7)).
//! A socket that was removed from the list receives nothing, in every copy, whatever is done to it. Connections that were
//! accepted from it are not affected.
//!
//! A socket is identified by its cookie (SO_COOKIE), a number that the kernel never assigns twice. The list is a hash
//! table with open addressing in the memory of a BPF map, so a change is a store to memory: it needs no system call, no
//! capability, and no exception in the system call filter.

use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use nix::errno::Errno;

use super::ebpf::{Helper, Program, SharedWords};
use super::sockopt;

/// A socket is listed in one of this many slots, which the filter all compares.
const PROBES: usize = 16;
/// The hash of a cookie is the upper half of its product with this number: 2^64 divided by the golden ratio, odd.
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
/// The bit of a slot that says that the socket takes no new connection. No cookie has it.
const DRAINING: u64 = 1 << 63;
/// The fewest and the most sockets that a list has room for: from 12 KiB to 768 KiB.
const CAPACITY: RangeInclusive<usize> = 1024..=65_536;
/// The fewest and the most slots of the list of another broker. It may be an earlier release, whose lists had up to 1 MiB.
const ADOPTABLE: RangeInclusive<usize> = 1024..=131_072;

/// The transport of a listener: its filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A TCP listener.
    Tcp,
    /// A UDP socket.
    Udp,
}

/// The place of a listed socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    index: usize,
    cookie: u64,
}

/// The list and the filters that consult it.
#[derive(Debug)]
pub struct Allowlist {
    slots: SharedWords,
    tcp: OwnedFd,
    udp: OwnedFd,
}

impl Allowlist {
    /// An empty list with room for `capacity` sockets, or for as many as the largest list can have.
    ///
    /// # Capabilities
    /// CAP_BPF (CAP_SYS_ADMIN before Linux 5.8).
    ///
    /// # Errors
    /// Of [`SharedWords::create`] and [`Program::load`]: the kernel is older than 5.5, or the capability is missing.
    pub fn create(capacity: usize) -> nix::Result<Self> {
        let slots = slots_for(capacity.clamp(*CAPACITY.start(), *CAPACITY.end()));
        Self::with_slots(SharedWords::create(slots + PROBES)?)
    }

    /// The list of another broker, by the map that it passed on: both change the same list from now on.
    ///
    /// # Capabilities
    /// As [`Allowlist::create`].
    ///
    /// # Errors
    /// EINVAL if the descriptor is no such map; the errors of [`Program::load`].
    pub fn adopt(map: OwnedFd) -> nix::Result<Self> {
        let slots = SharedWords::open(map)?;
        match ADOPTABLE.contains(&slot_count(&slots)) {
            true => Self::with_slots(slots),
            false => Err(Errno::EINVAL),
        }
    }

    fn with_slots(slots: SharedWords) -> nix::Result<Self> {
        let load = |transport| program(transport, &slots).load();
        Ok(Self { tcp: load(Transport::Tcp)?, udp: load(Transport::Udp)?, slots })
    }

    /// The map, for another broker that continues with the list.
    pub fn map(&self) -> BorrowedFd<'_> {
        self.slots.map().as_fd()
    }

    /// How many sockets can be listed.
    pub fn capacity(&self) -> usize {
        slot_count(&self.slots) * 2 / 3
    }

    /// Lists a socket and locks the filter into it.
    ///
    /// # Capabilities
    /// None.
    ///
    /// # Errors
    /// ENOSPC if the slots of this socket's cookie are taken: another socket has another cookie. EPERM if a filter is
    /// locked into the socket already.
    pub fn add(&self, socket: impl AsFd, transport: Transport) -> nix::Result<Slot> {
        let cookie = sockopt::cookie(&socket)?;
        let slot = self.insert(cookie).ok_or(Errno::ENOSPC)?;
        let program = match transport {
            Transport::Tcp => &self.tcp,
            Transport::Udp => &self.udp,
        };
        let locked = sockopt::attach_bpf(&socket, program).and_then(|()| sockopt::lock_filter(&socket));
        locked.map(|()| slot).inspect_err(|_| self.remove(slot))
    }

    /// The slot of a socket that another broker listed.
    ///
    /// # Errors
    /// ENOENT if it is not listed; EPERM if its filter is not locked.
    pub fn find(&self, socket: impl AsFd) -> nix::Result<Slot> {
        let cookie = sockopt::cookie(&socket)?;
        let slot = self.window(cookie).find(|index| self.load(*index) & !DRAINING == cookie);
        let slot = slot.map(|index| Slot { index, cookie }).ok_or(Errno::ENOENT)?;
        match sockopt::is_filter_locked(&socket)? {
            true => Ok(slot),
            false => Err(Errno::EPERM),
        }
    }

    /// From now on the socket of a TCP listener takes no new connection. Handshakes that have begun continue.
    pub fn drain(&self, Slot { index, cookie }: Slot) {
        self.replace(index, cookie, cookie | DRAINING);
    }

    /// Removes a socket: it receives no packet any more.
    pub fn remove(&self, Slot { index, cookie }: Slot) {
        self.replace(index, cookie, 0);
        self.replace(index, cookie | DRAINING, 0);
    }

    /// Removes every socket except these.
    pub fn retain(&self, kept: impl Iterator<Item = Slot>) {
        let kept: std::collections::HashSet<usize> = kept.map(|slot| slot.index).collect();
        for (index, slot) in self.slots.words().iter().enumerate() {
            if !kept.contains(&index) {
                slot.store(0, Release);
            }
        }
    }

    fn insert(&self, cookie: u64) -> Option<Slot> {
        let index = self.window(cookie).find(|index| self.replace(*index, 0, cookie))?;
        Some(Slot { index, cookie })
    }

    fn load(&self, index: usize) -> u64 {
        self.slots.words().get(index).map_or(0, |slot| slot.load(Acquire))
    }

    /// Another broker may change the list at the same time.
    fn replace(&self, index: usize, old: u64, new: u64) -> bool {
        let slot = self.slots.words().get(index);
        slot.is_some_and(|slot| slot.compare_exchange(old, new, Release, Relaxed).is_ok())
    }

    /// The slots in which a cookie may be.
    fn window(&self, cookie: u64) -> std::ops::Range<usize> {
        let first = first_slot(cookie, slot_count(&self.slots));
        first..first + PROBES
    }
}

/// The first slot in which a cookie may be. The filter computes the same.
fn first_slot(cookie: u64, slots: usize) -> usize {
    let hash = cookie.wrapping_mul(MULTIPLIER) >> 32;
    usize::try_from((hash * slots as u64) >> 32).unwrap_or_default()
}

/// How many slots a list of this capacity has: at most two thirds are used, so most sockets find a free one even in a full list.
fn slots_for(capacity: usize) -> usize {
    capacity.div_ceil(2) * 3
}

/// How many slots there are, without those that only the window of the last one reaches.
fn slot_count(slots: &SharedWords) -> usize {
    slots.words().len().saturating_sub(PROBES)
}

/// The filter of a transport.
///
/// That of a TCP listener also runs for the connections that were accepted from it, because they inherit it; it keeps
/// their packets. A listener cannot become such a connection without receiving a packet in the state LISTEN or SYN_SENT.
/// A UDP socket has no such states: connect(2) makes it one that looks accepted.
fn program(transport: Transport, slots: &SharedWords) -> Program {
    const RESULT: u8 = 0;
    const SCRATCH: u8 = 1;
    const SOCKET: u8 = 2;
    const STATE: u8 = 3;
    const DRAINING_COOKIE: u8 = 5;
    const CONTEXT: u8 = 6;
    const COOKIE: u8 = 7;
    const HASH: u8 = 8;
    const SLOTS: u8 = 9;
    /// `struct __sk_buff`: sk, the socket that the filter belongs to. Linux 5.1.
    const SKB_SK: i16 = 168;
    /// `struct bpf_sock`: state.
    const SOCK_STATE: i16 = 72;
    const TCP_SYN_SENT: i32 = 2;
    const TCP_LISTEN: i32 = 10;
    /// The filter sees a packet from its TCP header on.
    const TCP_FLAGS: i32 = 13;
    const SYN: i32 = 0x02;
    const ACK: i32 = 0x10;

    let mut code = Program::default();
    let [check, drop, draining, keep] = std::array::from_fn(|_| code.label());
    code.copy(CONTEXT, 1);
    if transport == Transport::Tcp {
        code.load_wide(SOCKET, CONTEXT, SKB_SK);
        code.jump_if_value(SOCKET, 0, drop);
        code.load_word(STATE, SOCKET, SOCK_STATE);
        code.jump_if_value(STATE, TCP_LISTEN, check);
        code.jump_if_value(STATE, TCP_SYN_SENT, check);
        code.jump_always(keep);
    }
    code.place(check);
    code.copy(1, CONTEXT);
    code.call(Helper::GetSocketCookie);
    code.copy(COOKIE, RESULT);
    code.set_wide(HASH, MULTIPLIER);
    code.multiply(HASH, COOKIE);
    code.shift_right(HASH, 32);
    code.set(SCRATCH, u32::try_from(slot_count(slots)).unwrap_or(u32::MAX));
    code.multiply(HASH, SCRATCH);
    code.shift_right(HASH, 32);
    code.shift_left(HASH, 3);
    code.set_map_value(SLOTS, slots.map().as_raw_fd());
    code.add(SLOTS, HASH);
    code.set_wide(DRAINING_COOKIE, DRAINING);
    code.or(DRAINING_COOKIE, COOKIE);
    for probe in 0..PROBES {
        let offset = i16::try_from(probe * size_of::<u64>()).unwrap_or(i16::MAX);
        code.load_wide(SCRATCH, SLOTS, offset);
        code.jump_if_equal(SCRATCH, COOKIE, keep);
        if transport == Transport::Tcp {
            code.jump_if_equal(SCRATCH, DRAINING_COOKIE, draining);
        }
    }
    code.place(drop);
    code.set(RESULT, 0);
    code.exit();
    if transport == Transport::Tcp {
        let refuse = code.label();
        code.place(draining);
        code.load_packet_byte(TCP_FLAGS);
        code.and(RESULT, SYN | ACK);
        code.jump_if_value(RESULT, SYN, refuse);
        code.jump_always(keep);
        code.place(refuse);
        code.set(RESULT, 0);
        code.exit();
    }
    code.place(keep);
    code.set(RESULT, u32::MAX);
    code.exit();
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fills a list with these cookies, and returns for how many there was no slot.
    fn fill(capacity: usize, mut cookies: impl Iterator<Item = u64>) -> usize {
        let slots = slots_for(capacity);
        let mut list = vec![false; slots + PROBES];
        let (mut listed, mut failed) = (0, 0);
        while listed < capacity {
            let first = first_slot(cookies.next().unwrap(), slots);
            assert!(first < slots);
            match list[first..first + PROBES].iter_mut().find(|slot| !**slot) {
                Some(slot) => {
                    *slot = true;
                    listed += 1;
                }
                None => failed += 1,
            }
        }
        failed
    }

    #[test]
    fn a_list_can_be_filled() {
        for capacity in [*CAPACITY.start(), 1_501, 20_000, *CAPACITY.end()] {
            assert!(slots_for(capacity) * 2 / 3 >= capacity);
            // The kernel counts up, on each CPU from the next multiple of 4096.
            for step in [1, 2, 3, 4096, 4097] {
                let failed = fill(capacity, (1_u64..).map(|number| number * step));
                assert!(
                    failed <= capacity / 50,
                    "{capacity} sockets, each {step}th cookie: {failed} had no slot"
                );
            }
        }
    }
}
