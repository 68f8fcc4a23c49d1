#!/usr/bin/env python3
"""Has clients do to the event stream what they should not, by the hundred, and looks at what becomes of the server and of who reads as it should.

usage: bad_clients_test.py [CLASS[.test]...]; programs are those in $TORCHBUS_BUILD, default build/release.
TORCHBUS_SLOW=1        1,000 clients that never read, 20,000 connections, 100 readers of 1,000,000 messages
TORCHBUS_SANITIZED=1   the server's memory is not compared: a sanitizer keeps what was freed
"""
import collections
import contextlib
import itertools
import json
import os
import re
import socket
import statistics
import sys
import threading
import time
import unittest

from served import BEARER, PATIENCE_S, PING, PROGRAM, SLOW, Case, Events, Lines, WebSocket, abort, eventually, left_out, read_all

SANITIZED = os.environ.get("TORCHBUS_SANITIZED") == "1"
HISTORY = 4 << 20
# What the process keeps for a client that does not read: the chunk of 32 KiB that it stopped at and nobody else wants any more, for Server-Sent Events
# its text as well, which is an eighth longer, and about 10 KiB of buffers and coroutines. What the system keeps, twice 64 KiB at most, is not the process's.
HELD_BY_A_CLIENT = 64 << 10
SLACK = 4 << 20  # what is on its way, and what the allocator cannot give back
EVENTS = b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n"
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
UPGRADE = b"GET /events HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
TRANSPORTS = {"lines": lambda connection: Lines(connection, b"\n"), "Server-Sent Events": Events, "WebSocket": WebSocket}


def leave(connection):
    """Ends it with nothing unread, as it is told to the other side otherwise."""
    connection.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while connection.recv(1 << 16):
            pass
    connection.close()


def leave_unread(connection):
    """Ends a Unix socket so that the other side has an error, as abort() does a TCP connection."""
    connection.recv(1, socket.MSG_PEEK)
    connection.close()


