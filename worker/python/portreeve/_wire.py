"""The encoding of values: see "The body" in WIRE.md.

Promises: every value has exactly one encoding, and all other bytes are refused. A value that is decoded is never larger
than its bytes allow, and no length in a frame is trusted before it was compared with its maximum.

The codec of a message follows from the annotations of its dataclass, so a message is written as in WIRE.md::

    @dataclass(frozen=True)
    class Stop:
        listeners: Annotated[tuple[int, ...], ListOf(U64, 253)]

``str(codec)`` is the notation of WIRE.md; the tests compare the two.
"""

from __future__ import annotations

import dataclasses
import functools
import ipaddress
import struct
import typing
from typing import Annotated, Any, Callable, Optional, Union

from .errors import ProtocolError, RequestError

IpAddress = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]


class Reader:
    """The bytes of a body, read from the front."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        """Reads exactly this many bytes."""
        taken = self._data[self._at : self._at + count]
        if len(taken) != count:
            raise ProtocolError("a body ends within a value")
        self._at += count
        return taken

    def is_empty(self) -> bool:
        """Whether everything was read."""
        return self._at == len(self._data)


class Codec:
    """The encoding of one type."""

    def encode(self, out: bytearray, value: Any, what: str) -> None:
        """Appends a value. ``what`` names it in errors."""
        raise NotImplementedError

    def decode(self, data: Reader) -> Any:
        """Reads a value."""
        raise NotImplementedError


class Integer(Codec):
    """An unsigned integer."""

    def __init__(self, code: str) -> None:
        self._struct = struct.Struct("<" + code)

    def __str__(self) -> str:
        return f"u{8 * self._struct.size}"

    def encode(self, out: bytearray, value: Any, what: str) -> None:
        if not isinstance(value, int):
            raise RequestError(f"{what} is not an integer: {value!r}")
        try:
            out += self._struct.pack(value)
        except struct.error:
            raise RequestError(f"{what} is not in the range of {self}: {value}") from None

    def decode(self, data: Reader) -> Any:
        return self._struct.unpack(data.take(self._struct.size))[0]


U8, U16, U32, U64 = Integer("B"), Integer("H"), Integer("I"), Integer("Q")


class Bool(Codec):
    """A byte, 0 or 1."""

    def __str__(self) -> str:
        return "bool"

    def encode(self, out: bytearray, value: Any, what: str) -> None:
        if not isinstance(value, bool):
            raise RequestError(f"{what} is neither True nor False: {value!r}")
        out.append(value)

    def decode(self, data: Reader) -> Any:
        byte = U8.decode(data)
        if byte > 1:
            raise ProtocolError(f"a bool is {byte}")
        return byte == 1


BOOL = Bool()


@dataclasses.dataclass(frozen=True)
class Text(Codec):
    """A text of at most ``maximum`` bytes of UTF-8."""

    maximum: int

    def __str__(self) -> str:
        return f"text({self.maximum})"

    def encode(self, out: bytearray, value: Any, what: str) -> None:
        if not isinstance(value, str):
            raise RequestError(f"{what} is not a text: {value!r}")
        try:
            data = value.encode()
        except UnicodeEncodeError:
            raise RequestError(f"{what} is not valid Unicode: {value!r}") from None
        if len(data) > self.maximum:
            raise RequestError(
                f"{what} {value!r:.80} is too long: it has {len(data)} bytes, at most {self.maximum} are allowed"
            )
        U64.encode(out, len(data), what)
        out += data

    def decode(self, data: Reader) -> Any:
        length = U64.decode(data)
        if length > self.maximum:
            raise ProtocolError(f"a text has {length} bytes, at most {self.maximum} are allowed")
        try:
            return data.take(length).decode()
        except UnicodeDecodeError:
            raise ProtocolError("a text is not UTF-8") from None


@dataclasses.dataclass(frozen=True)
class Option(Codec):
    """A value, or None."""

    inner: Codec

    def __str__(self) -> str:
        return f"option({self.inner})"

    def encode(self, out: bytearray, value: Any, what: str) -> None:
        BOOL.encode(out, value is not None, what)
        if value is not None:
            self.inner.encode(out, value, what)

    def decode(self, data: Reader) -> Any:
        return self.inner.decode(data) if BOOL.decode(data) else None


@dataclasses.dataclass(frozen=True)
class Trailing(Codec):
    """A last field that a later release has added: a value, or None for no bytes at all."""

    inner: Codec

    def __str__(self) -> str:
        return f"trailing({self.inner})"

    def encode(self, out: bytearray, value: Any, what: str) -> None:
        if value is not None:
            out.append(1)
            self.inner.encode(out, value, what)

    def decode(self, data: Reader) -> Any:
        if data.is_empty():
            return None
        if U8.decode(data) != 1:
            raise ProtocolError("a trailing field does not begin with 1")
        return self.inner.decode(data)


@dataclasses.dataclass(frozen=True)
class ListOf(Codec):
    """A tuple of at most ``maximum`` values."""

    inner: Codec
    maximum: int

    def __str__(self) -> str:
        return f"list({self.inner}, {self.maximum})"

    def encode(self, out: bytearray, value: Any, what: str) -> None:
        if len(value) > self.maximum:
            raise RequestError(f"{what} has {len(value)} items, at most {self.maximum} are allowed")
        U64.encode(out, len(value), what)
        for item in value:
            self.inner.encode(out, item, what)

    def decode(self, data: Reader) -> Any:
        count = U64.decode(data)
        if count > self.maximum:
            raise ProtocolError(f"a list has {count} items, at most {self.maximum} are allowed")
        return tuple(self.inner.decode(data) for _ in range(count))


@dataclasses.dataclass(frozen=True)
class ArrayOf(Codec):
    """A tuple of exactly ``count`` values."""

    inner: Codec
    count: int

    def __str__(self) -> str:
        return f"array({self.inner}, {self.count})"

    def encode(self, out: bytearray, value: Any, what: str) -> None:
        if len(value) != self.count:
            raise RequestError(f"{what} has {len(value)} items instead of {self.count}")
        for item in value:
            self.inner.encode(out, item, what)

    def decode(self, data: Reader) -> Any:
        return tuple(self.inner.decode(data) for _ in range(self.count))


class Address(Codec):
    """An IP address."""

    def __str__(self) -> str:
        return "IpAddress"

    def encode(self, out: bytearray, value: Any, what: str) -> None:
        if not isinstance(value, (ipaddress.IPv4Address, ipaddress.IPv6Address)):
            raise RequestError(f"{what} is not an IP address: {value!r}")
        if getattr(value, "scope_id", None) is not None:
            raise RequestError(f"{what} has a scope: {value}")
        U32.encode(out, 0 if value.version == 4 else 1, what)
        out += value.packed

    def decode(self, data: Reader) -> Any:
        tag = U32.decode(data)
        if tag > 1:
            raise ProtocolError(f"an address has the unknown tag {tag}")
        return ipaddress.IPv6Address(data.take(16)) if tag else ipaddress.IPv4Address(data.take(4))


ADDRESS = Address()


@dataclasses.dataclass(frozen=True)
class Struct(Codec):
    """A dataclass whose fields are annotated with their codecs."""

    of: type

    def __str__(self) -> str:
        return self.of.__name__

    def encode(self, out: bytearray, value: Any, what: str) -> None:
        if not isinstance(value, self.of):
            raise RequestError(f"{what} is not of the type {self}: {value!r:.80}")
        for name, codec in fields(self.of):
            codec.encode(out, getattr(value, name), name)

    def decode(self, data: Reader) -> Any:
        return self.of(*[codec.decode(data) for _, codec in fields(self.of)])


@dataclasses.dataclass(frozen=True)
class Choice(Codec):
    """One of several dataclasses; the tag is its position."""

    name: str
    of: tuple[type, ...]

    def __str__(self) -> str:
        return self.name

    def encode(self, out: bytearray, value: Any, what: str) -> None:
        for tag, of in enumerate(self.of):
            if isinstance(value, of):
                U32.encode(out, tag, what)
                return Struct(of).encode(out, value, what)
        raise RequestError(f"{what} is not a {self.name}: {value!r:.80}")

    def decode(self, data: Reader) -> Any:
        tag = U32.decode(data)
        if tag >= len(self.of):
            raise ProtocolError(f"a {self.name} has the unknown tag {tag}")
        return Struct(self.of[tag]).decode(data)


@dataclasses.dataclass(frozen=True)
class Converted(Codec):
    """A type that is encoded as another one."""

    name: str
    inner: Codec
    to_wire: Callable[[Any], Any]
    from_wire: Callable[[Any], Any]

    def __str__(self) -> str:
        return self.name

    def encode(self, out: bytearray, value: Any, what: str) -> None:
        self.inner.encode(out, self.to_wire(value), what)

    def decode(self, data: Reader) -> Any:
        return self.from_wire(self.inner.decode(data))


u8 = Annotated[int, U8]
u16 = Annotated[int, U16]
u32 = Annotated[int, U32]
u64 = Annotated[int, U64]
boolean = Annotated[bool, BOOL]
ip_address = Annotated[IpAddress, ADDRESS]


@functools.lru_cache(maxsize=None)
def fields(of: type) -> tuple[tuple[str, Codec], ...]:
    """The names and codecs of a message's fields."""
    hints = typing.get_type_hints(of, include_extras=True)
    return tuple((field.name, _codec(hints[field.name])) for field in dataclasses.fields(of))


def _codec(hint: Any) -> Codec:
    annotated = [extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Codec)]
    return annotated[0] if annotated else Struct(hint)


def encode(message: object) -> bytes:
    """The body of a message."""
    out = bytearray()
    Struct(type(message)).encode(out, message, type(message).__name__)
    return bytes(out)


def decode(of: type, body: bytes) -> Any:
    """The message of a body."""
    data = Reader(body)
    message = Struct(of).decode(data)
    if not data.is_empty():
        raise ProtocolError(f"bytes follow the {of.__name__} in a body")
    return message


