"""What the tests of the event stream share: a server of messages without a run (test/stream/served_stream.cpp), and what reads from plain sockets."""
import base64
import hashlib
import json
import os
import re
import socket
import struct
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / os.environ.get("TORCHBUS_BUILD", "build/release") / "test/served_stream"
SLOW = os.environ.get("TORCHBUS_SLOW") == "1"
TOKEN = "0123456789abcdef0123456789abcdef"
BEARER = f"Bearer {TOKEN}"
PATIENCE_S = 60
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10  # frames of a WebSocket
DEEP = b'{"command": "stop", "reason": ' + b"[" * 30_000 + b"]" * 30_000 + b"}"
REFUSED_COMMANDS = [  # whichever way they come, each with what the answer says
    (b" ", "syntax error"), (b"{}", "no command"), (b'{"token": ""}', "the token is empty"), (b"[]", "no command"), (b"nonsense", "syntax error"), (b'{"command": "fly"}', "'fly'"), (b'{"command": 1}', "no text"), (b'{"command": "stop", "why": 1}', "'why'"),
    (b'{"command": "stop", "reason": "refuse"}', "it was refused"), (b'{"command": "stop", "reason": "' + b"x" * 1000 + b'"}', "at most 512"), (b'{"command": "change_option", "subscriber": "clip"}', "needs subscriber"),
    (b'{"command": "stop", "command": "save"}', "the key 'command' stands twice"), (b'{"command": "stop", "value": {"a": 1, "a": 2}}', "the key 'a' stands twice"), (DEEP, "nested deeper than 16"),
    (b'{"command": "stop", "reason": "\xff\xfe"}', "ill-formed UTF-8 byte"), (b'{"command": "stop", "reason": "\\ud800"}', "surrogate"), (b'{"command": "stop", "reason": "\x00"}', "control character"),
    (b'{"command": "stop", "value": 1e999}', "number overflow parsing '1e999'"), (b'{"command": "stop", "value": ' + b"9" * 400 + b"}", "number overflow parsing '999"), (b'{"command": "stop", "value": NaN}', "invalid literal"),
    (b'{"command": "stop"} {}', "expected end of input"), (b'{"command": "stop"} x', "expected end of input"),
]


