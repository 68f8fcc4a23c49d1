#!/usr/bin/env python3
"""Asks the event server as it should not be asked: every route by every way in, and what each is answered stands in a table here.
Then commands a run with the token by all transports, and looks for it in all that the run has left; and holds what is served against the schema that is served.

usage: attacks_test.py [CLASS[.test]...]; programs are those in $TORCHBUS_BUILD, default build/release.
"""
import collections
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import served
from served import CLOSE, DEEP, PATIENCE_S, PROGRAM, ROOT, TEXT, TOKEN, Lines, Served, WebSocket, eventually, frame, parsed, read_all

TORCHBUS = ROOT / os.environ.get("TORCHBUS_BUILD", "build/release") / "src/cli/torchbus"
BEARER, WRONG = f"Bearer {TOKEN}", "fedcba9876543210fedcba9876543210"
ALLOWED, EVIL = "https://pages.example", "http://evil.example"
COMMAND = b'{"command": "save"}'
CHANGE = {"command": "change_option", "subscriber": "gradient_clipping", "option": "max_norm", "value": 0.5}
UPGRADE = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}

PAGE_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
DATA_POLICY = "default-src 'none'; frame-ancestors 'none'"
PAGES = ["/", "/uplot.js", "/uplot.css"] + ["/" + file.name for file in (ROOT / "src/stream/dashboard").iterdir() if file.suffix in (".js", ".css")]

# The columns of the tables of routes: what is asked for otherwise than by its own method, under the name localhost, without origin and token.
WAYS = {
    "as it is":       {},
    "wrong token":    {"authorization": f"Bearer {WRONG}"},
    "token":          {"authorization": BEARER},
    "evil host":      {"host": "evil.example", "authorization": BEARER},
    "evil page":      {"origin": EVIL, "authorization": BEARER},
    "null page":      {"origin": "null", "authorization": BEARER},
    "own page":       {"origin": "http://localhost"},
    "allowed page":   {"origin": ALLOWED},
    "HEAD":           {"method": "HEAD"},
    "PUT":            {"method": "PUT", "authorization": BEARER},
    "preflight":      {"method": "OPTIONS", "origin": ALLOWED},
    "evil preflight": {"method": "OPTIONS", "origin": EVIL},
    "upgrade":        {"method": "GET", "more": UPGRADE},
    "evil upgrade":   {"method": "GET", "origin": EVIL, "authorization": BEARER, "more": UPGRADE},
    "null upgrade":   {"method": "GET", "origin": "null", "authorization": BEARER, "more": UPGRADE},
    "own upgrade":    {"method": "GET", "origin": "http://localhost", "more": UPGRADE},
    "wrong upgrade":  {"method": "GET", "authorization": f"Bearer {WRONG}", "more": UPGRADE},
}
#    as   wrong      evil evil null own  allow           pre- evil           evil null own  wrong
#    it   token tok. host page page page page HEAD PUT   fl.  pre. upgrade   upgrade...
ON_LOOPBACK = {
    "/healthz": (
     200, 200,  200, 421, 403, 403, 200, 200, 200, 405, 204, 403, 400,      400, 400, 400, 400),
    "/events": (
     200, 401,  200, 421, 403, 403, 200, 200, 405, 405, 204, 403, 101,      403, 403, 101, 401),
    "/state": (
     200, 401,  200, 421, 403, 403, 200, 200, 200, 405, 204, 403, 400,      400, 400, 400, 400),
    "/metrics": (
     200, 401,  200, 421, 403, 403, 200, 200, 200, 405, 204, 403, 400,      400, 400, 400, 400),
    "/schema": (
     200, 401,  200, 421, 403, 403, 200, 200, 200, 405, 204, 403, 400,      400, 400, 400, 400),
    "/runs": (
     200, 401,  200, 421, 403, 403, 200, 200, 200, 405, 204, 403, 400,      400, 400, 400, 400),
    "/curves": (
     200, 401,  200, 421, 403, 403, 200, 200, 200, 405, 204, 403, 400,      400, 400, 400, 400),
    "/control": (
     401, 401,  202, 421, 403, 403, 401, 401, 405, 405, 204, 403, 405,      405, 405, 405, 405),
}
ELSEWHERE = {  # nothing of a run without the token; a WebSocket gives it in its first message
    "/healthz": (
     200, 200,  200, 421, 403, 403, 200, 200, 200, 405, 204, 403, 400,      400, 400, 400, 400),
    "/events": (
     401, 401,  200, 421, 403, 403, 401, 401, 405, 405, 204, 403, 101,      403, 403, 101, 401),
    "/state": (
     401, 401,  200, 421, 403, 403, 401, 401, 401, 405, 204, 403, 400,      400, 400, 400, 400),
    "/metrics": (
     401, 401,  200, 421, 403, 403, 401, 401, 401, 405, 204, 403, 400,      400, 400, 400, 400),
    "/schema": (
     401, 401,  200, 421, 403, 403, 401, 401, 401, 405, 204, 403, 400,      400, 400, 400, 400),
    "/runs": (
     401, 401,  200, 421, 403, 403, 401, 401, 401, 405, 204, 403, 400,      400, 400, 400, 400),
    "/curves": (
     401, 401,  200, 421, 403, 403, 401, 401, 401, 405, 204, 403, 400,      400, 400, 400, 400),
    "/control": (
     401, 401,  202, 421, 403, 403, 401, 401, 405, 405, 204, 403, 405,      405, 405, 405, 405),
}
OF_A_PAGE = (
     200, 200,  200, 421, 403, 403, 200, 200, 200, 405, 204, 403, 400,      400, 400, 400, 400)
