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

use super::quota::NoSlot;
use super::session;
use super::state::{Broker, Buffers};
use crate::failure::{Exit, Failure};
use crate::listener::{BoundSocket, Registry};
use crate::log::{self, Origin};
use crate::policy::Requester;
use crate::sys::peer_credentials;
use crate::sys::socket::{self, AddressFamily, SockType};
use crate::sys::unix_file::UnixFile;

const STEP: &str = "broker.socket";
/// The pause before the next peer is accepted, if accepting failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How many peers are accepted in a row while open sessions wait: a burst of connections of one peer is over soon, and
/// others do not wait behind it in the queue.
const MAX_IN_A_ROW: u32 = 16;
/// How often the broker lets others run until an evicted session has ended.
const MAX_YIELDS: u32 = 100;

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
    socket::listen(&socket, socket::CONTROL_BACKLOG).map_err(|errno| failed("listen", errno))?;
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

/// Accepts peers, and opens a session for each or refuses it at once.
pub async fn accept_loop(broker: Rc<Broker>, listener: tokio::net::UnixListener) {
    let mut in_a_row = 0;
    loop {
        if in_a_row >= MAX_IN_A_ROW {
            in_a_row = 0;
            tokio::task::yield_now().await;
        }
        in_a_row += 1;
        broker.export.resumed(0).await;
        if broker.export.is_committed() {
            return;
        }
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // A peer that connects during a takeover waits for its end, or for the successor.
            () = broker.export.paused_or_committed() => continue,
        };
        let channel = accepted.and_then(|(stream, _)| stream.into_std().map(OwnedFd::from));
        let opened = match channel {
            Ok(channel) => open_session(&broker, channel).await,
            Err(error) => Err(error),
        };
        if let Err(error) = opened {
            tracing::warn!(%error, "cannot open a session for a peer of the control socket");
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
    }
}

async fn open_session(broker: &Rc<Broker>, channel: OwnedFd) -> io::Result<()> {
    let credentials = peer_credentials::read(&channel)?;
    let pid = credentials.pid;
    let requester = Requester::Local { uid: credentials.uid, gids: credentials.gids };
    let origin = match credentials.uid {
        uid if broker.policy.borrow().names(&requester) => Origin::User(uid),
        _ => Origin::Strangers,
    };
    let mut slot = broker.accounts.take_session_slot(origin);
    if slot.as_ref().is_err_and(|(_, refused)| refused.all_in_use)
        && let Some(session) = broker.session_without_hello()
    {
        session.evict();
        let ended = Rc::downgrade(&session);
        drop(session);
        for _ in 0..MAX_YIELDS {
            if ended.strong_count() == 0 {
                break;
            }
            tokio::task::yield_now().await;
        }
        slot = broker.accounts.take_session_slot(origin);
    }
    match slot {
        Ok(slot) => session::open(broker, channel, requester, pid, slot).map(drop),
        Err((account, NoSlot { fault, .. })) => {
            broker.counters.rejected.up();
            account.notice(|| {
                tracing::warn!(target: "audit", peer = %log::named(Origin::User(credentials.uid)), pid, code = fault.code.name(), reason = &*fault.message, "refused a session");
            });
            refuse_session(broker, channel, &fault);
            Ok(())
        }
    }
}

/// Sends the fault to a peer that gets no session, and closes the channel.
fn refuse_session(broker: &Broker, channel: OwnedFd, fault: &Fault) {
    let Buffers { inbox, outbox } = &mut *broker.buffers.borrow_mut();
    let channel = UnixDatagram::from(channel);
    if channel.set_nonblocking(true).is_ok() {
        // The kernel discards what was sent when a channel is closed with unread data, so the hello is read first.
        let _ = channel::receive_bytes(&channel, inbox);
        if let Ok(frame) = codec::encode(outbox, Kind::FAULT, 0, 0, fault) {
            let _ = channel::send_bytes(&channel, frame); // a peer that does not read misses the fault
        }
    }
}
