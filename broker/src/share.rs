//! Fair shares of a resource that all peers use. Data only.
//!
//! Promises: one peer gets at most half of the resource, and every peer gets the guaranteed amount, until the part that is
//! set aside for this is used up. It serves as many peers as the guaranteed amount fits into it, whatever the others take.

/// How a resource is shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// How much each peer gets in any case.
    pub guaranteed: usize,
    /// How much is set aside for peers that have not got their guaranteed amount yet.
    pub set_aside: usize,
}

impl Share {
    /// Whether a peer may use `used` in total, while `free` is free before the change and `more` is what it adds.
    pub fn allows(self, used: usize, more: usize, free: usize) -> bool {
        more <= free && (used <= self.guaranteed || used <= free.saturating_sub(self.set_aside))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How much a peer gets that takes one at a time.
    fn take(share: Share, free: &mut usize) -> usize {
        let mut used = 0;
        while share.allows(used + 1, 1, *free) {
            used += 1;
            *free -= 1;
        }
        used
    }

    #[test]
    fn every_peer_gets_the_guaranteed_amount_after_others_took_all_that_they_get() {
        let share = Share { guaranteed: 2, set_aside: 100 };
        let mut free = 240;
        assert_eq!(take(share, &mut free), 70);
        let others: Vec<usize> = (0..50).map(|_| take(share, &mut free)).collect();
        assert!(others.iter().all(|got| *got >= 2), "{others:?}");
        let alone = Share { guaranteed: 0, set_aside: 0 };
        assert_eq!(take(alone, &mut 240), 120);
    }
}
