"""A Portreeve client that uses only Python's standard library: opens a TCP listener and greets one connection.

Run it as the broker's worker, or with the path of the control socket: client.py [/run/portreeve/broker.sock]
"""
import array, os, socket, struct, sys

HEADER = struct.Struct("<4sHHIHBB")  # magic, version, kind, request, body, descriptors, reserved
HELLO, LISTEN, REPLY, FAULT = 1, 3, 0x8000, 0xFFFF

def encode_text(value):
    data = value.encode()
    return struct.pack("<Q", len(data)) + data

def decode_texts(body, offset, count):
    for _ in range(count):
        (length,) = struct.unpack_from("<Q", body, offset)
        yield body[offset + 8 : offset + 8 + length].decode()
        offset += 8 + length

def call(channel, request, kind, body):
    """Sends a request and waits for its reply. Returns the reply's body and the attached descriptors."""
    channel.send(HEADER.pack(b"PRTV", 1, kind, request, len(body), 0, 0) + body)
    packet, control, flags, _ = channel.recvmsg(65536, socket.CMSG_SPACE(253 * 4), socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, type_, data in control:
        if (level, type_) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    if not packet:
        sys.exit("the broker closed the channel")
    magic, version, reply_kind, reply_to, length, count, _ = HEADER.unpack_from(packet)
    body = packet[HEADER.size :]
    if (magic, version, length) != (b"PRTV", 1, len(body)) or reply_to not in (0, request):
        sys.exit("invalid frame, or the reply to another request")
    if reply_kind == FAULT:
        code, errno = struct.unpack_from("<HI", body)
        subject, message, remedy = decode_texts(body, 6, 3)
        sys.exit(f"fault {code}: {message!r}, remedy: {remedy!r}")
    if reply_kind != kind | REPLY or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or count != len(fds):
        sys.exit("invalid reply, or too few free descriptors to receive its sockets")
    return body, list(fds)

if "PORTREEVE_CHANNEL" in os.environ:
    channel = socket.socket(fileno=int(os.environ["PORTREEVE_CHANNEL"]))
    channel.set_inheritable(False)
else:
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel.connect(sys.argv[1] if len(sys.argv) > 1 else "/run/portreeve/broker.sock")

call(channel, 1, HELLO, encode_text("client.py") + struct.pack("<Q", 0))
endpoint = struct.pack("<II4sH", 0, 0, socket.inet_aton("127.0.0.1"), 2525) + encode_text("")
options = struct.pack("<4B", 0, 0, 0, 0) + encode_text("") + struct.pack("<3BIIB", 0, 0, 0, 0, 0, 0)
body, fds = call(channel, 2, LISTEN, endpoint + options)
listener = socket.socket(fileno=fds[0])
listener.setblocking(True)
print("listener", *struct.unpack("<Q", body), "on port", listener.getsockname()[1], flush=True)
connection, _ = listener.accept()
connection.sendall(b"220 ready\r\n")
connection.close()
