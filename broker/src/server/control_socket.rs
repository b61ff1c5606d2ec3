//! The control socket: where peers that the broker did not start come in.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::rc::Rc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, listen, socket};
use nix::unistd::Gid;
use portreeve_protocol::takeover::SocketFile;
use portreeve_protocol::{Endpoint, Fault, Kind, Text, channel, codec};

use super::{session, state::Broker};
use crate::failure::{Exit, Failure};
use crate::listener::{Registry, Told};
use crate::sys::peer_credentials;
use crate::sys::unix_file::UnixFile;

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

/// Takes the file of another broker's control socket into the registry's care. Its mode and group stay as they are.
pub fn take(registry: &mut Registry, path: &str, file: &SocketFile, socket: &OwnedFd) -> Result<(), Failure> {
    let failed = |what: &str| {
        let what = format!("{path:?} {what}; the running broker serves as before");
        Failure::new(Exit::Unavailable, STEP, what, "restart instead")
    };
    let endpoint = Text::new(path).map(Endpoint::UnixSeqpacket).map_err(|_| failed("is too long"))?;
    if !Told::of(socket).is_some_and(|told| told.is(&endpoint)) {
        return Err(failed("is not the socket that the running broker hands over"));
    }
    let file = UnixFile::of_another(registry.directories(), path, *file)
        .map_err(|errno| failed(&format!("is another file than the running broker's: {}", errno.desc())))?;
    registry.keep_control(file);
    Ok(())
}

/// Opens a session for each peer that connects.
pub async fn accept(broker: Rc<Broker>, listener: tokio::net::UnixListener) {
    loop {
        // Peers that come in crowds leave room for those that are in.
        tokio::task::yield_now().await;
        broker.handover.released(0).await;
        if broker.handover.is_over() {
            return;
        }
        if broker.session_count() >= MAX_SESSIONS {
            tokio::time::sleep(PAUSE).await;
            continue;
        }
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // Who comes now is another broker's to serve, or waits a moment.
            () = broker.handover.held() => continue,
        };
        let channel = accepted.and_then(|(stream, _)| stream.into_std().map(OwnedFd::from));
        if let Err(error) = channel.and_then(|channel| open(&broker, channel)) {
            tracing::warn!(%error, "a peer of the control socket could not be served");
            tokio::time::sleep(PAUSE).await;
        }
    }
}

fn open(broker: &Rc<Broker>, channel: OwnedFd) -> io::Result<()> {
    let (requester, pid) = peer_credentials::identify(&channel)?;
    match broker.accounts.seat(&requester) {
        Ok(seat) => session::open(broker, channel, requester, pid, seat).map(drop),
        Err((account, fault)) => {
            broker.counters.rejected.up();
            if account.may_log() {
                tracing::warn!(target: "audit", peer = %requester, pid, why = &*fault.message, "no session");
            }
            turn_away(channel, &fault);
            Ok(())
        }
    }
}

/// Says why there is no session to a peer that is there to read it.
fn turn_away(channel: OwnedFd, fault: &Fault) {
    let mut buffer = codec::frame_buffer();
    let channel = UnixDatagram::from(channel);
    if channel.set_nonblocking(true).is_ok() {
        // What is left unread at the end would have the kernel throw away what is said.
        let _hello = channel::receive_bytes(&channel, &mut buffer);
        if let Ok(frame) = codec::encode(&mut buffer, Kind::FAULT, 0, 0, fault) {
            let _nobody_waits_for_it_to_read = channel::send_bytes(&channel, frame);
        }
    }
}
