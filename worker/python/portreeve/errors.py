"""The errors of a client. Each message says what failed, on what, why, and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional

if TYPE_CHECKING:
    from .messages import Fault


class Error(Exception):
    """Base of all errors of this package."""


class SessionEnded(Error):
    """The session has ended. Sockets received from the broker remain usable.

    ``fault`` is the broker's reason, if it gave one.
    """

    def __init__(self, message: str, fault: Optional[Fault] = None) -> None:
        super().__init__(message)
        self.fault = fault


class ProtocolError(Error):
    """The broker violated the protocol; the session has ended."""

    def __init__(self, what: str) -> None:
        super().__init__(f"the broker violated the protocol: {what}")


class DescriptorsLost(Error):
    """This process had no free descriptors for the sockets of a reply. The session continues."""

    def __init__(self) -> None:
        super().__init__(
            "cannot receive the sockets of a reply: this process has no free file descriptors. Close some or raise its "
            "limit of open files (RLIMIT_NOFILE), then repeat the request: it returns the same sockets"
        )


class RequestError(Error, ValueError):
    """A value of a request cannot be sent."""

    def __init__(self, why: str) -> None:
        super().__init__(f"cannot send the request: {why}")


class TimedOut(Error, TimeoutError):
    """The broker did not reply in time. It may execute the request all the same."""


class ConnectError(Error):
    """There is no channel to the broker."""


def printable(text: str) -> str:
    """The text with every character escaped that could hide, move or end text in a log or on a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
