//! The worker's identity: user, group and supplementary groups, resolved once, while name services are reachable.

use std::ffi::CString;

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};

use crate::config::IdRange;

/// The worker's identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// security.user
    pub user: Uid,
    /// security.group
    pub group: Gid,
    /// security.supplemental_groups, and nothing else
    pub groups: Vec<Gid>,
    /// security.user_namespace: user and group are its root, as ids of the host.
    pub namespace: Option<IdRange>,
}

impl Identity {
    /// The root of a user namespace with these ids.
    pub fn of_namespace(range: IdRange) -> Self {
        let (user, group) = (Uid::from_raw(range.first), Gid::from_raw(range.first));
        Self { user, group, groups: Vec::new(), namespace: Some(range) }
    }

    /// Whether processes of the worker can have this user id of the host.
    pub fn has_user(&self, user: u32) -> bool {
        self.user.as_raw() == user || self.namespace.is_some_and(|range| range.contains(user))
    }

    /// Whether processes of the worker can have this group id of the host.
    pub fn has_group(&self, group: u32) -> bool {
        let mut groups = self.groups.iter().chain([&self.group]);
        groups.any(|own| own.as_raw() == group) || self.namespace.is_some_and(|range| range.contains(group))
    }
}

/// Why an account's name could not be resolved.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// There is no such account.
    #[error("there is no {kind} {name:?} on this system")]
    Unknown {
        /// `user` or `group`
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The name service failed, see nsswitch.conf(5).
    #[error("cannot look up the {kind} {name:?}: {error}")]
    LookupFailed {
        /// `user` or `group`
        kind: &'static str,
        /// Its name.
        name: String,
        /// The error of getpwnam_r(3) or getgrnam_r(3).
        error: nix::Error,
    },
}

impl AccountError {
    /// What to do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::Unknown { kind, name } => {
                format!("create it ({kind}add --system {name}) or name an existing one")
            }
            Self::LookupFailed { .. } => {
                "repair the name service (nsswitch.conf), or write the number".to_owned()
            }
        }
    }
}

/// Finds a user by name; a number is taken as it is.
pub fn user(name: &str) -> Result<Uid, AccountError> {
    let find = || User::from_name(name).map(|user| user.map(|user| user.uid));
    id("user", name, Uid::from_raw, find)
}

/// Finds a group by name; a number is taken as it is.
pub fn group(name: &str) -> Result<Gid, AccountError> {
    let find = || Group::from_name(name).map(|group| group.map(|group| group.gid));
    id("group", name, Gid::from_raw, find)
}

/// All groups of a user by the name services; none for a user id without an account. See getgrouplist(3).
pub fn groups_of(user: Uid) -> nix::Result<Vec<u32>> {
    let Some(user) = User::from_uid(user)? else { return Ok(Vec::new()) };
    let name = CString::new(user.name).unwrap_or_default();
    Ok(getgrouplist(&name, user.gid)?.into_iter().map(Gid::as_raw).collect())
}

fn id<T>(
    kind: &'static str,
    name: &str,
    from_number: fn(u32) -> T,
    find: impl Fn() -> nix::Result<Option<T>>,
) -> Result<T, AccountError> {
    if let Ok(number) = name.parse() {
        return Ok(from_number(number));
    }
    match find() {
        Ok(Some(id)) => Ok(id),
        Ok(None) => Err(AccountError::Unknown { kind, name: name.to_owned() }),
        Err(error) => Err(AccountError::LookupFailed { kind, name: name.to_owned(), error }),
    }
}
