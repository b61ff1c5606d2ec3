//! Who holds the other end of a control-socket channel, as the kernel says. See unix(7), SO_PEERCRED.

use std::os::fd::{AsFd, AsRawFd as _};

use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt};

use crate::policy::Requester;

/// More supplementary groups than the kernel allows: NGROUPS_MAX, see getgroups(2).
const MAX_GROUPS: usize = 65536;

/// Asks the kernel who the peer was when it connected, and for its process id: 0 when that is in no namespace of
/// ours.
pub fn identify(channel: impl AsFd) -> Result<(Requester, u32), Errno> {
    let peer = getsockopt(&channel, sockopt::PeerCredentials)?;
    let mut gids = supplementary_groups(&channel)?;
    gids.push(peer.gid());
    Ok((Requester::Local { uid: peer.uid(), gids }, u32::try_from(peer.pid()).unwrap_or(0)))
}

/// SO_PEERGROUPS, Linux 4.13.
fn supplementary_groups(channel: &impl AsFd) -> Result<Vec<u32>, Errno> {
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let mut length =
            libc::socklen_t::try_from(size_of_val(groups.as_slice())).map_err(|_| Errno::ERANGE)?;
        // SAFETY: the kernel writes at most `length` bytes to the buffer, which has that many, and the number
        // that it wrote, or would have, to `length`.
        let result = unsafe {
            libc::getsockopt(
                channel.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let count = length as usize / size_of::<libc::gid_t>();
        match Errno::result(result) {
            Ok(_) => {
                groups.truncate(count);
                return Ok(groups);
            }
            Err(Errno::ERANGE) if groups.len() < count && count <= MAX_GROUPS => groups.resize(count, 0),
            Err(errno) => return Err(errno),
        }
    }
}
