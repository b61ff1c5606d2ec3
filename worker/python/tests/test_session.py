"""Both clients with a broker that the test plays, which also does what no broker should."""

import array
import asyncio
import fcntl
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import unittest
from ipaddress import ip_address

from portreeve import (
    AsyncClient,
    Client,
    ConnectError,
    DescriptorsLost,
    Error,
    EventCode,
    Fault,
    FaultCode,
    ProtocolError,
    RequestError,
    SessionEnded,
    TimedOut,
    _wire,
    messages,
)
from portreeve._channel import Channel
from portreeve._connection import EVENT, FAULT, HEADER, MAGIC, MAX_QUEUED_EVENTS, REPLY
from portreeve.messages import Event, Listen, Listening, ListeningMany, Stopped, Subscribed, Welcome

WELCOME = Welcome(1, "0.1.0", 0, 0, "user 8", ("hello", "listen", "subscribe"))
LISTEN = Listen.KIND | REPLY


def frame(kind, request, body, count=0, *, magic=MAGIC, version=1, length=None, reserved=0):
    body = body if isinstance(body, bytes) else _wire.encode(body)
    header = HEADER.pack(magic, version, kind, request, len(body) if length is None else length, count, reserved)
    return header + body


class Broker:
    """The broker's end of a channel."""

    def __init__(self):
        self.channel, self.peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel.settimeout(20)

    def close(self):
        self.channel.close()
        self.peer.close()

    def receive(self):
        """The kind, the number and the body of the next request."""
        packet = self.channel.recv(65536)
        _, _, kind, number, length, count, reserved = HEADER.unpack_from(packet)
        assert (length, count, reserved) == (len(packet) - HEADER.size, 0, 0)
        return kind, number, packet[HEADER.size :]

    def send(self, packet, descriptors=()):
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        self.channel.sendmsg([packet], control)

    def welcome(self):
        _, number, _ = self.receive()
        self.send(frame(1 | REPLY, number, WELCOME))


class BlockingSession:
    """A session of the blocking client."""

    def __init__(self, broker):
        self.client = Client(Channel(broker.peer), 20)._begin("test")

    def limit(self, timeout):
        self.client._timeout = timeout

    def call(self, name, *args, **options):
        return getattr(self.client, name)(*args, **options)

    def next_event(self, events):
        return events.next(20)

    def close(self):
        self.client.close()


class AsyncioSession:
    """A session of the client for asyncio, which is called from outside of its loop."""

    def __init__(self, broker):
        self.loop = asyncio.new_event_loop()
        self.loop.slow_callback_duration = 60  # a busy machine is no reason for a warning
        self.timeout = 20

        async def begin():
            return await AsyncClient(Channel(broker.peer))._begin("test")

        try:
            self.client = self.run(begin())
        except BaseException:
            self.loop.close()
            raise

    def limit(self, timeout):
        self.timeout = timeout

    def run(self, coroutine):
        async def in_time():
            try:
                return await asyncio.wait_for(coroutine, self.timeout)
            except asyncio.TimeoutError:
                raise TimedOut("asyncio") from None

        return self.loop.run_until_complete(in_time())

    def call(self, name, *args, **options):
        return self.run(getattr(self.client, name)(*args, **options))

    def next_event(self, events):
        return self.run(events.next())

    def close(self):
        self.client.close()
        self.loop.close()


def descriptors():
    return sorted(os.listdir("/proc/self/fd"))


