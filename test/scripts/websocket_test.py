#!/usr/bin/env python3
"""RFC 6455, frame by frame: what a client may send and must not, and what it gets for it.

usage: websocket_test.py [CLASS[.test]...]; programs are those in $TORCHBUS_BUILD, default build/release.
"""
import json
import struct
import sys
import unittest

from served import BINARY, CLOSE, PING, PONG, PROGRAM, REFUSED_COMMANDS, TEXT, TOKEN, Served, WebSocket, frame, parsed

COMMAND = b'{"command": "save", "reason": "\xe2\x98\x83 \xf0\x9f\x90\x8d"}'  # a snowman and a snake: three and four bytes


def fragments(payload, cuts, between=b"", opcode=TEXT):
    edges = [0, *cuts, len(payload)]
    pieces = [payload[a:b] for a, b in zip(edges, edges[1:])]
    return between.join(frame(opcode if i == 0 else 0, piece, fin=i == len(pieces) - 1) for i, piece in enumerate(pieces))


def upgraded(server):
    return WebSocket(server.connect(20), "?from=now&events=nothing")


def heard(server, sent, answers=0):
    """What is answered to some frames, in words, up to a close, or to the pong of a ping that follows them and to so many answers."""
    client = upgraded(server)
    words = []
    try:
        client.next()  # the snapshot
        client.connection.sendall(sent)
        client.connection.sendall(frame(PING, b"still there?"))
        pongs = 0
        while pongs == 0 or words.count("answer") < answers:
            opcode, payload = client.next()
            if opcode == CLOSE:
                words.append("close %s" % (struct.unpack("!H", payload[:2])[0] if len(payload) >= 2 else "without a code"))
                break
            if opcode == PONG and payload == b"still there?":
                pongs += 1
                continue
            words.append("pong %d" % len(payload) if opcode == PONG else "answer" if b'"torchbus.answer"' in payload else "other")
    except (EOFError, ConnectionResetError, BrokenPipeError):
        words.append("gone")
    client.connection.close()
    return words


BAD_UTF8 = [b"\x80", b"\xbf", b"\xc0\x80", b"\xc1\xbf", b"\xc2", b"\xc2\x20", b"\xe0\x80\x80", b"\xe2\x98", b"\xe2\x28\xa1", b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xf0\x80\x80\x80", b"\xf0\x9f\x90",
            b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80", b"\xf8\x88\x80\x80\x80", b"\xfc\x84\x80\x80\x80\x80", b"\xfe", b"\xff", b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited"]
GOOD_UTF8 = ["", "κόσμε", "\x00\x7f", "\u0080\u07ff", "\u0800\ud7ff\ue000\ufffd", "\U00010000\U0010ffff", "\ufeff", "\uffff"]
FILLER = b'{"command": "save", "value": "%s"}'