OF_NOTHING = (
     404, 404,  404, 421, 404, 404, 404, 404, 404, 404, 404, 404, 404,      404, 404, 404, 404)
QUERIES = {"/curves": "?names=train.loss"}

# Forms of the path of a route: what names it otherwise than letter by letter is not there, and what is no HTTP is malformed.
PATHS = [
    (404, "/%{first_hex}{rest}"), (404, "{route}%2f"), (404, "{route}%2F"), (404, "/%2f{name}"), (404, "%2f{name}"), (404, "/%252f{name}"), (404, "/%25{first_hex}{rest}"), (404, "{route}%20"),
    (404, "{route}%00"), (404, "{route}%3fx=1"), (404, "{route}%23"),
    (404, "/.{route}"), (404, "/x/..{route}"), (404, "/..{route}"), (404, "/../..{route}"), (404, "/..%2f{name}"), (404, "/%2e{route}"), (404, "/%2e%2e{route}"), (404, "/.%2e{route}"),
    (404, "{route}/."), (404, "{route}/.."), (404, "{route}/../{name}"),
    (404, "{route}/"), (404, "{route}//"), (404, "/{route}"), (404, "//{route}"), (404, "{route}."), (404, "{route}.."), (404, "/.{name}"), (404, "{route};x=1"), (404, "{route}#x"),
    (404, "{route}&x=1"), (404, "{upper}"), (404, "{capital}"), (404, "{route}x"), (404, "{shorter}"),
    (404, "\\{name}"), (404, "/\\{name}"), (404, "{route}\\"), (404, "{name}"), (404, "*"), (404, "/*"), (404, "/" + "a" * 4000), (404, "{route}\xe9"), (404, "/\xc0\xaf{name}"), (404, "{route}\x80"),
    (404, "http://localhost{route}"), (404, "HTTP://localhost{route}"), (404, "http://evil.example{route}"), (404, "http://localhost@evil.example{route}"), (404, "//evil.example{route}"),
    (404, "https://localhost{route}"), (404, "http:{route}"), (404, "file://{route}"),
    (404, "localhost:80"), (404, "localhost"), (404, "evil.example:443"), (404, "[::1]:80"),
    (400, "{route}\x00"), (400, "/\x00{name}"), (400, "{route}\t"), (400, "{route} x"), (400, "{route} "), (400, " {route}"), (400, "{route}\x7f"), (400, "{route}\r"), (400, "{route}\x0b"),
    (400, ""), (431, "{route}" + "x" * 9000),
]
HOSTS = [  # the server may be called localhost, 127.0.0.1 and [::1], whatever the port
    (200, "localhost"), (200, "LocalHost"), (200, "localhost:1"), (200, "localhost:65535"), (200, "127.0.0.1"), (200, "127.0.0.1:8080"), (200, "[::1]"), (200, "[::1]:8080"),
    (200, " localhost "), (200, "\tlocalhost\t"),
    (421, "localhost."), (421, "localhost.:8080"), (421, "127.0.0.1."), (421, "localhost.."), (421, ".localhost"), (421, "localhost.evil.example"), (421, "127.0.0.1.evil.example"),
    (421, "evil.example.localhost"), (421, "localhost-evil.example"),
    (421, "xlocalhost"), (421, "localhostx"), (421, "localhost.localdomain"), (421, "evil.example"), (421, "evil.example:80"), (421, "xn--lcalhost-54a"), (421, "0.0.0.0"), (421, "127.1"),
    (421, "127.0.1"), (421, "2130706433"), (421, "0x7f.1"),
    (421, "0x7f000001"), (421, "0177.0.0.1"), (421, "017700000001"), (421, "127.000.000.001"), (421, "127.0.0.2"), (421, "127.0.0.1.1"), (421, "[::]"), (421, "[0:0:0:0:0:0:0:1]"),
    (421, "[::0001]"), (421, "[0::1]"), (421, "[::ffff:127.0.0.1]"),
    (421, "[::ffff:7f00:1]"), (421, "[::127.0.0.1]"), (421, "[64:ff9b::7f00:1]"), (421, "[::2]"), (421, "[localhost]"), (421, "[127.0.0.1]"),
    (400, "[::1"), (400, "::1"), (400, "[::1]x"), (400, "[::1]."), (400, "[::1]:"), (400, "[::1]:x"), (400, "[[::1]]"), (400, "[::1%25lo]"), (400, "[::1%lo]"), (400, "[::1%251]"), (400, "x[::1]"),
    (400, "a@localhost"), (400, "localhost@evil.example"), (400, "a:b@localhost"), (400, "localhost#"), (400, "localhost?"), (400, "localhost/"), (400, "localhost/evil.example"),
    (400, "localhost\\"), (400, "http://localhost"),
    (400, "localhost:"), (400, "localhost:80:80"), (400, "localhost:http"), (400, "localhost:-1"), (400, "localhost:+1"), (400, "localhost:1 2"), (400, "localhost: 80"),
    (400, "localhost:8%30"), (400, "localhost:65536"), (400, "localhost:123456"), (400, "localhost:\xb2"),
    (400, "localhost,localhost"), (400, "localhost, evil.example"), (400, "localhost;evil.example"), (400, "localhost evil.example"), (400, "local\thost"), (400, "%6cocalhost"),
    (400, "localhost%00"), (400, "localhost%2eevil.example"), (400, "l\xf6calhost"),
    (400, "localhost\x00"), (400, "localhost\x00.evil.example"), (400, "\"localhost\""), (400, "*"), (400, ""), (400, " "), (400, ":80"), (400, []), (400, ["localhost", "localhost"]),
    (400, ["localhost", "evil.example"]), (400, ["evil.example", "localhost"]), (400, ["localhost", ""]),
]
ORIGINS = [  # of pages, where the server is called localhost:8080: its own and the one that is allowed
    (200, "http://localhost:8080"), (200, ALLOWED),
    (403, ""), (403, "null"), (403, "NULL"), (403, "*"), (403, EVIL), (403, "http://localhost"), (403, "http://localhost:8081"), (403, "http://localhost:80"), (403, "https://localhost:8080"),
    (403, "ws://localhost:8080"), (403, "file://"), (403, "localhost:8080"), (403, "//localhost:8080"),
    (403, "http://localhost.:8080"), (403, "http://localhost:8080."), (403, "http://LOCALHOST:8080"), (403, "HTTP://localhost:8080"), (403, "http://localhost:08080"),
    (403, "http://localhost:8080/"), (403, "http://localhost:8080#"), (403, "http://localhost:8080?"), (403, "http://127.0.0.1:8080"),
    (403, "http://[::1]:8080"), (403, "http://[0:0:0:0:0:0:0:1]:8080"), (403, "http://[::ffff:127.0.0.1]:8080"), (403, "http://2130706433:8080"), (403, "http://localhost:8080.evil.example"),
    (403, "http://localhost:8080@evil.example"), (403, "http://evil.example@localhost:8080"),
    (403, "http://evil.example#http://localhost:8080"), (403, "http://a.localhost:8080"), (403, "http://localhost:8080 http://evil.example"),
    (403, "http://localhost:8080, http://evil.example"), (403, "http://localhost:8080,http://localhost:8080"), (403, "null, http://localhost:8080"),
    (403, "https://pages.example."), (403, "https://pages.example:443"), (403, "https://pages.example/"), (403, "https://PAGES.example"), (403, "http://pages.example"),
    (403, "https://pages.example.evil.example"), (403, "https://xpages.example"), (403, "https://a.pages.example"), (403, "https://pages.ex\xe4mple"),
    (400, [ALLOWED, ALLOWED]), (400, [ALLOWED, EVIL]), (400, ["http://localhost:8080", "null"]), (400, ["", ALLOWED]), (400, "http://localhost:8080\x00"),
]
AUTHORIZATIONS = [
    (200, BEARER), (200, f"bearer {TOKEN}"), (200, f"BEARER {TOKEN}"), (200, f" {BEARER} "),  # a scheme is known however it is written
    (401, None), (401, ""), (401, "Bearer"), (401, "Bearer "), (401, TOKEN), (401, f"Bearer {WRONG}"), (401, BEARER[:-1]), (401, BEARER + "0"), (401, f"Bearer {TOKEN[1:]}"),
    (401, f"Bearer {TOKEN.upper()}"), (401, f"Bearer {TOKEN}{TOKEN}"),
    (401, f"Bearer  {TOKEN}"), (401, f"Bearer\t{TOKEN}"), (401, f"Bearer{TOKEN}"), (401, f"Bearer:{TOKEN}"), (401, f"Bearer \"{TOKEN}\""), (401, f"Bearer token={TOKEN}"),
    (401, f"Bearer {TOKEN} {TOKEN}"), (401, f"Bearer {WRONG} {TOKEN}"), (401, f"{BEARER}, {BEARER}"), (401, f"{BEARER},Bearer {WRONG}"),
    (401, f"Basic {TOKEN}"), (401, "Basic OjAxMjM0NTY3ODlhYmNkZWYwMTIzNDU2Nzg5YWJjZGVm"), (401, f"Token {TOKEN}"), (401, f"Digest {TOKEN}"), (401, f"Bearer %30{TOKEN[1:]}"),
    (401, f"Bearer {TOKEN}%00"), (401, f"xBearer {TOKEN}"),
    (400, [BEARER, BEARER]), (400, [BEARER, f"Bearer {WRONG}"]), (400, [f"Bearer {WRONG}", BEARER]), (400, ["", BEARER]), (400, f"{BEARER}\x00"),
]
ELSEWHERE_IN_A_REQUEST = [  # where the token is no use, though it is the right one
    {"target": "/control?token=" + TOKEN}, {"target": "/control?access_token=" + TOKEN}, {"target": "/control?authorization=Bearer%20" + TOKEN}, {"more": {"Cookie": "token=" + TOKEN}},
    {"more": {"X-Token": TOKEN}}, {"more": {"Proxy-Authorization": BEARER}}, {"more": {"X-Authorization": BEARER}}, {"more": {"Sec-WebSocket-Protocol": TOKEN}},
    {"body": b'{"command": "save", "token": "%s"}' % TOKEN.encode()}, {"authorization": f"Bearer {WRONG}", "body": b'{"command": "save", "token": "%s"}' % TOKEN.encode()}, {"authorization": f"Bearer {WRONG}", "target": "/control?token=" + TOKEN},
]


