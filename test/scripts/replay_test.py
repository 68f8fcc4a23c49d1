#!/usr/bin/env python3
"""Recorded runs told anew to other callbacks: the same sequence, the same decisions, and who is refused; and shown in the dashboard.

usage: replay_test.py [CLASS[.test]...]; the program is the one in $TORCHBUS_BUILD, default build/release.
"""
import json
import os
import re
import signal
import subprocess
import tempfile
import time
import unittest
import urllib.request
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / os.environ.get("TORCHBUS_BUILD", "build/release") / "src/cli/torchbus"
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("TORCHBUS_")} | {"OMP_NUM_THREADS": "1"}
STOPPING = {"kind": "early_stopping", "patience": 2, "threshold": 0.02}
RUN = {
    "seed": 3, "model": {"kind": "mlp", "inputs": 16, "hidden": [8], "classes": 4}, "data": {"kind": "synthetic", "samples": 400},
    "optimizer": {"kind": "adam", "learning_rate": 0.02}, "train": {"epochs": 40, "batch_size": 16},
    "callbacks": [{"kind": "metrics", "accuracy": True}, {"kind": "learning_rate_monitor"}, {"kind": "gradient_clipping"}, STOPPING,
                  {"kind": "csv_file", "path": "live.csv", "every": "1step"}, {"kind": "event_file"}],
}
NOT_OF_THE_RUN = ("stream_start", "accounting", "subscriber_attached", "subscriber_detached")  # how it was recorded, what it cost, and by whom


def wait_for(case, claim):
    deadline = time.monotonic() + 60
    while not claim():
        case.assertLess(time.monotonic(), deadline)
        time.sleep(0.1)