def cases():
    for size in (0, 1, 2, 124, 125):
        yield f"a ping of {size} bytes", frame(PING, b"p" * size), [f"pong {size}"]
    yield "ten pings", b"".join(frame(PING, bytes([i])) for i in range(10)), None  # the last of them may be answered for all
    for size in (126, 65536):
        yield f"a ping of {size} bytes", frame(PING, b"p" * size), ["close 1002"]
    for size in (0, 1, 125):
        yield f"a pong that nobody asked for, of {size} bytes", frame(PONG, b"p" * size), []
    yield "a pong of 126 bytes", frame(PONG, b"p" * 126), ["close 1002"]

    yield "a message in one frame", frame(TEXT, COMMAND), ["answer"]
    for mask in (b"\x00\x00\x00\x00", b"\xff\xff\xff\xff", b"\x80\x7f\x00\x01"):
        yield f"a message masked by {mask.hex()}", frame(TEXT, COMMAND, mask=mask), ["answer"]
    for size in (1, 70, 126, 127, 128, 1000, 30_000, 60_000):
        yield f"a message with {size} bytes to fill it", frame(TEXT, FILLER % (b"x" * size)), ["answer"]
    yield "a message of bytes", frame(BINARY, COMMAND), ["answer"]
    yield "an empty message", frame(TEXT), ["answer"]
    yield "two messages at once", frame(TEXT, COMMAND) + frame(TEXT, COMMAND), ["answer", "answer"]
    yield "a message of 65537 bytes", frame(TEXT, b"x" * 65_537), ["close 1009"]
    yield "a frame that claims 2^40 bytes", bytes([0x81, 0xFF]) + struct.pack("!Q", 1 << 40) + b"\0\0\0\0", ["close 1009"]
    yield "a frame that claims 2^63 bytes", bytes([0x81, 0xFF]) + struct.pack("!Q", 1 << 63) + b"\0\0\0\0", ["close 1009"]
    yield "fragments of 65537 bytes together", fragments(b"x" * 65_537, [30_000, 60_000]), ["close 1009"]
    for size, length_bytes in ((10, 2), (125, 2), (10, 8), (125, 8), (200, 8)):
        yield f"{size} bytes whose length takes {length_bytes} bytes", frame(TEXT, b"x" * size, length_bytes=length_bytes), ["close 1002"]

    for cut in (0, 1, 5, len(COMMAND) - 1, len(COMMAND)):
        yield f"two fragments cut at {cut}", fragments(COMMAND, [cut]), ["answer"]
    for at in range(len(COMMAND) - 9, len(COMMAND) - 1):  # among them within the snowman and the snake
        yield f"two fragments cut at {at}, maybe within a character", fragments(COMMAND, [at]), ["answer"]
    yield "a fragment for every byte", fragments(COMMAND, range(1, len(COMMAND))), ["answer"]
    yield "empty fragments", fragments(COMMAND, [0, 0, 5, 5, 5]), ["answer"]
    yield "fragments of bytes", fragments(COMMAND, [7], opcode=BINARY), ["answer"]
    yield "a ping between two fragments", fragments(COMMAND, [9], between=frame(PING, b"now")), ["pong 3", "answer"]
    yield "a pong between two fragments", fragments(COMMAND, [9], between=frame(PONG, b"now")), ["answer"]
    yield "a close between two fragments", fragments(COMMAND, [9], between=frame(CLOSE, b"\x03\xe8")), ["close 1000"]
    yield "a continuation of nothing", frame(0, COMMAND), ["close 1002"]
    yield "a continuation of nothing that is not the last", frame(0, COMMAND, fin=False), ["close 1002"]
    yield "a continuation after a whole message", frame(TEXT, COMMAND) + frame(0, b"x"), None
    yield "a message within a message", frame(TEXT, b"{", fin=False) + frame(TEXT, b"}"), ["close 1002"]
    yield "bytes within a text", frame(TEXT, b"{", fin=False) + frame(BINARY, b"}"), ["close 1002"]
    for opcode in (PING, PONG, CLOSE):
        yield f"a fragment of a control frame {opcode}", frame(opcode, b"", fin=False), ["close 1002"]

    for opcode in (TEXT, BINARY, PING, PONG, CLOSE):
        yield f"a frame {opcode} without a mask", frame(opcode, b"", mask=b""), ["close 1002"]
        for reserved in (1, 2, 4):
            yield f"a frame {opcode} with reserved bits {reserved}", frame(opcode, b"", reserved=reserved), ["close 1002"]
    for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15):
        yield f"a frame of the reserved kind {opcode}", frame(opcode, b""), ["close 1002"]

    for text in BAD_UTF8:
        yield f"a text with {text.hex()}", frame(TEXT, FILLER % text), ["close 1007"]
        yield f"a text with {text.hex()} in the middle of its fragments", fragments(FILLER % text, [30, 31]), ["close 1007"]
    for text in GOOD_UTF8:
        yield f"a text with {text!r}", frame(TEXT, FILLER % text.encode("utf-8", "surrogatepass")), ["answer"]
    yield "bytes that are no UTF-8", frame(BINARY, b"\xff\xfe"), ["answer"]

    yield "a close without a body", frame(CLOSE), ["close 1000"]
    for code in (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999, 5000, 65535):  # above 4999 nothing is said
        yield f"a close with {code}", frame(CLOSE, struct.pack("!H", code)), [f"close {code}"]
    for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2000, 2999):
        yield f"a close with {code}, which nobody may send", frame(CLOSE, struct.pack("!H", code)), ["close 1002"]
    yield "a close with half a code", frame(CLOSE, b"\x03"), ["close 1002"]
    yield "a close with a reason", frame(CLOSE, b"\x03\xe8" + "genug ☃".encode()), ["close 1000"]
    yield "a close with the longest reason", frame(CLOSE, b"\x03\xe8" + b"x" * 123), ["close 1000"]
    yield "a close with a reason that is too long", frame(CLOSE, b"\x03\xe8" + b"x" * 124), ["close 1002"]
    yield "a close whose reason is no UTF-8", frame(CLOSE, b"\x03\xe8\xff"), ["close 1002"]
    yield "a message after a close", frame(CLOSE, b"\x03\xe8") + frame(TEXT, COMMAND), ["close 1000"]