def values(given):
    """Of a header that is there not at all, once, or more often."""
    return [] if given is None else given if isinstance(given, list) else [given]


def request_of(target, method="GET", host="localhost", origin=None, authorization=None, body=b"", more=()):
    fields = [("Host", one) for one in values(host)] + [("Origin", one) for one in values(origin)] + [("Authorization", one) for one in values(authorization)] + list(dict(more).items())
    if method == "OPTIONS":
        fields.append(("Access-Control-Request-Method", "POST" if target == "/control" else "GET"))
    if method == "POST":
        fields.append(("Content-Length", str(len(body))))
    head = "".join(f"{name}: {value}\r\n" for name, value in fields)
    return f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode("latin-1", "xmlcharrefreplace") + body


class Case(served.Case):
    asked = 0

    def setUp(self):
        self.taken = collections.Counter()  # commands, by server

    def ask(self, server, expected, target, what="", **how):
        """Asks, and looks at the status and at what all answers have in common."""
        Case.asked += 1
        self.taken[server] += expected == 202
        request = request_of(target, **how)
        with self.subTest(what=what, request=request[:300]), server.connect() as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)  # a stream ends once its client has said goodbye
            answer = read_all(connection)
            status, headers, body = parsed(answer)
            self.assertEqual(status, expected, body)
            self.assertNotIn(TOKEN.encode(), answer)
            is_good = 200 <= status < 300
            self.assertEqual(headers.get("access-control-allow-origin"), how.get("origin") if is_good else None)
            self.assertEqual([name for name in headers if name.startswith("access-control-") and not is_good], [])
            if status != 101:
                self.assertEqual(headers.get("content-security-policy"), PAGE_POLICY if status == 200 and target in PAGES else DATA_POLICY)
                self.assertEqual(headers.get("x-content-type-options"), "nosniff")

    def ask_by_all_ways(self, server, target, statuses, method="GET"):
        self.assertEqual(len(statuses), len(WAYS))
        for (way, how), expected in zip(WAYS.items(), statuses):
            self.ask(server, expected, target + QUERIES.get(target, ""), way, **{"method": method, "body": COMMAND if method == "POST" else b""} | how)