class Sessions:
    """Tests of both clients."""

    session_type = None

    def setUp(self):
        self.before = descriptors()
        self.broker = Broker()
        self.threads = []

    def replace_broker(self):
        """For one more session. The threads of the one before have nothing left to play, and use the same attribute."""
        for thread in self.threads:
            thread.join()
        self.broker.close()
        self.broker = Broker()

    def tearDown(self):
        self.broker.close()
        for thread in self.threads:
            thread.join()
        self.assertEqual(descriptors(), self.before)

    def play(self, *acts):
        """Plays the broker in a thread: each act is called with the number of a request."""

        def run():
            for act in acts:
                _, number, _ = self.broker.receive()
                act(number)

        thread = threading.Thread(target=run)
        thread.start()
        self.threads.append(thread)

    def begin(self, *acts):
        self.play(lambda number: self.broker.send(frame(1 | REPLY, number, WELCOME)), *acts)
        return self.session_type(self.broker)

    def listener(self):
        return socket.create_server(("127.0.0.1", 0))

    def test_a_listener_has_the_socket_of_its_reply(self):
        with self.listener() as made:
            session = self.begin(
                lambda number: self.broker.send(frame(LISTEN, number, Listening(7), 1), [made.fileno()]),
                lambda number: self.broker.send(frame(5 | REPLY, number, Stopped((), ()))),
            )
            listener = session.call("listen", "*:25")
            self.assertEqual((listener.id, str(listener.endpoint)), (7, "*:25"))
            self.assertEqual(listener.socket.getsockname(), made.getsockname())
            self.assertTrue(fcntl.fcntl(listener.socket.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC)
            self.assertEqual(listener.socket.getblocking(), isinstance(session, BlockingSession))
            if isinstance(session, BlockingSession):
                listener.stop()
            else:
                session.run(listener.stop())
            session.close()

    def refuses(self, act, error=ProtocolError, pattern=""):
        """The client ends the session because of what the broker sends, and closes every descriptor."""
        session = self.begin(act)
        with self.assertRaisesRegex(error, pattern):
            session.call("listen", "*:25")
        with self.assertRaises(error):
            session.call("ping")
        session.close()

    def test_descriptors_that_do_not_belong_to_the_reply_are_closed(self):
        with self.listener() as made:
            numbers = [made.fileno()] * 253
            for declared, attached, body, pattern in (
                (1, 0, Listening(7), "declares 1 descriptors and 0 were received"),
                (0, 1, Listening(7), "declares 0 descriptors and 1 were received"),
                (1, 2, Listening(7), "declares 1 descriptors and 2 were received"),
                (254, 253, Listening(7), "declares 254 descriptors and 253 were received"),
                (0, 0, Listening(7), "0 descriptors instead of 1"),
                (2, 2, Listening(7), "2 descriptors instead of 1"),
                (253, 253, Listening(7), "253 descriptors instead of 1"),
                (1, 1, b"", "ends within a value"),
            ):
                with self.subTest(declared=declared, attached=attached):
                    self.replace_broker()
                    packet = lambda number: frame(LISTEN, number, body, declared)  # noqa: E731
                    self.refuses(lambda number: self.broker.send(packet(number), numbers[:attached]), pattern=pattern)

    def test_descriptors_of_a_fault_or_an_event_are_closed(self):
        with self.listener() as made:
            event = Event(1, 0, EventCode.LINK_UP, None, "eth0", 2, 0, 0, 0, "")
            for kind, request, body in ((FAULT, None, Fault(1)), (EVENT, 0, event), (7, 0, b"later")):
                with self.subTest(kind=kind):
                    self.replace_broker()

                    def act(number):
                        packet = frame(kind, number if request is None else request, body, 1)
                        self.broker.send(packet, [made.fileno()])
                        self.broker.channel.shutdown(socket.SHUT_RDWR)

                    self.refuses(act, Error)

    def test_a_descriptor_of_another_kind_is_closed(self):
        with open("/dev/null") as null, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            for file, pattern in ((null, "is not a socket"), (udp, "is of another kind")):
                with self.subTest(pattern):
                    self.replace_broker()
                    session = self.begin(
                        lambda number: self.broker.send(frame(LISTEN, number, Listening(7), 1), [file.fileno()])
                    )
                    with self.assertRaisesRegex(ProtocolError, pattern):
                        session.call("listen", "*:25")
                    session.close()

    def test_results_of_a_batch_have_their_sockets_in_order(self):
        fault = Fault(FaultCode.DENIED, message="no")
        with self.listener() as first, self.listener() as second:
            results = (Listening(7), fault, Listening(8))
            session = self.begin(
                lambda number: self.broker.send(
                    frame(4 | REPLY, number, ListeningMany(results), 2), [first.fileno(), second.fileno()]
                ),
                lambda number: self.broker.send(
                    frame(4 | REPLY, number, ListeningMany(results[:2]), 1), [first.fileno()]
                ),
            )
            opened = session.call("listen_many", ["*:25", "*:26", "*:27"])
            self.assertEqual(opened.pop(1), fault)
            names = [listener.socket.getsockname() for listener in opened]
            self.assertEqual(names, [first.getsockname(), second.getsockname()])
            for listener in opened:
                listener.detach().close()
            with self.assertRaisesRegex(ProtocolError, "3 listeners have 2 results"):
                session.call("listen_many", ["*:25", "*:26", "*:27"])
            session.close()

    def test_invalid_frames_end_the_session(self):
        listening = _wire.encode(Listening(7))
        for packet, pattern in (
            (b"PRTV", "a frame has 4 bytes"),
            (lambda n: frame(LISTEN, n, listening, magic=b"PRTX"), "does not begin with PRTV"),
            (lambda n: frame(LISTEN, n, listening, version=2), "it speaks version 2"),
            (lambda n: frame(LISTEN, n, listening, length=9), "does not agree with its length"),
            (lambda n: frame(LISTEN, n, listening, reserved=1), "does not agree with its length"),
            (lambda n: frame(LISTEN, n + 1, listening), "not in flight"),
            (lambda n: frame(2 | REPLY, n, b""), "has the kind 0x8002"),
            (lambda n: frame(Listen.KIND, n, listening), "has the kind 0x0003"),
            (lambda n: frame(FAULT, n, b"\0"), "ends within a value"),
            (lambda n: frame(FAULT, 0, b"\0"), "ends within a value"),
            (lambda n: frame(EVENT, 0, b"\0"), "ends within a value"),
            (b"\xff" * 65536, "does not begin with PRTV"),
            (b"\xff" * 65537, "longer than 65536 bytes"),
        ):
            with self.subTest(pattern):
                self.replace_broker()
                self.refuses(
                    lambda number: self.broker.send(packet if isinstance(packet, bytes) else packet(number)),
                    pattern=pattern,
                )

    def test_a_broker_of_an_earlier_release_keeps_every_listener(self):
        session = self.begin()
        for name, endpoints in (("listen", "*:25"), ("listen_many", ["*:25"])):
            with self.assertRaisesRegex(RequestError, "the broker is of an earlier release and keeps a copy"):
                session.call(name, endpoints, kept=False)
        session.close()

    def test_a_fault_is_raised_and_the_session_continues(self):
        fault = Fault(FaultCode.DENIED, 0, "a.conf:7", "it is not\x1b[2J\u202e allowed", "write\na permit")
        session = self.begin(
            lambda number: self.broker.send(frame(FAULT, number, fault)),
            lambda number: self.broker.send(frame(2 | REPLY, number, b"")),
        )
        with self.assertRaises(Fault) as raised:
            session.call("listen", "*:25")
        self.assertEqual((raised.exception, raised.exception.word), (fault, "denied"))
        self.assertEqual(str(raised.exception), r"it is not\x1b[2J\u202e allowed. write\na permit")
        session.call("ping")
        session.close()

    def test_the_reason_of_the_end_is_reported(self):
        fault = Fault(FaultCode.QUOTA, message="too many sessions")

        def end(_):
            self.broker.send(frame(FAULT, 0, fault))
            self.broker.channel.close()

        session = self.begin(end)
        with self.assertRaisesRegex(SessionEnded, "the broker ended the session: too many sessions") as raised:
            session.call("ping")
        self.assertEqual(raised.exception.fault, fault)
        session.close()

    def test_a_refused_hello_leaves_no_descriptor(self):
        self.play(lambda number: self.broker.send(frame(FAULT, number, Fault(FaultCode.BUSY, message="later"))))
        with self.assertRaisesRegex(Fault, "later"):
            self.session_type(self.broker)

    def test_no_signal_is_sent_when_the_broker_has_closed_its_end(self):
        default = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        self.addCleanup(signal.signal, signal.SIGPIPE, default)
        session = self.begin()
        for thread in self.threads:
            thread.join()
        self.broker.channel.close()
        for _ in range(2):
            with self.assertRaises(SessionEnded):
                session.call("ping")
        session.close()

    def test_a_late_reply_disturbs_nothing(self):
        answered = threading.Event()
        with self.listener() as made:

            def late(number):
                answered.wait(20)
                self.broker.send(frame(LISTEN, number, Listening(7), 1), [made.fileno()])

            session = self.begin(late, lambda number: self.broker.send(frame(2 | REPLY, number, b"")))
            session.limit(0.05)
            with self.assertRaises(TimedOut):
                session.call("listen", "*:25")
            answered.set()
            session.limit(20)
            session.call("ping")
            session.close()

    def test_a_process_without_free_descriptors_can_repeat_the_request(self):
        with self.listener() as made:
            reply = lambda number: self.broker.send(  # noqa: E731
                frame(LISTEN, number, Listening(7), 1), [made.fileno()]
            )
            session = self.begin(reply, reply)
            limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            # Every number below the limit is in use.
            low = 1 + max(map(int, descriptors()))
            fillers = []
            resource.setrlimit(resource.RLIMIT_NOFILE, (low, limits[1]))
            try:
                while True:
                    fillers.append(os.dup(0))
            except OSError:
                pass
            try:
                with self.assertRaises(DescriptorsLost):
                    session.call("listen", "*:25")
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
                for filler in fillers:
                    os.close(filler)
            session.call("listen", "*:25").detach().close()
            session.close()

    def test_events_of_a_program_that_takes_none_are_bounded(self):
        event = Event(0, 5, EventCode.LINK_UP, None, "eth0", 2, 0, 0, 0, "")
        events = 5000

        def subscribe(number):
            # The first is also in the reply.
            recent = Event(1, 5, EventCode.LINK_DOWN, None, "eth0", 2, 0, 0, 0, "")
            self.broker.send(frame(16 | REPLY, number, Subscribed(False, (recent,))))
            self.broker.send(frame(EVENT, 0, recent))

        def flood(number):
            for _ in range(events):
                self.broker.send(frame(EVENT, 0, event))
            self.broker.send(frame(2 | REPLY, number, b""))

        session = self.begin(subscribe, flood)
        subscription = session.call("events")
        self.assertEqual([event.number for event in subscription.recent], [1])
        session.call("ping")
        for _ in range(MAX_QUEUED_EVENTS):
            self.assertEqual(session.next_event(subscription), event)
        gap = session.next_event(subscription)
        self.assertEqual((gap.code, gap.count), (EventCode.GAP, events - MAX_QUEUED_EVENTS))
        self.broker.channel.close()
        with self.assertRaises(SessionEnded):
            session.next_event(subscription)
        session.close()

    def test_a_full_channel_delays_requests_and_loses_none(self):
        count, begin = 2000, threading.Event()

        def run():
            self.broker.welcome()
            begin.wait(20)
            for _ in range(count):
                _, number, _ = self.broker.receive()
                self.broker.send(frame(2 | REPLY, number, b""))

        thread = threading.Thread(target=run)
        thread.start()
        self.threads.append(thread)
        session = self.session_type(self.broker)
        if isinstance(session, AsyncioSession):

            async def pings():
                sent = [asyncio.ensure_future(session.client.ping()) for _ in range(count)]
                await asyncio.sleep(0)
                assert session.client._outgoing, "the channel has room for everything"
                begin.set()
                await asyncio.gather(*sent)

            session.run(pings())
        else:
            outcomes = []
            with session.client._condition:
                for _ in range(count):
                    number, packet = session.client._connection.request(messages.Ping(), outcomes.append)
                    session.client._outgoing[number] = packet
                session.client._flush()
                assert session.client._outgoing, "the channel has room for everything"
            begin.set()
            session.client._serve(lambda: len(outcomes) == count, 20)
        session.close()


class Blocking(Sessions, unittest.TestCase):
    session_type = BlockingSession

    def test_closing_the_client_ends_the_wait_of_another_thread(self):
        session = self.begin(lambda number: None)
        ended = []

        def wait():
            try:
                session.call("ping")
            except SessionEnded as why:
                ended.append(str(why))

        thread = threading.Thread(target=wait)
        thread.start()
        for played in self.threads:
            played.join()
        session.close()
        thread.join()
        self.assertEqual(ended, ["this program has closed the session"])


class Asyncio(Sessions, unittest.TestCase):
    session_type = AsyncioSession

    def test_replies_in_any_order_reach_their_requests(self):
        made = [self.listener() for _ in range(20)]
        numbers = []

        def act(number):
            numbers.append(number)
            if len(numbers) == len(made):
                for index in reversed(range(len(made))):
                    self.broker.send(frame(LISTEN, numbers[index], Listening(index), 1), [made[index].fileno()])

        session = self.begin(*[act] * len(made))

        async def listen():
            return await asyncio.gather(*[session.client.listen(f"*:{1 + index}") for index in range(len(made))])

        for index, listener in enumerate(session.run(listen())):
            self.assertEqual((listener.id, listener.socket.getsockname()), (index, made[index].getsockname()))
            self.assertEqual(str(listener.endpoint), f"*:{1 + index}")
            listener.detach().close()
            made[index].close()
        session.close()

    def test_a_released_address_is_renewed_no_more_whatever_arrives_together(self):
        lease = messages.Lease(ip_address("10.1.1.7"), "eth1", 24, 60000, 0, None)

        def run():
            self.broker.welcome()
            while True:
                kind, number, _ = self.broker.receive()
                if kind == messages.Ping.KIND:
                    return
                reply = Subscribed(False, ()) if kind == messages.Subscribe.KIND else messages.Leases((lease,))
                self.broker.send(frame(kind | REPLY, number, reply))

        thread = threading.Thread(target=run)
        thread.start()
        self.threads.append(thread)
        session = self.session_type(self.broker)

        async def release():
            for turns in range(12):
                held = await session.client.hold_address("10.1.1.7")
                await asyncio.sleep(0)
                held._renewal.is_due = True
                session.client._notify()
                for _ in range(turns):
                    await asyncio.sleep(0)
                await held.let_expire()
                assert held.lost is None, held.lost

        session.run(release())
        with self.assertRaises(TimedOut):
            session.limit(0.1)
            session.call("ping")
        session.close()

    def test_the_end_of_the_session_can_be_awaited(self):
        session = self.begin()
        self.broker.channel.close()
        session.call("wait_closed")
        session.close()


class Inherited(unittest.TestCase):
    def run_child(self, script, descriptor, **variables):
        environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
        command = [sys.executable, "-X", "dev", "-W", "error", "-c", script]
        return subprocess.run(
            command, pass_fds=[descriptor], env=environment, capture_output=True, text=True, timeout=30, check=False
        )

    def test_the_channel_is_taken_once_and_not_passed_on(self):
        broker = Broker()
        thread = threading.Thread(target=broker.welcome)
        thread.start()
        descriptor = broker.peer.fileno()
        script = f"""
import fcntl
from portreeve import Client, ConnectError
with Client.open("inherited") as client:
    assert client.welcome.peer == "user 8"
    assert fcntl.fcntl({descriptor}, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    try:
        Client.open("again")
    except ConnectError as error:
        assert "descriptor {descriptor} was not inherited, or was taken before" in str(error), error
        print("taken")
"""
        done = self.run_child(script, descriptor, PORTREEVE_CHANNEL=descriptor)
        thread.join()
        self.assertEqual((done.stdout, done.stderr), ("taken\n", ""))
        broker.close()

    def test_what_is_no_channel_is_refused_with_its_cause(self):
        script = """
from portreeve import Client, ConnectError
try:
    Client.open("wrong")
except ConnectError as error:
    print(error)
"""
        with socket.create_server(("127.0.0.1", 0)) as made:
            number = made.fileno()
            for value, expected in (
                (number, f"descriptor {number} is not a sequenced-packet Unix socket. "),
                ("x", "PORTREEVE_CHANNEL='x' is not a number. "),
                (0, "descriptor 0 was not inherited"),
                (999, "descriptor 999 was not inherited"),
            ):
                done = self.run_child(script, number, PORTREEVE_CHANNEL=value)
                self.assertTrue(done.stdout.startswith(expected) and not done.stderr, done)

    def test_listeners_are_adopted_with_their_names(self):
        script = """
import os
os.environ["LISTEN_PID"] = str(os.getpid())
from portreeve import listeners_from_environment
(found,) = listeners_from_environment()
assert found.name == "smtp" and not os.get_inheritable(found.socket.fileno())
found.socket.close()
os.environ["LISTEN_PID"] = "1"
assert listeners_from_environment() == []
"""
        with socket.create_server(("127.0.0.1", 0)) as made:
            if made.fileno() != 3:
                os.dup2(made.fileno(), 3)
                self.addCleanup(os.close, 3)
            done = self.run_child(script, 3, LISTEN_FDS=1, LISTEN_FDNAMES="smtp")
            self.assertEqual((done.returncode, done.stderr), (0, ""))

    def test_a_missing_control_socket_is_named_with_the_remedy(self):
        expected = "cannot connect to the broker at /nonexistent/.* Start portreeved, or name the control socket"
        with self.assertRaisesRegex(ConnectError, expected):
            Client.open("test", path="/nonexistent/broker.sock")
        with self.assertRaisesRegex(ConnectError, expected):
            asyncio.run(AsyncClient.open("test", path="/nonexistent/broker.sock"))
        with self.assertRaisesRegex(ConnectError, "cannot connect"):
            Client.open("test", path="/" + "n" * 200)


if __name__ == "__main__":
    unittest.main()
