//! The known faults of etcd's releases that matter to a coordinator.
//!
//! Sources: etcd's `CHANGELOG/README.md` and the change log of each series, as of August 2026. A fault is listed if it can corrupt or
//! lose data, make reads or watches wrong, or let a user do what its role does not allow.

use crate::core::check::Fault;

/// The series 3.x whose change logs were read.
const KNOWN: std::ops::RangeInclusive<u32> = 4..=7;
/// The series that gets no corrections any more, since the release that is named.
const ENDED: (u32, &str) = (4, "3.4.45");

/// A fault, and the patch releases of each series 3.x that have it: from the first to before the other.
struct Known {
    text: &'static str,
    is_severe: bool,
    affected: &'static [(u32, u32, u32)],
}

const FAULTS: &[Known] = &[
    // Running 3.5.0 to 3.5.2 "under high load can cause a data corruption issue" (CHANGELOG/README.md); #13908.
    Known { text: "after a crash, members can hold different data", is_severe: true, affected: &[(5, 0, 3)] },
    // "The minimum recommended etcd versions to run in production are v3.4.22+ and v3.5.6+" (CHANGELOG/README.md): #14648, #14649
    // and #14733 make the data of members differ.
    Known {
        text: "older than what etcd recommends for production, as the data of members can differ",
        is_severe: true,
        affected: &[(4, 0, 22), (5, 0, 6)],
    },
    // #17864, #17865. A coordinator takes it for an engine that has lost data, and starts over.
    Known {
        text: "a crash while it compacts can set the revision back",
        is_severe: false,
        affected: &[(4, 0, 32), (5, 0, 14)],
    },
    // #17610, #17612 (events after a compaction), #19249, #19251 (deletions).
    Known {
        text: "watches can lose events when it compacts",
        is_severe: false,
        affected: &[(4, 0, 36), (5, 0, 18)],
    },
    // #20650, #20653, #20659.
    Known {
        text: "a defragmentation while it receives a snapshot can corrupt its data",
        is_severe: false,
        affected: &[(4, 0, 38), (5, 0, 23), (6, 0, 5)],
    },
    // #21417, #21421, #21423.
    Known {
        text: "reads can be stale after its process was paused",
        is_severe: false,
        affected: &[(4, 0, 42), (5, 0, 28), (6, 0, 9)],
    },
    // CVE-2026-33413, CVE-2026-33343, #21681 to #21688, GHSA-xg4h-6gfc-h4m8 (not in the change log of 3.4, which had ended).
    Known {
        text: "a user can do or read more than its roles allow",
        is_severe: false,
        affected: &[(4, 0, 44), (5, 0, 33), (6, 0, 14), (7, 0, 1)],
    },
];

/// The faults of a version, such as 3.4.23; `None`: nothing is known about that version.
pub fn of(version: &str) -> Option<Vec<Fault>> {
    let mut numbers = version.split('.').map(leading_number);
    let (major, minor, patch) = (numbers.next()??, numbers.next()??, numbers.next()??);
    if major < 3 || (major == 3 && minor < *KNOWN.start()) {
        let text = format!("older than 3.{}, with which this program was not tested", KNOWN.start());
        return Some(vec![Fault { text, is_severe: true, fixed_in: None }]);
    }
    if major > 3 || !KNOWN.contains(&minor) {
        return None;
    }
    let fault = |known: &Known| {
        let in_series = known.affected.iter().find(|(series, ..)| *series == minor);
        let (.., fixed) = in_series.filter(|(_, first, fixed)| (*first..*fixed).contains(&patch))?;
        Some(Fault {
            text: known.text.to_owned(),
            is_severe: known.is_severe,
            fixed_in: Some(format!("3.{minor}.{fixed}")),
        })
    };
    let mut faults: Vec<Fault> = FAULTS.iter().filter_map(fault).collect();
    let (ended, last) = ENDED;
    if minor == ended {
        let text = format!("the series 3.{ended} ended with {last}");
        faults.push(Fault { text, is_severe: false, fixed_in: None });
    }
    Some(faults)
}

fn leading_number(text: &str) -> Option<u32> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text.get(..digits)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a fault is severe, and how many there are.
    fn faults(version: &str) -> Option<(bool, usize)> {
        of(version).map(|faults| (faults.iter().any(|fault| fault.is_severe), faults.len()))
    }

    #[test]
    fn releases_have_the_faults_of_the_change_logs() {
        for (version, expected) in [
            // Debian 12.
            ("3.4.23", Some((false, 6))),
            ("3.4.21", Some((true, 7))),
            ("3.4.44", Some((false, 1))),
            ("3.5.0", Some((true, 7))),
            ("3.5.2", Some((true, 7))),
            ("3.5.3", Some((true, 6))),
            ("3.5.6", Some((false, 5))),
            ("3.5.27", Some((false, 2))),
            ("3.5.32", Some((false, 1))),
            ("3.5.33", Some((false, 0))),
            ("3.6.4", Some((false, 3))),
            ("3.6.14", Some((false, 0))),
            ("3.7.0", Some((false, 1))),
            ("3.7.1", Some((false, 0))),
            ("3.3.27", Some((true, 1))),
            ("2.3.8", Some((true, 1))),
        ] {
            assert_eq!(faults(version), expected, "{version}");
        }
        let first = of("3.5.1").unwrap().remove(0);
        assert_eq!(first.fixed_in.as_deref(), Some("3.5.3"));
    }

    #[test]
    fn a_version_is_read_as_far_as_it_can_be() {
        assert_eq!(faults("3.5.33+dfsg"), Some((false, 0)));
        assert_eq!(faults("3.6.0-rc.1"), Some((false, 3)));
        for unknown in ["3.8.0", "4.0.0", "", "3", "3.5", "3.x.1", "Not decided", "3.5.99999999999"] {
            assert_eq!(faults(unknown), None, "{unknown:?}");
        }
    }
}