class Served:
    """The server, told what to do by lines."""

    def __init__(self, token=TOKEN, umask=-1, **variables):
        environment = os.environ | {f"SERVED_{name.upper()}": str(value) for name, value in variables.items()} | {"SERVED_TOKEN": token}
        self.process = subprocess.Popen([PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment, umask=umask)
        self.commands = []
        self.unix = variables.get("unix")
        self.first = self.process.stdout.readline().strip()
        self.port = int(self.first.rpartition(":")[2]) if self.first.startswith("http") else 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        if self.process.poll() is None:
            self.process.stdin.close()
            self.process.wait(PATIENCE_S)
        self.process.stdout.close()

    def tell(self, line):
        self.process.stdin.write(line + "\n")
        while True:
            answer = self.process.stdout.readline().strip()
            if answer.startswith("command"):
                self.commands.append(answer)
                continue
            assert answer == "done " + line, answer
            return

    def next_command(self):
        self.tell("drain 0")
        return self.commands.pop(0) if self.commands else None

    def connect(self, timeout=PATIENCE_S):
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout)

    def connect_unix(self, timeout=PATIENCE_S):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(self.unix))  # waits for a place, as it would not with a timeout
        connection.settimeout(timeout)
        return connection

    def status(self, field):
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"^{field}:\s+(\d+)", text, re.M)[1])

    def forget_peak(self):
        """Of its memory: VmHWM begins anew."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def metrics(self):
        return self.http("GET /metrics")[2].decode()

    def http(self, request, body=b"", host="localhost", close=True, **headers):
        """One exchange by plain bytes: (status, headers, body)."""
        lines = [request + " HTTP/1.1", f"Host: {host}"] + [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        if close:
            lines.append("Connection: close")
        with self.connect() as connection:
            connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
            return parsed(read_all(connection))


def read_all(connection):
    received = b""
    try:
        while bytes_ := connection.recv(1 << 16):
            received += bytes_
    except ConnectionResetError:
        pass
    return received


def parsed(response):
    head, _, body = response.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    status = int(lines[0].split()[1]) if lines[0] else 0
    return status, {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}, body


class Case(unittest.TestCase):
    def serve(self, **variables):
        return self.enterContext(Served(**variables))

    def unix_path(self):
        return Path(self.enterContext(tempfile.TemporaryDirectory())) / "run.sock"

    def lines(self, server, first=b"\n"):
        return Lines(self.enterContext(server.connect()), first)


class Lines:
    """Messages that come one a line."""

    def __init__(self, connection, first=b""):
        self.connection, self.rest = connection, b""
        if first:  # to send nothing is an error, too, where the sending side is closed
            connection.sendall(first)

    def receive(self):
        """False where nothing comes any more."""
        received = self.connection.recv(1 << 16)
        self.rest += received
        return bool(received)

    def take(self, end):
        """What comes before `end`, or None where nothing comes any more."""
        while end not in self.rest:
            if not self.receive():
                return None
        taken, self.rest = self.rest.split(end, 1)
        return taken

    def next(self):
        line = self.take(b"\n")
        return None if line is None else json.loads(line)

    message = next

    def whole(self):
        """The text of what has come, without a message that is not there in full."""
        text, _, self.rest = self.rest.rpartition(b"\n")
        return text

    def until(self, number):
        return numbers_until(number, iter(self.message, None))


class Events(Lines):
    """Server-Sent Events as (id, message)."""

    def __init__(self, connection, query="", **headers):
        extra = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        super().__init__(connection, f"GET /events{query} HTTP/1.1\r\nHost: localhost\r\n{extra}\r\n".encode())
        self.head = self.take(b"\r\n\r\n").decode()

    def next(self):
        event = self.take(b"\n\n")
        if event is None:
            return None
        fields = dict(line.split(": ", 1) for line in event.decode().split("\n"))
        return fields.get("id"), json.loads(fields["data"])

    def message(self):
        event = self.next()
        return event and event[1]


class WebSocket(Lines):
    """Frames as (opcode, payload)."""

    def __init__(self, connection, query=""):
        key = base64.b64encode(os.urandom(16)).decode()
        super().__init__(connection, f"GET /events{query} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                                     f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode())
        head = self.take(b"\r\n\r\n")
        status, headers, _ = parsed(head + b"\r\n\r\n")
        assert status == 101, head
        assert headers["sec-websocket-accept"] == base64.b64encode(hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()).decode()

    def frame_at(self, at):
        """Of what has come: (opcode, where its payload begins, where it ends), or None where it is not there in full."""
        received = self.rest
        if at + 2 > len(received):
            return None
        first, size, begin = received[at], received[at + 1], at + 2
        assert not size & 0x80, "a server masks nothing"
        assert first & 0x80, "it is in one piece"
        if size >= 126:
            begin += 2 if size == 126 else 8
            size = int.from_bytes(received[at + 2:begin], "big")
        return (first & 0x0F, begin, begin + size) if begin + size <= len(received) else None

    def next(self):
        while not (found := self.frame_at(0)):
            if not self.receive():
                raise EOFError
        opcode, begin, end = found
        payload, self.rest = self.rest[begin:end], self.rest[end:]
        return opcode, payload

    def message(self):
        opcode, payload = self.next()
        assert opcode == TEXT, opcode
        return json.loads(payload)

    def whole(self):
        texts, at = [], 0
        while found := self.frame_at(at):
            opcode, begin, at = found
            texts.append(self.rest[begin:at])
            if opcode == PING:
                self.connection.sendall(frame(PONG, texts.pop()))
        self.rest = self.rest[at:]
        return b"\n".join(texts)


def numbers_until(number, messages):
    """The numbers of all messages up to one, and the gaps on the way."""
    numbers, gaps = [], []
    for message in messages:
        kind, data = message["type"], message["data"]
        if kind == "torchbus.told":
            numbers.append(data["number"])
            if data["number"] == number:
                break
        if kind == "torchbus.gap":
            gaps.append((data["first"], data["last"]))
            assert data["count"] == data["last"] - data["first"] + 1, data
    return numbers, gaps


def left_out(gaps, number):
    """The numbers up to one that no gap names."""
    return [n for n in range(1, number + 1) if not any(first <= n <= last for first, last in gaps)]


def frame(opcode, payload=b"", fin=True, mask=b"\x12\x34\x56\x78", reserved=0, length_bytes=None):
    head = bytes([(fin << 7) | (reserved << 4) | opcode])
    masked = 0x80 if mask else 0
    size = len(payload)
    length_bytes = length_bytes if length_bytes is not None else 0 if size < 126 else 2 if size < 65536 else 8
    head += bytes([masked | size]) if length_bytes == 0 else bytes([masked | 126]) + struct.pack("!H", size) if length_bytes == 2 else bytes([masked | 127]) + struct.pack("!Q", size)
    return head + (mask + bytes(b ^ mask[i % 4] for i, b in enumerate(payload)) if mask else payload)


def abort(connection):
    """Ends it as a process does that is killed."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def eventually(holds, what, seconds=PATIENCE_S):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.02)