class Table(Case):
    @classmethod
    def setUpClass(cls):
        cls.here, cls.there = cls.servers = [cls.enterClassContext(Served(address=address)) for address in ("127.0.0.1", "0.0.0.0")]

    @classmethod
    def tearDownClass(cls):
        print(f"{Case.asked} requests were made of the tables", flush=True)

    def tearDown(self):
        for server in self.servers:
            server.tell("drain 0")
            self.assertEqual(len(server.commands), self.taken[server], "commands were taken")
            server.commands.clear()

    def test_every_route_is_in_the_table(self):
        routes = set(re.findall(r'RouteEntry\{"(/\w+)"', (ROOT / "src/stream/server/access.cpp").read_text()))
        self.assertEqual(routes, set(ON_LOOPBACK))
        self.assertEqual(routes, set(ELSEWHERE))

    def test_every_route_by_every_way_in(self):
        for server, table in zip(self.servers, (ON_LOOPBACK, ELSEWHERE)):
            for route, statuses in table.items():
                self.ask_by_all_ways(server, route, statuses, "POST" if route == "/control" else "GET")
            self.ask_by_all_ways(server, "/nothing", OF_NOTHING)

    def test_the_page_is_open_and_its_policy_is_strict(self):
        if self.here.http("GET /")[0] == 404:
            self.skipTest("this build has no dashboard")
        for server in self.servers:
            for page in PAGES:
                self.ask_by_all_ways(server, page, OF_A_PAGE)
            for other in ("/index.html", "/embed.py", "/meson.build", "/.", "/..", "/../../../../etc/passwd", "/..%2f..%2fetc%2fpasswd", "/dashboard.js/../control", "/dashboard.js%00", "/dashboard"):
                self.ask(server, 404, other)

    def test_a_path_is_known_by_its_letters_alone(self):
        for route in ON_LOOPBACK:
            name = route[1:]
            first_hex = f"{ord(name[0]):02x}"
            forms = {"route": route, "name": name, "first_hex": first_hex, "rest": name[1:], "upper": route.upper(), "capital": "/" + name.capitalize(), "shorter": route[:-1]}
            how = {"method": "POST", "authorization": BEARER, "body": COMMAND} if route == "/control" else {}
            for expected, path in PATHS:
                self.ask(self.here, expected, path.format(**forms), **how)

    def test_a_host_is_called_by_its_names_alone(self):
        for expected, host in HOSTS:
            self.ask(self.here, expected, "/state", host=host)
            self.ask(self.here, 404 if expected == 200 else expected, "/nothing", host=host)  # nor is it said what there is
            self.ask(self.here, 202 if expected == 200 else expected, "/control", method="POST", authorization=BEARER, body=COMMAND, host=host)
            self.ask(self.here, 101 if expected == 200 else expected, "/events", host=host, more=UPGRADE)

    def test_a_page_of_another_origin_gets_nothing(self):
        for expected, origin in ORIGINS:
            how = {"host": "localhost:8080", "origin": origin}
            self.ask(self.here, expected, "/events", **how)
            self.ask(self.here, expected, "/healthz", **how)
            self.ask(self.here, 101 if expected == 200 else expected, "/events", more=UPGRADE, **how)
            self.ask(self.here, 202 if expected == 200 else expected, "/control", method="POST", authorization=BEARER, body=COMMAND, **how)
            self.ask(self.here, 204 if expected == 200 else 405 if isinstance(origin, list) else expected, "/control", method="OPTIONS", **how)  # with two origins it is no preflight

    def test_a_token_is_all_of_it_or_none(self):
        for expected, authorization in AUTHORIZATIONS:
            how = {"authorization": authorization}
            for server in self.servers:
                self.ask(server, 202 if expected == 200 else expected, "/control", method="POST", body=COMMAND, **how)
            for target in ("/state", "/metrics", "/schema", "/runs", "/curves?names=a", "/events"):
                self.ask(self.there, expected, target, **how)
            self.ask(self.there, 101 if expected == 200 or authorization is None else expected, "/events", more=UPGRADE, **how)

    def test_a_token_is_looked_for_in_one_header_alone(self):
        for server in self.servers:
            for how in ELSEWHERE_IN_A_REQUEST:
                self.ask(server, 401, **{"target": "/control", "method": "POST", "body": COMMAND} | how)
        for route in ELSEWHERE:
            for query in (f"?token={TOKEN}", f"?token={TOKEN}&names=a"):
                self.ask(self.there, {"/healthz": 200, "/control": 405}.get(route, 401), route + query)
            self.ask(self.there, 404, f"{route}#token={TOKEN}")
        self.ask(self.here, 400, "/control", method="POST", authorization=BEARER, body=b'{"command": "save", "token": "%s"}' % WRONG.encode())  # a command's own token counts


