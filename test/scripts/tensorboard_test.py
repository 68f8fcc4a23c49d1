#!/usr/bin/env python3
"""The callback tensorboard, read by the reader of TensorBoard 2.21: after a run, while a run writes, behind a torn record, and after kills.

usage: tensorboard_test.py [CLASS[.test]...]; the program is the one in $TORCHBUS_BUILD, default build/release, TensorBoard that of
build/readers (tools/test puts it there); another version fails. TORCHBUS_SLOW=1 kills 200 times instead of 8. Exits with 77 where there
is no TensorBoard.
"""
import json
import os
import random
import signal
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
VERSION = "2.21"
SLOW = os.environ.get("TORCHBUS_SLOW") == "1"
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("TORCHBUS_")} | {"OMP_NUM_THREADS": "1"}
PATIENCE_S = 120
STEPS_OF_EPOCH = 25
SAVER = {"kind": "save_training_state", "folder": "states", "every": "10step", "keep": 2}


def run_file(epochs, *more, **tensorboard):
    return {
        "seed": 3, "model": {"kind": "mlp", "inputs": 16, "hidden": [8], "classes": 4}, "data": {"kind": "synthetic", "samples": 400},
        "optimizer": {"kind": "adam", "learning_rate": 0.01}, "train": {"epochs": epochs, "batch_size": 16},
        "callbacks": [{"kind": "metrics", "accuracy": True}, {"kind": "learning_rate_monitor"}, {"kind": "gradient_clipping", "max_norm": 1.0},
                      {"kind": "tensorboard", "every": "1step", **tensorboard}, *more],
    }


def float32(value):
    return struct.unpack("f", struct.pack("f", value))[0]


def points_of(scalars):
    """What is told at the step of a state may be told again by the run that goes on from it, and is the same point."""
    return {(tag, step, value) for tag, points in scalars.items() for step, value in points}