class Replayed(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory(prefix="torchbus-replay-")
        cls.folder = Path(cls.temporary.name)
        (cls.folder / "run.json").write_text(json.dumps(RUN))
        done = cls.torchbus("train", "run.json")
        assert done.returncode == 0, done.stderr
        cls.stop = next(message["data"] for message in cls.messages("events.jsonl") if message["type"] == "torchbus.decision_taken")

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    @classmethod
    def torchbus(cls, *arguments):
        return subprocess.run([PROGRAM, *map(str, arguments)], cwd=cls.folder, env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)

    @classmethod
    def messages(cls, name):
        return [json.loads(line) for line in (cls.folder / name).read_text().splitlines()]

    def sequence(self, name):
        return [(message["type"], message["data"]) for message in self.messages(name) if message["type"].removeprefix("torchbus.") not in NOT_OF_THE_RUN]

    def replay(self, *callbacks, recording="events.jsonl", code=0):
        done = self.torchbus("replay", recording, "--callbacks", json.dumps(callbacks), "--json")
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        return json.loads(done.stdout) if code == 0 else done.stderr

    def test_the_same_rule_asks_for_the_same_at_the_same_step(self):
        told = self.replay(STOPPING)
        self.assertEqual(told["taken"], told["asked"])
        self.assertEqual((told["asked"][0]["decision"], told["asked"][0]["step"], told["asked"][0]["reason"]), ("stop_run", self.stop["position"]["step"], self.stop["reason"]))
        self.assertEqual((told["left_out"], told["warnings"]), ({}, []))
        said = self.torchbus("replay", "events.jsonl", "--callbacks", json.dumps([STOPPING]))
        self.assertRegex(said.stdout, r"(?m)^asked for stop_run by early_stopping after step \d+ \(epoch \d+\): .*; so did the run$")

    def test_another_rule_is_told_apart(self):
        told = self.replay(STOPPING | {"patience": 1})
        self.assertLess(told["asked"][0]["step"], self.stop["position"]["step"])
        (self.folder / "other.json").write_text(json.dumps({"callbacks": [STOPPING | {"patience": 1000}]}))
        said = self.torchbus("replay", "events.jsonl", "--callbacks", "other.json")
        self.assertRegex(said.stdout, r"(?m)^did not ask for stop_run by early_stopping after step \d+ .*; the run did$\n^nobody asked for anything$")

    def test_the_sequence_is_that_of_the_run(self):
        self.replay({"kind": "event_file", "path": "replayed.jsonl"}, {"kind": "csv_file", "path": "replayed.csv", "every": "1step"})
        live, replayed = self.sequence("events.jsonl"), self.sequence("replayed.jsonl")
        self.assertGreater(len(live), 1000)
        for one, other in zip(live, replayed):
            self.assertEqual(one, other)
        self.assertEqual(len(live), len(replayed))
        without_time = lambda name: [line.split(",", 1)[1] for line in (self.folder / name).read_text().splitlines()]
        self.assertEqual(without_time("live.csv"), without_time("replayed.csv"))
        done = self.torchbus("diff", "events.jsonl", "replayed.jsonl", "--ignore", "subscriber_attached,subscriber_detached")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_numbers_are_computed_anew_from_those_recorded(self):
        self.replay({"kind": "metric_expression", "name": "eval.error", "expression": "1 - eval.accuracy"}, {"kind": "event_file", "path": "errors.jsonl"})
        errors = [message["data"]["numbers"] for message in self.messages("errors.jsonl") if message["type"] == "torchbus.numbers" and "eval.error" in message["data"]["numbers"]]
        self.assertGreater(len(errors), 2)
        for numbers in errors:
            self.assertAlmostEqual(numbers["eval.error"], 1 - numbers["eval.accuracy"], places=12)

    def test_who_needs_more_than_was_recorded_is_refused_by_name(self):
        said = self.replay({"kind": "gradient_statistics"}, {"kind": "model_ema"}, {"kind": "save_best"}, STOPPING, code=2)
        self.assertRegex(said, r"'gradient_statistics' reads gradients, parameters; recorded are numbers of the blackboard and losses; leave it out")
        self.assertRegex(said, r"'model_ema' changes .*, and a run that has been cannot be changed; leave it out")
        self.assertRegex(said, r"'save_best' reads parameters")
        self.assertNotIn("early_stopping", said)
        self.assertIn("'early_stopping' needs eval.los, which was never on the blackboard; did you mean 'eval.loss'?", self.replay(STOPPING | {"monitor": "eval.los"}, code=2))

    def test_a_recording_is_not_written_over(self):
        before = (self.folder / "events.jsonl").read_text()
        said = self.replay({"kind": "event_file", "keep": 0}, code=2)
        self.assertIn("'event_file' would write over the recording; give it another path", said)
        self.assertEqual((self.folder / "events.jsonl").read_text(), before)

    def test_files_that_were_moved_aside_are_not_written_over_either(self):
        numbered = {"kind": "event_file", "path": "numbered.jsonl"}
        run = RUN | {"train": {"epochs": 8, "batch_size": 16}, "callbacks": [numbered | {"max_mib": 0.05, "keep": 100}]}
        (self.folder / "numbered.json").write_text(json.dumps(run))
        self.assertEqual(self.torchbus("train", "numbered.json").returncode, 0)
        files = lambda: {path.name: path.read_bytes() for path in self.folder.glob("numbered*.jsonl")}
        before = files()
        oldest = f"numbered.{len(before) - 1}.jsonl"
        self.assertGreater(len(before), 4)
        for recording in ("numbered.jsonl", "numbered.3.jsonl", oldest):
            for path in ("numbered.jsonl", "./numbered.2.jsonl", str(self.folder / "numbered.1.jsonl")):
                said = self.replay(numbered | {"path": path, "keep": 0}, recording=recording, code=2)
                self.assertIn("'event_file' would write over the recording; give it another path", said)
        self.assertIn("'csv_file' would write over the recording", self.replay({"kind": "csv_file", "path": oldest}, recording="numbered.jsonl", code=2))
        self.assertEqual(files(), before)
        (self.folder / "numbered.jsonl").unlink()
        self.assertIn("would write over the recording", self.replay(numbered, recording=oldest, code=2))

    def test_sinks_go_on_with_nothing_that_the_run_has_written(self):
        sinks = [{"kind": "tensorboard"}, {"kind": "csv_file"}]
        run = RUN | {"train": {"epochs": 2, "batch_size": 16}, "callbacks": [{"kind": "metrics"}, {"kind": "event_file", "path": "night.jsonl"}, *sinks]}
        (self.folder / "night.json").write_text(json.dumps(run))
        self.assertEqual(self.torchbus("train", "night.json").returncode, 0)
        plots = lambda: {path.relative_to(self.folder): path.read_bytes() for path in self.folder.glob("tensorboard/*/*")}
        live, table = plots(), (self.folder / "metrics.csv").read_bytes()
        night = self.messages("night.jsonl")[0]["run"]
        self.assertEqual({path.parts[1] for path in live}, {night})
        for times in (1, 2):
            told = self.replay(*sinks, {"kind": "event_file", "path": "night_replayed.jsonl"}, recording="night.jsonl")
            self.assertEqual(told["run"], night)
            own = self.messages("night_replayed.jsonl")[0]["run"]
            self.assertRegex(own, re.escape(night) + r"-replay-\d{8}T\d{6}-[0-9a-f]{4}$")
            now = plots()
            self.assertEqual({path: content for path, content in now.items() if path.parts[1] == night}, live)
            self.assertEqual(len(now), len(live) * (1 + times))
            self.assertEqual([len(content) > 1000 for path, content in now.items() if path.parts[1] == own], [True])
            self.assertEqual((self.folder / f"metrics.{times}.csv").read_bytes(), table)
        named = sinks[0] | {"run_name": night}
        self.assertIn(f"'tensorboard' would go on in tensorboard/{night}, where a run is already; give it another run_name", self.replay(named, recording="night.jsonl", code=2))

    def test_a_recording_that_begins_with_a_resumed_run_is_not_taken_for_one_that_goes_on(self):
        saver = {"kind": "save_training_state", "folder": "tail_states"}
        run = RUN | {"train": {"epochs": 1, "batch_size": 16}, "callbacks": [{"kind": "metrics"}, saver, {"kind": "event_file", "path": "tail.jsonl"}, {"kind": "csv_file", "path": "tail.csv"}]}
        (self.folder / "tail.json").write_text(json.dumps(run))
        self.assertEqual(self.torchbus("train", "tail.json").returncode, 0)
        (self.folder / "tail.jsonl").unlink()
        (self.folder / "tail.json").write_text(json.dumps(run | {"train": {"epochs": 2, "batch_size": 16}}))
        self.assertEqual(self.torchbus("train", "tail.json", "--resume", "auto", "--allow", "train.epochs", "--allow", "plan.epochs").returncode, 0)
        lines = (self.folder / "tail.jsonl").read_text().splitlines(keepends=True)
        self.assertIn('"resumed":true', lines[0])
        (self.folder / "tail.jsonl").write_text("".join(line for line in lines if '"torchbus.subscriber_attached"' not in line))
        table = (self.folder / "tail.csv").read_bytes()
        self.replay({"kind": "csv_file", "path": "tail.csv"}, recording="tail.jsonl")
        self.assertEqual((self.folder / "tail.1.csv").read_bytes(), table)

    def test_a_run_that_was_resumed_asks_for_the_same(self):
        saver = {"kind": "save_training_state", "folder": "states", "keep": 100}
        run = RUN | {"callbacks": [*RUN["callbacks"][:4], saver, {"kind": "event_file", "path": "resumed.jsonl"}]}
        stop = self.stop["position"]["epoch"]
        (self.folder / "resumed.json").write_text(json.dumps(run | {"train": run["train"] | {"epochs": stop - 1}}))
        self.assertEqual(self.torchbus("train", "resumed.json").returncode, 0)
        (self.folder / "resumed.json").write_text(json.dumps(run))
        earlier = f"states/step_{25 * (stop - 2)}"  # so that an epoch is told twice
        done = self.torchbus("train", "resumed.json", "--resume", earlier)
        self.assertEqual(done.returncode, 0, done.stderr)
        told = self.replay(STOPPING, recording="resumed.jsonl")
        self.assertEqual((told["asked"], told["warnings"]), (told["taken"], []))
        self.assertEqual(told["asked"][-1]["step"], self.stop["position"]["step"])

    def test_saves_evaluations_and_all_who_asked_are_those_of_the_run(self):
        stopping, evaluating = STOPPING | {"threshold": 0.5}, {"kind": "step_evaluation", "every": "35step"}
        run = RUN | {"model": RUN["model"] | {"hidden": [1024, 1024]}, "data": RUN["data"] | {"samples": 1600}}  # so large that it lasts until the commands come
        run["callbacks"] = [{"kind": "metrics"}, stopping, evaluating, {"kind": "save_training_state", "folder": "controlled", "every": "45step"}, {"kind": "event_file", "path": "controlled.jsonl"},
                            {"kind": "event_server", "control": True, "token_file": "token"}]
        (self.folder / "token").write_text("0123456789abcdef\n")
        (self.folder / "controlled.json").write_text(json.dumps(run))
        training = subprocess.Popen([PROGRAM, "train", "controlled.json"], cwd=self.folder, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self.addCleanup(training.communicate)
        self.addCleanup(training.kill)
        server = re.search(r"http://[\d.:]+", training.stderr.readline())[0]
        recording = self.folder / "controlled.jsonl"
        wait_for(self, lambda: recording.exists() and '"torchbus.train_step_end"' in recording.read_text())  # before a step there is nothing to save
        for command in ("pause", "save", "evaluate", "resume"):
            request = urllib.request.Request(server + "/control", json.dumps({"command": command, "by": "me"}).encode(), {"Authorization": "Bearer 0123456789abcdef"})
            urllib.request.urlopen(request, timeout=30).close()
            wait_for(self, lambda: re.search(f'"decision":"{command}.*"event_server: me', recording.read_text()))
        self.assertEqual(training.wait(120), 0)

        told = self.replay(stopping, evaluating, {"kind": "event_file", "path": "controlled_again.jsonl"}, recording="controlled.jsonl")
        live, replayed = self.sequence("controlled.jsonl"), self.sequence("controlled_again.jsonl")
        self.assertEqual(replayed, live)
        of = lambda name: [data for event, data in live if event == f"torchbus.{name}"]
        taken = [{"decision": one["decision"], "requester": one["requester"], "reason": one["reason"], "epoch": one["position"]["epoch"], "step": one["position"]["step"]} for one in of("decision_taken")]
        self.assertEqual((told["taken"], told["warnings"]), (taken, []))
        self.assertEqual(told["asked"], [one for one in taken if one["requester"] in ("early_stopping", "step_evaluation")])
        by = {(one["decision"], one["requester"].partition(":")[0]) for one in taken}
        self.assertEqual(by, {("stop_run", "early_stopping"), ("evaluate_now", "step_evaluation"), ("save_now", "save_training_state"), *((decision, "event_server") for decision in ("pause", "save_now", "evaluate_now", "resume"))})
        saved = {one["position"]["step"] for one in of("checkpoint_saved")}
        self.assertLessEqual({one["step"] for one in taken if one["decision"] == "save_now"}, saved)

    def test_a_limit_of_time_is_by_the_clock_of_the_run(self):
        begun, *later = [(datetime.fromisoformat(message["time"].rstrip("Z")), message) for message in self.messages("events.jsonl")]
        seconds = lambda time: (time - begun[0]).total_seconds()
        limit = seconds(later[-1][0]) / 2
        told = self.replay({"kind": "time_limit", "limit": f"{limit}s"})
        over = next(message for time, message in later if seconds(time) >= limit and message["type"] in ("torchbus.train_step_end", "torchbus.eval_step_end"))
        self.assertEqual({(one["decision"], one["step"]) for one in told["asked"][:2]}, {(decision, over["data"]["position"]["step"]) for decision in ("stop_run", "save_now")})

    def test_what_was_not_recorded_is_said(self):
        run = RUN | {"train": {"epochs": 2, "batch_size": 16}, "callbacks": [{"kind": "metrics"}, {"kind": "event_file", "path": "few.jsonl", "events": ["numbers", "eval_*"], "every": "5step"}]}
        (self.folder / "few.json").write_text(json.dumps(run))
        self.assertEqual(self.torchbus("train", "few.json").returncode, 0)
        said = self.replay(STOPPING, recording="few.jsonl", code=2)
        self.assertIn("'early_stopping' listens to training_run_start, training_run_epoch_end, run_closed, and only numbers, eval_* was recorded", said)
        told = self.replay({"kind": "metric_expression", "name": "eval.square", "expression": "eval.loss * eval.loss"}, recording="few.jsonl")
        self.assertEqual(told["warnings"], ["what comes with every step or batch was recorded every 5step; callbacks are told no more"])

    def test_what_is_no_recording_and_no_callback_is_refused(self):
        self.assertEqual(self.torchbus("replay", "nowhere.jsonl", "--callbacks", "[]").returncode, 2)
        (self.folder / "damaged.jsonl").write_text((self.folder / "events.jsonl").read_text().replace('"step":7,', '"step":"seven",', 1))
        done = self.torchbus("replay", "damaged.jsonl", "--callbacks", json.dumps([{"kind": "event_file", "path": "again.jsonl"}]))
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, r"damaged\.jsonl:\d+: its data is none of \w+: ")
        self.assertIn("did you mean 'early_stopping'", self.replay({"kind": "early_stoping"}, code=2))
        self.assertIn("--callbacks: it is no JSON", self.torchbus("replay", "events.jsonl", "--callbacks", "[{").stderr)


class Served(unittest.TestCase):
    def test_recordings_are_shown_side_by_side_as_they_grow_and_damaged_ones_up_to_there(self):
        counts = lambda step: f'"step":{step},"attempts":{step},"micro_batch":{step},"samples":{8 * step},"tokens":0'
        def line(run, sequence, name, data):
            return (f'{{"specversion":"1.0","source":"/torchbus/{run}/ranks/0","id":"{sequence}","type":"torchbus.{name}","time":"2026-11-28T08:00:{sequence % 60:02}Z","dataschema":"torchbus:events:1",'
                    f'"sequence":"{sequence:016}","run":"{run}","rank":0,"data":{data}}}\n')
        start = lambda run: line(run, 1, "stream_start", '{"torchbus":"0.1.0","events":["*"],"every":"1step","resumed":false}')
        numbers = lambda run, step: line(run, step + 1, "numbers", f'{{"position":{{"epoch":0,{counts(step)},"in_epoch":{{{counts(step)}}}}},"numbers":{{"train.loss":{1 / step}}},"older":{{}},"after":"train_step_end"}}')
        with tempfile.TemporaryDirectory(prefix="torchbus-serve-") as name:
            folder = Path(name)
            files = {"one": start("one") + numbers("one", 1), "two": start("two") + numbers("two", 1) + numbers("two", 2),
                     "damaged": start("damaged") + numbers("damaged", 1) + line("damaged", 3, "training_run_start", '{"plan":{x}}') + numbers("damaged", 3),
                     "odd": start("odd") + line("odd", 2, "run_closed", "{}") + line("odd", 3, "gap", '{"count":"x"}') + line("odd", 4, "training_run_start", '{"plan":3}') + numbers("odd", 4)}
            for file, text in files.items():
                (folder / f"{file}.jsonl").write_text(text)
            served = subprocess.Popen([PROGRAM, "serve", *(f"{file}.jsonl" for file in files)], cwd=folder, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            try:
                said = [served.stderr.readline()]
                while "http://" not in said[-1]:
                    said.append(served.stderr.readline())
                url = re.search(r"http://\S+", said[-1])[0]
                ask = lambda path: json.load(urllib.request.urlopen(url + path, timeout=30))
                curves = lambda: {curve["run"]: curve["x"] for curve in ask("/curves?names=train.loss")["curves"]}
                wait_for(self, lambda: len(curves()) == 4)
                self.assertEqual(curves(), {"one": [1], "two": [1, 2], "damaged": [1], "odd": [4]})
                with open(folder / "two.jsonl", "a") as file:
                    file.write(numbers("two", 3))
                with open(folder / "one.jsonl", "a") as file:
                    file.write(numbers("one", 2))
                wait_for(self, lambda: curves()["two"] == [1, 2, 3] and curves()["one"] == [1, 2])
                self.assertEqual({run["label"] for run in ask("/runs")["runs"]}, {"", "two.jsonl", "damaged.jsonl", "odd.jsonl"})
                self.assertEqual(ask("/state?run=odd")["data"]["state"], "finished")
                served.send_signal(signal.SIGINT)
                self.assertEqual(served.wait(30), 0)
                self.assertRegex("".join(said) + served.stderr.read(), r"damaged\.jsonl:3: .*; it is shown up to there")
            finally:
                served.kill()
                served.communicate()

    def test_a_token_file_without_a_token_is_refused(self):
        with tempfile.TemporaryDirectory(prefix="torchbus-serve-") as name:
            (Path(name) / "token").write_text("\n")
            (Path(name) / "events.jsonl").write_text("")
            done = subprocess.run([PROGRAM, "serve", "events.jsonl", "--token-file", "token"], cwd=name, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
            self.assertEqual((done.returncode, done.stderr), (2, "torchbus: serve: --token-file: the token in token has 0 characters, expected at least 16; make one with: openssl rand -hex 16\n"))


if __name__ == "__main__":
    unittest.main(verbosity=2)
