#!/usr/bin/env python3
"""A running training scraped by Prometheus of the distribution, with the configuration and the expressions of examples/monitoring.

usage: prometheus_test.py [CLASS[.test]...]; programs are those of $TORCHBUS_BUILD, Prometheus that of build/readers/prometheus
(tools/test puts it there). TORCHBUS_SLOW=1 scrapes 1,000 times. Exits with 77 where Prometheus cannot be had.
"""
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.parse
import urllib.request
from pathlib import Path

from ranks import free_port

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / os.environ.get("TORCHBUS_BUILD", "build/release") / "src/cli/torchbus"
PROMETHEUS = ROOT / "build/readers/prometheus/usr/bin"
MONITORING = ROOT / "examples/monitoring"
SCRAPES = 1000 if os.environ.get("TORCHBUS_SLOW") == "1" else 100
JOBS = 20  # each scrapes once a second, and may take a second for it
PATIENCE_S = 120
RUN = {
    "model": {"kind": "mlp", "inputs": 16, "hidden": [8], "classes": 4}, "data": {"kind": "synthetic", "samples": 400}, "optimizer": {"kind": "sgd", "learning_rate": 0.01},
    "train": {"epochs": 1_000_000, "batch_size": 16},
    "callbacks": [{"kind": "metrics", "accuracy": True}, {"kind": "learning_rate_monitor"}, {"kind": "gradient_clipping", "max_norm": 1.0}, {"kind": "event_server", "every": "100step"}],
}


class Scraped(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="torchbus-prometheus-")
        folder = Path(cls.folder.name)
        (folder / "run.json").write_text(json.dumps(RUN))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TORCHBUS_")} | {"OMP_NUM_THREADS": "1"}
        cls.training = subprocess.Popen([PROGRAM, "train", "run.json"], cwd=folder, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        cls.target = re.search(r"http://(127\.0\.0\.1:\d+)/", cls.training.stderr.readline())[1]
        (folder / "alerts.yml").write_text((MONITORING / "alerts.yml").read_text())
        # Beside the job of the example others that read all of it, and keep no more than whether they could.
        others = "".join(f"""  - job_name: torchbus_{number}
    static_configs: [{{targets: ["{cls.target}"]}}]
    metric_relabel_configs: [{{source_labels: [__name__], regex: .*, action: drop}}]
""" for number in range(1, JOBS))
        configuration = (MONITORING / "prometheus.yml").read_text().replace("127.0.0.1:8080", cls.target).replace("scrape_interval: 5s", "scrape_interval: 1s").replace("rule_files:", others + "rule_files:")
        (folder / "prometheus.yml").write_text(configuration)
        cls.port = free_port()
        with open(folder / "log", "wb") as log:
            cls.prometheus = subprocess.Popen([PROMETHEUS / "prometheus", "--config.file=prometheus.yml", f"--web.listen-address=127.0.0.1:{cls.port}", "--storage.tsdb.path=data"],
                                              cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + PATIENCE_S
        while cls.number("sum(count_over_time(up[1h]))") < SCRAPES:
            assert time.monotonic() < deadline and cls.prometheus.poll() is None and cls.training.poll() is None, (folder / "log").read_text()
            time.sleep(0.5)

    @classmethod
    def tearDownClass(cls):
        for process in (cls.prometheus, cls.training):
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE_S)
        cls.training.stderr.close()
        cls.folder.cleanup()

    @classmethod
    def ask(cls, path, **query):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{cls.port}{path}?{urllib.parse.urlencode(query)}", timeout=10) as answer:
                return json.load(answer)["data"]
        except OSError:
            return None

    @classmethod
    def results(cls, expression):
        answer = cls.ask("/api/v1/query", query=expression)
        return answer["result"] if answer else []

    @classmethod
    def number(cls, expression):
        found = cls.results(expression)
        return float(found[0]["value"][1]) if found else 0

    def test_every_scrape_was_answered_and_read(self):
        scrapes = self.number("sum(count_over_time(up[1h]))")
        self.assertGreaterEqual(scrapes, SCRAPES)
        self.assertEqual(self.number("min(min_over_time(up[1h]))"), 1)
        targets = self.ask("/api/v1/targets")["activeTargets"]
        self.assertEqual([(target["health"], target["lastError"]) for target in targets], [("up", "")] * JOBS)
        print(f"{scrapes:.0f} scrapes, of which each was read; the longest took {1000 * self.number('max(max_over_time(scrape_duration_seconds[1h]))'):.1f} ms", flush=True)

    def test_counters_grow_and_numbers_are_there(self):
        self.assertGreater(self.number("rate(torchbus_steps_total[1m])"), 0)
        self.assertEqual(self.number("resets(torchbus_steps_total[1h])"), 0)
        names = {result["metric"]["name"] for result in self.results("torchbus_number")}
        self.assertLessEqual({"train.loss", "train.accuracy", "eval.loss", "eval.accuracy", "rate.0", "grad_norm"}, names)

    def test_its_own_checker_has_nothing_to_say(self):
        with urllib.request.urlopen(f"http://{self.target}/metrics", timeout=10) as answer:
            self.assertEqual(answer.headers["Content-Type"], "text/plain; version=0.0.4; charset=utf-8")
            text = answer.read()
        done = subprocess.run([PROMETHEUS / "promtool", "check", "metrics"], input=text, capture_output=True)
        self.assertEqual((done.returncode, done.stdout + done.stderr), (0, b""))
        done = subprocess.run([PROMETHEUS / "promtool", "check", "config", "--syntax-only", MONITORING / "prometheus.yml"], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        done = subprocess.run([PROMETHEUS / "promtool", "check", "rules", MONITORING / "alerts.yml"], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_every_panel_of_the_grafana_dashboard_has_something_to_draw(self):
        board = json.loads((MONITORING / "grafana.json").read_text())
        not_yet = {"Decisions and saves"}  # there are none in this run, but the counter of saves
        for panel in board["panels"]:
            for target in panel["targets"]:
                expression = target["expr"].replace("$run", ".*").replace("$rank", ".*")
                found = self.results(expression)
                if panel["title"] not in not_yet or "checkpoints" in expression:
                    self.assertTrue(found, f"{panel['title']}: {expression}")
        for name in ("run", "rank"):
            self.assertTrue(self.ask(f"/api/v1/label/{name}/values"), name)

    def test_every_alert_can_be_asked_for_and_fires_where_it_should(self):
        expressions = dict(re.findall(r"- alert: (\w+)\n +expr: (.*)", (MONITORING / "alerts.yml").read_text()))
        self.assertGreater(len(expressions), 3)
        for name, expression in expressions.items():
            answer = self.ask("/api/v1/query", query=expression)
            self.assertIsNotNone(answer, f"{name}: {expression}")  # an error; an answer may be empty
            self.assertEqual(answer["result"], [], f"{name} fires in a run that is well")
        is_running = expressions["TrainingFailed"].replace('="failed"', '=~"running|evaluating"')  # as a scrape may come in an evaluation
        self.assertNotEqual(is_running, expressions["TrainingFailed"])
        self.assertTrue(self.results(is_running), "an alert of a state that holds does not fire")


if __name__ == "__main__":
    if not (PROMETHEUS / "prometheus").exists():
        print("Prometheus is not in build/readers; tools/test puts it there, where the distribution has it")
        sys.exit(77)
    unittest.main(verbosity=2)
