"""The blocking client. Threads can share it: one of those that wait receives for all of them."""

from __future__ import annotations

import select
import socket
import threading
import time
from types import TracebackType
from typing import Any, Callable, Iterable, Iterator, Optional, Sequence, Union

from . import _channel, _lease, _listener
from ._channel import Channel
from ._connection import Connection, EventQueue, Outcome, Packet, Reply
from ._lease import AddressLike, AddressOptions
from ._listener import OpenSocket, ToListen
from .endpoint import Endpoint
from .errors import Error, SessionEnded, TimedOut
from .messages import (
    LISTEN_MODE,
    AddressPage,
    Announce,
    CurrentLimit,
    Event,
    Fault,
    Hello,
    Lease,
    Leases,
    ListAddresses,
    ListenOptions,
    MoveAddress,
    Ping,
    PolicyPage,
    PolicyRequest,
    Removals,
    RemoveAddress,
    RenewAddress,
    Request,
    SetLimit,
    Status,
    StatusRequest,
    Stop,
    Stopped,
    Subscribed,
    Welcome,
)

#: The longest wait of one call of poll(2), in seconds: it counts milliseconds in an int.
_LONGEST_WAIT = 3600.0


class Listener:
    """A listener. It stops at the end of a `with` block, for every process that has its socket."""

    def __init__(self, client: Client, opened: OpenSocket) -> None:
        #: Its number in the broker.
        self.id = opened.id
        #: What it is bound to.
        self.endpoint = opened.endpoint
        #: The socket: bound, listening, and blocking.
        self.socket = opened.socket
        self._client = client
        self._is_open = True

    def stop(self) -> None:
        """Stops the listener and closes the socket."""
        self._is_open = False
        self.socket.close()
        self._client.stop([self.id])

    def detach(self) -> socket.socket:
        """Takes the socket. The listener stays open until the session ends; the broker retains that of a worker."""
        self._is_open = False
        return self.socket

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_open:
            _unless_ended(self.stop)


def _unless_ended(end: Callable[[], object]) -> None:
    try:
        end()
    except SessionEnded:
        pass  # the end of the session has ended it already


class Events:
    """Events of the broker: iterate over them, or call `next`."""

    def __init__(self, client: Client, queue: EventQueue, recent: tuple[Event, ...], includes_all: bool) -> None:
        self._client = client
        self._queue = queue
        #: Events before the subscription, the oldest first.
        self.recent = recent
        #: Whether events that concern other peers are included.
        self.includes_all = includes_all

    def next(self, timeout: Optional[float] = None) -> Event:
        """Waits for an event. Raises `TimedOut`, or `SessionEnded` when no event follows."""
        return self._client._take_event(self._queue, timeout)

    def __iter__(self) -> Iterator[Event]:
        while True:
            yield self.next()

    def close(self) -> None:
        """Ends the subscription."""
        self._client._unsubscribe(self._queue.push)

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *_: object) -> None:
        _unless_ended(self.close)


