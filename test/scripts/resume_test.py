#!/usr/bin/env python3
"""Stops a run after every update, and by SIGTERM within windows and evaluations, takes it up again in a new process, and
compares with the run that was not stopped: the final training state byte for byte, and every event from there on.

usage: resume_test.py; the program is the one in $TORCHBUS_BUILD, default build/release.
  TORCHBUS_SLOW=1   a signal at every micro-batch and every evaluation step, not at some
"""
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / os.environ.get("TORCHBUS_BUILD", "build/release") / "test/resumed_run"
SLOW = os.environ.get("TORCHBUS_SLOW") == "1"
ATTEMPTS = 18  # three epochs of 11 batches, two an update
# What only a run has that is stopped: they tell of the save and the stop.
OF_THE_STOP = {"step_checkpoint", "checkpoint_saved", "decision_taken", "weights_view_changed"}


def run(folder, *arguments, code=0):
    done = subprocess.run([PROGRAM, folder, *map(str, arguments)], capture_output=True, text=True, timeout=600)
    if done.returncode != code:
        raise AssertionError(f"resumed_run {' '.join(map(str, arguments))}: exit code {done.returncode}, expected {code}: {done.stderr}")
    return done.stderr


def events(folder):
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [line for line in lines if json.loads(line)["event"] not in OF_THE_STOP]


def after_start(lines):
    """Without what every process begins with."""
    names = [json.loads(line)["event"] for line in lines]
    return lines[names.index("training_run_start") + 1:]


