//! The control socket: where peers that the broker did not start come in.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::rc::Rc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, listen, socket};
use nix::unistd::Gid;

use super::{peer, session, state::Broker};
use crate::failure::{Exit, Failure};
use crate::listener::Registry;
use crate::listener::unix_file::UnixFile;

const STEP: &str = "broker.socket";
/// Sessions of the control socket that may be open at once.
const MAX_SESSIONS: usize = 256;
/// How long to leave new peers waiting when there is no room for one.
const PAUSE: Duration = Duration::from_millis(100);

/// Binds it and gives its file into the registry's care: nobody else's until its mode and group are set. `place` is
/// where the configuration names it.
pub fn bind(
    registry: &mut Registry,
    path: &str,
    (group, mode): (Gid, u32),
    place: &str,
) -> Result<UnixListener, Failure> {
    let failed = |call: &str, errno: Errno| {
        let remedy = match errno {
            Errno::EADDRINUSE => {
                "another portreeved runs with this socket, or the file is something else: stop it, or name another path"
            }
            _ => "name a path in a directory that belongs to root",
        };
        let what = format!("{place}: {path:?} cannot be made ({call}): {}", errno.desc());
        Failure::new(Exit::CannotCreate, STEP, what, remedy)
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)
        .map_err(|errno| failed("socket", errno))?;
    let file = UnixFile::bind(registry.directories(), &socket, path, 0o600)
        .map_err(|errno| failed("bind", errno))?;
    let opened = file.open_to(registry.directories(), group, mode);
    registry.keep_control(file);
    opened.map_err(|errno| failed("chown and chmod", errno))?;
    listen(&socket, Backlog::MAXCONN).map_err(|errno| failed("listen", errno))?;
    Ok(socket.into())
}

/// Opens a session for each peer that connects.
pub async fn accept(broker: Rc<Broker>, listener: tokio::net::UnixListener) {
    loop {
        if broker.session_count() >= MAX_SESSIONS {
            tokio::time::sleep(PAUSE).await;
            continue;
        }
        let channel = match listener.accept().await {
            Ok((stream, _)) => stream.into_std().map(OwnedFd::from),
            Err(error) => Err(error),
        };
        if let Err(error) = channel.and_then(|channel| open(&broker, channel)) {
            tracing::warn!(%error, "a peer of the control socket could not be served");
            tokio::time::sleep(PAUSE).await;
        }
    }
}

fn open(broker: &Rc<Broker>, channel: OwnedFd) -> io::Result<()> {
    let (requester, pid) = peer::identify(&channel)?;
    session::open(broker, channel, requester, pid)
}
