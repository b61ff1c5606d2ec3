//! The three sets that a capability text describes, and the text that `cap_to_text(3)` makes of them.
//!
//! Promises: the text is byte for byte the one that libcap 2.66 writes for the same sets on a kernel of the same
//! number of capabilities, and it reads back as the same sets. Touches nothing.

use super::set::{CapabilitySet, Count};

/// The three sets of a process that a capability text describes (`capabilities(7)`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct State {
    /// The set that the kernel checks.
    pub effective: CapabilitySet,
    /// The upper bound of the effective set.
    pub permitted: CapabilitySet,
    /// The set that is inherited through `execve(2)`.
    pub inheritable: CapabilitySet,
}

/// Which of the three sets the flags of one operator name.
#[derive(Clone, Copy, Default)]
pub(super) struct Flags {
    pub(super) effective: bool,
    pub(super) inheritable: bool,
    pub(super) permitted: bool,
}

impl State {
    /// Applies `change` to each set that `flags` names.
    pub(super) fn change(&mut self, flags: Flags, change: impl Fn(CapabilitySet) -> CapabilitySet) {
        for (named, set) in [
            (flags.effective, &mut self.effective),
            (flags.inheritable, &mut self.inheritable),
            (flags.permitted, &mut self.permitted),
        ] {
            if named {
                *set = change(*set);
            }
        }
    }
}

/// One of the eight combinations of sets that a capability can be in, in libcap's order: effective is 1,
/// permitted 2, inheritable 4.
const COMBINATIONS: usize = 8;

impl State {
    /// The text of `cap_to_text(3)` on the running kernel, such as `cap_net_bind_service,cap_net_admin=ep`.
    pub fn to_text(&self) -> String {
        self.to_text_with(Count::of_kernel())
    }

    /// The text of `cap_to_text(3)` on a kernel that has `count` capabilities.
    pub fn to_text_with(&self, count: Count) -> String {
        let named = self.grouped(count.all());
        // The most frequent combination is written first, for all capabilities; of equally frequent ones the lowest.
        let mut most = COMBINATIONS - 1;
        for combination in (0..COMBINATIONS).rev() {
            if members(&named, combination).len() >= members(&named, most).len() {
                most = combination;
            }
        }
        let mut text = format!("={}", flags(most));
        for combination in (0..COMBINATIONS).rev() {
            let group = members(&named, combination);
            if combination == most || group.is_empty() {
                continue;
            }
            let (gained, lost) = (combination & !most, most & !combination);
            if text == "=" {
                // Nothing is set so far, so `list=flags` is shorter than `= list+flags`.
                text = format!("{group}={}", flags(gained));
                continue;
            }
            text.push_str(&format!(" {group}"));
            if gained != 0 {
                text.push_str(&format!("+{}", flags(gained)));
            }
            if lost != 0 {
                text.push_str(&format!("-{}", flags(lost)));
            }
        }
        let unnamed = self.grouped(CapabilitySet::from_bits(u64::MAX).difference(count.all()));
        for combination in (1..COMBINATIONS).rev() {
            let group = members(&unnamed, combination);
            if !group.is_empty() {
                text.push_str(&format!(" {group}+{}", flags(combination)));
            }
        }
        text
    }

    /// The capabilities of `among`, by the combination of sets that each is in.
    fn grouped(&self, among: CapabilitySet) -> [CapabilitySet; COMBINATIONS] {
        std::array::from_fn(|combination| {
            [(1, self.effective), (2, self.permitted), (4, self.inheritable)].iter().fold(
                among,
                |left, (bit, set)| {
                    if combination & bit == 0 { left.difference(*set) } else { left.intersection(*set) }
                },
            )
        })
    }
}

fn members(groups: &[CapabilitySet; COMBINATIONS], combination: usize) -> CapabilitySet {
    groups.get(combination).copied().unwrap_or_default()
}

fn flags(combination: usize) -> String {
    [(1, 'e'), (4, 'i'), (2, 'p')]
        .iter()
        .filter(|(bit, _)| combination & bit != 0)
        .map(|(_, flag)| flag)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::text::parse_with;
    use super::*;

    /// The canonical form of a text on a kernel with `count` capabilities.
    fn on_a_kernel_of(count: u8, text: &str) -> String {
        let count = Count::new(count);
        let state = parse_with(text, count).unwrap();
        let shown = state.to_text_with(count);
        assert_eq!(parse_with(&shown, count).unwrap(), state, "{shown}");
        shown
    }

    #[test]
    fn all_means_every_capability_of_the_kernel() {
        assert_eq!(on_a_kernel_of(38, "all=e"), "=e");
        assert_eq!(on_a_kernel_of(38, "all=e cap_audit_read-e"), "=e cap_audit_read-e");
        assert_eq!(on_a_kernel_of(43, "=p 42-p 41+i"), "=p 41+i 42-p");
    }

    #[test]
    fn unknown_capabilities_are_written_separately() {
        assert_eq!(on_a_kernel_of(38, "cap_bpf+ep"), "= cap_bpf+ep");
        assert_eq!(on_a_kernel_of(41, "cap_chown,41+e 63+i"), "cap_chown=e 63+i 41+e");
    }
}
