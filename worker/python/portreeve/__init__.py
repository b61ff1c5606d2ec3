"""Client of Portreeve, a privileged-helper broker for Linux.

A daemon without privileges requests listeners on privileged ports, and IP addresses with leases::

    from portreeve import Client

    with Client.open("my-server") as client, client.listen("*:25") as listener:
        connection, peer = listener.socket.accept()

`Client` blocks, and threads can share it. `AsyncClient` is for asyncio. Both do the same.

After the end of the broker the sockets that a program has continue to work. Open another session then, and repeat the
requests: the same endpoint returns the same socket if the broker still has it.
"""

from ._aio import AsyncClient, AsyncEvents, AsyncHeldAddress, AsyncListener
from ._blocking import Client, Events, HeldAddress, Listener
from ._channel import DEFAULT_SOCKET, InheritedListener, listeners_from_environment
from ._lease import AddressOptions
from .errors import ConnectError, DescriptorsLost, Error, ProtocolError, RequestError, SessionEnded, TimedOut
from .messages import UNLIMITED, Event, EventCode, Fault, FaultCode, Lease, ListenOptions, Removal

__all__ = [
    "DEFAULT_SOCKET",
    "UNLIMITED",
    "AddressOptions",
    "AsyncClient",
    "AsyncEvents",
    "AsyncHeldAddress",
    "AsyncListener",
    "Client",
    "ConnectError",
    "DescriptorsLost",
    "Error",
    "Event",
    "EventCode",
    "Events",
    "Fault",
    "FaultCode",
    "HeldAddress",
    "InheritedListener",
    "Lease",
    "ListenOptions",
    "Listener",
    "ProtocolError",
    "Removal",
    "RequestError",
    "SessionEnded",
    "TimedOut",
    "listeners_from_environment",
]