class WithoutHttp(Case):
    def test_lines_and_web_sockets_get_nothing_of_a_run_without_the_token(self):
        server = self.serve(address="0.0.0.0")
        server.tell("publish 3")
        token, wrong = TOKEN.encode(), WRONG.encode()
        rows = [b"", b"{}", b'{"token": ""}', b'{"token": "%s"}' % wrong, b'{"token": "%s"}' % token[:-1], b'{"token": "%s0"}' % token, b'{"token": ["%s"]}' % token, b'{"Token": "%s"}' % token,
                b'{"token": 0}', b'{"token": null}', b'{"command": "save"}', b'{"command": "save", "token": "%s"}' % wrong, DEEP]
        for said in rows:
            with self.subTest(said=said[:60]), server.connect() as connection, server.connect() as of_lines:
                client = WebSocket(connection)
                connection.sendall(frame(TEXT, said))
                opcode, why = client.next()
                self.assertEqual((opcode, int.from_bytes(why[:2], "big")), (CLOSE, 1008))
                of_lines.sendall(said + b"\n")
                answer = read_all(of_lines)
                self.assertEqual(list(json.loads(answer)), ["error"])
                self.assertNotIn(token, why + answer)
        self.assertIsNone(server.next_command())
        client = WebSocket(self.enterContext(server.connect()))
        client.connection.sendall(frame(TEXT, b'{"token": "%s"}' % token))
        self.assertEqual(client.message()["type"], "torchbus.snapshot")

    def test_a_server_for_other_machines_does_not_start_without_a_token(self):
        refused = {address: f"^error event_server: {address} can be reached from other machines, and no token is set" for address in ("192.0.2.1", "::ffff:127.0.0.1", "fe80::1")}
        no_address = {address: f"^error event_server: address: '{address}' is no IP address" for address in ("localhost", "127.1")}
        for address, first in (refused | no_address | {"127.0.0.2": "^http://127.0.0.2:"}).items():
            with self.subTest(address=address), Served(token="", address=address) as server:
                self.assertRegex(server.first, first)

    def test_an_answer_to_a_command_that_is_torn_within_the_token_does_not_bring_it_back(self):
        server = self.serve()
        client = self.lines(server, b'{"events": ["nothing"]}\n')
        client.next()
        for torn in ('{"command": "save", "token": "%s', '{"token": "%s\x01"}', '{"token": "%s\\ud800"}', '{"token": "%s\\x"}', '{"token" "%s"}', '{"token": %s}', '{"token": "%s" "by": 1}'):
            said = (torn % TOKEN).encode()
            with self.subTest(said=said), server.connect() as first:
                client.connection.sendall(said + b"\n")
                first.sendall(said + b"\n")
                answers = server.http("POST /control", said, Authorization=BEARER)[2] + client.take(b"\n") + read_all(first)
                self.assertEqual(answers.count(b"syntax error"), 3)
                self.assertNotIn(TOKEN.encode(), answers)