class BadClients(Case):
    def test_clients_that_never_read_hold_no_more_than_their_limit_and_are_cut_off(self):
        count, stall_s = 1000 if SLOW else 300, 30 if SLOW or SANITIZED else 10
        server = self.serve(history=HISTORY, stall_ms=1000 * stall_s, unix=self.unix_path())
        healthy = self.lines(server, b'{"events": ["told"], "fields": ["number"]}\n')
        healthy.next()
        published = 0

        def publish(messages):
            nonlocal published
            server.tell(f"publish {messages} 2000")
            self.assertEqual(healthy.until(published + messages), (list(range(published + 1, published + messages + 1)), []))
            published += messages

        def fill_histories():
            for _ in range(2 * HISTORY // 1_000_000):
                publish(500)

        fill_histories()
        alone = server.descriptors()
        server.forget_peak()
        before = server.status("VmRSS")
        ways = [b"", b'{"events": ["*"]}\n', EVENTS, UPGRADE]  # who says nothing comes first, as it is given nothing for 3 s
        for i in range(count):
            client = self.enterContext(server.connect_unix() if i % 2 else server.connect())
            client.sendall(ways[i * len(ways) // count])
            publish(40)  # two chunks and a half: the next client begins, and so stops, at another one
        eventually(lambda: 'torchbus_clients{transport="unknown"} 0\n' in server.metrics(), "who says nothing is given nothing")
        fill_histories()  # now what each client stopped at is in no history any more
        self.assertGreaterEqual(server.descriptors(), alone + count)
        grown = 1024 * (server.status("VmHWM") - before)
        print(f"{count} clients that never read: {grown / count / 1024:.0f} KiB for each at most", flush=True)
        self.assertLess(0 if SANITIZED else grown, count * HELD_BY_A_CLIENT + HISTORY + SLACK)
        eventually(lambda: server.descriptors() <= alone, "the clients that do not read are still connected")
        self.assertIn(f"torchbus_clients_cut_off_total {count}\n", server.metrics())

    def narrow(self, server):
        """A connection on which little is on its way."""
        connection = self.enterContext(socket.socket())
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(PATIENCE_S)
        connection.connect(("127.0.0.1", server.port))
        return connection

    def test_a_slow_client_is_told_what_it_has_missed(self):
        for name, follow in TRANSPORTS.items():
            with self.subTest(name):
                server = self.serve(history=1 << 20)
                client = follow(self.narrow(server))
                client.message()
                for _ in range(20):
                    server.tell("publish 500 2000")
                server.tell("publish 1")
                numbers, gaps = client.until(10_001)
                self.assertTrue(gaps)
                self.assertEqual(numbers, left_out(gaps, 10_001))

    def test_clients_that_want_all_different_things_share_one_history(self):
        server = self.serve(history=HISTORY)
        for _ in range(5):
            server.tell("publish 500 2000")
        before = server.status("VmRSS")
        count, most = 1000 if SLOW else 300, 32  # of at least 128 KiB in 4 MiB
        clients = [self.enterContext(server.connect()) for _ in range(count)]
        for i, client in enumerate(clients):
            client.sendall(b'{"every": "1.%04dstep"}\n' % (i + 1))
        firsts = [Lines(client).next() for client in clients]
        self.assertEqual([first.get("type") for first in firsts if "error" not in first], ["torchbus.snapshot"] * most)
        self.assertIn("32 different choices", next(first["error"] for first in firsts if "error" in first))
        status, _, body = server.http("GET /events?every=2step")
        self.assertEqual(status, 503)
        self.assertIn("32 different choices", json.loads(body)["error"])
        for _ in range(5):
            server.tell("publish 500 2000")
        self.assertLess(0 if SANITIZED else server.status("VmRSS") - before, 32_768)
        self.assertEqual(self.lines(server, b"{}\n").next()["type"], "torchbus.snapshot")

    def test_who_never_reads_does_not_hold_up_the_end_of_a_run(self):
        server = self.serve()
        self.narrow(server).sendall(b"{}\n")
        reading = self.lines(server, b'{"from": "now"}\n')
        reading.next()
        for i in range(4):
            server.tell("publish 500 2000")
            reading.until(500 * (i + 1))
        server.tell("publish 1")
        began = time.monotonic()
        server.tell("drain 20000")
        self.assertLess(time.monotonic() - began, 1)
        self.assertEqual(reading.until(2001), ([2001], []))

    def test_who_sends_byte_after_byte_delays_nobody_and_is_cut_off(self):
        patience_s = 5
        server = self.serve(patience_ms=1000 * patience_s)
        healthy = self.lines(server)
        healthy.next()
        alone = server.descriptors()
        control = f"POST /control HTTP/1.1\r\nHost: localhost\r\nAuthorization: {BEARER}\r\nContent-Length: 5000\r\n\r\n".encode()
        ways = [(b"", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: "), (control, b"{"), (b"", b'{"events": ["'), (b"", UPGRADE[:-2])]  # at once, and byte after byte
        clients, lasted_s = [], []

        def delays():
            took = []
            for _ in range(30):
                server.tell("publish 1")
                began = time.monotonic()
                healthy.next()
                took.append(time.monotonic() - began)
                self.assertEqual(server.http("GET /healthz")[0], 200)
                time.sleep(0.05)
            return took

        def trickle():
            going = [(client, then.ljust(5000, b"x")) for client, (_, then) in zip(clients, itertools.cycle(ways))]
            began = time.monotonic()
            for i in range(5000):
                for client, text in list(going):
                    try:
                        client.send(text[i:i + 1])
                    except OSError:
                        going.remove((client, text))
                        lasted_s.append(time.monotonic() - began)
                if not going:
                    return
                time.sleep(0.1)

        quiet = delays()
        for at_once, _ in itertools.islice(itertools.cycle(ways), 200):
            clients.append(self.enterContext(server.connect()))
            clients[-1].sendall(at_once)
        stopped = [self.enterContext(server.connect()) for _ in range(50)]
        for client, (at_once, then) in zip(stopped, itertools.cycle(ways)):
            client.sendall(at_once or then)
        trickling = threading.Thread(target=trickle, daemon=True)
        trickling.start()
        beside = delays()
        self.assertEqual(server.descriptors(), alone + len(clients) + len(stopped))
        trickling.join(PATIENCE_S)
        self.assertEqual(len(lasted_s), len(clients))
        self.assertGreater(min(lasted_s), patience_s - 1)
        eventually(lambda: server.descriptors() <= alone, "slow clients are still connected")
        self.assertIn("torchbus_clients_cut_off_total 250\n", server.metrics())
        for what, took in (("alone", quiet), ("beside 250 slow ones", beside)):
            print(f"a message to a healthy client {what}: {1000 * statistics.median(took):.2f} ms, at most {1000 * max(took):.2f} ms", flush=True)
        self.assertLess(max(beside), 1)
        print(f"the slow ones were cut off after {min(lasted_s):.1f} to {max(lasted_s):.1f} s", flush=True)

    def test_a_later_request_of_a_connection_has_no_more_time_than_the_first(self):
        server = self.serve(patience_ms=1000)
        with server.connect() as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            self.assertIn(b"200 OK", connection.recv(4096))
            time.sleep(2)  # between two requests a connection may rest
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea")
            self.assertIn(b"200 OK", connection.recv(4096))
            began = time.monotonic()
            self.assertEqual(read_all(connection), b"")
            self.assertLess(time.monotonic() - began, 20)

    def test_who_asks_for_nothing_more_or_answers_no_ping_is_let_go(self):
        server = self.serve(idle_ms=1000)
        asked = self.enterContext(server.connect())
        asked.sendall(HEALTH)
        self.assertIn(b"200 OK", asked.recv(4096))
        began = time.monotonic()
        self.assertEqual(read_all(asked), b"")
        self.assertGreater(time.monotonic() - began, 0.9)
        answers, silent = (WebSocket(self.enterContext(server.connect())) for _ in range(2))
        began = time.monotonic()
        while time.monotonic() - began < 3 and answers.receive():
            answers.whole()  # answers pings
        server.tell("publish 1")
        self.assertEqual(answers.until(1), ([1], []))
        self.assertEqual([silent.message()["type"], silent.next()[0]], ["torchbus.snapshot", PING])
        with self.assertRaises(EOFError):
            while silent.next():
                pass

    def test_connections_that_come_and_go_leave_nothing(self):
        rounds, each, at_a_time = (10, 2000, 50) if SLOW else (4, 500, 50)
        server = self.serve(unix=self.unix_path())
        server.tell("publish 100")
        answered, not_answered = [b"{}\n", EVENTS, HEALTH, b"\x00", UPGRADE], [b"", b"GET /he", UPGRADE[:-40]]
        kinds = itertools.cycle([*itertools.product([server.connect], answered + not_answered, [abort, leave]), *itertools.product([server.connect_unix], answered, [leave_unread, leave])])
        alone = server.descriptors()
        there = collections.deque()

        def let_go():
            client, end = there.popleft()
            end(client)

        def has_no_other():
            server.tell("publish 1")  # that one has gone is seen when it is written to
            return server.descriptors() <= alone + len(there)

        def come_and_go(count):
            for connect, said, end in itertools.islice(kinds, count):
                client = connect()
                client.sendall(said)
                there.append((client, end))
                if len(there) > at_a_time:
                    let_go()
            eventually(has_no_other, "descriptors are left")
            return server.status("Threads"), server.status("VmRSS")

        threads, memory = come_and_go(1000)
        for _ in range(rounds):
            threads_now, memory_now = come_and_go(each)
            self.assertEqual(threads_now, threads)
            self.assertLess(0 if SANITIZED else memory_now - memory, 4096)
            print(f"{each} connections more: {server.descriptors()} descriptors, {threads_now} threads, {memory_now - memory} KiB more than in the beginning", flush=True)
        while there:
            let_go()
        eventually(has_no_other, "descriptors are left")

    def test_one_client_more_than_there_may_be_is_turned_away(self):
        server = self.serve(clients=10)
        kept = [self.lines(server) for _ in range(10)]
        for client in kept:
            self.assertEqual(client.next()["type"], "torchbus.snapshot")
        with server.connect() as one_more:
            self.assertEqual(read_all(one_more), b"")
        kept[0].connection.close()

        def has_place():
            server.tell("publish 1")  # that one has gone is seen when it is written to
            return server.http("GET /healthz")[0] == 200

        eventually(has_place, "no place was made")


class Reader(threading.Thread):
    """Each number has to come in its turn, or a gap that begins with it; `wrong` says where neither did."""
    NUMBER = re.compile(rb'number":(\d+)')
    GAP = re.compile(rb'torchbus\.gap".*?"first":(\d+),"last":(\d+)')

    def __init__(self, way, client, numbers):
        super().__init__(daemon=True)
        self.way, self.client, self.numbers = way, client, numbers
        self.last, self.missed, self.wrong = 0, 0, ""

    def run(self):
        while self.last < len(self.numbers) and not self.wrong:
            if not self.client.receive():
                self.wrong = f"cut off after {self.last}"
            text, *gaps = self.GAP.split(self.client.whole())
            self.take(text)
            for first, last, text in zip(gaps[::3], gaps[1::3], gaps[2::3]):
                if int(first) != self.last + 1:
                    self.wrong = f"a gap from {first} after {self.last}"
                self.missed += int(last) - self.last
                self.last = int(last)
                self.take(text)

    def take(self, text):
        came = self.NUMBER.findall(text)
        if came != self.numbers[self.last:self.last + len(came)]:
            self.wrong = f"something else than {len(came)} numbers after {self.last}"
        self.last += len(came)


class Readers(Case):
    def read_by(self, server, count, messages):
        """So many readers, by each way as many, that have begun."""
        ways = {"lines": (server.connect, TRANSPORTS["lines"]), "lines over a Unix socket": (server.connect_unix, TRANSPORTS["lines"]),
                "Server-Sent Events": (server.connect, Events), "WebSocket": (server.connect, WebSocket)}
        numbers = [b"%d" % n for n in range(1, messages + 1)]
        readers = [Reader(way, follow(self.enterContext(connect())), numbers) for way, (connect, follow) in itertools.islice(itertools.cycle(ways.items()), count)]
        for reader in readers:
            reader.start()
        return readers

    def join(self, readers, messages):
        for reader in readers:
            reader.join(PATIENCE_S * 20)
        self.assertEqual([(reader.way, reader.last, reader.wrong) for reader in readers if reader.wrong or reader.last != messages], [])

    def test_readers_get_every_message_in_order(self):
        count, messages = (100, 1_000_000) if SLOW else (20, 50_000)
        server = self.serve(history=64 << 20, unix=self.unix_path())
        readers = self.read_by(server, count, messages)
        began = time.monotonic()
        for _ in range(messages // 5000):
            server.tell("publish 5000")
            server.tell("drain 60000")
        self.join(readers, messages)
        self.assertEqual([reader.way for reader in readers if reader.missed], [])
        print(f"{count} readers had {messages:,} messages each in {time.monotonic() - began:.0f} s", flush=True)

    def test_where_the_publisher_waits_for_nobody_readers_get_each_message_or_are_told_of_it(self):
        count, messages = (100, 1_000_000) if SLOW else (20, 50_000)
        server = self.serve(history=1 << 20, unix=self.unix_path())
        readers = self.read_by(server, count, messages)
        server.tell(f"publish {messages}")
        self.join(readers, messages)
        self.assertEqual({reader.way for reader in readers if reader.missed}, {reader.way for reader in readers})
        print(f"of {messages:,} messages without a pause {count} readers had {messages - statistics.median(reader.missed for reader in readers):,.0f}, and were told which they missed", flush=True)


if __name__ == "__main__":
    if not PROGRAM.exists():
        print(f"{PROGRAM} is not built")
        sys.exit(77)
    unittest.main(verbosity=2)
