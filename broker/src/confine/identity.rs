//! Who the worker is: user, group and supplementary groups, resolved once, before name services go away.

use std::fmt;

use nix::unistd::{Gid, Group, Uid, User};

use crate::failure::{Exit, Failure};

const STEP: &str = "identity";

/// The worker's identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// security.user
    pub user: Uid,
    /// security.group
    pub group: Gid,
    /// security.supplemental_groups, and nothing else
    pub groups: Vec<Gid>,
}

/// Finds a user by name, or takes its number as it is.
pub fn user(text: &str, place: impl fmt::Display) -> Result<Uid, Failure> {
    if let Ok(number) = text.parse() {
        return Ok(Uid::from_raw(number));
    }
    let found = User::from_name(text).map_err(|error| lookup_failed("user", text, &place, error))?;
    found.map(|user| user.uid).ok_or_else(|| unknown("user", "useradd --system", text, &place))
}

/// Finds a group by name, or takes its number as it is.
pub fn group(text: &str, place: impl fmt::Display) -> Result<Gid, Failure> {
    if let Ok(number) = text.parse() {
        return Ok(Gid::from_raw(number));
    }
    let found = Group::from_name(text).map_err(|error| lookup_failed("group", text, &place, error))?;
    found.map(|group| group.gid).ok_or_else(|| unknown("group", "groupadd --system", text, &place))
}

fn unknown(kind: &str, command: &str, text: &str, place: &dyn fmt::Display) -> Failure {
    Failure::new(
        Exit::NoUser,
        STEP,
        format_args!("{place}: there is no {kind} {text:?} on this system"),
        format_args!("create it ({command} {text}) or name one that exists"),
    )
}

fn lookup_failed(kind: &str, text: &str, place: &dyn fmt::Display, error: nix::Error) -> Failure {
    Failure::new(
        Exit::NoUser,
        STEP,
        format_args!("{place}: the {kind} {text:?} cannot be looked up: {error}"),
        "mend the name service (nsswitch.conf), or give the number",
    )
}