class Policy(Case):
    def test_every_refusal_has_the_policy_of_data(self):
        server = self.serve(history=4 << 20, patience_ms=2000)
        command = {"target": "/control", "method": "POST", "authorization": BEARER}
        rows = [(400, {"target": "/events?every=soon"}), (400, {"target": "/state?run=nobody"}), (400, {"target": "/curves?names=a&x=parsec"}), (400, {"target": "/state", "more": {"X ": "y"}}),
                (400, {"target": "/events", "more": UPGRADE | {"Sec-WebSocket-Key": "short"}}), (400, command | {"body": b"nonsense"}), (400, command | {"body": b'{"command": "fly"}'}),
                (400, command | {"body": COMMAND, "more": {"Transfer-Encoding": "chunked"}}), (401, {"target": "/control", "method": "POST"}), (403, {"target": "/state", "origin": EVIL}),
                (404, {"target": "/nothing"}), (405, {"target": "/state", "method": "POST"}), (405, {"target": "/state", "method": "BREW"}), (413, command | {"body": b'{"reason": "' + b"x" * (1 << 17) + b'"}'}),
                (421, {"target": "/", "host": "evil.example"}), (431, {"target": "/" + "x" * 10_000}), (431, {"target": "/", "more": {"X": "y" * 10_000}})]
        for expected, how in rows:
            self.ask(server, expected, **how)
        quiet = self.serve(token="")
        self.ask(quiet, 403, "/control", method="POST", body=COMMAND)
        self.ask(quiet, 401, "/control", method="POST", body=COMMAND, authorization="Bearer ")
        self.ask(quiet, 403, "/control", method="OPTIONS", origin=ALLOWED)
        for i in range(32):  # as many choices as there is place for
            self.lines(server, b'{"every": "1.%02dstep"}\n' % (i + 1)).next()
        self.ask(server, 503, "/events?every=2step")


