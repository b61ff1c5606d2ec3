//! The name that was probably meant.

use strsim::osa_distance;

/// The candidate that takes the fewest insertions, deletions, replacements and swaps of neighbours to reach,
/// where that is at most a third of the word's letters (and always one). Case does not count; of equals it is
/// the first in alphabetical order.
pub(crate) fn nearest<'c>(word: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let word = word.to_ascii_lowercase();
    // Nobody means a name by a text much longer than any.
    if word.len() > 64 {
        return None;
    }
    let close = (word.len() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (osa_distance(&word, &candidate.to_ascii_lowercase()), candidate))
        .min()
        .filter(|(distance, _)| *distance <= close)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_one_slip_away_not_a_guess() {
        let names = ["user", "group", "chroot", "capabilities"];
        assert_eq!(nearest("usr", names), Some("user"));
        assert_eq!(nearest("suer", names), Some("user"));
        assert_eq!(nearest("Capabilites", names), Some("capabilities"));
        assert_eq!(nearest("banner", names), None);
        assert_eq!(nearest(&"x".repeat(1 << 20), names), None);
    }
}
