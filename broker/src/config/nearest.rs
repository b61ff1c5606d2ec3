//! Suggests the known name that was probably intended.

use strsim::osa_distance;

/// The candidate with the smallest edit distance (insertions, deletions, replacements, transpositions) if that is at
/// most a third of the word's length, but at least 1. Case is ignored; of equal candidates the alphabetically first is
/// taken.
pub(crate) fn nearest<'c>(word: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let word = word.to_ascii_lowercase();
    // A text much longer than any name is no misspelt name.
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

/// [`nearest`], or the candidate that has every word of this name: `backlog` for `listen_backlog`.
pub(crate) fn resembling<'c>(word: &str, candidates: &[&'c str]) -> Option<&'c str> {
    nearest(word, candidates.iter().copied()).or_else(|| {
        let has =
            |candidate: &str, part: &str| candidate.split('_').any(|other| other.eq_ignore_ascii_case(part));
        let has_all = |candidate: &&&str| word.split('_').all(|part| has(candidate, part));
        candidates.iter().find(has_all).copied()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_similar_name_is_suggested() {
        let names = ["user", "group", "chroot", "capabilities"];
        assert_eq!(nearest("usr", names), Some("user"));
        assert_eq!(nearest("suer", names), Some("user"));
        assert_eq!(nearest("Capabilites", names), Some("capabilities"));
        assert_eq!(nearest("banner", names), None);
        assert_eq!(nearest(&"x".repeat(1 << 20), names), None);
    }

    #[test]
    fn a_part_of_a_name_resembles_it() {
        let names = ["listen_backlog", "file_mode", "tcp_recv_buffer_size", "user"];
        assert_eq!(resembling("Backlog", &names), Some("listen_backlog"));
        assert_eq!(resembling("mode", &names), Some("file_mode"));
        assert_eq!(resembling("recv_buffer", &names), Some("tcp_recv_buffer_size"));
        assert_eq!(resembling("fil_mode", &names), Some("file_mode"));
        assert_eq!(resembling("tls_mode", &names), None);
        assert_eq!(resembling("", &names), None);
    }
}
