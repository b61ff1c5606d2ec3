"""The messages of the protocol, as WIRE.md lists them; the names and types of their fields are the same.

A request states its kind and the type of its reply. A program needs only the results: `Welcome`, `Status`, `Lease`,
`Event`, `PolicyPage` and their parts.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Annotated, ClassVar, Optional, Union

from ._wire import (
    ADDRESS,
    BOOL,
    U32,
    U64,
    ArrayOf,
    Choice,
    IpAddress,
    ListOf,
    Option,
    Struct,
    Text,
    Trailing,
    boolean,
    ip_address,
    u8,
    u16,
    u32,
    u64,
)
from .endpoint import MAX_INTERFACE, AnyEndpoint
from .errors import Error, printable

#: The feature "listen-mode": requests for listeners can have a mode.
LISTEN_MODE = 2

#: The value of a limit or a duration that has no end.
UNLIMITED = 2**64 - 1

PeerName = Annotated[str, Text(64)]
InterfaceName = Annotated[str, Text(MAX_INTERFACE)]
OptionU32 = Annotated[Optional[int], Option(U32)]
OptionU64 = Annotated[Optional[int], Option(U64)]
OptionBool = Annotated[Optional[bool], Option(BOOL)]
OptionAddress = Annotated[Optional[IpAddress], Option(ADDRESS)]
Until = Annotated[Optional[int], Trailing(U64)]
Numbers = Annotated[tuple[int, ...], ListOf(U64, 253)]
AddressList = Annotated[tuple[IpAddress, ...], ListOf(ADDRESS, 256)]


class FaultCode(enum.IntEnum):
    """The kind of a fault; see portreeve-faults(7)."""

    DENIED = 1
    NOT_RETAINED = 2
    IN_USE = 3
    NOT_LOCAL = 4
    UNKNOWN_INTERFACE = 5
    TENTATIVE = 6
    CONFLICT = 7
    QUOTA = 8
    MALFORMED = 9
    UNSUPPORTED = 10
    BUSY = 11
    EXPIRED = 12
    OS = 13
    NOT_FOUND = 14
    INVALID = 15


class EventCode(enum.IntEnum):
    """The kind of an event; see "Events" in WIRE.md."""

    GAP = 1
    ADDRESS_ADDED = 2
    ADDRESS_REMOVED = 3
    ADDRESS_LOST = 4
    ADDRESS_RESTORED = 5
    ADDRESS_CONFLICT = 6
    ADDRESS_EXPIRED = 7
    ADDRESS_LEAVING = 8
    ADDRESS_MOVED = 9
    LINK_UP = 10
    LINK_DOWN = 11
    LINK_GONE = 12
    LINK_RENAMED = 13
    WORKER_STARTED = 14
    WORKER_ENDED = 15
    RELOADED = 16
    RELOAD_FAILED = 17
    TAKEN_OVER = 18
    LISTENER_STARTED = 19
    LISTENER_STOPPING = 20
    LISTENER_LOST = 21
    LISTENER_RESTORED = 22


@dataclasses.dataclass(unsafe_hash=True)
class Fault(Error):
    """The broker refused a request or could not execute it. The session continues.

    Decide by ``code``, and show ``str(fault)`` to the user.
    """

    #: The kind of fault: a `FaultCode`, or a number that a later broker has added.
    code: u16
    #: The error number of the failed system call; 0 if none failed.
    errno: u32 = 0
    #: The object of the fault, such as the owner of an endpoint that is in use; may be empty.
    subject: Annotated[str, Text(128)] = ""
    #: What failed, and its cause.
    message: Annotated[str, Text(512)] = ""
    #: How to correct it; may be empty.
    remedy: Annotated[str, Text(512)] = ""

    @property
    def word(self) -> str:
        """The word for the code, such as ``in-use``."""
        try:
            return FaultCode(self.code).name.lower().replace("_", "-")
        except ValueError:
            return f"fault {self.code}"

    def __str__(self) -> str:
        return printable(f"{self.message}. {self.remedy}" if self.remedy else self.message)


class Request:
    """A message that the broker replies to."""

    KIND: ClassVar[int]
    REPLY: ClassVar[type]


@dataclasses.dataclass(frozen=True)
class Welcome:
    """The broker's reply to the opening of the session."""

    broker: u32
    release: Annotated[str, Text(32)]
    features: u64
    capabilities: u64
    peer: PeerName
    operations: Annotated[tuple[str, ...], ListOf(Text(16), 32)]


