//! Random numbers that follow from a seed, the same in every version: SplitMix64.

/// The state of the generator.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// A number below a limit; 0 if that is 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        bits.checked_rem(limit).unwrap_or_default()
    }

    /// A number from minus to plus a limit.
    pub fn error(&mut self, limit: u64) -> i64 {
        let limit = i64::try_from(limit).unwrap_or_default();
        i64::try_from(self.below(limit.unsigned_abs() * 2 + 1)).unwrap_or_default() - limit
    }

    /// A place in a list of some length.
    pub fn place(&mut self, length: usize) -> usize {
        let limit = u64::try_from(length).unwrap_or_default();
        usize::try_from(self.below(limit)).unwrap_or_default()
    }
}
