"""What both clients share about leases: options, requests, and when a held lease is renewed or lost.

Promises: the owner learns of a loss before the lease ends at the broker, even if the broker hangs or misbehaves, because
the end is counted from before each request was sent. Events can only make the report earlier.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import time
from typing import Iterable, Optional, Union

from ._connection import Outcome, Reply
from ._wire import IpAddress
from .errors import Error, ProtocolError, RequestError, TimedOut
from .messages import AddAddress, Event, EventCode, Fault, FaultCode, Lease, Leases, Removal, Removals, RenewAddress

AddressLike = Union[str, IpAddress]

_LONGEST = 86_400.0
#: A lease is renewed after this part of its length, so that several attempts fit.
_PART = 5
_TEMPORARY = (FaultCode.BUSY, FaultCode.OS, FaultCode.NOT_LOCAL)


@dataclasses.dataclass(frozen=True)
class AddressOptions:
    """How an address is added."""

    #: Length of the lease in seconds, at least 3; the configured length if None. 0 is a permanent address.
    lease: Optional[int] = None
    #: Fencing token, from the party that decides which host owns the address; 0 if unused.
    epoch: int = 0
    #: Number of probes for another host that has the address, 0 to 3, of 200 ms each.
    probes: int = 3
    #: Whether the address is announced to the neighbours.
    announce: bool = True


def parse_address(address: AddressLike) -> IpAddress:
    """The address, which a text may be the notation of."""
    if not isinstance(address, str):
        return address
    try:
        return ipaddress.ip_address(address)
    except ValueError:
        raise RequestError(f"{address!r} is not an IP address") from None


def parse_addresses(addresses: Iterable[AddressLike]) -> tuple[IpAddress, ...]:
    """The addresses of a request."""
    return tuple(map(parse_address, addresses))


def add_request(addresses: Iterable[AddressLike], options: Optional[AddressOptions]) -> AddAddress:
    """The request to add addresses."""
    options = options or AddressOptions()
    return AddAddress(parse_addresses(addresses), options.lease, options.epoch, options.probes, options.announce)


def single_lease(reply: Leases) -> Lease:
    """The lease of a request for one address; followers come after it."""
    if not reply.results:
        raise ProtocolError("a reply has no result for the address")
    if isinstance(reply.results[0], Fault):
        raise reply.results[0]
    return reply.results[0]


def single_removal(reply: Removals) -> Removal:
    """The result of the removal of one address."""
    if not reply.results:
        raise ProtocolError("a reply has no result for the address")
    if isinstance(reply.results[0], Fault):
        raise reply.results[0]
    return reply.results[0]


def clock() -> float:
    """The clock of leases, which also counts while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Renewal:
    """The renewal of one lease."""

    lease: Lease

    def __init__(self, address: IpAddress, options: AddressOptions) -> None:
        self.address = address
        self._options = options
        #: Why the address is lost, if it is. From then on this host must not use it.
        self.lost: Optional[Error] = None
        #: Seconds until the broker removes the address, if it has given notice.
        self.removal_notice: Optional[float] = None
        #: Whether an event is a reason to renew at once.
        self.is_due = False

    def begin(self, requested: float, reply: Leases) -> None:
        """Handles the reply to the request for the address, which was sent at this time."""
        self.lease = single_lease(reply)
        self._length = min(max(self.lease.remaining_ms / 1000, 1.0), _LONGEST)
        self.end = requested + self._length
        self.interval = self._length / _PART

    def request(self) -> RenewAddress:
        """The next request."""
        self.is_due = False
        return RenewAddress((self.address,), self._options.lease, self._options.epoch)

    def handle(self, requested: float, outcome: Outcome) -> None:
        """Handles the outcome of a request that was sent at this time."""
        try:
            if not isinstance(outcome, Reply):
                raise outcome
            assert isinstance(outcome.message, Leases)
            self.lease = single_lease(outcome.message)
            self.end = requested + self._length
        except TimedOut:
            message = f"the lease of {self.address} ended before the broker renewed it"
            self.lost = Fault(FaultCode.EXPIRED, message=message)
        except Fault as fault:
            # A temporary fault is retried while the lease lasts.
            if fault.code not in _TEMPORARY or clock() >= self.end:
                self.lost = fault
        except Error as why:
            self.lost = why

    def on_event(self, event: Event) -> None:
        """Handles an event. It may be about an earlier lease of the address, so it is only a reason to renew now."""
        if event.address != self.address:
            self.is_due |= event.code == EventCode.GAP
        elif event.code == EventCode.ADDRESS_LEAVING:
            self.removal_notice = event.count / 1000
        elif event.code == EventCode.ADDRESS_ADDED:
            self.removal_notice = None
        elif event.code not in (EventCode.ADDRESS_RESTORED, EventCode.ADDRESS_CONFLICT):
            self.is_due = True