def files(folder):
    """All files of the checkpoints but the manifests, which hold the others' checksums. Which training states were written
    is left out: a run that was stopped has written one more."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "manifest.json"}
    for name in found:
        if name.endswith("state.json"):
            state = json.loads(found[name])
            for name_of_the_run in ("written", "folder"):
                del state["parts"]["callback.save_training_state"]["values"][name_of_the_run]
            found[name] = state
    return found


class ExactResume(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="torchbus-resume-")
        cls.whole = Path(cls.folder.name) / "whole"
        cls.whole.mkdir()
        run(cls.whole)
        cls.whole_events = after_start(events(cls.whole))
        cls.counts = {}
        for line in cls.whole_events:
            name = json.loads(line)["event"]
            cls.counts[name] = cls.counts.get(name, 0) + 1

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def stop_and_resume(self, *stop, code, whole=None, options=()):
        """Compares with the run in `whole`, which had these options. Returns the events of both processes, without those of
        the stop."""
        whole = whole or self.whole
        whole_events = after_start(events(whole))
        with tempfile.TemporaryDirectory(prefix="torchbus-resume-") as name:
            folder = Path(name)
            run(folder, *stop, *options, code=code)
            before = after_start(events(folder))
            run(folder, "--resume", "--seed", 99, *options)
            after = after_start(events(folder))
            self.assertEqual(files(folder / "checkpoints").keys(), files(whole / "checkpoints").keys())
            for file, content in files(whole / "checkpoints").items():
                self.assertEqual(files(folder / "checkpoints")[file], content, f"{file} after {' '.join(map(str, stop))}")
            self.assertEqual((folder / "final.safetensors").read_bytes(), (whole / "final.safetensors").read_bytes())
        self.assertEqual(after, whole_events[-len(after):], f"events after {' '.join(map(str, stop))}")
        return before, after

    def test_the_run_is_what_it_claims_to_be(self):
        self.assertEqual(self.counts["optimizer_step_skipped"], 1)
        self.assertEqual(self.counts["train_step_end"], ATTEMPTS)
        self.assertGreater(self.counts["eval_epoch_end"], 9)  # three views after each of three epochs, and within them

    def test_after_every_update(self):
        for attempt in range(1, ATTEMPTS + 1):
            with self.subTest(attempt=attempt):
                before, after = self.stop_and_resume("--stop-after", attempt, code=0)
                ends = [index for index, line in enumerate(before) if json.loads(line)["event"] == "train_step_end"]
                told = len(before[:ends[attempt - 1] + 1])
                self.assertEqual(before[:told], self.whole_events[:told])
                self.assertEqual(told + len(after), len(self.whole_events), "an event is missing, or told twice")

    def test_early_stopping_stops_a_resumed_run_where_it_stops_the_whole_one(self):
        options = ("--epochs", 12, "--patience", 2)
        with tempfile.TemporaryDirectory(prefix="torchbus-resume-") as name:
            whole = Path(name)
            run(whole, *options)
            told = [json.loads(line) for line in (whole / "events.jsonl").read_text().splitlines()]
            decisions = [event["data"] for event in told if event["event"] == "decision_taken" and event["data"]["decision"] == "stop_run"]
            self.assertEqual([decision["requester"] for decision in decisions], ["early_stopping"])
            attempts = sum(event["event"] == "train_step_end" for event in told)
            self.assertLess(attempts, 12 * 6)
            for attempt in range(attempts - 12, attempts + 1, 1 if SLOW else 3):  # from where it waits
                with self.subTest(attempt=attempt):
                    self.stop_and_resume("--stop-after", attempt, code=0, whole=whole, options=options)

    def signals(self, event, step):
        for count in range(1, self.counts[event] + 1, 1 if SLOW else step):
            with self.subTest(event=event, count=count):
                yield count, *self.stop_and_resume("--raise-at", event, "--raise-count", count, code=143)

    def test_signals_within_windows(self):
        for event, step in (("forward_start", 29), ("backward_end", 7), ("gradients_ready", 5)):
            for _ in self.signals(event, step):
                pass

    def test_signals_within_evaluations_begin_the_evaluation_anew(self):
        for _, _, after in self.signals("eval_step_end", 23):
            self.assertIn(json.loads(after[0])["event"], ("eval_epoch_start", "train_step_start", "training_run_epoch_end", "train_epoch_start", "training_run_end"))

    def test_signals_within_saves(self):
        for count in range(1, 18, 1 if SLOW else 4):
            with self.subTest(count=count):
                self.stop_and_resume("--save-every", 1, "--raise-at", "step_checkpoint", "--raise-count", count, code=143)

    def test_a_longer_run_goes_on(self):
        with tempfile.TemporaryDirectory(prefix="torchbus-resume-") as name:
            folder = Path(name)
            run(folder, "--epochs", 2)
            run(folder, "--epochs", 3, "--resume")
            self.assertEqual(len([line for line in events(folder) if json.loads(line)["event"] == "train_step_end"]), ATTEMPTS // 3)


class Kills(unittest.TestCase):
    def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_not_been(self):
        draw = random.Random(12)
        kills, chains = 0, 0
        with tempfile.TemporaryDirectory(prefix="torchbus-kills-") as name:
            whole = Path(name) / "whole"
            whole.mkdir()
            run(whole, "--save-every", 1)
            while kills < (1000 if SLOW else 40):
                folder = Path(name) / str(chains)
                folder.mkdir()
                chains += 1
                announced = None
                while True:
                    seed = "99" if list(folder.glob("checkpoints/step_*")) else "5"  # without a state the run begins anew
                    process = subprocess.Popen([PROGRAM, folder, "--resume", "--seed", seed, "--save-every", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
                    self.assertEqual(process.stdout.readline(), "begun\n")
                    time.sleep(draw.random() * 0.6)
                    process.kill()
                    told, said = process.communicate(timeout=120)
                    for line in told.splitlines(keepends=True):
                        if line.startswith("closed at"):
                            continue
                        path = Path(json.loads(line)["data"]["path"]) if line.endswith("\n") else Path()
                        if path.name.startswith("step_"):
                            announced = int(path.name.split("_")[1])
                    if announced:
                        found = subprocess.run([PROGRAM, "--verify", folder], capture_output=True, text=True)
                        self.assertEqual(found.returncode, 0, found.stdout)
                        newest = int(found.stdout.split("step_")[1])
                        self.assertGreaterEqual(newest, announced, "an announced state is lost")
                        self.assertTrue((folder / "checkpoints/latest/manifest.json").exists())
                    if process.returncode == 0:
                        break
                    self.assertEqual(process.returncode, -signal.SIGKILL, said)
                    kills += 1
                self.assertEqual((folder / "final.safetensors").read_bytes(), (whole / "final.safetensors").read_bytes(), f"chain {chains}")
        print(f"{kills} kills in {chains} runs, each of which ended as the one that was not killed", flush=True)


class Signals(unittest.TestCase):
    def test_at_random_moments_each_leaves_a_whole_state_or_says_that_there_is_nothing_to_save(self):
        draw = random.Random(11)
        with tempfile.TemporaryDirectory(prefix="torchbus-signals-") as name:
            folders, without, moments = [], 0, {}
            for attempt in range(1000 if SLOW else 100):
                folder = Path(name) / str(attempt)
                folder.mkdir()
                number = draw.choice([signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
                goes_on = number == signal.SIGUSR1
                waits = draw.random() < 0.3 and not goes_on  # for data, most of the time
                process = subprocess.Popen([PROGRAM, folder, "--epochs", "40", *["--slow-data"][:waits]], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
                self.assertEqual(process.stdout.readline(), "begun\n")
                time.sleep(draw.random() ** 3 * (2 if waits else 1))  # often soon
                sent = time.monotonic()
                process.send_signal(number)
                if goes_on:  # it saves, and trains on until it is stopped
                    time.sleep(0.2)
                    number = signal.SIGTERM
                    process.send_signal(number)
                out, said = process.communicate(timeout=120)
                self.assertIn(process.returncode, (0, 128 + number), said)
                name_of_it = "SIGUSR1" if goes_on else signal.Signals(number).name
                told = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
                saves = [event for event in told if event["event"] == "step_checkpoint" and event["data"]["requester"] == name_of_it]
                is_over = sent > float(out.split("closed at ")[1].split()[0])  # it came after the run
                self.assertTrue(saves or is_over or "run was over" in said or "nothing to save" in said, f"nobody says what became of {name_of_it}: {said}")
                for before, event in zip(told, told[1:]):
                    if event["event"] == "decision_taken" and event["data"]["requester"] == name_of_it:
                        moments[before["event"]] = moments.get(before["event"], 0) + 1
                        break
                if "nothing to save" in said:
                    without += 1
                    continue
                folders.append(folder)
            done = subprocess.run([PROGRAM, *(part for folder in folders for part in ("--verify", folder))], capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stdout)
            self.assertNotIn(": none", done.stdout)
            self.assertEqual(done.stdout.count("step_"), len(folders))
            print(f"{len(folders)} signals left a whole state, {without} came before the first step; taken after {moments}", flush=True)


if __name__ == "__main__":
    if not os.access(PROGRAM, os.X_OK):
        print(f"{PROGRAM} is not built")
        sys.exit(77)
    sys.exit(0 if unittest.main(exit=False, verbosity=2).result.wasSuccessful() else 1)
