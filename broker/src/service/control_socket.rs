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
use crate::listener::Directories;
use crate::listener::unix_file::UnixFile;

const STEP: &str = "broker.socket";
/// Sessions of the control socket that may be open at once.
const MAX_SESSIONS: usize = 256;
/// How long to leave new peers waiting when there is no room for one.
const PAUSE: Duration = Duration::from_millis(100);

/// The control socket, bound and listening.
#[derive(Debug)]
pub struct ControlSocket {
    socket: OwnedFd,
    file: UnixFile,
}

impl ControlSocket {
    /// Binds it: nobody else's until its mode and group are set. `place` is where the configuration names it.
    pub fn bind(
        directories: &Directories,
        path: &str,
        mode: u32,
        group: Gid,
        place: &str,
    ) -> Result<Self, Failure> {
        let failed = |call: &str, errno: Errno| {
            let remedy = match errno {
                Errno::EADDRINUSE => {
                    "another portreeved runs with this socket, or the file is something else: stop it, or name another path"
                }
                Errno::ENOENT => "create its directory, owned by root",
                _ => "name a path in a directory that belongs to root, without symbolic links",
            };
            let what = format!("{place}: {path:?} cannot be made ({call}): {}", errno.desc());
            Failure::new(Exit::CannotCreate, STEP, what, remedy)
        };
        let socket = socket(
            AddressFamily::Unix,
            SockType::SeqPacket,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            None,
        )
        .map_err(|errno| failed("socket", errno))?;
        let file =
            UnixFile::bind(directories, &socket, path, 0o600).map_err(|errno| failed("bind", errno))?;
        listen(&socket, Backlog::MAXCONN).map_err(|errno| failed("listen", errno))?;
        file.open_to(directories, group, mode)
            .map_err(|errno| failed("chown and chmod", errno))?;
        Ok(Self { socket, file })
    }

    /// Hands the socket to the runtime and keeps its file.
    pub fn into_listener(self) -> Result<(Rc<tokio::net::UnixListener>, UnixFile), Failure> {
        let listener = tokio::net::UnixListener::from_std(UnixListener::from(self.socket))
            .map_err(|error| Failure::os(STEP, "epoll_ctl", error))?;
        Ok((Rc::new(listener), self.file))
    }
}

/// Opens a session for each peer that connects.
pub async fn accept(broker: Rc<Broker>, listener: Rc<tokio::net::UnixListener>) {
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
