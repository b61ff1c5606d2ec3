"""The channel to the broker: one connected socket, of which every call returns at once.

Promises: a received descriptor is close-on-exec from the start and has an owner before anything else happens. One call
receives at most one frame and its descriptors, whatever the broker sends.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import socket
import time
from typing import NamedTuple, Optional

from ._connection import MAX_DESCRIPTORS, MAX_FRAME, Packet
from .errors import ConnectError, Error, ProtocolError, SessionEnded, printable

#: The path of the broker's control socket unless its configuration names another.
DEFAULT_SOCKET = "/run/portreeve/broker.sock"
#: The variable with the number of the worker's channel.
CHANNEL_VARIABLE = "PORTREEVE_CHANNEL"

_FIRST_DESCRIPTOR = 3
_CONTROL_BYTES = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)
#: The pause between two attempts to connect while the broker's queue is full.
CONNECT_PAUSE = 0.02
_REMEDIES = {
    errno.ENOENT: "Start portreeved, or name the control socket of its configuration",
    errno.ECONNREFUSED: "Start portreeved, or name the control socket of its configuration",
    errno.EACCES: "Run as a user or group that may write to the control socket: see socket_mode and socket_group in "
    "portreeve.conf(5)",
    errno.EPROTOTYPE: "This socket belongs to another program. Name the control socket of the broker",
}


class Channel:
    """The client's end of the channel. Its socket stays blocking, because other processes may share it."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._was_reset = False

    def fileno(self) -> int:
        """The number of its descriptor."""
        return self._socket.fileno()

    def send(self, frame: bytes) -> bool:
        """Sends a frame; False if the channel is full."""
        try:
            self._socket.send(frame, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except (BrokenPipeError, ConnectionResetError, ConnectionRefusedError):
            # The broker's last fault may still be queued, so the reason that the session ended is that of `receive`.
            return True
        except OSError as error:
            raise Error(f"cannot send a request to the broker: {error}") from error
        return True

    def receive(self) -> Optional[Packet]:
        """Receives a packet; None if none has arrived. Raises `SessionEnded` at the end of the session."""
        try:
            data, control, flags, _ = self._socket.recvmsg(
                MAX_FRAME, _CONTROL_BYTES, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
            )
        except BlockingIOError:
            return None
        except ConnectionResetError as error:
            # This is reported at most once, and what the broker sent before is still queued.
            if self._was_reset:
                raise _closed() from error
            self._was_reset = True
            return self.receive()
        except OSError as error:
            raise SessionEnded(f"cannot receive from the broker: {error}") from error
        packet = Packet(data, _descriptors(control), bool(flags & socket.MSG_CTRUNC))
        if flags & socket.MSG_TRUNC:
            packet.close()
            raise ProtocolError(f"a frame is longer than {MAX_FRAME} bytes")
        if not data:
            packet.close()
            raise _closed()
        return packet

    def shut_down(self) -> None:
        """Ends the session, also for threads that wait for a packet."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the broker has closed its end already

    def close(self) -> None:
        """Closes this copy of the channel."""
        self._socket.close()


def _descriptors(control: list[tuple[int, int, bytes]]) -> list[int]:
    received = array.array("i")
    for level, kind, data in control:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            received.frombytes(data[: len(data) - len(data) % received.itemsize])
    return list(received)


def _closed() -> SessionEnded:
    return SessionEnded("the broker closed the session. Sockets received from it remain usable")


def try_connect(path: str) -> Optional[Channel]:
    """Connects to the control socket; None if the broker has no room for a connection at the moment."""
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connected.setblocking(False)
        connected.connect(path)
        connected.setblocking(True)
    except BlockingIOError:
        connected.close()
        return None
    except (OSError, ValueError) as error:
        connected.close()
        remedy = _REMEDIES.get(getattr(error, "errno", None) or 0, "See connect(2)")
        raise ConnectError(f"cannot connect to the broker at {printable(path)}: {error}. {remedy}") from error
    return Channel(connected)


def connect(path: str, timeout: Optional[float]) -> Channel:
    """Connects to the control socket."""
    end = None if timeout is None else time.monotonic() + timeout
    while True:
        channel = try_connect(path)
        if channel is not None:
            return channel
        if end is not None and time.monotonic() >= end:
            raise ConnectError(f"cannot connect to the broker at {printable(path)}: it has not accepted the connection in time")
        time.sleep(CONNECT_PAUSE)


def has_inherited_channel() -> bool:
    """Whether this process is the broker's worker."""
    return CHANNEL_VARIABLE in os.environ


def inherited_channel() -> Channel:
    """Takes the channel that the broker gave to its worker."""
    value = os.environ.get(CHANNEL_VARIABLE)
    if value is None:
        raise ConnectError(
            f"cannot find the channel to the broker: {CHANNEL_VARIABLE} is not set. Start this program as the broker's "
            "worker, or connect to the control socket"
        )
    channel = take_inherited(_number(CHANNEL_VARIABLE, value))
    if (channel.family, channel.type) != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
        channel.close()
        raise ConnectError(f"descriptor {value} is not a sequenced-packet Unix socket. Start this program as the broker's worker")
    channel.setblocking(True)
    return Channel(channel)


class InheritedListener(NamedTuple):
    """A socket passed by LISTEN_FDS."""

    #: Its name in LISTEN_FDNAMES; `unknown` if it has none.
    name: str
    socket: socket.socket


def listeners_from_environment() -> list[InheritedListener]:
    """Takes the sockets that LISTEN_FDS passes to this process, in order; see sd_listen_fds(3).

    The list is empty if the variables are not set or name another process. Call it once, before other code opens descriptors.
    """
    process, count = os.environ.get("LISTEN_PID"), os.environ.get("LISTEN_FDS")
    if process is None or count is None or _number("LISTEN_PID", process) != os.getpid():
        return []
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    taken = []
    for index in range(_number("LISTEN_FDS", count)):
        name = names[index] if index < len(names) and names[index] else "unknown"
        taken.append(InheritedListener(name, take_inherited(_FIRST_DESCRIPTOR + index)))
    return taken


def _number(variable: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 10):
        raise ConnectError(f"{variable}={printable(value)!r} is not a number. The broker or the service manager sets this variable")
    return int(value)


def take_inherited(descriptor: int) -> socket.socket:
    """Takes ownership of a socket that survived exec(2)."""
    try:
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFD)
    except OSError:
        flags = fcntl.FD_CLOEXEC
    # A descriptor that survived exec(2) is not close-on-exec; one that Python opened, or that was taken before, is.
    if descriptor < _FIRST_DESCRIPTOR or flags & fcntl.FD_CLOEXEC:
        raise ConnectError(
            f"descriptor {descriptor} was not inherited, or was taken before. The broker or the service manager has to start this "
            "program"
        )
    os.set_inheritable(descriptor, False)
    return adopt(descriptor)


def adopt(descriptor: int) -> socket.socket:
    """A socket object that owns the descriptor. If it is not a socket, it is closed."""
    try:
        return socket.socket(fileno=descriptor)
    except OSError as error:
        os.close(descriptor)
        raise ProtocolError(f"descriptor {descriptor} is not a socket: {error}") from error
