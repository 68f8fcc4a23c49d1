#!/usr/bin/env python3
"""Follows the events of a torchbus run, and sends it commands. One file, no dependencies.

    from torchbus_events import Run
    run = Run("127.0.0.1:8080")                      # or a Unix socket: Run("/tmp/run.sock")
    for event in run.events(["train_step_end", "eval_*"], every="10step"):
        print(event["type"], event["data"])
    run.command("stop", token="...", reason="good enough")

By itself it prints one line an event:  python3 torchbus_events.py 127.0.0.1:8080 'eval_*' --every 10step
"""
import argparse
import http.client
import json
import os
import socket
import sys
import time
import urllib.parse


class CommandRefused(Exception):
    """The run did not take a command; the message says why."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Run:
    """A run with an `event_server`, at "host:port" or a Unix socket's path."""

    def __init__(self, address, token=None, timeout=10.0):
        self._address, self._token, self._timeout = address, token, timeout

    def _connection(self):
        if os.path.sep in self._address:
            return _UnixConnection(self._address, self._timeout)
        host, _, port = self._address.rpartition(":")
        return http.client.HTTPConnection(host.strip("[]"), int(port), timeout=self._timeout)

    def _request(self, method, target, headers=None, body=None, token=None):
        connection = self._connection()
        headers = dict(headers or {})
        token = token or self._token
        if token:
            headers["Authorization"] = "Bearer " + token
        connection.request(method, target, body=body, headers=headers)
        return connection, connection.getresponse()

    def events(self, events=None, *, fields=None, every=None, start="start", reconnect=True):
        """Yields messages as they come; ends when the run's server has gone.

        events: patterns of names; fields: parts of `data`, e.g. "position.step"; every: e.g. "100step";
        start: "start" with what is kept of the past, or "now". After a broken connection it goes on from the last
        message; what was missed is told by a message of the type torchbus.gap.
        """
        wanted = {"events": events and ",".join(events), "fields": fields and ",".join(fields), "every": every, "from": start}
        target = "/events?" + urllib.parse.urlencode({name: value for name, value in wanted.items() if value})
        last_id, failures = None, 0
        while True:
            try:
                headers = {"Accept": "application/x-ndjson"}
                if last_id:
                    headers["Last-Event-ID"] = last_id
                connection, response = self._request("GET", target, headers)
                if response.status != 200:
                    raise ConnectionError("%d %s" % (response.status, response.read().decode(errors="replace").strip()))
                if connection.sock:
                    connection.sock.settimeout(None)
                response.fp.raw._sock.settimeout(None)
                failures = 0
                for line in response:
                    if not line.endswith(b"\n"):
                        break
                    message = json.loads(line)
                    if message["id"].isdigit():
                        last_id = "%s:%s" % (message["run"], message["id"])
                    yield message
            except (ConnectionRefusedError, FileNotFoundError):
                if failures or last_id:
                    return
                raise
            except (OSError, http.client.HTTPException):
                failures += 1
                if not reconnect or failures > 5:
                    raise
            if not reconnect:
                return
            time.sleep(min(0.2 * 2 ** failures, 5))

    def state(self):
        """What the run looks like now: state, position, numbers, decisions."""
        connection, response = self._request("GET", "/state")
        try:
            return json.loads(response.read())["data"]
        finally:
            connection.close()

    def command(self, command, *, token=None, by=None, reason=None, subscriber=None, option=None, value=None):
        """stop, save, evaluate, pause, resume, or change_option with subscriber, option and value."""
        said = {"command": command, "by": by, "reason": reason, "subscriber": subscriber, "option": option, "value": value}
        body = json.dumps({name: one for name, one in said.items() if one is not None})
        connection, response = self._request("POST", "/control", {"Content-Type": "application/json"}, body, token)
        try:
            answer = json.loads(response.read())
        finally:
            connection.close()
        if response.status != 202:
            raise CommandRefused(answer.get("error") or answer["data"].get("error"))
        return answer


def main():
    parser = argparse.ArgumentParser(description="prints the events of a run, one a line")
    parser.add_argument("address", help="host:port, or the path of a Unix socket")
    parser.add_argument("events", nargs="*", help="patterns of names; none: all")
    parser.add_argument("--every", help="of what comes with every step, e.g. 100step")
    parser.add_argument("--fields", help="of data, separated by commas")
    parser.add_argument("--now", action="store_true", help="nothing of what was before")
    options = parser.parse_args()
    run = Run(options.address, os.environ.get("TORCHBUS_TOKEN"))
    try:
        for event in run.events(options.events, every=options.every, fields=options.fields and options.fields.split(","), start="now" if options.now else "start"):
            print(event["time"], event["type"], json.dumps(event["data"]), flush=True)
    except (KeyboardInterrupt, BrokenPipeError):
        pass
    except (OSError, http.client.HTTPException) as error:
        sys.exit("%s: %s" % (options.address, error))


if __name__ == "__main__":
    main()
