#!/usr/bin/env python3
"""Trains with sinks that others have made, and compares what they hold with what the event file of the same run says.

usage: sinks_test.py [CLASS[.test]...]; the program is the one in $TORCHBUS_BUILD, default build/release.
Exits with 77 where there is no MLflow.
TORCHBUS_MLFLOW=PROGRAM   the mlflow to start the server with, of version 3.17.2, or the tests fail; default build/mlflow-venv/bin/mlflow:
                          python3 -m venv build/mlflow-venv && build/mlflow-venv/bin/pip install mlflow==3.17.2
"""
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / os.environ.get("TORCHBUS_BUILD", "build/release") / "src/cli/torchbus"
MLFLOW = Path(os.environ.get("TORCHBUS_MLFLOW", ROOT / "build/mlflow-venv/bin/mlflow"))
VERSION = "3.17.2"
PATIENCE_S = 180  # a server of MLflow takes 20 s to start on a busy machine
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("TORCHBUS_")} | {"OMP_NUM_THREADS": "1", "LC_ALL": "C"}
LARGEST = 1.7976931348623157e308  # what MLflow makes of infinity

RUN = {
    "seed": 3,
    "output": "out",
    "model": {"kind": "mlp", "inputs": 512, "hidden": [1024, 1024], "classes": 4},  # 10 ms a step, so that the server can follow
    "data": {"kind": "synthetic", "samples": 1600, "features": 512},
    "optimizer": {"kind": "sgd", "learning_rate": 0.01},
    "train": {"epochs": 3, "batch_size": 32, "eval_batch_size": 100},
}
STEPS_OF_EPOCH = 50


def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