class Training(Served):
    """A run without an end that is commanded as a server without a run is; `folder` has all that it writes, `secrets` what it reads."""

    CALLBACKS = [{"kind": "metrics", "accuracy": True}, {"kind": "gradient_clipping", "max_norm": 1.0}, {"kind": "event_file", "every": "1step"}, {"kind": "csv_file"}, {"kind": "tensorboard"},
                 {"kind": "save_training_state", "folder": "states"}, {"kind": "console_report"}, {"kind": "progress_lines"}]

    def __init__(self, folder, secrets):
        (secrets / "token").write_text(TOKEN + "\n")
        server = {"kind": "event_server", "token_file": str(secrets / "token"), "control": True, "origins": [ALLOWED]}
        run = {"seed": 3, "output": "out", "model": {"kind": "mlp", "inputs": 16, "hidden": [8], "classes": 4}, "data": {"kind": "synthetic", "samples": 400},
               "optimizer": {"kind": "sgd", "learning_rate": 0.1}, "train": {"epochs": 100_000, "batch_size": 16}, "callbacks": [*self.CALLBACKS, server]}
        (folder / "run.json").write_text(json.dumps(run))
        self.errors = folder / "stderr"
        with open(folder / "stdout", "wb") as out, open(self.errors, "wb") as err:
            self.process = subprocess.Popen([TORCHBUS, "train", "run.json"], cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        eventually(lambda: self.address() or self.process.poll() is not None, "it serves")
        assert self.address(), self.errors.read_text()
        self.port = int(self.address()[1])
        eventually(lambda: b'"position":{' in self.http("GET /state")[2], "it has begun")

    def address(self):
        return re.search(r"http://127\.0\.0\.1:(\d+)/", self.errors.read_text())

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


class Secret(Case):
    def test_nothing_that_a_run_leaves_holds_the_token(self):
        folder, secrets = (Path(self.enterContext(tempfile.TemporaryDirectory(prefix="torchbus-attacks-"))) for _ in range(2))
        run = self.enterContext(Training(folder, secrets))
        told = self.lines(run, b'{"every": "1epoch", "token": "%s"}\n' % TOKEN.encode())
        answers = [json.dumps(told.next())]
        for token, status in ((TOKEN, 202), (WRONG, 401)):
            bearer = f"Bearer {token}"
            answers += [str(run.http("POST /control", b'{"command": "save", "by": "requester-of-http", "reason": "reason-of-http"}', Authorization=bearer))]
            self.assertIn(f"({status},", answers[-1])
            answers += [str(run.http(f"GET /{target}token={token}", Authorization=bearer)) for target in ("control?", "state?", "events?", "curves?", "nothing?", "?", "#")]
            answers += [str(run.http(f"POST /control?token={token}", COMMAND)), str(run.http("GET /state", Origin=f"http://{token}")), str(run.http("GET /state", Cookie=f"token={token}"))]
            answers += self.answers_by_lines(run, token) + self.answers_by_web_socket(run, token)
        for target in ("metrics", "state", "runs", "schema", "curves?names=train.loss"):
            status, _, body = run.http(f"GET /{target}")
            self.assertEqual(status, 200)
            answers.append(body.decode())
        command_line = Path(f"/proc/{run.process.pid}/cmdline").read_bytes()
        self.assertEqual(run.http("POST /control", b'{"command": "stop", "by": "requester-of-the-end"}', Authorization=BEARER)[0], 202)
        while message := told.next():
            answers.append(json.dumps(message))
        self.assertEqual(run.process.wait(PATIENCE_S), 0, run.errors.read_text())

        left = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()} | {"its command line": command_line, "what it answered": "\n".join(answers).encode()}
        holding = lambda word: sorted(name for name, content in left.items() if word.encode() in content)
        for word in ("requester-of-http", "reason-of-http", "requester-of-lines", "requester-of-web-socket", "requester-of-the-end"):  # whoever asks is found, and so would the token be
            self.assertLessEqual({"events.jsonl", "what it answered"}, set(holding(word)), word)
        self.assertIn("run.json", holding(str(secrets / "token")))
        for name in ("stderr", "its command line"):
            self.assertTrue(left[name], name)
        for pattern in ("out/*.json", "*.csv", "*tfevents*", "states/*/*"):
            self.assertTrue([name for name in left if Path(name).match(pattern)], (pattern, sorted(left)))
        for secret in (TOKEN, WRONG):
            self.assertEqual(holding(secret), [])
        self.assertEqual((secrets / "token").read_text(), TOKEN + "\n")
        print(f"{len(left)} files and answers, {sum(map(len, left.values())):,} bytes, do not hold the token", flush=True)

    def answers_by_lines(self, run, token):
        with run.connect() as connection:
            client = Lines(connection, b'{"events": ["nothing"]}\n')
            answers = [client.next()]
            for command in ({"command": "evaluate", "by": "requester-of-lines", "token": token}, {"command": "pause", "by": "requester-of-lines"}, {"command": "resume"},
                            {"command": "fly", "token": token}, CHANGE | {"token": token}, {"token": token}, {"command": "save", "token": token, "why": 1}):
                connection.sendall(json.dumps(command).encode() + b"\n")
                if command != {"token": TOKEN}:  # which is not answered where it is the right one
                    answers.append(client.next())
            self.assertEqual([answer["data"].get("accepted") for answer in answers], [None, *[token == TOKEN] * 3, False, token == TOKEN, *[False] * (len(answers) - 6)])
        return list(map(json.dumps, answers))

    def answers_by_web_socket(self, run, token):
        answers, command = [], CHANGE | {"by": "requester-of-web-socket"}
        for authorization, said in ((f"Bearer {token}", command), (None, command | {"token": token})):
            with run.connect() as connection:
                client = Lines(connection, request_of("/events?events=nothing&from=now", authorization=authorization, more=UPGRADE))
                head = client.take(b"\r\n\r\n")
                connection.sendall(frame(TEXT, json.dumps(said).encode()))
                before, answer = client.take(b'"torchbus.answer"'), client.take(b"}}")  # None where it has hung up
                self.assertEqual((b" 101 " in head, b'"accepted":true' in (answer or b"")), (authorization is None or token == TOKEN, token == TOKEN))
                answers += map(str, (head, before, answer, client.rest))
        return answers