class HeldAddress:
    """An address whose lease a thread renews. It is removed at the end of a `with` block."""

    def __init__(self, client: Client, renewal: _lease.Renewal, epoch: int) -> None:
        self._client = client
        self._renewal = renewal
        self._epoch = epoch
        self._is_released = False
        self._thread = threading.Thread(target=self._renew, name="portreeve-lease", daemon=True)
        self._thread.start()

    @property
    def lease(self) -> Lease:
        """The lease as the broker last confirmed it."""
        return self._renewal.lease

    @property
    def lost(self) -> Optional[Error]:
        """Why the address is lost, if it is. From then on this host must not use it."""
        return self._renewal.lost

    @property
    def removal_notice(self) -> Optional[float]:
        """Seconds from the notice until the broker removes the address, if it gave notice. Only a peer with `events` gets it."""
        return self._renewal.removal_notice

    def wait_lost(self, timeout: Optional[float] = None) -> Optional[Error]:
        """Waits until the address is lost, and returns the reason; None after the time limit."""
        self._client._wait_for(lambda: self.lost is not None or self._is_released, timeout)
        return self.lost

    def wait_removal_notice(self, timeout: Optional[float] = None) -> Optional[float]:
        """Waits for the notice; 0 if the address is lost, None after the time limit."""
        self._client._wait_for(lambda: self.removal_notice is not None or self.lost is not None, timeout)
        return 0.0 if self.lost is not None else self.removal_notice

    def remove(self) -> bool:
        """Removes the address. Returns whether the broker verified that this host no longer has it."""
        self.let_expire()
        reply = self._client.remove_addresses([self._renewal.address], self._epoch)
        return _lease.single_removal(reply).verified

    def let_expire(self) -> None:
        """Stops renewing. The address stays until its lease ends."""
        self._is_released = True
        self._client._wake()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> HeldAddress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.lost is not None:
            self.let_expire()
        elif not self._is_released:
            _unless_ended(self.remove)

    def _renew(self) -> None:
        renewal = self._renewal
        while renewal.lost is None:
            try:
                self._client._serve(lambda: self._is_released or renewal.is_due, renewal.interval)
            except TimedOut:
                pass  # it is time to renew
            except Error as why:
                renewal.lost = why
                break
            if self._is_released:
                break
            requested = _lease.clock()
            try:
                outcome: Outcome = self._client._reply(
                    renewal.request(), max(renewal.end - requested, 0), lambda: self._is_released
                )
            except Error as why:
                outcome = why
            if not self._is_released:
                renewal.handle(requested, outcome)
        self._client._forget_events(renewal.on_event)