class MlflowServer:
    """A real one, with its database in a folder; it may be killed and started again."""

    def __init__(self, folder):
        self.folder, self.port = Path(folder), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self):
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                [MLFLOW, "server", "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db", "--artifacts-destination", self.folder / "artifacts", "--host", "127.0.0.1",
                 "--port", str(self.port), "--workers", "1"], cwd=self.folder, stdout=log, stderr=log, start_new_session=True, env=ENVIRONMENT | {"MLFLOW_DISABLE_TELEMETRY": "true"})
        deadline = time.monotonic() + PATIENCE_S
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError("the server of MLflow did not start:\n" + (self.folder / "server.log").read_text()[-3000:])
            time.sleep(0.1)
        found = self.version()
        assert found == VERSION, f"MLflow {VERSION} expected, found {found}"

    def version(self):
        with urllib.request.urlopen(self.url + "/version", timeout=60) as answer:
            return answer.read().decode()

    def answers(self):
        try:
            with urllib.request.urlopen(self.url + "/health", timeout=2):
                return True
        except OSError:
            return False

    def kill(self):
        """All of its processes at once, as a power failure would."""
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def ask(self, call, body=None, **query):
        url = f"{self.url}/api/2.0/mlflow/{call}" + ("?" + urllib.parse.urlencode(query) if query else "")
        request = urllib.request.Request(url, data=json.dumps(body).encode() if body else None, headers={"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def runs(self, experiment):
        known = self.ask("experiments/get-by-name", experiment_name=experiment)["experiment"]["experiment_id"]
        return self.ask("runs/search", {"experiment_ids": [known], "max_results": 100, "order_by": ["attributes.start_time ASC"]}).get("runs", [])

    def history(self, run_id, key):
        """[(step, value)] of all points, by time."""
        points, token = [], ""
        while True:
            page = self.ask("metrics/get-history", run_id=run_id, metric_key=key, max_results=10000, **({"page_token": token} if token else {}))
            points += page.get("metrics", [])
            token = page.get("next_page_token")
            if not token:
                return [(int(point["step"]), value_of(point["value"])) for point in sorted(points, key=lambda point: (point["timestamp"], point["step"]))]


def value_of(value):
    """NaN is not equal to itself; what MLflow changes, we change as well."""
    number = float(value)
    return "NaN" if math.isnan(number) else max(-LARGEST, min(LARGEST, number))


def told_by(events):
    """{name: [(step, value)]} of every number that was new, by the messages of an event file."""
    told = {}
    for line in events.read_text().splitlines():
        message = json.loads(line)
        if message["type"] == "torchbus.numbers":
            for name, value in message["data"]["numbers"].items():
                point, points = (message["data"]["position"]["step"], value_of(value)), told.setdefault(name, [])
                if not points or points[-1] != point:  # published again as it was, after the last step of an epoch
                    points.append(point)
    return told


class Mlflow(unittest.TestCase):
    def setUp(self):
        self.folder = Path(tempfile.mkdtemp(prefix="torchbus-sinks-"))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        (self.folder / "server").mkdir()
        self.server = MlflowServer(self.folder / "server")
        self.addCleanup(self.server.kill)

    def write_run(self, epochs, **options):
        sink = {"kind": "mlflow", "url": self.server.url, "experiment": "torchbus sinks", "every": "1step", "wait_at_end": "60s"} | options
        callbacks = [{"kind": "metrics", "accuracy": True}, {"kind": "learning_rate_monitor"}, {"kind": "metric_expression", "name": "eval.endless", "expression": "eval.loss / 0"},
                     {"kind": "event_file", "path": "events.jsonl"}, {"kind": "save_training_state", "every_epochs": 4}, sink]
        (self.folder / "run.json").write_text(json.dumps(RUN | {"train": RUN["train"] | {"epochs": epochs}, "callbacks": callbacks}))

    def begin(self, *arguments):
        return subprocess.Popen([PROGRAM, "train", "run.json", *arguments], cwd=self.folder, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def train(self, *arguments):
        process = self.begin(*arguments)
        errors = process.communicate(timeout=PATIENCE_S)[1]
        self.assertEqual(process.returncode, 0, errors)
        return errors

    def step_reached(self):
        """The last step that the event file tells of."""
        try:
            lines = (self.folder / "events.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return 0
        for line in reversed(lines):
            if '"type":"torchbus.numbers"' in line:
                return json.loads(line)["data"]["position"]["step"]
        return 0

    def wait_for(self, condition, what):
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            self.assertLess(time.monotonic(), deadline, what)
            time.sleep(0.05)

    def expect_same(self, run, told):
        self.assertGreater(len(told), 3)
        self.assertEqual({metric["key"] for metric in run["data"]["metrics"]}, set(told))
        for name, points in told.items():
            history = self.server.history(run["info"]["run_id"], name)
            self.assertEqual(len(history), len(points), name)
            self.assertEqual(sorted(history, key=str), sorted(points, key=str), name)  # within a millisecond there is no order

    def test_a_server_that_is_killed_in_mid_run_has_the_same_history_in_the_end(self):
        self.server.start()
        self.write_run(epochs=1_000_000)
        run = self.begin()
        self.addCleanup(run.kill)
        self.wait_for(lambda: self.server.answers() and self.told_of() > 50, "the server was told of 50 points")
        self.server.kill()
        killed_at = self.step_reached()
        self.wait_for(lambda: self.step_reached() > killed_at + 500, "training goes on without the server")
        self.server.start()
        begun_again = self.step_reached()
        self.wait_for(lambda: self.step_reached() > begun_again + 100, "training goes on with the server")
        run.send_signal(signal.SIGINT)
        errors = run.communicate(timeout=PATIENCE_S)[1]
        self.assertEqual(run.returncode, 130, errors)
        self.assertIn("it is tried again", errors)
        self.assertIn("answers again", errors)
        self.assertNotIn("was not told everything", errors)
        (found,) = self.server.runs("torchbus sinks")
        told = told_by(self.folder / "events.jsonl")
        self.expect_same(found, told)
        self.assertEqual(found["info"]["status"], "KILLED")
        print(f"MLflow {self.server.version()}: {sum(len(points) for points in told.values())} points of {len(told)} metrics, {self.step_reached()} steps, the server dead from step {killed_at} to {begun_again}", flush=True)

    def told_of(self):
        try:
            runs = self.server.runs("torchbus sinks")
            return len(self.server.history(runs[0]["info"]["run_id"], "train.loss")) if runs else 0
        except (urllib.error.HTTPError, OSError):
            return 0

    def test_what_a_run_could_not_tell_the_next_one_does(self):
        self.write_run(epochs=3)
        errors = self.train()
        self.assertIn("Connection refused; it is tried again", errors)
        self.assertIn("are sent by the next run", errors)
        first = told_by(self.folder / "events.jsonl")
        self.server.start()
        self.train()
        runs = self.server.runs("torchbus sinks")
        self.assertEqual([run["info"]["status"] for run in runs], ["FINISHED", "FINISHED"])
        self.expect_same(runs[0], first)
        self.expect_same(runs[1], told_by(self.folder / "events.jsonl"))

    def test_a_run_that_was_killed_is_told_of_and_goes_on_where_it_was(self):
        self.server.start()
        self.write_run(epochs=1_000_000)
        run = self.begin()
        self.addCleanup(run.kill)
        self.wait_for(lambda: self.told_of() > 20, "the server was told of 20 points")
        self.server.kill()
        stopped_at = self.step_reached()
        self.wait_for(lambda: self.step_reached() > stopped_at + 200, "training goes on without the server")
        run.kill()
        run.communicate()
        self.server.start()
        lost = told_by(self.folder / "events.jsonl")
        epochs = self.step_reached() // STEPS_OF_EPOCH + 2
        self.write_run(epochs=epochs)
        self.train("--resume", "auto")
        (found,) = self.server.runs("torchbus sinks")
        self.assertEqual(found["info"]["status"], "FINISHED")
        every = told_by(self.folder / "events.jsonl")
        self.assertGreater(len(every["train.loss"]), len(lost["train.loss"]))
        for name, points in every.items():
            history = self.server.history(found["info"]["run_id"], name)
            # What was in memory when the process was killed is in neither, or in one of both: a fifth of a second.
            self.assertGreater(len(set(history) & set(points)), 0.9 * len(set(points)), name)
            self.assertEqual(max(history), max(points), name)


if __name__ == "__main__":
    if not PROGRAM.exists():
        print(f"{PROGRAM} is not built")
        sys.exit(77)
    if not MLFLOW.exists():
        print(f"there is no {MLFLOW}; the first lines of this script say how to have it")
        sys.exit(77)
    unittest.main(verbosity=2)