class Schema(Case):
    OF_A_KIND = 5  # are looked at: Python takes 10 ms for each

    def test_what_is_served_is_as_the_schema_that_is_served_has_it(self):
        try:
            import jsonschema
        except ImportError:
            self.skipTest("Python's jsonschema is not installed")
        folder, secrets = (Path(self.enterContext(tempfile.TemporaryDirectory(prefix="torchbus-attacks-"))) for _ in range(2))
        run = self.enterContext(Training(folder, secrets))
        client = self.lines(run, b'{"token": "%s"}\n' % TOKEN.encode())
        schema = json.loads(run.http("GET /schema")[2])
        jsonschema.Draft202012Validator.check_schema(schema)
        validator = jsonschema.Draft202012Validator(schema)
        kinds = {}

        def look(message):
            kind = message["type"].removeprefix("torchbus.")
            kinds[kind] = kinds.get(kind, 0) + 1
            if kinds[kind] <= self.OF_A_KIND:
                self.assertEqual([f"{'/'.join(map(str, wrong.absolute_path))}: {wrong.message}" for wrong in validator.iter_errors(message)], [], message)
            return message

        for command in ({"command": "save"}, {"command": "evaluate"}, {"command": "fly"}, {"command": "pause"}, {"command": "resume"}, CHANGE):
            client.connection.sendall(json.dumps(command).encode() + b"\n")
        look(json.loads(run.http("GET /state")[2]))
        look(json.loads(run.http("POST /control", COMMAND, Authorization=BEARER)[2]))
        look(json.loads(run.http("POST /control", b"nonsense", Authorization=BEARER)[2]))
        while not {"option_changed", "training_run_epoch_end"} <= set(kinds):
            look(client.next())
        client.connection.sendall(b'{"command": "stop"}\n')
        while message := client.next():
            look(message)
        self.assertLessEqual({"stream_start", "numbers", "accounting", "decision_taken", "checkpoint_saved", "eval_epoch_end", "train_step_end", "run_closed"}, set(kinds))
        self.assertEqual((kinds["snapshot"], kinds["answer"]), (2, 9))

        server = self.serve(history=1 << 20)  # a run would take long to lose a message
        server.tell("publish 5000 1000")
        client = self.lines(server)
        snapshot, gap, first = (look(client.next()) for _ in range(3))
        self.assertEqual((gap["type"], first["data"]["number"]), ("torchbus.gap", gap["data"]["last"] + 1))
        self.assertEqual(schema, json.loads(server.http("GET /schema")[2]))
        for message, member in ((snapshot, "state"), (gap, "count")):  # what is not as the schema has it is found
            del message["data"][member]
            self.assertFalse(validator.is_valid(message))
        print(f"{sum(min(count, self.OF_A_KIND) for count in kinds.values())} messages of {len(kinds)} kinds are as the schema has it", flush=True)


if __name__ == "__main__":
    if not PROGRAM.exists():
        print(f"{PROGRAM} is not built")
        sys.exit(77)
    unittest.main(verbosity=2)