class Client:
    """A session with the broker. Every method can raise an `Error`; a `Fault` is the broker's refusal.

    Use `Client.open`. The session ends at the end of a `with` block.
    """

    def __init__(self, channel: Channel, timeout: Optional[float] = None) -> None:
        self._channel = channel
        self._timeout = timeout
        self._connection = Connection()
        self._condition = threading.Condition()
        self._outgoing: dict[int, bytes] = {}
        self._has_receiver = False
        self._wake_receiver, self._waker = socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._waker.setblocking(False)

    @classmethod
    def open(cls, name: str, *, path: Optional[str] = None, timeout: Optional[float] = None) -> Client:
        """Opens a session.

        `name` identifies this program in the broker's logs. With `path`, the session is opened through that control socket.
        Without, the broker's worker uses its inherited channel, and another program the control socket in its usual place.
        `timeout` limits every request, in seconds; after that it raises `TimedOut`.
        """
        if path is None and _channel.has_inherited_channel():
            channel = _channel.inherited_channel()
        else:
            channel = _channel.connect(path or _channel.DEFAULT_SOCKET, timeout)
        return cls(channel, timeout)._begin(name)

    def _begin(self, name: str) -> Client:
        try:
            self._welcome = self._call(Hello(name, LISTEN_MODE))
        except BaseException:
            self.close()
            raise
        return self

    @property
    def welcome(self) -> Welcome:
        """The broker's reply to the opening: its identity, and the operations that this peer is allowed."""
        return self._welcome

    _welcome: Welcome

    def close(self) -> None:
        """Ends the session. Listeners of the control socket stop; the broker retains those of its worker for a while."""
        with self._condition:
            self._connection.end(SessionEnded("this program has closed the session"))
            self._condition.notify_all()
            self._wake()
            self._condition.wait_for(lambda: not self._has_receiver)
            self._channel.close()
            self._wake_receiver.close()
            self._waker.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def ping(self) -> None:
        """Checks that the broker responds."""
        self._call(Ping())

    def listen(
        self, endpoint: Union[str, Endpoint], options: Optional[ListenOptions] = None, *, kept: bool = True
    ) -> Listener:
        """Requests a listener, such as `"*:25"`. A repeated request for the same endpoint returns the same socket.

        Without `kept` the broker keeps no copy of the socket: the endpoint is free as soon as every copy is closed, and the
        listener ends with the session. That needs a permit with `unkept = true`.
        """
        request = _listener.listen_request(endpoint, options, kept, self.welcome)
        return Listener(self, _listener.open_one(request, self._reply(request, self._timeout), blocking=True))

    def listen_many(
        self, items: Sequence[ToListen], *, all_or_nothing: bool = False, kept: bool = True
    ) -> list[Union[Listener, Fault]]:
        """Requests up to 253 listeners in one round trip. Each result is a listener or the fault that prevented it."""
        request = _listener.listen_many_request(items, all_or_nothing, kept, self.welcome)
        opened = _listener.open_many(request, self._reply(request, self._timeout), blocking=True)
        return [Listener(self, one) if isinstance(one, OpenSocket) else one for one in opened]

    def stop(self, listeners: Iterable[int]) -> Stopped:
        """Stops up to 253 listeners by number."""
        stopped: Stopped = self._call(Stop(tuple(listeners)))
        return stopped

    def status(self, after: int = 0) -> Status:
        """The broker's state, with the page of listeners that begins after this number."""
        status: Status = self._call(StatusRequest(after))
        return status

    def policy(self, after: int = 0) -> PolicyPage:
        """One page of the rules that apply to this peer, of the topology and of the floating addresses."""
        page: PolicyPage = self._call(PolicyRequest(after))
        return page

    def set_limit(self, resource: str, soft: Optional[int] = None, hard: Optional[int] = None) -> CurrentLimit:
        """Sets a resource limit of this process, such as `nofile`, and returns that in force."""
        limit: CurrentLimit = self._call(SetLimit(resource, soft, hard))
        return limit

    def add_addresses(self, addresses: Iterable[AddressLike], options: Optional[AddressOptions] = None) -> Leases:
        """Adds addresses; renew their leases in time. The results are in the order of the request."""
        return self._leases(_lease.add_request(addresses, options))

    def renew_addresses(self, addresses: Iterable[AddressLike], *, lease: Optional[int] = None, epoch: int = 0) -> Leases:
        """Restarts the leases of addresses."""
        return self._leases(RenewAddress(_lease.parse_addresses(addresses), lease, epoch))

    def announce_addresses(self, addresses: Iterable[AddressLike], epoch: int = 0) -> Leases:
        """Announces addresses to the neighbours again."""
        return self._leases(Announce(_lease.parse_addresses(addresses), epoch))

    def move_addresses(
        self, addresses: Iterable[AddressLike], interface: str, *, epoch: int = 0, announce: bool = True
    ) -> Leases:
        """Moves addresses to another interface of this host."""
        return self._leases(MoveAddress(_lease.parse_addresses(addresses), interface, epoch, announce))

    def remove_addresses(self, addresses: Iterable[AddressLike], epoch: int = 0) -> Removals:
        """Removes addresses. The results are in the order of the request."""
        removals: Removals = self._call(RemoveAddress(_lease.parse_addresses(addresses), epoch))
        return removals

    def list_addresses(self, after: Optional[AddressLike] = None) -> AddressPage:
        """One page of the addresses that the broker manages."""
        page: AddressPage = self._call(ListAddresses(None if after is None else _lease.parse_address(after)))
        return page

    def hold_address(self, address: AddressLike, options: Optional[AddressOptions] = None) -> HeldAddress:
        """Adds an address and renews its lease in a thread, until it is removed or lost."""
        options, parsed = options or AddressOptions(), _lease.parse_address(address)
        renewal = _lease.Renewal(parsed, options)
        if "subscribe" in self.welcome.operations:
            self._subscribe(renewal.on_event, False)
        try:
            requested = _lease.clock()
            renewal.begin(requested, self.add_addresses([parsed], options))
        except BaseException:
            self._forget_events(renewal.on_event)
            raise
        return HeldAddress(self, renewal, options.epoch)

    def events(self, *, all_peers: bool = False) -> Events:
        """Subscribes to events; with `all_peers` also to those that concern other peers, if this peer is allowed `status`."""
        queue = EventQueue()
        subscribed = self._subscribe(queue.push, all_peers)
        with self._condition:
            queue.mark_seen(subscribed.recent)
        return Events(self, queue, subscribed.recent, subscribed.all)

    def _leases(self, request: Request) -> Leases:
        leases: Leases = self._call(request)
        return leases

    def _subscribe(self, sink: Callable[[Event], None], all_peers: bool) -> Subscribed:
        with self._condition:
            request = self._connection.subscribers.add(sink, all_peers)
        try:
            subscribed: Subscribed = self._call(request)
        except BaseException:
            self._forget_events(sink)
            raise
        return subscribed

    def _unsubscribe(self, sink: Callable[[Event], None]) -> None:
        with self._condition:
            request = self._connection.subscribers.remove(sink)
        if request is not None:
            self._call(request)

    def _forget_events(self, sink: Callable[[Event], None]) -> None:
        """Ends a subscription without a request: further events are ignored."""
        with self._condition:
            self._connection.subscribers.remove(sink)
            self._condition.notify_all()

    def _take_event(self, queue: EventQueue, timeout: Optional[float]) -> Event:
        self._serve(lambda: bool(queue), timeout)
        with self._condition:
            return queue.pop()

    def _call(self, request: Request) -> Any:
        """The message of the reply to a request."""
        return self._reply(request, self._timeout).message

    def _reply(self, request: Request, timeout: Optional[float], or_if: Callable[[], bool] = lambda: False) -> Reply:
        """Sends a request and waits for its reply, or until the condition `or_if`."""
        outcomes: list[Outcome] = []
        with self._condition:
            number, frame = self._connection.request(request, outcomes.append)
            self._outgoing[number] = frame
            self._flush()
            if self._outgoing:
                self._wake()
        try:
            self._serve(lambda: bool(outcomes) or or_if(), timeout)
            if not outcomes:
                raise TimedOut("the request was withdrawn")
        except BaseException:
            with self._condition:
                self._outgoing.pop(number, None)
                self._connection.abandon(number)
                for outcome in outcomes:
                    if isinstance(outcome, Reply):
                        Packet(b"", outcome.descriptors).close()
            raise
        (outcome,) = outcomes
        if isinstance(outcome, Reply):
            return outcome
        raise outcome

    def _wait_for(self, ready: Callable[[], bool], timeout: Optional[float]) -> None:
        """Waits for something that another thread brings about, or for the time limit."""
        with self._condition:
            self._condition.wait_for(ready, timeout)

    def _serve(self, ready: Callable[[], bool], timeout: Optional[float]) -> None:
        """Waits until `ready`; one thread receives meanwhile. Raises `TimedOut`, or the reason that the session ended."""
        end = None if timeout is None else time.monotonic() + timeout
        with self._condition:
            while not ready():
                if self._connection.closed is not None:
                    raise self._connection.closed
                remaining = None if end is None else end - time.monotonic()
                if remaining is not None and remaining <= 0:
                    raise TimedOut("the broker did not reply in time")
                if self._has_receiver:
                    self._condition.wait(remaining)
                else:
                    self._receive(remaining)

    def _receive(self, timeout: Optional[float]) -> None:
        """Waits for the channel without the lock, then receives and sends what is possible."""
        self._has_receiver = True
        try:
            poll = select.poll()
            poll.register(self._channel.fileno(), select.POLLIN | (select.POLLOUT if self._outgoing else 0))
            poll.register(self._wake_receiver.fileno(), select.POLLIN)
            self._condition.release()
            try:
                poll.poll(None if timeout is None else min(timeout, _LONGEST_WAIT) * 1000 + 1)
            finally:
                self._condition.acquire()
            try:
                self._wake_receiver.recv(4096)
            except BlockingIOError:
                pass  # nobody has woken this thread
            self._flush()
            self._receive_one()
        finally:
            self._has_receiver = False
            self._condition.notify_all()

    def _receive_one(self) -> None:
        if self._connection.closed is not None:
            return
        try:
            packet = self._channel.receive()
        except Error as why:
            return self._connection.end(why)
        if packet is not None:
            self._connection.receive(packet)
            if self._connection.closed is not None:
                self._channel.shut_down()

    def _flush(self) -> None:
        while self._outgoing and self._connection.closed is None:
            number = next(iter(self._outgoing))
            if not self._channel.send(self._outgoing[number]):
                return
            del self._outgoing[number]

    def _wake(self) -> None:
        """Wakes the thread that waits for the channel."""
        try:
            self._waker.send(b"\0", socket.MSG_NOSIGNAL)
        except OSError:
            pass  # it is awake if it has not read the last ones; the session is closed if there is no socket