@dataclasses.dataclass(frozen=True)
class Hello(Request):
    """Opens the session."""

    KIND = 1
    REPLY = Welcome

    client: PeerName
    features: u64 = 0


@dataclasses.dataclass(frozen=True)
class Pong:
    """The broker responds."""


@dataclasses.dataclass(frozen=True)
class Ping(Request):
    """Checks that the broker responds."""

    KIND = 2
    REPLY = Pong


@dataclasses.dataclass(frozen=True)
class ListenOptions:
    """The options of a listener's socket. An option that is not set has the value of the broker's configuration."""

    #: Length of the accept queue, limited by net.core.somaxconn; see listen(2).
    backlog: OptionU32 = None
    #: SO_REUSEPORT: several sockets may share the endpoint.
    reuse_port: boolean = False
    #: Accept IPv4 as well on an IPv6 wildcard: IPV6_V6ONLY is off.
    dual_stack: boolean = False
    #: IP_FREEBIND: bind an address that this host does not have yet.
    free_bind: boolean = False
    #: SO_BINDTODEVICE: receive packets of this interface only; empty for all.
    device: InterfaceName = ""
    #: SO_RCVBUF in bytes; 0 leaves the size to the kernel.
    receive_buffer: OptionU32 = None
    #: SO_SNDBUF in bytes; 0 leaves the size to the kernel.
    send_buffer: OptionU32 = None
    #: TCP_NODELAY, which accepted connections inherit.
    no_delay: OptionBool = None
    #: TCP_DEFER_ACCEPT in seconds; 0 turns it off.
    defer_accept: u32 = 0
    #: TCP_FASTOPEN: maximum number of connections whose handshake is not complete; 0 turns it off.
    fast_open: u32 = 0
    #: The permission bits of a Unix socket's file.
    mode: OptionU32 = None


@dataclasses.dataclass(frozen=True)
class Listening:
    """A listener is open."""

    id: u64


@dataclasses.dataclass(frozen=True)
class ListenMode:
    """Who has the socket of a listener."""

    #: The broker keeps a copy of the socket.
    kept: boolean = True
    #: The request stands for a bind(2) of a program that the peer supervises.
    intercepted: boolean = False


OptionalMode = Annotated[Optional[ListenMode], Trailing(Struct(ListenMode))]


@dataclasses.dataclass(frozen=True)
class Listen(Request):
    """Opens a listener."""

    KIND = 3
    REPLY = Listening

    endpoint: AnyEndpoint
    options: ListenOptions = ListenOptions()
    mode: OptionalMode = None


@dataclasses.dataclass(frozen=True)
class ListenItem:
    """One listener of a batch."""

    endpoint: AnyEndpoint
    options: ListenOptions = ListenOptions()


Outcome = Union[Listening, Fault]


@dataclasses.dataclass(frozen=True)
class ListeningMany:
    """The result of each listener of a batch."""

    results: Annotated[tuple[Outcome, ...], ListOf(Choice("Outcome", (Listening, Fault)), 253)]


@dataclasses.dataclass(frozen=True)
class ListenMany(Request):
    """Opens several listeners."""

    KIND = 4
    REPLY = ListeningMany

    all_or_nothing: boolean
    listeners: Annotated[tuple[ListenItem, ...], ListOf(Struct(ListenItem), 253)]
    mode: OptionalMode = None


@dataclasses.dataclass(frozen=True)
class Stopped:
    """Listeners were stopped."""

    #: The numbers that are not listeners of this peer; they are ignored.
    unknown: Numbers
    #: The numbers of stopped listeners that a process with a copy of the socket can listen on again.
    not_revoked: Numbers


@dataclasses.dataclass(frozen=True)
class Stop(Request):
    """Stops listeners."""

    KIND = 5
    REPLY = Stopped

    listeners: Numbers


@dataclasses.dataclass(frozen=True)
class Credentials:
    """The credentials of a process, as in /proc/pid/status."""

    uid: Annotated[tuple[int, ...], ArrayOf(U32, 4)]
    gid: Annotated[tuple[int, ...], ArrayOf(U32, 4)]
    groups: Annotated[tuple[int, ...], ListOf(U32, 64)]
    inheritable: u64
    permitted: u64
    effective: u64
    bounding: u64
    ambient: u64
    no_new_privs: boolean
    seccomp: u8


