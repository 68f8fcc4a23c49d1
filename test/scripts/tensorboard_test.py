#!/usr/bin/env python3
"""The callback tensorboard, read by TensorBoard's own reader: while it is written, after kills, and after the run.

usage: tensorboard_test.py [CLASS[.test]...]; programs are those of $TORCHBUS_BUILD, TensorBoard that of build/readers (tools/test
puts it there). TORCHBUS_SLOW=1 kills 200 times. Exits with 77 where TensorBoard cannot be had.
"""
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / os.environ.get("TORCHBUS_BUILD", "build/release") / "src/cli/torchbus"
READER = [ROOT / "build/readers/bin/python", ROOT / "test/scripts/tensorboard_reader.py"]
SLOW = os.environ.get("TORCHBUS_SLOW") == "1"
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("TORCHBUS_")} | {"OMP_NUM_THREADS": "1"}
PATIENCE_S = 120


def run_file(epochs, *more, **tensorboard):
    return {
        "seed": 3, "model": {"kind": "mlp", "inputs": 16, "hidden": [8], "classes": 4}, "data": {"kind": "synthetic", "samples": 400},
        "optimizer": {"kind": "adam", "learning_rate": 0.01}, "train": {"epochs": epochs, "batch_size": 16},
        "callbacks": [{"kind": "metrics", "accuracy": True}, {"kind": "learning_rate_monitor"}, {"kind": "gradient_clipping", "max_norm": 1.0},
                      {"kind": "tensorboard", "every": "1step", **tensorboard}, *more],
    }


def float32(value):
    return struct.unpack("f", struct.pack("f", value))[0]


