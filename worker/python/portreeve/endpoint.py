"""Endpoints: the addresses that listeners are bound to, in the notation of the configuration.

================================  ============================================
``*:25``, ``:25``                 TCP, all IPv4 addresses
``192.0.2.1:25``                  TCP, one IPv4 address
``[*]:25``, ``[::]:25``           TCP, all IPv6 addresses
``[2001:db8::1]:25``              TCP, one IPv6 address
``[fe80::1%eth0]:25``             TCP, a link-local IPv6 address on an interface
any of these with ``/udp``        UDP
``/run/mail.sock``                Unix stream socket
``seqpacket:/run/mail.sock``      Unix sequenced-packet socket
================================  ============================================
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
import socket
from typing import Annotated, Union

from ._wire import Choice, Text, ip_address, u16
from .errors import RequestError

MAX_PATH = 107
MAX_INTERFACE = 15


@dataclasses.dataclass(frozen=True)
class InetEndpoint:
    """An IP address and port; for a link-local IPv6 address also its interface."""

    address: ip_address
    port: u16
    scope: Annotated[str, Text(MAX_INTERFACE)] = ""

    def __str__(self) -> str:
        scope = f"%{self.scope}" if self.scope else ""
        if self.address.version == 6:
            return f"[{self.address}{scope}]:{self.port}"
        address = "*" if self.address.is_unspecified else str(self.address)
        return f"{address}{scope}:{self.port}"


@dataclasses.dataclass(frozen=True)
class Tcp(InetEndpoint):
    """A TCP socket."""


@dataclasses.dataclass(frozen=True)
class Udp(InetEndpoint):
    """A UDP socket."""

    def __str__(self) -> str:
        return f"{super().__str__()}/udp"


@dataclasses.dataclass(frozen=True)
class UnixStream:
    """A Unix stream socket."""

    path: Annotated[str, Text(MAX_PATH)]

    def __str__(self) -> str:
        return self.path


@dataclasses.dataclass(frozen=True)
class UnixSeqpacket:
    """A Unix sequenced-packet socket."""

    path: Annotated[str, Text(MAX_PATH)]

    def __str__(self) -> str:
        return f"seqpacket:{self.path}"


Endpoint = Union[Tcp, Udp, UnixStream, UnixSeqpacket]
AnyEndpoint = Annotated[Endpoint, Choice("Endpoint", (Tcp, Udp, UnixStream, UnixSeqpacket))]


def parse(text: Union[str, Endpoint]) -> Endpoint:
    """Parses the notation above. An endpoint is returned as it is."""
    if not isinstance(text, str):
        return text
    if text.startswith("seqpacket:"):
        return _path(UnixSeqpacket, text[len("seqpacket:") :])
    if text.startswith("/"):
        return _path(UnixStream, text)
    inet, slash, transport = text.partition("/")
    if slash and transport not in ("tcp", "udp"):
        raise RequestError(f"{transport!r} is not a transport: write tcp or udp")
    return _inet(Udp if transport == "udp" else Tcp, inet)


def _path(of: type[Union[UnixStream, UnixSeqpacket]], path: str) -> Endpoint:
    length = len(path.encode())
    if length > MAX_PATH:
        raise RequestError(f"the path has {length} bytes, and the path of a Unix socket has at most {MAX_PATH}")
    return of(path)


def _inet(of: type[Union[Tcp, Udp]], text: str) -> Endpoint:
    address, colon, port = text.rpartition(":")
    if not colon:
        raise RequestError(f"the port or the address is missing in {text!r}: write ADDRESS:PORT, [IPV6]:PORT or *:PORT")
    if not re.fullmatch("[0-9]{1,5}", port, re.ASCII) or not 0 < int(port) < 65536:
        raise RequestError(f"the port {port!r} is not a number from 1 to 65535")
    if not (address.startswith("[") and address.endswith("]")):
        try:
            return of(ipaddress.IPv4Address("0.0.0.0" if address in ("", "*") else address), int(port))
        except ValueError:
            raise RequestError(
                f"{address!r} is not an IPv4 address: write an IPv6 address in brackets, [2001:db8::1]:25, and an address "
                "instead of a host name"
            ) from None
    inner, percent, scope = address[1:-1].partition("%")
    try:
        ipv6 = ipaddress.IPv6Address("::" if inner == "*" else inner)
    except ValueError:
        raise RequestError(f"{inner!r} in brackets is not an IPv6 address") from None
    if percent and not re.fullmatch(f"[!-.0-~]{{1,{MAX_INTERFACE}}}", scope, re.ASCII):
        raise RequestError(f"{scope!r} is not an interface name of at most {MAX_INTERFACE} characters")
    return of(ipv6, int(port), scope)


def expected_socket(of: Endpoint) -> tuple[int, int]:
    """The family and type of an endpoint's socket."""
    if isinstance(of, InetEndpoint):
        family = socket.AF_INET if of.address.version == 4 else socket.AF_INET6
        return family, socket.SOCK_STREAM if isinstance(of, Tcp) else socket.SOCK_DGRAM
    return socket.AF_UNIX, socket.SOCK_STREAM if isinstance(of, UnixStream) else socket.SOCK_SEQPACKET