@dataclasses.dataclass(frozen=True)
class Process:
    """A process of the broker."""

    role: Annotated[str, Text(16)]
    pid: u32
    restarts: u32
    root: Annotated[str, Text(256)]
    credentials: Credentials
    locks: Annotated[tuple[str, ...], ListOf(Text(128), 8)]


@dataclasses.dataclass(frozen=True)
class Quota:
    """A quota of one peer."""

    name: Annotated[str, Text(32)]
    limit: u64


@dataclasses.dataclass(frozen=True)
class Session:
    """An open session."""

    id: u64
    peer: PeerName
    client: PeerName
    pid: u32
    listeners: u32
    refused: u64


@dataclasses.dataclass(frozen=True)
class Listener:
    """A listener in the status of the broker."""

    id: u64
    endpoint: Annotated[str, Text(128)]
    owner: PeerName
    retained: boolean


@dataclasses.dataclass(frozen=True)
class Status:
    """The state of the broker, with one page of its listeners."""

    release: Annotated[str, Text(32)]
    uptime_ms: u64
    processes: Annotated[tuple[Process, ...], ListOf(Struct(Process), 8)]
    warnings: Annotated[tuple[str, ...], ListOf(Text(256), 16)]
    quotas: Annotated[tuple[Quota, ...], ListOf(Struct(Quota), 16)]
    listeners_held: u64
    sessions: Annotated[tuple[Session, ...], ListOf(Struct(Session), 64)]
    listeners: Annotated[tuple[Listener, ...], ListOf(Struct(Listener), 128)]
    #: The value of ``after`` for the next page; 0 if this page is the last.
    next: u64


@dataclasses.dataclass(frozen=True)
class StatusRequest(Request):
    """Requests the broker's state."""

    KIND = 6
    REPLY = Status

    after: u64 = 0


@dataclasses.dataclass(frozen=True)
class Lease:
    """An address that this host has until its lease ends."""

    address: ip_address
    interface: InterfaceName
    prefix: u8
    #: Milliseconds until the lease ends; `UNLIMITED` if the address is permanent.
    remaining_ms: u64
    epoch: u64
    follows: OptionAddress


@dataclasses.dataclass(frozen=True)
class LeaseTimes:
    """The ends of leases on the broker's CLOCK_BOOTTIME."""

    now: u64
    deadlines: Annotated[tuple[int, ...], ListOf(U64, 256)]


LeaseOutcome = Union[Lease, Fault]


@dataclasses.dataclass(frozen=True)
class Leases:
    """The result of each address, then of each follower."""

    results: Annotated[tuple[LeaseOutcome, ...], ListOf(Choice("LeaseOutcome", (Lease, Fault)), 256)]
    times: Annotated[Optional[LeaseTimes], Trailing(Struct(LeaseTimes))] = None


@dataclasses.dataclass(frozen=True)
class AddAddress(Request):
    """Adds addresses to this host."""

    KIND = 7
    REPLY = Leases

    addresses: AddressList
    lease: OptionU32
    epoch: u64
    probes: u8
    announce: boolean
    until: Until = None


@dataclasses.dataclass(frozen=True)
class RenewAddress(Request):
    """Restarts the leases of addresses."""

    KIND = 8
    REPLY = Leases

    addresses: AddressList
    lease: OptionU32
    epoch: u64
    until: Until = None


@dataclasses.dataclass(frozen=True)
class Removal:
    """An address was removed."""

    address: ip_address
    #: Whether the kernel's routing tables confirm that this host no longer has the address.
    verified: boolean


RemoveOutcome = Union[Removal, Fault]


@dataclasses.dataclass(frozen=True)
class Removals:
    """The result of each address, then of each follower."""

    results: Annotated[tuple[RemoveOutcome, ...], ListOf(Choice("RemoveOutcome", (Removal, Fault)), 256)]


@dataclasses.dataclass(frozen=True)
class RemoveAddress(Request):
    """Removes addresses from this host."""

    KIND = 9
    REPLY = Removals

    addresses: AddressList
    epoch: u64


@dataclasses.dataclass(frozen=True)
class Announce(Request):
    """Announces addresses to the neighbours again."""

    KIND = 10
    REPLY = Leases

    addresses: AddressList
    epoch: u64


