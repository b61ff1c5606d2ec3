//! The control socket, to which peers connect that the broker did not start.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::rc::Rc;
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::Gid;
use portreeve_protocol::takeover::SocketFile;
use portreeve_protocol::{Endpoint, Fault, Kind, Text, channel, codec};

use super::{session, state::Broker};
use crate::failure::{Exit, Failure};
use crate::listener::{BoundSocket, Registry};
use crate::policy::Requester;
use crate::sys::peer_credentials;
use crate::sys::socket::{self, AddressFamily, SockType};
use crate::sys::unix_file::UnixFile;

const STEP: &str = "broker.socket";
/// The largest number of open sessions of the control socket.
const MAX_SESSIONS: usize = 256;
/// The pause before the next peer is accepted, if there is no room or accepting failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Binds the control socket and gives its file to the registry. Only root can connect until its group and mode are set.
/// `place` is where the configuration names it.
///
/// # Errors
/// The file cannot be created.
pub fn bind(
    registry: &mut Registry,
    path: &str,
    (group, mode): (Gid, u32),
    place: &str,
) -> Result<UnixListener, Failure> {
    let failed = |call: &str, errno: Errno| {
        let (cause, remedy) = match errno {
            Errno::EADDRINUSE => (
                "another portreeved listens there, or the file is not a socket".to_owned(),
                "stop that portreeved, start this one with --takeover, remove the file, or configure another path",
            ),
            _ => (
                format!("{call} failed: {}", errno.desc()),
                "configure a path in a directory that exists, belongs to root and is not read-only",
            ),
        };
        let problem = format!("{place}: cannot create the control socket {path:?}: {cause}");
        Failure::new(Exit::CannotCreate, STEP, problem, remedy)
    };
    let socket = socket::open_nonblocking(AddressFamily::Unix, SockType::SeqPacket)
        .map_err(|errno| failed("socket", errno))?;
    let file = UnixFile::bind(registry.directories(), &socket, path, 0o600)
        .map_err(|errno| failed("bind", errno))?;
    let opened = file.set_group_and_mode(registry.directories(), group, mode);
    registry.set_control_file(file);
    opened.map_err(|errno| failed("chown and chmod", errno))?;
    socket::listen(&socket, socket::MAX_BACKLOG).map_err(|errno| failed("listen", errno))?;
    Ok(socket.into())
}

/// Imports the file of the predecessor's control socket. Its mode and group stay.
///
/// # Errors
/// The socket or the file is another one; the predecessor still serves.
pub fn import(
    registry: &mut Registry,
    path: &str,
    file: &SocketFile,
    socket: &OwnedFd,
) -> Result<(), Failure> {
    let failed = |cause: &str| {
        let problem =
            format!("cannot take over the control socket {path:?}: {cause}; the running broker still serves");
        let remedy = "restart the running broker instead of taking over";
        Failure::new(Exit::Unavailable, STEP, problem, remedy)
    };
    let endpoint =
        Text::new(path).map(Endpoint::UnixSeqpacket).map_err(|_| failed("the path is too long"))?;
    if !BoundSocket::of(socket).is_some_and(|bound| bound.is_at(&endpoint)) {
        return Err(failed("the running broker sent another socket"));
    }
    let file = UnixFile::import(registry.directories(), path, *file).map_err(|errno| match errno {
        Errno::ESTALE => failed("the path names another file now"),
        errno => failed(errno.desc()),
    })?;
    registry.set_control_file(file);
    Ok(())
}

/// Accepts peers and opens a session for each.
pub async fn accept_loop(broker: Rc<Broker>, listener: tokio::net::UnixListener) {
    loop {
        // Let the open sessions run before each new one, however many peers connect.
        tokio::task::yield_now().await;
        broker.export.resumed(0).await;
        if broker.export.is_committed() {
            return;
        }
        if broker.session_count() >= MAX_SESSIONS {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        }
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // A peer that connects during a takeover waits for its end, or for the successor.
            () = broker.export.paused_or_committed() => continue,
        };
        let channel = accepted.and_then(|(stream, _)| stream.into_std().map(OwnedFd::from));
        if let Err(error) = channel.and_then(|channel| open_session(&broker, channel)) {
            tracing::warn!(%error, "cannot open a session for a peer of the control socket");
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
    }
}

fn open_session(broker: &Rc<Broker>, channel: OwnedFd) -> io::Result<()> {
    let credentials = peer_credentials::read(&channel)?;
    let pid = credentials.pid;
    let requester = Requester::Local { uid: credentials.uid, gids: credentials.gids };
    match broker.accounts.take_session_slot(&requester) {
        Ok(slot) => session::open(broker, channel, requester, pid, slot).map(drop),
        Err((account, fault)) => {
            broker.counters.rejected.up();
            if account.may_log() {
                tracing::warn!(target: "audit", peer = %requester, pid, cause = &*fault.message, "refused a session");
            }
            refuse_session(channel, &fault);
            Ok(())
        }
    }
}

/// Sends the fault to a peer that gets no session, and closes the channel.
fn refuse_session(channel: OwnedFd, fault: &Fault) {
    let mut buffer = codec::frame_buffer();
    let channel = UnixDatagram::from(channel);
    if channel.set_nonblocking(true).is_ok() {
        // The kernel discards what was sent when a channel is closed with unread data, so the hello is read first.
        let _ = channel::receive_bytes(&channel, &mut buffer);
        if let Ok(frame) = codec::encode(&mut buffer, Kind::FAULT, 0, 0, fault) {
            let _ = channel::send_bytes(&channel, frame); // a peer that does not read misses the fault
        }
    }
}
