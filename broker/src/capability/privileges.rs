//! Parser for Solaris privilege sets, `priv_str_to_set(3C)`, for configurations written for Solaris.
//!
//! Promises: a text is either parsed completely or refused with a position and a remedy, and the closest capabilities are
//! known. It has no effect on Linux. Touches nothing.

use std::ops::Range;

use caps::Capability;

use super::privilege_table::{PRIVILEGES, Reach, Row};
use super::set::CapabilitySet;
use crate::config::nearest::nearest;

/// One Solaris privilege, such as `net_privaddr` (`privileges(7)` of illumos).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Privilege {
    /// Its name, in lower case without `PRIV_`.
    pub name: &'static str,
    /// The closest capabilities; empty if Linux needs none or has no equivalent.
    pub nearest: CapabilitySet,
}

/// A parsed privilege set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Privileges {
    held: Vec<Privilege>,
}

/// An error in a privilege text and its place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is not a privilege: {}", self.remedy())]
pub struct PrivilegesError {
    /// The byte range that is wrong; empty if something is missing.
    pub span: Range<usize>,
    /// The name as written; empty if the name after `!` or `-` is missing.
    pub name: String,
    /// The most similar known name.
    pub nearest: Option<&'static str>,
}

impl PrivilegesError {
    /// What to write instead.
    pub fn remedy(&self) -> String {
        match self.nearest {
            Some(name) => format!("write {name}"),
            None if self.name.is_empty() => "write a privilege after the ! or -".into(),
            None => "write basic, zone, all, none or the name of a privilege".into(),
        }
    }
}

/// The meaning of one name in a text.
enum Named {
    Nothing,
    One(&'static str),
    UpTo(Reach),
}

impl Named {
    fn find(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        Some(match name.as_str() {
            "none" => Self::Nothing,
            "basic" => Self::UpTo(Reach::Basic),
            "zone" => Self::UpTo(Reach::Zone),
            "all" => Self::UpTo(Reach::Global),
            _ => {
                let name = name.strip_prefix("priv_").unwrap_or(&name);
                Self::One(PRIVILEGES.iter().find(|row| row.name == name)?.name)
            }
        })
    }

    fn covers(&self, row: &Row) -> bool {
        match self {
            Self::Nothing => false,
            Self::One(name) => row.name == *name,
            Self::UpTo(reach) => row.reach <= *reach,
        }
    }
}

fn nearest_name(name: &str) -> Option<&'static str> {
    let known = PRIVILEGES.iter().map(|row| row.name);
    nearest(name, known.chain(["basic", "zone", "all", "none"]))
}

impl Privileges {
    /// Parses a text: names and groups in any case, separated by commas or white space. Each is added in turn, or removed
    /// if `!` or `-` precedes it.
    ///
    /// # Errors
    /// The first name that Solaris does not know.
    pub fn parse(text: &str) -> Result<Self, PrivilegesError> {
        let mut held: Vec<(&Row, bool)> = PRIVILEGES.iter().map(|row| (row, false)).collect();
        let separates = |c: char| c == ',' || c.is_whitespace();
        let mut after = 0;
        for token in text.split_inclusive(separates) {
            let start = after;
            after += token.len();
            let token = token.trim_end_matches(separates);
            if token.is_empty() {
                continue;
            }
            let (name, adds) = match token.strip_prefix(['!', '-']) {
                Some(name) => (name, false),
                None => (token, true),
            };
            let named = Named::find(name).ok_or_else(|| {
                let begin = start + token.len() - name.len();
                PrivilegesError {
                    span: begin..begin + name.len(),
                    name: name.into(),
                    nearest: nearest_name(name),
                }
            })?;
            for (_, is_held) in held.iter_mut().filter(|(row, _)| named.covers(row)) {
                *is_held = adds;
            }
        }
        let remaining = held.into_iter().filter(|(_, is_held)| *is_held);
        Ok(Self {
            held: remaining
                .map(|(row, _)| Privilege {
                    name: row.name,
                    nearest: row.nearest.iter().map(Capability::index).collect(),
                })
                .collect(),
        })
    }

    /// The resulting privileges, in alphabetical order.
    pub fn iter(&self) -> impl Iterator<Item = Privilege> {
        self.held.iter().copied()
    }

    /// The closest capabilities to all of them together.
    pub fn nearest_capabilities(&self) -> CapabilitySet {
        self.iter().fold(CapabilitySet::EMPTY, |all, privilege| all.union(privilege.nearest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<&'static str> {
        Privileges::parse(text).unwrap().iter().map(|privilege| privilege.name).collect()
    }

    #[test]
    fn names_are_read_in_any_case_with_either_separator() {
        assert_eq!(
            names("NET_PRIVADDR, priv_file_chown\tSys_Net_Config"),
            ["file_chown", "net_privaddr", "sys_net_config"]
        );
        assert!(names("").is_empty());
        assert!(names("none").is_empty());
    }

    #[test]
    fn a_negated_name_removes_what_was_added_before_it() {
        let basic = names("basic");
        assert!(basic.contains(&"proc_fork"));
        for text in ["basic,!proc_fork", "basic -proc_fork", "!proc_fork,basic,-proc_fork"] {
            let remaining = names(text);
            assert!(!remaining.contains(&"proc_fork"), "{text}");
            assert_eq!(remaining.len(), basic.len() - 1, "{text}");
        }
        assert!(names("all,!all").is_empty());
        assert_eq!(names("!proc_fork,basic"), basic);
    }

    #[test]
    fn each_group_contains_the_smaller_ones() {
        let (basic, zone, all) = (names("basic"), names("zone"), names("all"));
        assert!(basic.iter().all(|name| zone.contains(name)));
        assert!(zone.iter().all(|name| all.contains(name)));
        assert!(basic.len() < zone.len() && zone.len() < all.len());
        assert_eq!(all.len(), PRIVILEGES.len());
    }

    #[test]
    fn the_privileges_of_a_mail_server_have_closest_capabilities() {
        let privileges = Privileges::parse("basic,net_privaddr,sys_ip_config,proc_setid").unwrap();
        let nearest = privileges.nearest_capabilities().to_string();
        assert_eq!(nearest, "cap_setgid,cap_setuid,cap_net_bind_service,cap_net_admin");
    }

    #[test]
    fn a_wrong_name_is_reported_with_its_place_and_the_nearest_name() {
        let error = Privileges::parse("basic,!net_privadr").unwrap_err();
        assert_eq!(error.span, 7..18);
        assert_eq!(error.to_string(), "\"net_privadr\" is not a privilege: write net_privaddr");
        let error = Privileges::parse("all, !").unwrap_err();
        assert_eq!(error.span, 6..6);
        assert_eq!(error.remedy(), "write a privilege after the ! or -");
        let error = Privileges::parse("é!x").unwrap_err();
        assert_eq!((error.span, error.nearest), (0..4, None));
    }

    #[test]
    fn the_table_is_sorted_and_has_no_duplicate() {
        assert!(PRIVILEGES.is_sorted_by(|a, b| a.name < b.name));
    }
}
