//! The `security` scope: the worker's identity and the capabilities that the broker retains.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::reader::Reader;
use super::source::{Span, Spanned};

/// The worker's user and group by default.
pub const DEFAULT_ACCOUNT: &str = "ecuser";

/// Ids of the host that are those of a user namespace, from 0 on: `FIRST:COUNT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// The id of the host that is 0 in the namespace.
    pub first: u32,
    /// How many there are.
    pub count: u32,
}

impl IdRange {
    /// Whether an id of the host is one of them.
    pub fn contains(self, id: u32) -> bool {
        id.checked_sub(self.first).is_some_and(|inside| inside < self.count)
    }

    /// Whether it has an id in common with another range, from `first` on.
    pub fn overlaps(self, first: u64, count: u64) -> bool {
        let (own, end) = (u64::from(self.first), u64::from(self.first) + u64::from(self.count));
        first < end && own < first.saturating_add(count)
    }
}

impl fmt::Display for IdRange {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}", self.first, self.count)
    }
}

impl FromStr for IdRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || {
            "write FIRST:COUNT, the first id of the host and the number of ids: \"200000:65536\"".to_owned()
        };
        let (first, count) = text.split_once(':').ok_or_else(form)?;
        let number =
            |text: &str| text.parse::<u32>().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
        let (first, count) = number(first).zip(number(count)).ok_or_else(form)?;
        match first.checked_add(count) {
            _ if count == 0 => Err("the range is empty; write the number of ids after the colon".to_owned()),
            _ if first == 0 => {
                Err("id 0 is root of the host; choose ids that no account of the host has".to_owned())
            }
            // The highest id means "unchanged".
            None => Err("ids end at 4294967294; choose a lower range".to_owned()),
            Some(_) => Ok(Self { first, count }),
        }
    }
}

/// The options of the `security` scope. Changing any of them needs a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Security {
    /// The worker's user, a name or a number; [`DEFAULT_ACCOUNT`] by default.
    pub user: Option<Spanned<String>>,
    /// The worker's group, a name or a number; [`DEFAULT_ACCOUNT`] by default.
    pub group: Option<Spanned<String>>,
    /// The worker's supplementary groups, names or numbers; an empty list clears them. See setgroups(2).
    pub supplemental_groups: Vec<Spanned<String>>,
    /// The ids of the host that are those of the worker's own user namespace, of which the worker is root.
    pub user_namespace: Option<Spanned<IdRange>>,
    /// The worker's root, an absolute path.
    pub chroot: Option<Spanned<PathBuf>>,
    /// The capabilities that the broker retains, in the syntax of cap_from_text(3); none if absent or empty.
    pub capabilities: Option<Spanned<String>>,
    /// Privileges of another operating system; accepted, without effect on Linux.
    pub privileges: Option<Spanned<String>>,
    /// The place of the scope, if the configuration has one.
    pub span: Option<Span>,
}

impl Security {
    /// The worker's user, name or number.
    pub fn user_name(&self) -> &str {
        self.user.as_ref().map_or(DEFAULT_ACCOUNT, |user| &user.value)
    }

    /// The worker's group, name or number.
    pub fn group_name(&self) -> &str {
        self.group.as_ref().map_or(DEFAULT_ACCOUNT, |group| &group.value)
    }

    pub(crate) fn read(mut reader: Reader<'_, '_>) -> Self {
        reader.no_instance();
        let user = account(&mut reader, "user");
        let group = account(&mut reader, "group");
        let groups = reader.list("supplemental_groups").unwrap_or_default();
        for group in &groups {
            number_fits(&mut reader, group);
        }
        let user_namespace = reader.parsed("user_namespace", IdRange::from_str);
        if user_namespace.is_some() {
            for account in [&user, &group].into_iter().flatten().chain(&groups) {
                if !["0", "root"].contains(&account.value.as_str()) {
                    let message = "with user_namespace, the worker is root of its namespace";
                    let help = "remove this option, or write root; the worker's program becomes other users of the namespace";
                    reader.error(account.span, message, help);
                }
            }
        }
        let security = Security {
            user,
            group,
            supplemental_groups: groups,
            user_namespace,
            chroot: reader.parsed("chroot", absolute),
            capabilities: reader.any_text("capabilities"),
            privileges: reader.any_text("privileges"),
            span: Some(reader.section.name),
        };
        reader.no_other_options();
        reader.no_other_scopes();
        security
    }
}

fn account(reader: &mut Reader<'_, '_>, name: &'static str) -> Option<Spanned<String>> {
    let account = reader.text(name)?;
    number_fits(reader, &account);
    Some(account)
}

/// A number must be a valid user or group id; the highest one means "unchanged". See setresuid(2).
fn number_fits(reader: &mut Reader<'_, '_>, account: &Spanned<String>) {
    let text = &account.value;
    let number = text.bytes().all(|byte| byte.is_ascii_digit());
    if number && text.parse().map_or(true, |id: u32| id == u32::MAX) {
        let message = format!("{text} is not a user or group id");
        reader.error(account.span, message, "write a name or a number below 4294967295");
    }
}

/// An absolute path without NUL.
pub(super) fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    if !path.is_absolute() {
        return Err("write an absolute path, which begins with /".to_owned());
    }
    Ok(path.to_owned())
}
