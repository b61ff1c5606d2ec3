//! A set of capabilities, and how many the running kernel has.
//!
//! Promises: a set is 64 bits as `capget(2)` and `/proc/PID/status` show them, and its members are always below 64.
//! Touches: one `prctl(2)` PR_CAPBSET_READ.

use std::fmt;
use std::sync::OnceLock;

use caps::Capability;

use super::table;
use crate::sys::capabilities::in_bounding_set;

/// A set of capabilities: bit n is capability n of `capabilities(7)`.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct CapabilitySet(u64);

impl CapabilitySet {
    /// No capability.
    pub const EMPTY: Self = Self(0);

    /// The set whose bit n is capability n, as in the `Cap…` lines of `/proc/PID/status` (`proc(5)`).
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Bit n is capability n.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether the set is empty.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The number of capabilities in the set.
    pub const fn len(self) -> u32 {
        self.0.count_ones()
    }

    /// Whether capability `number` is in the set; false for 64 and above.
    pub fn contains(self, number: u8) -> bool {
        self.0 & mask(number) != 0
    }

    /// Whether a capability is in it.
    pub fn has(self, capability: Capability) -> bool {
        self.contains(capability.index())
    }

    /// Adds capability `number`; numbers of 64 and above are ignored.
    pub fn insert(&mut self, number: u8) {
        self.0 |= mask(number);
    }

    /// The union.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The intersection.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The capabilities of this set that are not in `other`.
    #[must_use]
    pub const fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether this is a subset of `other`.
    pub const fn is_subset(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }

    /// The numbers in ascending order.
    pub fn iter(self) -> impl Iterator<Item = u8> {
        (0..64).filter(move |number| self.contains(*number))
    }

    /// The names in ascending order of their numbers; the number itself for a capability newer than the table of names.
    pub fn names(self) -> impl Iterator<Item = String> {
        self.iter().map(|number| table::name(number).map_or_else(|| number.to_string(), str::to_owned))
    }
}

fn mask(number: u8) -> u64 {
    1u64.checked_shl(u32::from(number)).unwrap_or(0)
}

impl FromIterator<u8> for CapabilitySet {
    fn from_iter<I: IntoIterator<Item = u8>>(numbers: I) -> Self {
        let mut set = Self::EMPTY;
        numbers.into_iter().for_each(|number| set.insert(number));
        set
    }
}

/// Names separated by commas, as in a clause of `cap_to_text(3)`: `cap_net_admin,cap_net_raw`; `none` when empty.
impl fmt::Display for CapabilitySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        for (place, name) in self.names().enumerate() {
            write!(f, "{}{name}", if place == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl fmt::Debug for CapabilitySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CapabilitySet({self})")
    }
}

/// How many capabilities a kernel has; `all` in a capability text means that many (`cap_max_bits` in libcap).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count(u8);

impl Count {
    /// A kernel with `count` capabilities, numbered from 0; at most 64, the bits of a set.
    pub fn new(count: u8) -> Self {
        Self(count.min(64))
    }

    /// The number of the running kernel, one more than `/proc/sys/kernel/cap_last_cap`. Uses PR_CAPBSET_READ like libcap,
    /// so that it works without `/proc`.
    pub fn of_kernel() -> Self {
        static COUNT: OnceLock<Count> = OnceLock::new();
        *COUNT.get_or_init(|| Self((0..64).find(|number| in_bounding_set(*number).is_none()).unwrap_or(64)))
    }

    /// The number of capabilities, 0 to 64.
    pub fn get(self) -> u8 {
        self.0
    }

    /// The set of all of them.
    pub fn all(self) -> CapabilitySet {
        CapabilitySet(mask(self.0).wrapping_sub(1))
    }
}

/// The highest capability number that the running kernel knows (40 on Linux 5.9 and later so far).
pub fn last_cap() -> u8 {
    Count::of_kernel().get().saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_matches_proc() {
        let shown = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap();
        assert_eq!(last_cap(), shown.trim().parse::<u8>().unwrap());
    }

    #[test]
    fn sets_are_correct_at_both_ends_of_the_range() {
        assert_eq!(Count::new(0).all(), CapabilitySet::EMPTY);
        assert_eq!(Count::new(41).all().bits(), 0x1ff_ffff_ffff);
        assert_eq!(Count::new(200).all().bits(), u64::MAX);
    }

    #[test]
    fn a_capability_newer_than_the_table_is_shown_by_number() {
        let set: CapabilitySet = [0, 40, 63].into_iter().collect();
        assert_eq!(set.to_string(), "cap_chown,cap_checkpoint_restore,63");
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 40, 63]);
        assert!(!set.contains(64) && !set.contains(255));
        assert_eq!(CapabilitySet::EMPTY.to_string(), "none");
    }
}
