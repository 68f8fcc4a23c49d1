#!/usr/bin/env python3
"""Connects to the event stream as clients do, and looks at what they get. Bad ones are in bad_clients_test.py.

usage: stream_test.py [CLASS[.test]...]; programs are those in $TORCHBUS_BUILD, default build/release.
"""
import http.client
import json
import re
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
import unittest

from served import BEARER, PATIENCE_S, PROGRAM, REFUSED_COMMANDS, ROOT, TOKEN, Case, Events, Lines, Served, abort, left_out, numbers_until, parsed, read_all

sys.path.insert(0, str(ROOT / "examples/clients"))
import torchbus_events  # noqa: E402


class LinesOverTcp(Case):
    def test_who_says_nothing_is_given_the_state_and_then_every_message_in_order(self):
        server = self.serve()
        server.tell("publish 1000")
        client = self.lines(server, b"")
        snapshot = client.next()
        self.assertEqual((snapshot["type"], snapshot["data"]["state"], snapshot["data"]["last_sequence"]), ("torchbus.snapshot", "running", 1000))
        server.tell("publish 1000")
        self.assertEqual(client.until(2000), (list(range(1, 2001)), []))

    def test_a_first_line_chooses_and_a_wrong_one_is_answered(self):
        server = self.serve()
        server.tell("publish 10")
        client = self.lines(server, b'{"events": ["told"], "fields": ["number"]}\n')
        self.assertEqual(client.next()["type"], "torchbus.snapshot")
        self.assertEqual(client.next()["data"], {"number": 1})
        rows = [(b'{"evnts": []}', "'evnts' is not known"), (b"{", "syntax error"), (b'{"events": ["a"], "events": ["b"]}', "the key 'events' stands twice"),
                (b'{"events": {"a": 1, "a": 2}}', "the key 'a' stands twice"), (b'{"events": ["\xff"]}', "ill-formed UTF-8 byte"), (b'{"events": ["\\ud800"]}', "surrogate"),
                (b'{"every": 1e999}', "number overflow parsing '1e999'"), (b'{"every": ' + b"9" * 400 + b"}", "number overflow parsing '999"), (b'{"every": NaN}', "invalid literal"),
                (b'{"events": ["a"]} {}', "expected end of input"), (b'{"events": ["a"]} x', "expected end of input"), (b'{"token": "wrong"}', "the token is not the server's"),
                (b'{"events": ' + b"[" * 30_000 + b"]" * 30_000 + b"}", "events is no list of texts"), (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "'a' is not known")]
        for said, answer in rows:
            with self.subTest(said=said[:30]), server.connect() as connection:
                connection.sendall(said + b"\n")
                refusal = json.loads(read_all(connection))["error"]
                self.assertTrue(refusal.startswith("subscription: "), refusal)
                self.assertIn(answer, refusal)
        with server.connect() as connection:
            connection.sendall(b"[" * 5000 + b"\n")
            self.assertEqual(parsed(read_all(connection))[0], 400)  # it is taken for HTTP
        with server.connect() as connection:
            try:
                connection.sendall(b'{"events": ["' + b"a" * 200_000)
                self.assertEqual(read_all(connection), b"")
            except (ConnectionResetError, BrokenPipeError):
                pass
        server.tell("publish 1")
        self.assertEqual(client.until(11), (list(range(2, 12)), []))

    def test_a_client_that_has_closed_its_side_goes_on_listening(self):
        server = self.serve()
        client = self.lines(server, b'{"from": "now"}\n')
        client.connection.shutdown(socket.SHUT_WR)
        self.assertEqual(client.next()["type"], "torchbus.snapshot")
        server.tell("publish 3")
        self.assertEqual(client.until(3), ([1, 2, 3], []))

    def test_commands_are_lines_too_and_need_the_token(self):
        server = self.serve()
        client = self.lines(server, b'{"events": ["nothing"]}\n')
        client.next()
        client.connection.sendall(b'{"command": "stop"}\n{"command": "save", "token": "%s", "by": "me", "reason": "so"}\n{"command": "pause"}\n' % TOKEN.encode())
        self.assertIn("token", client.next()["data"]["error"])
        self.assertEqual(client.next()["data"], {"accepted": True})
        self.assertEqual(client.next()["data"], {"accepted": True})
        self.assertEqual(server.next_command(), "command save by me at 127.0.0.1 because so .=null")
        self.assertEqual(server.next_command(), "command pause by 127.0.0.1 because  .=null")

    def test_commands_that_are_none_are_refused_as_lines_too(self):
        server = self.serve()
        client = self.lines(server, b'{"events": ["nothing"], "token": "%s"}\n' % TOKEN.encode())
        client.next()
        for said, answer in REFUSED_COMMANDS:
            with self.subTest(said=said[:60]):
                client.connection.sendall(said + b"\n")
                data = client.next()["data"]
                self.assertFalse(data["accepted"])
                self.assertIn(answer, data["error"])
        self.assertIsNone(server.next_command())

    def test_a_unix_socket_is_for_its_user_alone_and_goes_with_the_server(self):
        path = self.unix_path()
        stale = socket.socket(socket.AF_UNIX)
        stale.bind(str(path))
        stale.close()
        server = self.serve(unix=path, umask=0)
        self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600)
        server.tell("publish 5")
        with server.connect_unix() as connection:
            self.assertEqual(Lines(connection).until(5), ([1, 2, 3, 4, 5], []))
        with Served(unix=path) as second:
            self.assertIn("Address already in use", second.first)
        self.assertEqual(torchbus_events.Run(str(path)).state()["last_sequence"], 5)
        server.close()
        self.assertFalse(path.exists())


