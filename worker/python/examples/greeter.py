"""Greets one connection on a privileged port: greeter.py [ENDPOINT [CONTROL_SOCKET]]"""

import sys

from portreeve import Client, Error

endpoint = sys.argv[1] if len(sys.argv) > 1 else "*:25"
path = sys.argv[2] if len(sys.argv) > 2 else None
try:
    with Client.open("greeter", path=path) as client, client.listen(endpoint) as listener:
        print(f"listening on {listener.endpoint}", flush=True)
        connection, _ = listener.socket.accept()
        with connection:
            connection.sendall(b"220 ready\r\n")
except Error as error:
    sys.exit(f"greeter: {error}")