HANDSHAKES = [
    ("no key", {"Sec-WebSocket-Key": None}, 400), ("a key of another length", {"Sec-WebSocket-Key": "eA=="}, 400), ("no version", {"Sec-WebSocket-Version": None}, 400),
    ("an older version", {"Sec-WebSocket-Version": "8"}, 426), ("another protocol", {"Upgrade": "h2c"}, 200), ("no upgrade in the connection", {"Connection": "keep-alive"}, 200),
    ("another path", {}, 400, "GET /metrics"), ("another method", {}, 405, "POST /events"), ("another host", {"Host": "evil.example"}, 421), ("another origin", {"Origin": "http://evil.example"}, 403),
    ("an origin of ours", {"Origin": "http://localhost"}, 101), ("in capitals", {"Upgrade": "WebSocket", "Connection": "keep-alive, Upgrade"}, 101),
]


class Frames(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Served()

    @classmethod
    def tearDownClass(cls):
        cls.server.close()

    def test_every_frame_is_answered_as_the_rfc_has_it(self):
        count = 0
        for name, sent, expected in cases():
            count += 1
            with self.subTest(name):
                got = heard(self.server, sent, (expected or []).count("answer"))
                if name == "ten pings":
                    self.assertTrue(got and all(word == "pong 1" for word in got), got)
                elif len(sent) > 65_000 and expected[-1].startswith("close"):
                    self.assertIn(got, [expected, ["gone"]])  # what says so may be lost, where the rest was still on its way
                elif expected is None:
                    self.assertEqual(got[-1], "close 1002")
                else:
                    self.assertEqual(got, expected)
        print(f"{count} cases")
        self.assertGreater(count, 150)
        self.assertEqual(self.server.http("GET /healthz")[0], 200)

    def test_a_client_is_told_why_it_is_closed(self):
        with Served() as server:
            client = upgraded(server)
            client.next()
            server.tell("drain 1000")
            server.close()
            self.assertEqual(client.next(), (CLOSE, struct.pack("!H", 1001)))
        with Served(address="0.0.0.0", patience_ms=1000) as server:
            client = upgraded(server)  # it should give the token now
            self.assertEqual(client.next(), (CLOSE, struct.pack("!H", 1008)))

    def test_commands_that_are_none_are_refused(self):
        client = upgraded(self.server)
        self.addCleanup(client.connection.close)
        client.next()
        client.connection.sendall(frame(TEXT, b'{"token": "%s"}' % TOKEN.encode()))
        for said, answer in REFUSED_COMMANDS:
            with self.subTest(said=said[:60]):
                client.connection.sendall(frame(BINARY, said))  # as a text what is no UTF-8 would end it
                opcode, payload = client.next()
                self.assertEqual(opcode, TEXT)
                data = json.loads(payload)["data"]
                self.assertFalse(data["accepted"])
                self.assertIn(answer, data["error"])
        self.assertIsNone(self.server.next_command())

    def test_a_hand_shake_is_whole_or_refused(self):
        for name, changed, expected, *rest in HANDSHAKES:
            headers = {"Host": "localhost", "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="} | changed
            with self.subTest(name), self.server.connect() as connection:
                request = (rest or ["GET /events"])[0] + " HTTP/1.1\r\n" + "".join(f"{key}: {value}\r\n" for key, value in headers.items() if value is not None) + "\r\n"
                connection.sendall(request.encode())
                self.assertEqual(parsed(connection.recv(4096))[0], expected)


if __name__ == "__main__":
    if not PROGRAM.exists():
        print(f"{PROGRAM} is not built")
        sys.exit(77)
    unittest.main(verbosity=2)