@dataclasses.dataclass(frozen=True)
class AddressRow:
    """An address that the broker manages."""

    lease: Lease
    holder: PeerName
    present: boolean


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What ends the leases if the broker does not."""

    ipv4_fenced: boolean
    ipv6_fenced: boolean


@dataclasses.dataclass(frozen=True)
class PageTimes:
    """The ends of the leases of a page."""

    leases: LeaseTimes
    bounds: Bounds


@dataclasses.dataclass(frozen=True)
class AddressPage:
    """One page of the addresses that the broker manages."""

    fenced: boolean
    addresses: Annotated[tuple[AddressRow, ...], ListOf(Struct(AddressRow), 256)]
    #: Whether more addresses follow: set ``after`` to the last address of this page.
    more: boolean
    times: Annotated[Optional[PageTimes], Trailing(Struct(PageTimes))] = None


@dataclasses.dataclass(frozen=True)
class ListAddresses(Request):
    """Requests the addresses that the broker manages."""

    KIND = 11
    REPLY = AddressPage

    after: OptionAddress = None


@dataclasses.dataclass(frozen=True)
class Link:
    """The state of an interface."""

    interface: InterfaceName
    index: u32
    up: boolean
    carrier: boolean
    mtu: u32


@dataclasses.dataclass(frozen=True)
class SetLink(Request):
    """Sets an interface up or down, or changes its MTU."""

    KIND = 12
    REPLY = Link

    interface: InterfaceName
    up: OptionBool = None
    mtu: OptionU32 = None


@dataclasses.dataclass(frozen=True)
class MoveAddress(Request):
    """Moves addresses to another interface of this host."""

    KIND = 13
    REPLY = Leases

    addresses: AddressList
    interface: InterfaceName
    epoch: u64
    announce: boolean


@dataclasses.dataclass(frozen=True)
class CurrentLimit:
    """A resource limit in force."""

    resource: Annotated[str, Text(16)]
    soft: u64
    hard: u64


@dataclasses.dataclass(frozen=True)
class SetLimit(Request):
    """Sets a resource limit of this process."""

    KIND = 14
    REPLY = CurrentLimit

    resource: Annotated[str, Text(16)]
    soft: OptionU64 = None
    hard: OptionU64 = None


@dataclasses.dataclass(frozen=True)
class PolicyRule:
    """A rule that allows this peer a request."""

    #: The position of the line, as ``file:line``.
    place: Annotated[str, Text(160)]
    text: Annotated[str, Text(160)]


@dataclasses.dataclass(frozen=True)
class TopologyBlock:
    """A block of addresses and its interface."""

    block: ip_address
    prefix: u8
    interface: InterfaceName
    mask: u8


@dataclasses.dataclass(frozen=True)
class FloatingAddress:
    """An address that moves between hosts."""

    address: ip_address
    name: PeerName
    preference: PeerName
    follows: OptionAddress
    interface: InterfaceName
    prefix: u8


@dataclasses.dataclass(frozen=True)
class PolicyPage:
    """One page of what applies to this peer."""

    nodename: PeerName
    lease: u32
    rules: Annotated[tuple[PolicyRule, ...], ListOf(Struct(PolicyRule), 64)]
    topology: Annotated[tuple[TopologyBlock, ...], ListOf(Struct(TopologyBlock), 64)]
    floating: Annotated[tuple[FloatingAddress, ...], ListOf(Struct(FloatingAddress), 64)]
    #: The value of ``after`` for the next page; 0 if this page is the last.
    next: u32


@dataclasses.dataclass(frozen=True)
class PolicyRequest(Request):
    """Requests the rules that apply to this peer."""

    KIND = 15
    REPLY = PolicyPage

    after: u32 = 0


@dataclasses.dataclass(frozen=True)
class Event:
    """Something that happened; see "Events" in WIRE.md. A field that does not apply to the code is 0, None or empty."""

    number: u64
    time_ms: u64
    #: An `EventCode`, or a number that a later broker has added.
    code: u16
    address: OptionAddress
    interface: InterfaceName
    index: u32
    pid: u32
    epoch: u64
    count: u64
    detail: Annotated[str, Text(256)]


@dataclasses.dataclass(frozen=True)
class Subscribed:
    """The reply to a subscription."""

    #: Whether events that concern other peers are included.
    all: boolean
    #: Recent events, the oldest first.
    recent: Annotated[tuple[Event, ...], ListOf(Struct(Event), 128)]


@dataclasses.dataclass(frozen=True)
class Subscribe(Request):
    """Requests events."""

    KIND = 16
    REPLY = Subscribed

    follow: boolean
    all: boolean


def gap(count: int) -> Event:
    """The event that stands for ``count`` missing events."""
    return Event(0, 0, EventCode.GAP, None, "", 0, 0, 0, count, "")