class Case(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="torchbus-tensorboard-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def start(self, run, *arguments):
        (self.folder / "run.json").write_text(json.dumps(run))
        return subprocess.Popen([PROGRAM, "train", "run.json", *arguments], cwd=self.folder, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def train(self, run, *arguments):
        process = self.start(run, *arguments)
        said = process.communicate(timeout=PATIENCE_S)[1]
        self.assertEqual(process.returncode, 0, said)
        self.assertNotIn("warning", said)

    def runs(self):
        return sorted(path for path in (self.folder / "tensorboard").iterdir() if path.is_dir())

    def read(self, folder):
        done = subprocess.run([*READER, folder], capture_output=True, text=True, timeout=PATIENCE_S)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)

    def recorded(self):
        """What events.jsonl has of numbers: {tag: {step: value}} of the last one at each step."""
        numbers = {}
        for line in (self.folder / "events.jsonl").read_text().splitlines():
            message = json.loads(line)
            if message["type"] != "torchbus.numbers":
                continue
            for name, value in message["data"]["numbers"].items():
                numbers.setdefault(name.replace(".", "/", 1), {})[message["data"]["position"]["step"]] = value
        return numbers


class Whole(Case):
    def test_every_number_text_histogram_and_parameter_is_found(self):
        parameters = ["learning_rate=0.01", "optimizer=adam", "nesterov=false"]
        self.train(run_file(3, {"kind": "event_file", "every": "1step"}, histograms="25step", gradients=True, hyper_parameters=parameters))
        found = self.read(self.runs()[0])
        recorded = self.recorded()
        self.assertEqual(set(found["scalars"]), set(recorded))
        for tag, values in recorded.items():
            read = {step: value for step, value, _ in found["scalars"][tag]}
            self.assertEqual(read, {step: float32(value) for step, value in values.items()}, tag)
        self.assertEqual(len(found["scalars"]["train/loss"]), 75 + 3)  # of steps; and of the ends of epochs
        self.assertEqual(set(found["histograms"]), {f"{group}/{layer}.{kind}" for group in ("parameters", "gradients") for layer in ("1", "3") for kind in ("weight", "bias")})
        for step, count, total, low, high, limits, counts in found["histograms"]["parameters/1.weight"]:
            self.assertEqual((step % 25, count, sum(counts), len(limits)), (0, 128, 128, 64))
            self.assertLessEqual(low, total / count)
            self.assertEqual(limits[-1], high)
        self.assertEqual([step for step, *_ in found["histograms"]["parameters/1.weight"]], [25, 50, 75])
        self.assertIn('"epochs": 3', found["texts"]["run/plan"][0][1][0])
        self.assertIn('"outcome": "finished"', found["texts"]["run/result"][0][1][0])
        self.assertEqual(found["hyper_parameters"]["values"], {"learning_rate": 0.01, "optimizer": "adam", "nesterov": False})
        self.assertEqual(sorted(found["hyper_parameters"]["metric_infos"]), ["eval/accuracy", "eval/loss", "train/accuracy", "train/loss"])
        self.assertEqual(found["hyper_parameters"]["status"], 1)  # SUCCESS

    def test_each_run_has_a_folder_of_its_own(self):
        known = []
        for epochs, steps in (1, [25]), (2, [25, 50]):
            self.train(run_file(epochs))
            (added,) = set(self.runs()) - set(known)  # by name, runs of one second have no order
            known.append(added)
            self.assertEqual([step for step, *_ in self.read(added)["scalars"]["eval/loss"]], steps)


class Killed(Case):
    SAVER = {"kind": "save_training_state", "folder": "states", "every": "10step", "keep": 2}

    def test_what_was_written_is_found_after_every_kill_and_all_of_it_in_the_end(self):
        kills = 200 if SLOW else 8
        steps = 25 * kills * 8
        run = run_file(steps // 25, self.SAVER)
        generator = random.Random(7)
        reached = []
        for kill in range(kills):
            process = self.start(run, *(["--resume", "auto"] if kill else []))
            self.wait_for_progress(process, self.newest_state())
            time.sleep(generator.uniform(0, 0.2))
            process.kill()
            process.communicate()
            found = self.read(self.runs()[0])["scalars"]["train/loss"]
            read = [step for step, *_ in found]
            self.assertEqual(sorted(set(read)), list(range(1, read[-1] + 1)), "a step is missing")
            self.assertEqual(read, sorted(read), "steps that were given up are still there")
            reached.append(read[-1])
        self.assertGreater(reached[-1], reached[0])
        self.train(run | {"train": run["train"] | {"epochs": reached[-1] // 25 + 3}}, "--resume", "auto", "--allow", "train.epochs", "--allow", "plan.epochs")
        self.assertEqual(len(self.runs()), 1)
        last = self.read(self.runs()[0])["scalars"]
        self.folder = Path(tempfile.mkdtemp(dir=self.folder))
        self.train(run_file(reached[-1] // 25 + 3))
        whole = self.read(self.runs()[0])["scalars"]
        # What is told at the step of a state may be told again by the run that goes on from it: the same number.
        pairs = lambda scalars: {tag: sorted({(step, value) for step, value, _ in events}) for tag, events in scalars.items()}
        self.assertEqual(pairs(last), pairs(whole))
        print(f"{kills} kills, after each of which TensorBoard read every step; {reached[-1]} steps in the end", flush=True)

    def newest_state(self):
        steps = [path.name.rpartition("_")[2] for path in (self.folder / "states").glob("step_*")]
        return max((int(step) for step in steps if step.isdigit()), default=0)

    def wait_for_progress(self, process, reached):
        """Until it has saved a state after that step."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            self.assertIsNone(process.poll(), "it ended before it was killed")
            self.assertLess(time.monotonic(), deadline, "it does not get on")
            if self.newest_state() > reached:
                return
            time.sleep(0.01)


if __name__ == "__main__":
    if subprocess.run([*READER[:1], "-c", "import tensorboard"], capture_output=True).returncode if READER[0].exists() else True:
        print("TensorBoard is not in build/readers; tools/test puts it there, where it can be had")
        sys.exit(77)
    unittest.main(verbosity=2)
