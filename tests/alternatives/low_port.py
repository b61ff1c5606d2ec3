"""Binds a low port repeatedly, with the privileges that its caller has set up. The time includes the interpreter's."""

import socket
import sys

import measure

PORT = 80


def binds(count):
    for _ in range(count):
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", PORT))
            listener.listen(500)


if __name__ == "__main__":
    measure.measure(sys.argv[1], int(sys.argv[2]), binds)