class Reader:
    """TensorBoard's own, in a process of its environment."""

    def __init__(self):
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(READER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True)
        self.version = self.process.stdout.readline().strip()

    def read(self, folder):
        """All of a folder."""
        self.process.stdin.write(f"{folder}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, self.said()
        return json.loads(answer)

    def read_on(self):
        """All of the folder that was read last, by what has come since."""
        return self.read("")

    def said(self):
        self.errors.seek(0)
        return self.errors.read()

    def close(self):
        self.process.communicate()
        self.errors.close()


class Case(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="torchbus-tensorboard-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.reader = Reader()
        self.addCleanup(self.reader.close)
        self.assertTrue(self.reader.version.startswith(VERSION + "."), f"TensorBoard {VERSION} expected, found {self.reader.version}")

    def start(self, run, *arguments):
        (self.folder / "run.json").write_text(json.dumps(run))
        return subprocess.Popen([PROGRAM, "train", "run.json", *arguments], cwd=self.folder, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def train(self, run, *arguments):
        process = self.start(run, *arguments)
        said = process.communicate(timeout=PATIENCE_S)[1]
        self.assertEqual(process.returncode, 0, said)
        self.assertNotIn("warning", said)

    def points_elsewhere(self, run):
        """Trains in a folder apart; the points of that run."""
        here, self.folder = self.folder, Path(tempfile.mkdtemp(dir=self.folder))
        self.train(run)
        points, self.folder = self.read_points(), here
        return points

    def runs(self):
        return set((self.folder / "tensorboard").glob("*/"))

    def the_run(self):
        (run,) = self.runs()
        return run

    def read_points(self):
        return points_of(self.reader.read(self.the_run())["scalars"])

    def recorded(self):
        """The points that events.jsonl has."""
        points = set()
        for line in (self.folder / "events.jsonl").read_text().splitlines():
            message = json.loads(line)
            if message["type"] == "torchbus.numbers":
                points |= {(name.replace(".", "/", 1), message["data"]["position"]["step"], float32(value)) for name, value in message["data"]["numbers"].items()}
        return points

    def expect_beginning(self, scalars, whole):
        """Each curve goes forward, and all points of `whole` before the last step are there, and no others. Returns that step."""
        for tag, points in scalars.items():
            steps = [step for step, _ in points]
            self.assertEqual(steps, sorted(steps), f"{tag}: steps that were given up are still there")
        found = points_of(scalars)
        last = max(step for _, step, _ in found)
        self.assertEqual(found - whole, set(), "nobody told these points")
        self.assertEqual({point for point in whole - found if point[1] < last}, set(), f"these points are missing before step {last}")
        return last

    def wait_until(self, process, condition, what):
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            self.assertIsNone(process.poll(), "it ended before it was to")
            self.assertLess(time.monotonic(), deadline, what)
            time.sleep(0.01)


class Whole(Case):
    def test_every_number_text_histogram_and_parameter_is_found(self):
        parameters = ["learning_rate=0.01", "optimizer=adam", "nesterov=false"]
        self.train(run_file(3, {"kind": "event_file", "every": "1step"}, histograms="25step", gradients=True, hyper_parameters=parameters))
        found = self.reader.read(self.the_run())
        self.assertEqual(points_of(found["scalars"]), self.recorded())
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
        known = set()
        for epochs, steps in (1, [25]), (2, [25, 50]):
            self.train(run_file(epochs))
            (added,) = self.runs() - known
            known.add(added)
            self.assertEqual([step for step, _ in self.reader.read(added)["scalars"]["eval/loss"]], steps)


class Followed(Case):
    def test_curves_grow_while_the_run_writes_and_have_every_point_up_to_where_they_are(self):
        run = run_file(100_000, {"kind": "event_file", "every": "1step", "max_mib": 1000})
        run["model"]["hidden"] = [1024, 1024]  # 10 ms a step, so that the reader can follow
        process = self.start(run)
        self.addCleanup(process.kill)
        self.wait_until(process, lambda: (self.folder / "tensorboard").exists() and self.runs(), "there is no folder of the run")
        reads = [self.reader.read(self.the_run())["scalars"]]  # the first may have no points yet
        while len(reads) < 30:
            self.wait_until(process, lambda: self.has_grown(reads), "the curves do not grow")
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=PATIENCE_S)[1]
        self.assertEqual(process.returncode, 130, said)
        reads.append(self.reader.read_on()["scalars"])
        recorded = self.recorded()
        reached = [self.expect_beginning(read, recorded) for read in reads[1:]]
        self.assertEqual(points_of(reads[-1]), recorded)
        self.assertEqual(self.reader.said(), "")
        print(f"TensorBoard {self.reader.version} read {len(reached)} times while {reached[-1]} steps were trained, each time every point of {len(reads[-1])} curves up to there", flush=True)

    def has_grown(self, reads):
        """Whether the reader has more than before, which then is one of the reads."""
        now = self.reader.read_on()["scalars"]
        if sum(map(len, now.values())) == sum(map(len, reads[-1].values())):
            return False
        reads.append(now)
        return True


class Torn(Case):
    def test_a_torn_record_is_passed_over_and_then_cut_off_by_the_run_that_goes_on(self):
        self.train(run_file(2, SAVER))
        (file,) = self.the_run().glob("events.out.tfevents.*")
        content, points = file.read_bytes(), self.read_points()
        torn = content[:30]  # of the 42 bytes of the first record
        file.write_bytes(content + torn)
        self.assertEqual(self.read_points(), points)
        self.train(run_file(4, SAVER), "--resume", "auto", "--allow", "train.epochs", "--allow", "plan.epochs")
        self.assertTrue(file.read_bytes().startswith(content))
        self.assertFalse(file.read_bytes().startswith(content + torn))
        self.assertEqual(self.read_points(), self.points_elsewhere(run_file(4)))


class Killed(Case):
    def test_every_point_is_found_after_every_kill_and_in_the_end(self):
        kills = 200 if SLOW else 8
        run = run_file(8 * kills, SAVER)
        whole = self.points_elsewhere(run_file(8 * kills))
        generator = random.Random(7)
        for kill in range(kills):
            process = self.start(run, *(["--resume", "auto"] if kill else []))
            self.addCleanup(process.kill)
            before = self.newest_state()
            self.wait_until(process, lambda: self.newest_state() > before, "it saves no state")
            time.sleep(generator.uniform(0, 0.2))
            process.kill()
            process.communicate()
            found = self.reader.read(self.the_run())["scalars"]
            last = self.expect_beginning(found, whole)
            self.assertGreaterEqual(found["train/loss"][-1][0], self.newest_state(), "a state was saved before its step was written")
        epochs = last // STEPS_OF_EPOCH + 3
        self.train(run | {"train": run["train"] | {"epochs": epochs}}, "--resume", "auto", "--allow", "train.epochs", "--allow", "plan.epochs")
        self.assertEqual(self.read_points(), {point for point in whole if point[1] <= epochs * STEPS_OF_EPOCH})
        print(f"{kills} kills, after each of which TensorBoard {self.reader.version} read every point of {len(found)} curves; {last} steps by the last, {epochs * STEPS_OF_EPOCH} in the end", flush=True)

    def newest_state(self):
        steps = [path.name.rpartition("_")[2] for path in (self.folder / "states").glob("step_*")]
        return max((int(step) for step in steps if step.isdigit()), default=0)


if __name__ == "__main__":
    if subprocess.run([*READER[:1], "-c", "import tensorboard"], capture_output=True).returncode if READER[0].exists() else True:
        print("TensorBoard is not in build/readers; tools/test puts it there, where it can be had")
        sys.exit(77)
    unittest.main(verbosity=2)