class ServerSentEvents(Case):
    def stream(self, server, query="", **headers):
        return Events(self.enterContext(server.connect()), query, **headers)

    def test_the_past_that_is_kept_comes_first_and_every_message_has_an_id(self):
        server = self.serve()
        server.tell("publish 3")
        events = self.stream(server)
        self.assertRegex(events.head, r"^HTTP/1.1 200 OK\r\n")
        self.assertIn("Content-Type: text/event-stream", events.head)
        self.assertNotIn("Access-Control-Allow-Origin", events.head)
        self.assertEqual([(i, m["type"]) for i, m in (events.next() for _ in range(4))],
                         [(None, "torchbus.snapshot"), ("run-1:1", "torchbus.told"), ("run-1:2", "torchbus.told"), ("run-1:3", "torchbus.told")])
        events = self.stream(server, "?from=now", Origin="https://pages.example")
        self.assertIn("Access-Control-Allow-Origin: https://pages.example", events.head)
        events.next()
        server.tell("publish 1")
        self.assertEqual(events.next()[0], "run-1:4")

    def test_a_client_that_comes_back_goes_on_from_its_last_message(self):
        server = self.serve()
        server.tell("publish 5000")
        for last in (1, 17, 4999):
            events = self.stream(server, Last_Event_ID=f"run-1:{last}")
            events.next()
            self.assertEqual(events.next()[0], f"run-1:{last + 1}")
        events = self.stream(server, Last_Event_ID="run-1:5000")
        events.next()
        server.tell("publish 1")
        self.assertEqual(events.next()[0], "run-1:5001")
        for other in ("run-0:4000", "nonsense", ":", "run-1:x", "run-1:" + "9" * 40):  # of another server, or of none
            with self.subTest(other=other):
                events = self.stream(server, Last_Event_ID=other)
                self.assertEqual(events.next()[1]["type"], "torchbus.snapshot")

    def test_what_was_missed_is_told_by_its_first_and_last_number(self):
        server = self.serve(history=1 << 20)
        server.tell("publish 10 1000")
        server.tell("publish 5000 1000")
        for headers in ({}, {"Last_Event_ID": "run-1:10"}):
            events = self.stream(server, **headers)
            events.next()
            i, gap = events.next()
            first = headers and 11 or 1
            self.assertEqual((gap["type"], gap["data"]["first"]), ("torchbus.gap", first))
            self.assertEqual(gap["data"]["count"], gap["data"]["last"] - first + 1)
            self.assertEqual(events.next()[0], f"run-1:{gap['data']['last'] + 1}")
        events = self.stream(server, "?events=told&fields=number")
        events.next()
        self.assertEqual(events.next()[1]["type"], "torchbus.gap")

    def test_a_gap_of_a_client_that_has_chosen_ends_where_messages_were_lost(self):
        server = self.serve(history=1 << 20)
        early = self.lines(server, b'{"events": ["numbers"]}\n')
        early.next()
        server.tell("numbers 1")
        server.tell("publish 5000 1000")
        server.tell("numbers 1")
        kinds = lambda client, count: [client.next()["type"].removeprefix("torchbus.") for _ in range(count)]
        self.assertEqual(kinds(early, 2), ["numbers", "numbers"])
        # Who comes later and wants the same has missed nothing.
        self.assertEqual(kinds(self.lines(server, b'{"events": ["numbers"]}\n'), 3), ["snapshot", "numbers", "numbers"])
        events = self.stream(server)
        events.next()
        lost = events.next()[1]["data"]
        self.assertLess(lost["last"], 5001)
        events = self.stream(server, "?events=numbers&fields=position.step")  # nothing was kept for it; it begins with what its share has place for
        events.next()
        missed = events.next()[1]["data"]
        self.assertEqual(missed["first"], 1)
        self.assertTrue(lost["last"] <= missed["last"] < 5001, (lost, missed))
        self.assertEqual(events.next()[0], "run-1:5002")

    def test_a_next_run_begins_its_numbers_anew(self):
        server = self.serve()
        server.tell("publish 2")
        events = self.stream(server)
        server.tell("begin run-2")
        server.tell("publish 2")
        self.assertEqual([events.next()[0] for _ in range(5)], [None, "run-1:1", "run-1:2", "run-2:1", "run-2:2"])

    def test_a_wrong_query_is_answered(self):
        server = self.serve()
        for query in ("event=x", "every=soon", "events=%zz", "every=0.1run", "from=x"):
            status, _, body = server.http(f"GET /events?{query}")
            self.assertEqual(status, 400)
            self.assertTrue(json.loads(body)["error"])


