//! `security.chroot`: must be an existing directory that the worker cannot write to.

use std::fs::{File, Metadata};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};

use super::finding::{Findings, is_permission_denied};
use crate::config::Config;
use crate::confine::identity::Identity;
use crate::failure::Exit;

const STEP: &str = "security.chroot";

/// The worker's root directory.
#[derive(Debug)]
pub enum Root {
    /// The host's root.
    Host,
    /// This directory.
    Chroot(OwnedFd),
    /// A directory that cannot be opened; a diagnostic says why.
    Unknown,
}

impl Root {
    /// Opens the chroot and refuses one that the worker could write to.
    pub fn open(config: &Config, identity: Option<&Identity>, findings: &mut Findings) -> Self {
        let Some(chroot) = &config.security.chroot else {
            return Self::Host;
        };
        let path = &chroot.value;
        let mut options = File::options();
        options.read(true).custom_flags(libc::O_DIRECTORY);
        let opened = options.open(path).and_then(|directory| Ok((directory.metadata()?, directory)));
        let (metadata, directory) = match opened {
            Ok(opened) => opened,
            Err(error) if is_permission_denied(&error) => {
                findings.no_permission(config, chroot.span, &format!("the chroot {path:?}"));
                return Self::Unknown;
            }
            Err(error) => {
                let message = format!("{path:?} cannot be opened: {error}");
                let help = "create it, owned by root with mode 0755, or remove the option";
                findings.error(STEP, Exit::NoInput, config.error(chroot.span, message, help));
                return Self::Unknown;
            }
        };
        if identity.is_some_and(|identity| is_writable(&metadata, identity)) {
            let message =
                format!("{path:?} is writable by the worker, which could replace trusted files in it");
            let help = "chown it to root and chmod it 0755; give the worker writable directories inside it";
            findings.error(STEP, Exit::Config, config.error(chroot.span, message, help));
        }
        Self::Chroot(directory.into())
    }

    /// The chroot, if there is one.
    pub fn into_chroot(self) -> Option<OwnedFd> {
        match self {
            Self::Chroot(directory) => Some(directory),
            Self::Host | Self::Unknown => None,
        }
    }
}

/// Whether owner and mode let the worker write. Access control lists are checked when the worker is confined.
fn is_writable(metadata: &Metadata, identity: &Identity) -> bool {
    !identity.user.is_root()
        && (identity.has_user(metadata.uid())
            || (metadata.mode() & 0o020 != 0 && identity.has_group(metadata.gid()))
            || metadata.mode() & 0o002 != 0)
}
