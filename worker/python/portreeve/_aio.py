"""The client for asyncio. All calls belong to the loop in which the session was opened."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, AsyncIterator, Callable, Iterable, Optional, Sequence, Union

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

#: Packets that are received before other tasks of the loop run.
_PACKETS_AT_ONCE = 64


class AsyncListener:
    """A listener. It stops at the end of an `async with` block, for every process that has its socket."""

    def __init__(self, client: AsyncClient, opened: OpenSocket) -> None:
        #: Its number in the broker.
        self.id = opened.id
        #: What it is bound to.
        self.endpoint = opened.endpoint
        #: The socket: bound, listening, and not blocking, as asyncio needs it.
        self.socket = opened.socket
        self._client = client
        self._is_open = True

    async def stop(self) -> None:
        """Stops the listener and closes the socket. Close an asyncio server that uses the socket first."""
        self._is_open = False
        self.socket.close()
        await self._client.stop([self.id])

    def detach(self) -> socket.socket:
        """Takes the socket. The listener stays open until the session ends; the broker retains that of a worker."""
        self._is_open = False
        return self.socket

    async def __aenter__(self) -> AsyncListener:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._is_open:
            try:
                await self.stop()
            except SessionEnded:
                pass  # the end of the session has stopped it already


class AsyncEvents:
    """Events of the broker: iterate over them, or call `next`."""

    def __init__(self, client: AsyncClient, queue: EventQueue, recent: tuple[Event, ...], includes_all: bool) -> None:
        self._client = client
        self._queue = queue
        #: Events before the subscription, the oldest first.
        self.recent = recent
        #: Whether events that concern other peers are included.
        self.includes_all = includes_all

    async def next(self) -> Event:
        """Waits for an event. Raises `SessionEnded` when no event follows."""
        await self._client._wait_for(lambda: bool(self._queue))
        return self._queue.pop()

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            yield await self.next()

    async def close(self) -> None:
        """Ends the subscription."""
        await self._client._unsubscribe(self._queue.push)

    async def __aenter__(self) -> AsyncEvents:
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await self.close()
        except SessionEnded:
            pass  # the end of the session has ended the subscription already


class AsyncHeldAddress:
    """An address whose lease a task renews. It is removed at the end of an `async with` block."""

    def __init__(self, client: AsyncClient, renewal: _lease.Renewal, epoch: int) -> None:
        self._client = client
        self._renewal = renewal
        self._epoch = epoch
        self._is_released = False
        self._task = asyncio.get_running_loop().create_task(self._renew())

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

    async def wait_lost(self) -> Optional[Error]:
        """Waits until the address is lost, and returns the reason; None if it was released."""
        await asyncio.wait([self._task])
        return self.lost

    async def wait_removal_notice(self) -> Optional[float]:
        """Waits for the notice; 0 if the address is lost."""
        try:
            await self._client._wait_for(lambda: self.removal_notice is not None or self.lost is not None)
        except Error:
            return 0.0
        return 0.0 if self.lost is not None else self.removal_notice

    async def remove(self) -> bool:
        """Removes the address. Returns whether the broker verified that this host no longer has it."""
        await self.let_expire()
        reply = await self._client.remove_addresses([self._renewal.address], self._epoch)
        return _lease.single_removal(reply).verified

    async def let_expire(self) -> None:
        """Stops renewing. The address stays until its lease ends."""
        self._is_released = True
        self._task.cancel()
        await asyncio.wait([self._task])

    async def __aenter__(self) -> AsyncHeldAddress:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.lost is not None or self._is_released:
            return
        try:
            await self.remove()
        except SessionEnded:
            pass  # nothing renews the lease, so it ends

    async def _renew(self) -> None:
        renewal = self._renewal
        try:
            while renewal.lost is None:
                try:
                    await asyncio.wait_for(self._client._wait_for(lambda: renewal.is_due), renewal.interval)
                except asyncio.TimeoutError:
                    pass  # it is time to renew
                # Before Python 3.12, wait_for loses a cancellation that arrives together with its result.
                if self._is_released:
                    break
                requested = _lease.clock()
                outcome = await self._try(renewal.request(), renewal.end - requested)
                if self._is_released:
                    break
                renewal.handle(requested, outcome)
        except Error as why:
            renewal.lost = why
        finally:
            self._client._forget_events(renewal.on_event)

    async def _try(self, request: Request, timeout: float) -> Outcome:
        try:
            return await asyncio.wait_for(self._client._reply(request), timeout)
        except asyncio.TimeoutError:
            return TimedOut("the broker did not reply in time")
        except Error as why:
            return why


class AsyncClient:
    """A session with the broker. Every method can raise an `Error`; a `Fault` is the broker's refusal.

    Use `AsyncClient.open`. The session ends at the end of an `async with` block. Methods wait without a time limit: use
    `asyncio.wait_for`. A request whose task is cancelled may be executed all the same.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._connection = Connection()
        self._loop = asyncio.get_running_loop()
        self._outgoing: dict[int, bytes] = {}
        self._changed = self._loop.create_future()
        self._closed = self._loop.create_future()
        self._loop.add_reader(channel.fileno(), self._receive)

    _welcome: Welcome

    @classmethod
    async def open(cls, name: str, *, path: Optional[str] = None) -> AsyncClient:
        """Opens a session.

        `name` identifies this program in the broker's logs. With `path`, the session is opened through that control socket.
        Without, the broker's worker uses its inherited channel, and another program the control socket in its usual place.
        """
        if path is None and _channel.has_inherited_channel():
            channel = _channel.inherited_channel()
        else:
            channel = await _connect(path or _channel.DEFAULT_SOCKET)
        return await cls(channel)._begin(name)

    async def _begin(self, name: str) -> AsyncClient:
        try:
            self._welcome = await self._call(Hello(name, LISTEN_MODE))
        except BaseException:
            self.close()
            raise
        return self

    @property
    def welcome(self) -> Welcome:
        """The broker's reply to the opening: its identity, and the operations that this peer is allowed."""
        return self._welcome

    async def wait_closed(self) -> None:
        """Waits until the session has ended."""
        await asyncio.shield(self._closed)

    def close(self) -> None:
        """Ends the session. Listeners of the control socket stop; the broker retains those of its worker for a while."""
        self._end(SessionEnded("this program has closed the session"))

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def ping(self) -> None:
        """Checks that the broker responds."""
        await self._call(Ping())

    async def listen(
        self, endpoint: Union[str, Endpoint], options: Optional[ListenOptions] = None, *, kept: bool = True
    ) -> AsyncListener:
        """Requests a listener, such as `"*:25"`. A repeated request for the same endpoint returns the same socket.

        Without `kept` the broker keeps no copy of the socket: the endpoint is free as soon as every copy is closed, and the
        listener ends with the session. That needs a permit with `unkept = true`.
        """
        request = _listener.listen_request(endpoint, options, kept, self.welcome)
        return AsyncListener(self, _listener.open_one(request, await self._reply(request), blocking=False))

    async def listen_many(
        self, items: Sequence[ToListen], *, all_or_nothing: bool = False, kept: bool = True
    ) -> list[Union[AsyncListener, Fault]]:
        """Requests up to 253 listeners in one round trip. Each result is a listener or the fault that prevented it."""
        request = _listener.listen_many_request(items, all_or_nothing, kept, self.welcome)
        opened = _listener.open_many(request, await self._reply(request), blocking=False)
        return [AsyncListener(self, one) if isinstance(one, OpenSocket) else one for one in opened]

    async def stop(self, listeners: Iterable[int]) -> Stopped:
        """Stops up to 253 listeners by number."""
        stopped: Stopped = await self._call(Stop(tuple(listeners)))
        return stopped

    async def status(self, after: int = 0) -> Status:
        """The broker's state, with the page of listeners that begins after this number."""
        status: Status = await self._call(StatusRequest(after))
        return status

    async def policy(self, after: int = 0) -> PolicyPage:
        """One page of the rules that apply to this peer, of the topology and of the floating addresses."""
        page: PolicyPage = await self._call(PolicyRequest(after))
        return page

    async def set_limit(self, resource: str, soft: Optional[int] = None, hard: Optional[int] = None) -> CurrentLimit:
        """Sets a resource limit of this process, such as `nofile`, and returns that in force."""
        limit: CurrentLimit = await self._call(SetLimit(resource, soft, hard))
        return limit

    async def add_addresses(self, addresses: Iterable[AddressLike], options: Optional[AddressOptions] = None) -> Leases:
        """Adds addresses; renew their leases in time. The results are in the order of the request."""
        return await self._leases(_lease.add_request(addresses, options))

    async def renew_addresses(
        self, addresses: Iterable[AddressLike], *, lease: Optional[int] = None, epoch: int = 0
    ) -> Leases:
        """Restarts the leases of addresses."""
        return await self._leases(RenewAddress(_lease.parse_addresses(addresses), lease, epoch))

    async def announce_addresses(self, addresses: Iterable[AddressLike], epoch: int = 0) -> Leases:
        """Announces addresses to the neighbours again."""
        return await self._leases(Announce(_lease.parse_addresses(addresses), epoch))

    async def move_addresses(
        self, addresses: Iterable[AddressLike], interface: str, *, epoch: int = 0, announce: bool = True
    ) -> Leases:
        """Moves addresses to another interface of this host."""
        return await self._leases(MoveAddress(_lease.parse_addresses(addresses), interface, epoch, announce))

    async def remove_addresses(self, addresses: Iterable[AddressLike], epoch: int = 0) -> Removals:
        """Removes addresses. The results are in the order of the request."""
        removals: Removals = await self._call(RemoveAddress(_lease.parse_addresses(addresses), epoch))
        return removals

    async def list_addresses(self, after: Optional[AddressLike] = None) -> AddressPage:
        """One page of the addresses that the broker manages."""
        page: AddressPage = await self._call(ListAddresses(None if after is None else _lease.parse_address(after)))
        return page

    async def hold_address(self, address: AddressLike, options: Optional[AddressOptions] = None) -> AsyncHeldAddress:
        """Adds an address and renews its lease in a task, until it is removed or lost."""
        options, parsed = options or AddressOptions(), _lease.parse_address(address)
        renewal = _lease.Renewal(parsed, options)
        if "subscribe" in self.welcome.operations:
            await self._subscribe(renewal.on_event, False)
        try:
            requested = _lease.clock()
            renewal.begin(requested, await self.add_addresses([parsed], options))
        except BaseException:
            self._forget_events(renewal.on_event)
            raise
        return AsyncHeldAddress(self, renewal, options.epoch)

    async def events(self, *, all_peers: bool = False) -> AsyncEvents:
        """Subscribes to events; with `all_peers` also to those that concern other peers, if this peer is allowed `status`."""
        queue = EventQueue()
        subscribed = await self._subscribe(queue.push, all_peers)
        queue.mark_seen(subscribed.recent)
        return AsyncEvents(self, queue, subscribed.recent, subscribed.all)

    async def _leases(self, request: Request) -> Leases:
        leases: Leases = await self._call(request)
        return leases

    async def _subscribe(self, sink: Callable[[Event], None], all_peers: bool) -> Subscribed:
        try:
            subscribed: Subscribed = await self._call(self._connection.subscribers.add(sink, all_peers))
        except BaseException:
            self._forget_events(sink)
            raise
        return subscribed

    async def _unsubscribe(self, sink: Callable[[Event], None]) -> None:
        request = self._connection.subscribers.remove(sink)
        if request is not None:
            await self._call(request)

    def _forget_events(self, sink: Callable[[Event], None]) -> None:
        """Ends a subscription without a request: further events are ignored."""
        self._connection.subscribers.remove(sink)
        self._notify()

    async def _call(self, request: Request) -> Any:
        """The message of the reply to a request."""
        return (await self._reply(request)).message

    async def _reply(self, request: Request) -> Reply:
        replied: asyncio.Future[Outcome] = self._loop.create_future()

        def deliver(outcome: Outcome) -> None:
            if not replied.done():
                replied.set_result(outcome)
            elif isinstance(outcome, Reply):
                Packet(b"", outcome.descriptors).close()

        number, frame = self._connection.request(request, deliver)
        self._outgoing[number] = frame
        self._flush()
        try:
            outcome = await replied
        except asyncio.CancelledError:
            # The reply may have arrived in the same turn of the loop.
            if replied.done() and not replied.cancelled():
                deliver(replied.result())
            self._outgoing.pop(number, None)
            self._connection.abandon(number)
            raise
        if isinstance(outcome, Reply):
            return outcome
        raise outcome

    async def _wait_for(self, ready: Callable[[], bool]) -> None:
        """Waits for something that a packet brings about. Raises the reason that the session ended."""
        while not ready():
            if self._connection.closed is not None:
                raise self._connection.closed
            await asyncio.shield(self._changed)

    def _notify(self) -> None:
        changed, self._changed = self._changed, self._loop.create_future()
        changed.set_result(None)

    def _receive(self) -> None:
        for _ in range(_PACKETS_AT_ONCE):
            try:
                packet = self._channel.receive()
            except Error as why:
                return self._end(why)
            if packet is None:
                break
            self._connection.receive(packet)
            if self._connection.closed is not None:
                self._channel.shut_down()
                return self._end(self._connection.closed)
        self._notify()

    def _flush(self) -> None:
        while self._outgoing:
            number = next(iter(self._outgoing))
            try:
                is_sent = self._channel.send(self._outgoing[number])
            except Error as why:
                return self._end(why)
            if not is_sent:
                return self._loop.add_writer(self._channel.fileno(), self._flush)
            del self._outgoing[number]
        self._loop.remove_writer(self._channel.fileno())

    def _end(self, why: Error) -> None:
        if self._closed.done():
            return
        self._loop.remove_reader(self._channel.fileno())
        self._loop.remove_writer(self._channel.fileno())
        self._channel.close()
        self._outgoing.clear()
        self._connection.end(why)
        self._closed.set_result(None)
        self._notify()


async def _connect(path: str) -> Channel:
    while True:
        channel = _channel.try_connect(path)
        if channel is not None:
            return channel
        await asyncio.sleep(_channel.CONNECT_PAUSE)
