"""The state of a session without input and output: the requests in flight, and the assignment of frames to them.

Promises: replies can arrive in any order, and each reaches its request with exactly the descriptors that belong to it.
Every other descriptor is closed. If a frame is not what the protocol says, the session ends for all callers.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import struct
from typing import Callable, Optional, Sequence, Union

from . import _wire
from .errors import DescriptorsLost, Error, ProtocolError, SessionEnded
from .messages import Event, EventCode, Fault, Listening, ListeningMany, Request, Subscribe, gap

MAX_FRAME = 65536
MAX_DESCRIPTORS = 253
VERSION = 1
MAGIC = b"PRTV"
HEADER = struct.Struct("<4sHHIHBB")  # magic, version, kind, request, body, descriptors, reserved
REPLY = 0x8000
FAULT = 0xFFFF
EVENT = 0xFFFE
LAST_REQUEST = 2**32 - 1
MAX_QUEUED_EVENTS = 256


@dataclasses.dataclass
class Packet:
    """A received packet. It owns its descriptors until :meth:`take`."""

    data: bytes
    descriptors: list[int] = dataclasses.field(default_factory=list)
    descriptors_lost: bool = False

    def take(self) -> list[int]:
        """Gives up the descriptors."""
        taken, self.descriptors = self.descriptors, []
        return taken

    def close(self) -> None:
        """Closes the descriptors."""
        for descriptor in self.take():
            os.close(descriptor)


@dataclasses.dataclass
class Reply:
    """A reply, and the descriptors that belong to it, which the receiver owns."""

    message: object
    descriptors: list[int]


Outcome = Union[Reply, Error]
Deliver = Callable[[Outcome], None]


def encode(kind: int, request: int, body: bytes) -> bytes:
    """A frame without descriptors."""
    return HEADER.pack(MAGIC, VERSION, kind, request, len(body), 0, 0) + body


class Connection:
    """See the module. It is not synchronized: one thread at a time may use it."""

    def __init__(self) -> None:
        self._last_request = 0
        self._in_flight: dict[int, tuple[type[Request], Optional[Deliver]]] = {}
        #: The reason that the session ended, if it has.
        self.closed: Optional[Error] = None
        self.subscribers = Subscribers()

    def request(self, message: Request, deliver: Deliver) -> tuple[int, bytes]:
        """Returns the number and the frame of a request. `deliver` is called once, with its outcome."""
        if self.closed is not None:
            raise self.closed
        body = _wire.encode(message)
        number = self._last_request
        while True:
            number = number + 1 if number < LAST_REQUEST else 1
            if number not in self._in_flight:
                break
        self._last_request = number
        self._in_flight[number] = (type(message), deliver)
        return number, encode(message.KIND, number, body)

    def abandon(self, number: int) -> None:
        """Records that nobody waits for this reply. Its descriptors are closed when it arrives."""
        if number in self._in_flight:
            self._in_flight[number] = (self._in_flight[number][0], None)

    def end(self, why: Error) -> None:
        """Ends the session for all callers. The first reason counts."""
        if self.closed is None:
            self.closed = why
        waiting, self._in_flight = self._in_flight, {}
        for _, deliver in waiting.values():
            if deliver is not None:
                deliver(self.closed)

    def receive(self, packet: Packet) -> None:
        """Handles a packet. Afterwards `closed` is set if it has ended the session."""
        try:
            self._receive(packet)
        except Error as why:
            self.end(why)
        finally:
            packet.close()

    def _receive(self, packet: Packet) -> None:
        if self.closed is not None:
            return
        if len(packet.data) < HEADER.size:
            raise ProtocolError(f"a frame has {len(packet.data)} bytes")
        magic, version, kind, request, length, declared, reserved = HEADER.unpack_from(packet.data)
        body = packet.data[HEADER.size :]
        if magic != MAGIC:
            raise ProtocolError("a frame does not begin with PRTV")
        if version != VERSION:
            raise ProtocolError(f"it speaks version {version}, this program version {VERSION}. Install the same release of both")
        if length != len(body) or reserved != 0:
            raise ProtocolError("the header of a frame does not agree with its length")
        received = len(packet.descriptors)
        if declared > MAX_DESCRIPTORS or not (declared > 0 if packet.descriptors_lost else declared == received):
            raise ProtocolError(f"a frame declares {declared} descriptors and {received} were received")
        if request == 0:
            return self._receive_unrequested(kind, body)
        if request not in self._in_flight:
            raise ProtocolError(f"it sent a reply to request {request}, which is not in flight")
        of, deliver = self._in_flight[request]
        outcome = self._outcome(of, kind, body, packet)
        del self._in_flight[request]
        if deliver is not None:
            deliver(outcome)
        elif isinstance(outcome, Reply):
            Packet(b"", outcome.descriptors).close()

    def _receive_unrequested(self, kind: int, body: bytes) -> None:
        if kind == FAULT:
            fault = _wire.decode(Fault, body)
            raise SessionEnded(f"the broker ended the session: {fault}", fault)
        if kind == EVENT:
            self.subscribers.deliver(_wire.decode(Event, body))
        # A later broker may send other frames without a request.

    def _outcome(self, of: type[Request], kind: int, body: bytes, packet: Packet) -> Outcome:
        if packet.descriptors_lost:
            return DescriptorsLost()
        if kind == FAULT:
            outcome: Outcome = _wire.decode(Fault, body)
        elif kind == of.KIND | REPLY:
            outcome = Reply(_wire.decode(of.REPLY, body), packet.descriptors)
        else:
            raise ProtocolError(f"the reply to {of.__name__} has the kind {kind:#06x}")
        if len(packet.descriptors) != _sockets(outcome):
            raise ProtocolError(f"a reply has {len(packet.descriptors)} descriptors instead of {_sockets(outcome)}")
        packet.take()
        return outcome


def _sockets(outcome: Outcome) -> int:
    """How many sockets belong to a reply."""
    message = outcome.message if isinstance(outcome, Reply) else None
    if isinstance(message, ListeningMany):
        return sum(isinstance(result, Listening) for result in message.results)
    return 1 if isinstance(message, Listening) else 0


class EventQueue:
    """Events that the program has not taken yet. If it is too slow, a gap takes the place of those that do not fit."""

    def __init__(self) -> None:
        self._events: collections.deque[Event] = collections.deque()
        self._lost = 0
        self._seen = 0

    def __bool__(self) -> bool:
        return bool(self._events or self._lost)

    def mark_seen(self, recent: Sequence[Event]) -> None:
        """Records the events of the reply to the subscription, so that they do not appear twice."""
        self._seen = recent[-1].number if recent else 0
        self._events = collections.deque(event for event in self._events if not self._is_seen(event))

    def _is_seen(self, event: Event) -> bool:
        return 0 < event.number <= self._seen

    def push(self, event: Event) -> None:
        """Adds an event."""
        if self._is_seen(event):
            return
        if self._lost or len(self._events) >= MAX_QUEUED_EVENTS:
            self._lost += event.count if event.code == EventCode.GAP else 1
        else:
            self._events.append(event)

    def pop(self) -> Event:
        """Takes the oldest event of a queue that is not empty."""
        if self._events:
            return self._events.popleft()
        lost, self._lost = self._lost, 0
        return gap(lost)


Sink = Callable[[Event], None]


class Subscribers:
    """The parts of this program that receive the events of a session, which has one subscription."""

    def __init__(self) -> None:
        self._sinks: dict[Sink, bool] = {}

    def add(self, sink: Sink, all_peers: bool) -> Subscribe:
        """Adds a receiver, and returns the request that serves all receivers."""
        self._sinks[sink] = all_peers
        return self._required()

    def remove(self, sink: Sink) -> Optional[Subscribe]:
        """Removes a receiver, and returns the request that serves the others; None if it was removed before."""
        return self._required() if self._sinks.pop(sink, None) is not None else None

    def _required(self) -> Subscribe:
        return Subscribe(follow=bool(self._sinks), all=any(self._sinks.values()))

    def deliver(self, event: Event) -> None:
        """Hands an event to every receiver."""
        for sink in list(self._sinks):
            sink(event)