class Http(Case):
    def test_what_is_asked_for_is_answered_on_one_connection(self):
        server = self.serve()
        server.tell("publish 7")
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
        for target, kind in [("/healthz", "application/json"), ("/state", "application/json"), ("/schema", "application/schema+json"), ("/metrics", "text/plain")] * 3:
            connection.request("GET", target)
            response = connection.getresponse()
            body = response.read()
            self.assertEqual((response.status, response.headers["Content-Type"].split(";")[0]), (200, kind))
            self.assertEqual(response.headers["X-Content-Type-Options"], "nosniff")
            self.assertEqual(response.headers["Content-Security-Policy"], "default-src 'none'; frame-ancestors 'none'")
            if kind != "text/plain":
                json.loads(body)
        connection.request("HEAD", "/healthz")
        response = connection.getresponse()
        self.assertEqual((response.status, response.read()), (200, b""))
        connection.close()
        self.assertIn('torchbus_messages_total{rank="0",run="run-1"} 7\n', server.metrics())

    def test_a_request_on_a_connection_that_was_idle_is_answered(self):
        server = self.serve()
        with server.connect() as connection:
            time.sleep(1)
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            self.assertEqual(parsed(read_all(connection))[0], 200)
        with server.connect() as connection:
            connection.shutdown(socket.SHUT_WR)  # as `nc </dev/null` does
            connection.settimeout(2)
            self.assertEqual(Lines(connection).next()["type"], "torchbus.snapshot")

    def test_metrics_have_the_form_that_prometheus_reads(self):
        server = self.serve()
        server.tell("publish 7")
        status, headers, body = server.http("GET /metrics")
        self.assertEqual(headers["content-type"], "text/plain; version=0.0.4; charset=utf-8")
        typed = set()
        for line in body.decode().splitlines():
            if line.startswith("# TYPE"):
                name = line.split()[2]
                self.assertNotIn(name, typed)
                typed.add(name)
            elif not line.startswith("#"):
                self.assertRegex(line, r'^[a-z_]+(\{([a-z_]+="([^"\\\n]|\\[\\"n])*",?)*\})? (NaN|[+-]Inf|[-+0-9.e]+)$')
                self.assertIn(re.match(r"[a-z_]+", line)[0], typed)

    def test_requests_that_are_none_are_refused(self):
        server = self.serve()
        long = "x" * 20_000
        rows = [(b"GET /healthz HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421), (b"GET /healthz HTTP/1.1\r\n\r\n", 400), (b"GET /healthz HTTP/1.0\r\n\r\n", 400),
                (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400), (b"GET  /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
                (b"GET /healthz HTTP/9.9\r\nHost: localhost\r\n\r\n", 400), (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400), (b"GET / HTTP/1.1\nHost: localhost\n\n", 400),
                (f"GET /{long} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(), 431), (f"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: {long}\r\n\r\n".encode(), 431),
                (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX : y\r\n\r\n", 400), (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n folded\r\n\r\n", 400),
                (b"GET /healthz HTTP/1.1\r\nHost: localhost\x00\r\n\r\n", 400), (b"GET /health\x00z HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
                (b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n", 404), (b"GET /../healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
                (b"GET http://localhost/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", 404), (b"DELETE /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
                (b"POST /control HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}", 401), (b"GET /events HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\n\r\n", 403),
                (f"POST /control HTTP/1.1\r\nHost: localhost\r\nAuthorization: {BEARER}\r\nContent-Length: 99999999\r\n\r\n".encode(), 413),
                (f"POST /control HTTP/1.1\r\nHost: localhost\r\nAuthorization: {BEARER}\r\nContent-Length: -1\r\n\r\n".encode(), 400),
                (f"POST /control HTTP/1.1\r\nHost: localhost\r\nAuthorization: {BEARER}\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{{}}".encode(), 400)]
        for request, expected in rows:
            with self.subTest(request=request[:90]), server.connect() as connection:
                connection.sendall(request)
                self.assertEqual(parsed(read_all(connection))[0], expected)
        self.assertEqual(server.http("GET /healthz")[0], 200)

    def test_a_command_is_taken_with_the_token_and_says_what_became_of_it(self):
        server = self.serve()
        status, _, body = server.http("POST /control", b'{"command": "change_option", "subscriber": "clip", "option": "max_norm", "value": 0.5, "by": "me"}', Authorization=BEARER)
        self.assertEqual((status, json.loads(body)["data"]), (202, {"accepted": True}))
        self.assertEqual(server.next_command(), "command change_option by me at 127.0.0.1 because  clip.max_norm=0.5")
        for body, answer in REFUSED_COMMANDS:
            with self.subTest(body=body[:60]):
                status, _, said = server.http("POST /control", body, Authorization=BEARER)
                data = json.loads(said)["data"]
                self.assertEqual((status, data["accepted"]), (400, False))
                self.assertIn(answer, data["error"])
        self.assertIsNone(server.next_command())
        self.assertNotIn(TOKEN.encode(), server.http("POST /control", b"{}", Authorization=BEARER + "x")[2])
        with server.connect() as connection:
            connection.sendall(f"POST /control HTTP/1.1\r\nHost: localhost\r\nAuthorization: {BEARER}\r\nContent-Length: 19\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n".encode())
            self.assertEqual(connection.recv(1000), b"HTTP/1.1 100 Continue\r\n\r\n")
            connection.sendall(b'{"command": "stop"}')
            self.assertEqual(parsed(read_all(connection))[0], 202)

    def test_a_page_of_an_allowed_origin_may_send_the_token_and_where_it_goes_on(self):
        server = self.serve(address="0.0.0.0")
        asks = {"Origin": "https://pages.example", "Access_Control_Request_Headers": "authorization,last-event-id"}
        for target, method, methods in [("/control", "POST", "POST"), ("/events", "GET", "GET"), ("/state", "GET", "GET, HEAD")]:
            status, headers, body = server.http(f"OPTIONS {target}", Access_Control_Request_Method=method, **asks)
            self.assertEqual((status, body), (204, b""))
            self.assertEqual(headers["access-control-allow-origin"], "https://pages.example")
            self.assertEqual(headers["access-control-allow-methods"], methods)
            self.assertEqual(headers["access-control-allow-headers"], "authorization, last-event-id, content-type")
        for changed in ({"Origin": "https://evil.example"}, {"Origin": ""}, {"Access_Control_Request_Method": "PUT"}):
            status, headers, _ = server.http("OPTIONS /control", **(asks | {"Access_Control_Request_Method": "POST"} | changed))
            self.assertIn(status, (403, 405))
            self.assertEqual([name for name in headers if name.startswith("access-control")], [])
        with server.connect() as connection:  # one connection, as browsers do
            connection.sendall(b"OPTIONS /state HTTP/1.1\r\nHost: localhost\r\nOrigin: https://pages.example\r\nAccess-Control-Request-Method: GET\r\n\r\n")
            self.assertIn(b"204 No Content", connection.recv(4096))
            connection.sendall(f"GET /state HTTP/1.1\r\nHost: localhost\r\nOrigin: https://pages.example\r\nAuthorization: {BEARER}\r\nConnection: close\r\n\r\n".encode())
            status, headers, _ = parsed(read_all(connection))
            self.assertEqual((status, headers["access-control-allow-origin"]), (200, "https://pages.example"))

    def test_another_address_than_the_loopback_needs_a_token_for_all_but_health(self):
        with Served(token="", address="0.0.0.0") as refused:
            self.assertRegex(refused.first, "^error event_server: 0.0.0.0 can be reached from other machines, and no token is set")
        server = self.serve(address="0.0.0.0")
        for target in ("/state", "/metrics", "/schema", "/events"):
            self.assertEqual(server.http(f"GET {target}")[0], 401)
        self.assertEqual(server.http("GET /healthz")[0], 200)
        self.assertEqual(server.http("GET /state", Authorization=BEARER)[0], 200)
        for said in (b"", b'{"token": "wrong"}\n'):
            with server.connect() as connection:
                connection.sendall(said)
                self.assertIn(b"token", read_all(connection))
        self.assertEqual(self.lines(server, f'{{"token": "{TOKEN}"}}\n'.encode()).next()["type"], "torchbus.snapshot")


    def test_it_listens_on_ipv6_too(self):
        server = self.serve(address="::1")
        self.assertRegex(server.first, r"^http://\[::1\]:\d+$")
        server.tell("publish 2")
        for host, status in ((f"[::1]:{server.port}", 200), ("localhost", 200), ("[::2]", 421), ("[0:0:0:0:0:0:0:1]", 421), ("::1", 400)):
            with socket.create_connection(("::1", server.port), timeout=PATIENCE_S) as connection:
                connection.sendall(f"GET /state HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
                self.assertEqual(parsed(read_all(connection))[0], status, host)
        with Served(token="", address="::") as refused:
            self.assertRegex(refused.first, "^error event_server: :: can be reached from other machines, and no token is set")

    def test_curves_have_as_many_points_as_are_asked_for_and_every_peak(self):
        server = self.serve()
        server.tell("numbers 1000000")
        server.tell(f"drain {PATIENCE_S * 1000}")
        of = lambda target: json.loads(server.http(f"GET {target}")[2])
        run = of("/runs")["runs"][0]
        self.assertEqual((run["run"], run["is_live"], run["names"], run["position"]["step"]), ("run-1", True, ["learning_rate", "train.loss"], 1_000_000))
        curve = of("/curves?names=train.loss&points=800")["curves"][0]
        self.assertEqual((curve["count"], curve["run"], curve["rank"]), (1_000_000, "run-1", 0))
        self.assertLessEqual(len(curve["x"]), 810)
        self.assertEqual((curve["x"][curve["y"].index(max(curve["y"]))], max(curve["y"])), (777, 50))
        zoomed = of("/curves?names=train.loss&from=700&to=800&points=800")["curves"][0]
        self.assertEqual((zoomed["count"], zoomed["x"]), (101, list(range(700, 801))))
        self.assertEqual(server.http("GET /curves?names=train.loss&x=parsec")[0], 400)
        for target in ("/state?run=nobody", "/state?rank=0abc", "/curves?%ff=1", "/curves?names=a&%ff", "/events?%ff=1"):
            self.assertEqual(server.http(f"GET {target}")[0], 400, target)
        print(f"a curve of 1,000,000 points: the server has {server.status('VmRSS') / 1024:.0f} MiB", flush=True)


class Cutting:
    """Stands between a client and the server. It ends one connection after the other after so many bytes of the answer, in the given way, and leaves the one behind them whole."""

    def __init__(self, server, cuts):
        self.server, self.cuts, self.heads = server, cuts, []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        with self.listener:
            for size, end in [*self.cuts, (1 << 40, socket.socket.close)]:
                client, _ = self.listener.accept()
                with self.server.connect() as served:
                    self.heads.append(client.recv(1 << 16).decode())
                    served.sendall(self.heads[-1].encode())
                    while size and (received := served.recv(min(size, 1 << 16))):
                        client.sendall(received)
                        size -= len(received)
                end(client)


class Clients(Case):
    def node(self, script):
        """What a script prints that has the JavaScript client."""
        node = shutil.which("node")
        if not node:
            self.skipTest("node is not installed")
        script = f'import {{ events, state, command }} from "{ROOT}/examples/clients/torchbus-events.mjs"; {script}'
        output = subprocess.run([node, "--input-type=module", "-e", script], capture_output=True, text=True, timeout=PATIENCE_S)
        self.assertEqual((output.returncode, output.stderr), (0, ""))
        return output.stdout

    def followed_in_python(self, port, number):
        return numbers_until(number, torchbus_events.Run(f"127.0.0.1:{port}").events())

    def followed_in_javascript(self, port, number):
        printed = self.node(f'for await (const event of events("http://127.0.0.1:{port}")) {{ console.log(JSON.stringify(event)); if (event.data.number == {number}) break; }}')
        return numbers_until(number, map(json.loads, printed.splitlines()))

    def test_the_python_client_follows_goes_on_and_sends_commands(self):
        server = self.serve()
        server.tell("publish 3")
        run = torchbus_events.Run(f"127.0.0.1:{server.port}", TOKEN)
        stream = run.events(["told"])
        self.assertEqual([next(stream)["data"].get("number") for _ in range(4)], [None, 1, 2, 3])
        self.assertEqual(run.state()["last_sequence"], 3)
        run.command("stop", by="me", reason="enough")
        self.assertEqual(server.next_command(), "command stop by me at 127.0.0.1 because enough .=null")
        with self.assertRaisesRegex(torchbus_events.CommandRefused, "it was refused"):
            run.command("stop", reason="refuse")
        server.close()
        self.assertEqual(list(stream), [])
        with self.assertRaises(OSError):
            next(run.events())

    def test_the_javascript_client_does_the_same(self):
        server = self.serve()
        server.tell("publish 3")
        printed = self.node(f"""
            const url = "http://127.0.0.1:{server.port}", token = "{TOKEN}", got = [];
            for await (const event of events(url, {{ events: ["told"], fields: ["number"] }})) {{ got.push(event.data.number ?? null); if (got.length == 4) break; }}
            const said = await command(url, {{ command: "save", by: "js" }}, {{ token }});
            let refused = "";
            try {{ await command(url, {{ command: "fly" }}, {{ token }}); }} catch (error) {{ refused = error.message; }}
            console.log(JSON.stringify([got, (await state(url)).last_sequence, said.data.accepted, refused.includes("'fly'")]));
        """)
        self.assertEqual(printed.strip(), "[[null,1,2,3],3,true,true]")

    def test_both_go_on_where_a_connection_broke(self):
        for follow in (self.followed_in_python, self.followed_in_javascript):
            with self.subTest(follow.__name__):
                server = self.serve()
                server.tell("publish 1000")
                between = Cutting(server, [(1500, abort), (20_000, socket.socket.close), (100_000, abort)])  # each within a message
                self.assertEqual(follow(between.port, 1000), (list(range(1, 1001)), []))
                lasts = [int(last) for last in re.findall(r"(?i)\r\nlast-event-id: run-1:(\d+)\r\n", "".join(between.heads))]
                self.assertEqual(len(between.heads), 4)
                self.assertEqual(lasts, sorted(set(lasts)))
                self.assertEqual(len(lasts), 3)

    def test_both_try_again_where_the_next_connection_breaks_before_it_is_answered(self):
        for follow in (self.followed_in_python, self.followed_in_javascript):
            with self.subTest(follow.__name__):
                server = self.serve()
                server.tell("publish 1000")
                between = Cutting(server, [(20_000, abort), (100, abort), (0, socket.socket.close)])
                self.assertEqual(follow(between.port, 1000), (list(range(1, 1001)), []))
                self.assertEqual(len(between.heads), 4)

    def test_both_hear_of_what_they_missed_while_they_were_cut_off(self):
        for follow in (self.followed_in_python, self.followed_in_javascript):
            with self.subTest(follow.__name__):
                server = self.serve(history=1 << 20)

                def lose(client):
                    abort(client)
                    server.tell("publish 5000 1000")

                server.tell("publish 10")
                numbers, gaps = follow(Cutting(server, [(2000, lose)]).port, 5010)
                self.assertEqual(len(gaps), 1)
                self.assertEqual(numbers, left_out(gaps, 5010))

    def test_pythons_websockets_follows_and_sends_commands(self):
        try:
            from websockets.sync.client import connect
        except ImportError:
            self.skipTest("Python's websockets is not installed")
        server = self.serve()
        server.tell("publish 2000")
        with connect(f"ws://localhost:{server.port}/events?events=told", proxy=None) as client:
            messages = [json.loads(client.recv(PATIENCE_S)) for _ in range(2001)]
            self.assertEqual([m["data"]["number"] for m in messages[1:]], list(range(1, 2001)))
            client.send(json.dumps({"command": "stop"}))
            self.assertIn("token", json.loads(client.recv(PATIENCE_S))["data"]["error"])
            client.send(json.dumps({"command": "stop", "token": TOKEN}))
            self.assertEqual(json.loads(client.recv(PATIENCE_S))["data"], {"accepted": True})
        with connect(f"ws://localhost:{server.port}/events?from=now", additional_headers={"Authorization": BEARER}, proxy=None) as client:
            client.recv(PATIENCE_S)
            client.send(json.dumps({"command": "save", "by": "ws"}))
            self.assertEqual(json.loads(client.recv(PATIENCE_S))["data"], {"accepted": True})
        self.assertEqual([server.next_command(), server.next_command()], ["command stop by 127.0.0.1 because  .=null", "command save by ws at 127.0.0.1 because  .=null"])


if __name__ == "__main__":
    if not PROGRAM.exists():
        print(f"{PROGRAM} is not built")
        sys.exit(77)
    unittest.main(verbosity=2)
