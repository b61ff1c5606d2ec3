"""The functions that oslo.privsep's daemon executes. The socket stays in the daemon: a call cannot return it."""

import socket

from oslo_privsep import capabilities, priv_context

context = priv_context.PrivContext(
    "privsep_calls",
    cfg_section="privsep",
    pypath="privsep_calls.context",
    capabilities=[capabilities.CAP_NET_BIND_SERVICE],
)


@context.entrypoint
def nothing():
    return 0


@context.entrypoint
def bind(port):
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(500)
    return 0
