"""Binds a low port again and again, by whatever leave its caller gave it. The interpreter's share is in the figure."""

import socket
import sys

import figures

PORT = 80


def binds(count):
    for _ in range(count):
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", PORT))
            listener.listen(500)


if __name__ == "__main__":
    figures.measure(sys.argv[1], int(sys.argv[2]), binds)
