"""What the tests of the event stream share: a server of messages without a run (test/stream/served_stream.cpp), and plain sockets."""
import json
import os
import re
import socket
import struct
import subprocess
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / os.environ.get("TORCHBUS_BUILD", "build/release") / "test/served_stream"
TOKEN = "0123456789abcdef0123456789abcdef"
PATIENCE_S = 60
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

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

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


class Lines:
    """Messages that come one a line."""

    def __init__(self, connection, begin=b""):
        self.connection, self.rest = connection, begin

    def take(self, end):
        """What comes before `end`, or None where nothing comes any more."""
        while end not in self.rest:
            received = self.connection.recv(1 << 16)
            if not received:
                return None
            self.rest += received
        taken, self.rest = self.rest.split(end, 1)
        return taken

    def next(self):
        line = self.take(b"\n")
        return None if line is None else json.loads(line)

    def until(self, number):
        """The numbers of all messages up to one, and the gaps on the way."""
        numbers, gaps = [], []
        while not numbers or numbers[-1] != number:
            message = self.next()
            if message is None:
                break
            if message["type"] == "torchbus.told":
                numbers.append(message["data"]["number"])
            if message["type"] == "torchbus.gap":
                gaps.append((message["data"]["first"], message["data"]["last"]))
        return numbers, gaps


def abort(connection):
    """Ends it as a process does that is killed."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def eventually(holds, what, seconds=PATIENCE_S):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.02)
