"""A mail server by aiosmtpd: mail.py DIRECTORY [ENDPOINT [CONTROL_SOCKET]]

Without a privilege it accepts mail on port 25, or on ENDPOINT, and writes each message to a file in DIRECTORY.
"""

import asyncio
import pathlib
import signal
import sys
import uuid

from aiosmtpd.smtp import SMTP, Envelope, Session
from portreeve import AsyncClient, Error


class Store:
    """Writes each message to a file."""

    def __init__(self, directory: pathlib.Path) -> None:
        self._directory = directory

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        name = str(uuid.uuid4())
        partial = self._directory / f".{name}"
        partial.write_bytes(envelope.original_content or b"")
        partial.rename(self._directory / name)
        return f"250 stored as {name}"


async def serve(directory: str, endpoint: str = "*:25", path: "str | None" = None) -> None:
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, done.set)
    store = Store(pathlib.Path(directory))
    async with await AsyncClient.open("mail.py", path=path) as client:
        listener = await client.listen(endpoint)
        server = await loop.create_server(lambda: SMTP(store, hostname="mx1.example"), sock=listener.socket)
        print(f"mail.py serves {listener.endpoint}", flush=True)
        await done.wait()
        server.close()
        # Not stopped: the broker retains the listener of its worker, so that no client is refused during a restart.


try:
    asyncio.run(serve(*sys.argv[1:]))
except Error as error:
    sys.exit(f"mail.py: {error}")
