//! Credentials of the peer of a Unix socket, as the kernel recorded them when it connected. See unix(7).

use std::os::fd::AsFd;

use super::sockopt::{self, Ucred};

/// The credentials of a peer that the kernel recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerCredentials {
    /// The process; 0 if it is in no PID namespace that the broker sees.
    pub pid: u32,
    /// The effective user.
    pub uid: u32,
    /// The supplementary groups, then the effective group.
    pub gids: Vec<u32>,
}

/// Reads SO_PEERCRED and SO_PEERGROUPS (Linux 4.13).
///
/// # Capabilities
/// None.
///
/// # Errors
/// See [`sockopt::peer_credentials`] and [`sockopt::peer_groups`].
pub fn read(channel: impl AsFd) -> nix::Result<PeerCredentials> {
    let Ucred { pid, uid, gid } = sockopt::peer_credentials(&channel)?;
    let mut gids = sockopt::peer_groups(&channel)?;
    gids.push(gid);
    Ok(PeerCredentials { pid, uid, gids })
}
