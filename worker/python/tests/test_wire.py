"""The encoding: against the golden frames and the tables of WIRE.md, and with bytes that no broker should send."""

import dataclasses
import inspect
import re
import unittest
from ipaddress import ip_address

from portreeve import _wire, endpoint, messages
from portreeve._connection import EVENT, FAULT, HEADER, REPLY, encode
from portreeve.endpoint import Tcp, Udp
from portreeve.errors import ProtocolError, RequestError
from portreeve.messages import Fault, Hello, Listen, ListenMany, ListenOptions, Request, Stop

from . import golden

REQUESTS = [of for _, of in inspect.getmembers(messages, inspect.isclass) if issubclass(of, Request) and of is not Request]
BY_KIND = {of.KIND: of for of in REQUESTS}
EVERY_OPTION = ListenOptions(
    backlog=1024,
    reuse_port=True,
    dual_stack=True,
    free_bind=True,
    device="eth0",
    receive_buffer=0,
    send_buffer=65536 * 4,
    no_delay=False,
    defer_accept=30,
    fast_open=16,
    mode=0o660,
)


def message_type(kind):
    """The type of the message in a frame; None if this package does not have it."""
    if kind == EVENT:
        return messages.Event
    if kind == FAULT:
        return Fault
    request = BY_KIND.get(kind & ~REPLY)
    return request and (request.REPLY if kind & REPLY else request)


class GoldenFrames(unittest.TestCase):
    def test_every_golden_frame_is_decoded_and_encoded_again(self):
        tested = set()
        for name, frame in golden.frames().items():
            if not frame:
                continue
            _, _, kind, request, _, count, _ = HEADER.unpack_from(frame)
            of = message_type(kind)
            if of is None:
                continue
            message = _wire.decode(of, frame[HEADER.size :])
            self.assertEqual(_wire.encode(message), frame[HEADER.size :], name)
            if not count and not kind & REPLY:
                self.assertEqual(encode(kind, request, _wire.encode(message)), frame, name)
            tested.add(of)
        expected = set(REQUESTS) | {of.REPLY for of in REQUESTS} | {messages.Event, Fault}
        self.assertEqual({of.__name__ for of in expected - tested}, set())

    def test_requests_have_the_bytes_of_the_golden_frames(self):
        listen = [
            ("listen", Listen(endpoint.parse("*:25"))),
            ("listen-udp", Listen(endpoint.parse("[fe80::1%eth0]:53/udp"))),
            ("listen-unix-stream", Listen(endpoint.parse("/run/mail.sock"))),
            ("listen-unix-seqpacket", Listen(endpoint.parse("seqpacket:/run/mail.sock"))),
            ("listen-mode", Listen(endpoint.parse("*:25"), mode=messages.ListenMode(False, True))),
            ("listen-tcp6", Listen(endpoint.parse("[2001:db8::1]:465"), EVERY_OPTION)),
        ]
        requests = [("hello", 1, Hello("smtpd"))] + [(name, 2, message) for name, message in listen]
        for name, number, message in requests:
            with self.subTest(name):
                self.assertEqual(encode(message.KIND, number, _wire.encode(message)), golden.frames()[name])

    def test_a_fault_of_a_later_version_keeps_its_code(self):
        frame = golden.frames()["fault-of-a-later-version"]
        fault = _wire.decode(Fault, frame[HEADER.size :])
        self.assertNotIn(fault.code, list(messages.FaultCode))
        self.assertEqual(fault.word, f"fault {fault.code}")


class Tables(unittest.TestCase):
    def test_messages_have_the_fields_of_the_tables(self):
        tables = golden.tables()
        classes = [of for _, of in inspect.getmembers(messages, dataclasses.is_dataclass) if of.__module__ == messages.__name__]
        self.assertGreater(len(classes), 45)
        for of in classes + [endpoint.InetEndpoint]:
            with self.subTest(of.__name__):
                fields = [(name, str(codec)) for name, codec in _wire.fields(of)]
                self.assertEqual(fields, tables.get(of.__name__, []))

    def test_operations_have_the_kinds_of_the_table(self):
        rows = {row[1]: int(row[0]) for row in golden.tables()["Operations"] if row[0].isdigit()}
        for of in REQUESTS:
            words = {"StatusRequest": "status", "PolicyRequest": "policy"}
            name = words.get(of.__name__) or re.sub("(?<=[a-z])(?=[A-Z])", "-", of.__name__).lower()
            self.assertEqual(rows.get(name), of.KIND, name)

    def test_codes_have_the_words_of_the_tables(self):
        for heading, codes in (("Faults", messages.FaultCode), ("Events", messages.EventCode)):
            rows = {int(code): word for code, word in golden.tables()[heading] if code.isdigit()}
            self.assertEqual({int(code): code.name.lower().replace("_", "-") for code in codes}, rows)


