"""What both clients share about listeners: requests and sockets."""

from __future__ import annotations

import dataclasses
import socket
from typing import Optional, Sequence, Union

from . import endpoint as endpoints
from ._channel import adopt
from ._connection import Packet, Reply
from .endpoint import Endpoint
from .errors import Error, ProtocolError, RequestError
from .messages import (
    LISTEN_MODE,
    Fault,
    Listen,
    Listening,
    ListeningMany,
    ListenItem,
    ListenMany,
    ListenMode,
    ListenOptions,
    Welcome,
)

#: The length of the accept queue of a Unix socket for which none is requested. net.core.somaxconn limits it.
UNIX_BACKLOG = 500

#: An endpoint, or an endpoint with its options.
ToListen = Union[str, Endpoint, tuple[Union[str, Endpoint], ListenOptions]]


@dataclasses.dataclass(frozen=True)
class OpenSocket:
    """A listener that the broker has opened."""

    id: int
    endpoint: Endpoint
    socket: socket.socket


def listen_request(
    endpoint: Union[str, Endpoint], options: Optional[ListenOptions], kept: bool, welcome: Welcome
) -> Listen:
    """The request for one listener."""
    return Listen(endpoints.parse(endpoint), options or ListenOptions(), _mode(kept, welcome))


def listen_many_request(items: Sequence[ToListen], all_or_nothing: bool, kept: bool, welcome: Welcome) -> ListenMany:
    """The request for several listeners."""
    return ListenMany(all_or_nothing, tuple(map(_item, items)), _mode(kept, welcome))


def _item(item: ToListen) -> ListenItem:
    endpoint, options = item if isinstance(item, tuple) else (item, ListenOptions())
    return ListenItem(endpoints.parse(endpoint), options)


def _mode(kept: bool, welcome: Welcome) -> Optional[ListenMode]:
    if kept:
        return None
    if not welcome.features & LISTEN_MODE:
        raise RequestError("the broker is of an earlier release and keeps a copy of every listener; request it with kept=True")
    return ListenMode(kept=False)


def open_one(request: Listen, reply: Reply, blocking: bool) -> OpenSocket:
    """The listener of a reply."""
    assert isinstance(reply.message, Listening)
    (opened,) = _open([(ListenItem(request.endpoint, request.options), reply.message)], reply, blocking)
    if isinstance(opened, Fault):
        raise opened
    return opened


def open_many(request: ListenMany, reply: Reply, blocking: bool) -> list[Union[OpenSocket, Fault]]:
    """The listeners of a reply."""
    assert isinstance(reply.message, ListeningMany)
    if len(reply.message.results) != len(request.listeners):
        Packet(b"", reply.descriptors).close()
        raise ProtocolError(f"{len(request.listeners)} listeners have {len(reply.message.results)} results")
    return _open(list(zip(request.listeners, reply.message.results)), reply, blocking)


def _open(
    pairs: Sequence[tuple[ListenItem, Union[Listening, Fault]]], reply: Reply, blocking: bool
) -> list[Union[OpenSocket, Fault]]:
    opened: list[Union[OpenSocket, Fault]] = []
    remaining = Packet(b"", reply.descriptors)
    try:
        for request, result in pairs:
            if isinstance(result, Fault):
                opened.append(result)
            else:
                received = adopt(remaining.descriptors.pop(0))
                opened.append(OpenSocket(result.id, request.endpoint, received))
                _prepare(request, received, blocking)
    except Error:
        for one in opened:
            if isinstance(one, OpenSocket):
                one.socket.close()
        raise
    finally:
        remaining.close()
    return opened


def _prepare(request: ListenItem, received: socket.socket, blocking: bool) -> None:
    if (received.family, received.type) != endpoints.expected_socket(request.endpoint):
        raise ProtocolError(f"the socket for {request.endpoint} is of another kind: {received}")
    try:
        # The flag is a property of the open file, so it may be in any state: an earlier worker had the same socket.
        received.setblocking(blocking)
        if received.family == socket.AF_UNIX:
            # The broker leaves this to its peer: clients see the credentials of the process that calls it.
            backlog = request.options.backlog
            received.listen(UNIX_BACKLOG if backlog is None else min(backlog, 2**31 - 1))
    except OSError as error:
        raise Error(f"cannot prepare the socket for {request.endpoint}: {error}") from error
