//! The `security` scope: the worker's identity and the capabilities that the broker retains.

use std::path::{Path, PathBuf};

use super::reader::Reader;
use super::source::{Span, Spanned};

/// The worker's user and group by default.
pub const DEFAULT_ACCOUNT: &str = "ecuser";

/// The options of the `security` scope. Changing any of them needs a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Security {
    /// The worker's user, a name or a number; [`DEFAULT_ACCOUNT`] by default.
    pub user: Option<Spanned<String>>,
    /// The worker's group, a name or a number; [`DEFAULT_ACCOUNT`] by default.
    pub group: Option<Spanned<String>>,
    /// The worker's supplementary groups, names or numbers; an empty list clears them. See setgroups(2).
    pub supplemental_groups: Vec<Spanned<String>>,
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
        let security = Security {
            user,
            group,
            supplemental_groups: groups,
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