class Refusals(unittest.TestCase):
    def refused(self, of, body, why):
        with self.assertRaisesRegex(ProtocolError, why):
            _wire.decode(of, body)

    def test_a_body_has_one_encoding(self):
        stop = _wire.encode(Stop((7, 8)))
        self.refused(Stop, stop + b"\0", "bytes follow the Stop")
        self.refused(Stop, stop[:-1], "ends within a value")
        self.refused(messages.Subscribe, b"\2\0", "a bool is 2")
        self.refused(Hello, b"\1" + bytes(7) + b"\xff" + bytes(8), "not UTF-8")
        self.refused(Listen, b"\4" + bytes(45), "Endpoint has the unknown tag 4")
        self.refused(Listen, bytes(4) + b"\2" + bytes(41), "address has the unknown tag 2")
        self.refused(messages.Leases, bytes(8) + b"\0", "does not begin with 1")

    def test_no_length_is_trusted(self):
        for count in (254, 2**32, 2**64 - 1):
            self.refused(Stop, count.to_bytes(8, "little") + bytes(300), f"a list has {count} items")
        self.refused(Stop, (253).to_bytes(8, "little") + bytes(80), "ends within a value")
        self.refused(Hello, (65).to_bytes(8, "little") + bytes(100), "a text has 65 bytes")

    def test_values_that_cannot_be_sent_are_named(self):
        for message, why in (
            (Hello("n" * 65), "client 'n+' is too long: it has 65 bytes, at most 64 are allowed"),
            (Hello("\udcff"), "client is not valid Unicode"),
            (Stop(tuple(range(254))), "listeners has 254 items, at most 253 are allowed"),
            (Stop((-1,)), "listeners is not in the range of u64: -1"),
            (Listen(Tcp(ip_address("0.0.0.0"), 65536)), "port is not in the range of u16: 65536"),
            (Listen(Tcp("0.0.0.0", 25)), "address is not an IP address"),  # type: ignore[arg-type]
            (Listen(Udp(ip_address("fe80::1%eth0"), 53)), "address has a scope"),
            (ListenMany(False, (messages.ListenItem("*:25"),)), "endpoint is not a Endpoint"),  # type: ignore[arg-type]
            (messages.Subscribe(1, False), "follow is neither True nor False: 1"),  # type: ignore[arg-type]
        ):
            with self.subTest(why), self.assertRaisesRegex(RequestError, "^cannot send the request: " + why):
                _wire.encode(message)


class Endpoints(unittest.TestCase):
    def test_every_notation_is_parsed_and_printed(self):
        for text, printed in (
            (":25", "*:25"),
            ("*:25", "*:25"),
            ("0.0.0.0:25", "*:25"),
            ("192.0.2.1:25/tcp", "192.0.2.1:25"),
            ("[*]:25", "[::]:25"),
            ("[::]:25", "[::]:25"),
            ("[2001:db8::1]:587", "[2001:db8::1]:587"),
            ("[fe80::1%eth0]:25", "[fe80::1%eth0]:25"),
            ("*:53/udp", "*:53/udp"),
            ("/run/mail.sock", "/run/mail.sock"),
            ("seqpacket:/run/mail.sock", "seqpacket:/run/mail.sock"),
        ):
            parsed = endpoint.parse(text)
            self.assertEqual(str(parsed), printed)
            self.assertEqual(endpoint.parse(printed), parsed)
            self.assertIs(endpoint.parse(parsed), parsed)

    def test_an_invalid_endpoint_is_refused_with_its_cause(self):
        for text, why in (
            ("25", "missing"),
            ("192.0.2.1", "missing"),
            ("*:0", "'0' is not a number from 1 to 65535"),
            ("*:+25", "not a number"),
            ("*:٢٥", "not a number"),
            ("*:65536", "not a number"),
            ("*:25\n", "not a number"),
            ("::1:25", "'::1' is not an IPv4 address"),
            ("[192.0.2.1]:25", "'192.0.2.1' in brackets is not an IPv6 address"),
            ("mx1:25", "'mx1' is not an IPv4 address"),
            ("[fe80::1%]:25", "'' is not an interface name"),
            ("[fe80::1%" + "n" * 16 + "]:25", "is not an interface name"),
            ("*:25/sctp", "'sctp' is not a transport"),
            ("/" + "n" * 107, "108 bytes"),
        ):
            with self.subTest(text), self.assertRaisesRegex(RequestError, why):
                endpoint.parse(text)


if __name__ == "__main__":
    unittest.main()
