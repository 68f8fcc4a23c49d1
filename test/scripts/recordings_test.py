#!/usr/bin/env python3
"""Reads recorded runs with diff, explain, plot and watch, and follows runs that are under way.

usage: recordings_test.py [CLASS[.test]...]; programs are those in $TORCHBUS_BUILD, default build/release.
"""
import copy
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
import unittest
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import cli_test
from cli_test import ENVIRONMENT, PATIENCE_S, PROGRAM, ROOT, RUN

BUILD = ROOT / os.environ.get("TORCHBUS_BUILD", "build/release")
FLIP = BUILD / "test/plugins/flip_bit.so"
RECORDED = RUN | {"callbacks": [{"kind": "metrics", "accuracy": True}, {"kind": "gradient_clipping", "max_norm": 1.0},
                                {"kind": "event_file", "every": "1step"}, {"kind": "fingerprint", "every": "1step"},
                                {"kind": "save_training_state", "folder": "states"}]}
STEPS = 75  # 3 epochs of 400 samples by 16


class Case(cli_test.Case):
    def record(self, name, run=RECORDED, code=0, **changes):
        """Trains in a folder of its own, which it returns; there lies events.jsonl."""
        folder = self.folder / name
        folder.mkdir()
        (folder / "run.json").write_text(json.dumps(copy.deepcopy(run) | changes))
        done = subprocess.run([PROGRAM, "train", "run.json"], cwd=folder, env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_S)
        self.assertEqual(done.returncode, code, done.stderr)
        return folder

    def diff(self, one, other, *flags, code=1):
        done = self.outcome(PROGRAM, "diff", one, other, *flags)
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        return done.stdout

    def messages(self, folder):
        return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]

    def write_messages(self, name, messages):
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        (folder / "events.jsonl").write_text("".join(json.dumps(m, separators=(",", ":")) + "\n" for m in messages))
        return folder

    def start_slow(self, name, until=b"eval_epoch_end", **changes):
        """A run that lasts until it is ended, in a folder of its own, once this was recorded."""
        folder = self.folder / name
        folder.mkdir()
        run = copy.deepcopy(RECORDED) | {"train": RUN["train"] | {"epochs": 100_000}} | changes
        (folder / "run.json").write_text(json.dumps(run))
        with open(folder / "stderr", "wb") as err:
            process = subprocess.Popen([PROGRAM, "train", "run.json"], cwd=folder, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=err, stderr=err)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        deadline = time.monotonic() + PATIENCE_S
        while not (folder / "events.jsonl").exists() or until not in (folder / "events.jsonl").read_bytes():
            self.assertIsNone(process.poll(), (folder / "stderr").read_text())
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.05)
        return folder, process


def place(attempts):
    counts = {"step": attempts, "micro_batch": attempts, "samples": 8 * attempts, "tokens": 0, "attempts": attempts}
    return {"epoch": 0, **counts, "in_epoch": counts}


def message(sequence, name, attempts=None, run="A", **data):
    """As event_file writes it."""
    position = {} if attempts is None else {"position": place(attempts)}
    return {"specversion": "1.0", "source": f"/torchbus/{run}/ranks/0", "run": run, "rank": 0, "dataschema": "torchbus:events:1", "type": f"torchbus.{name}", "id": str(sequence),
            "sequence": f"{sequence:016}", "time": f"2026-11-27T23:41:{sequence % 60:02}.250113Z", "data": position | data}


def start(run="A", **data):
    return message(1, "stream_start", run=run, **({"events": ["*"], "every": "1step", "resumed": False, "torchbus": "1"} | data))


class Diff(Case):
    def written(self, name, *told, **how):
        """A recording of messages, each (name, attempts, {its other data}), behind a start."""
        return self.write_messages(name, [start(**how)] + [message(i + 2, event, attempts, **data) for i, (event, attempts, data) in enumerate(told)])

    def test_ignored_events_are_passed_over_and_hide_nothing(self):
        attached = lambda attempts: ("subscriber_attached", attempts, {"id": "plot"})
        saved = lambda attempts: ("decision_taken", attempts, {"decision": "save_now", "requester": "me", "reason": ""})
        skipped = ("optimizer_step_skipped", 5, {"requester": "nan_policy", "reason": "NaN", "update": ""})
        end = lambda attempts: ("train_epoch_end", attempts, {})
        ignoring = ("--ignore", "subscriber_attached")
        self.assertEqual(self.diff(self.written("a", attached(5), saved(5), end(6)), self.written("b", saved(5), end(6)), *ignoring, code=0), "")
        said = self.diff(self.written("a", attached(6), end(7)), self.written("b", skipped, attached(6), end(7)), *ignoring)
        self.assertIn("the second optimizer_step_skipped after epoch 0, step 5", said)
        said = self.diff(self.written("a", end(7)), self.written("b", end(7), attached(7), end(8)), *ignoring)
        self.assertIn("the first run ends after train_epoch_end after epoch 0, step 7; the second goes on with train_epoch_end after epoch 0, step 8", said)
        self.assertEqual(self.diff(self.written("a", saved(5), end(6)), self.written("b", end(6)), "--ignore", "decision_taken", code=0), "")

    def test_doubles_that_are_written_as_whole_numbers_stay_doubles(self):
        def numbers(name, value):
            folder = self.written(name, ("numbers", 7, {"numbers": {"train.perplexity": "@"}, "older": {}, "after": "train_epoch_end"}))
            file = folder / "events.jsonl"
            file.write_text(file.read_text().replace('"@"', value))
            return folder
        for one, other in (("2", "2.0"), ("-0", "-0.0"), ("[-0]", "[-0.0]")):
            self.assertEqual(self.diff(numbers("a", one), numbers("b", other), code=0), "")
        self.assertIn("numbers.train.perplexity: -0.0 and 0, 0 apart", self.diff(numbers("a", "-0"), numbers("b", "0")))
        self.assertEqual(self.diff(numbers("a", '"-0,"'), numbers("b", '"-0,"'), code=0), "")
        self.assertEqual(self.diff(numbers("a", "123456789"), numbers("b", "123456790"), "--tolerance", "1e-3", code=0), "")
        self.assertIn("123456789 and 123456790, 1 apart", self.diff(numbers("a", "123456789"), numbers("b", "123456790")))
        self.assertIn("from.step: 7 and 8\n", self.diff(self.written("a", ("rolled_back", 5, {"from": place(7)})), self.written("b", ("rolled_back", 5, {"from": place(8)})), "--tolerance", "1"))

    def test_what_a_recording_says_does_not_steer_the_terminal(self):
        end = ("train_epoch_end", 7, {})
        a, b = self.written("a", end, events=["*", "\x1b]0;me\x07"], every="\x1b[2J"), self.written("b", end, ("train_epoch_end", 8, {}))
        (b / "events.jsonl").rename(b / "\x1b[31mred.jsonl")
        done = self.outcome(PROGRAM, "diff", a, b)
        self.assertEqual(done.returncode, 1)
        self.assertIn("every [2J", done.stderr)
        self.assertIn("[31mred.jsonl", done.stdout)
        (b / "\x1b[31mred.jsonl").write_text("{\n" + (b / "\x1b[31mred.jsonl").read_text())
        other = self.outcome(PROGRAM, "explain", b)
        self.assertNotIn("\x1b", done.stdout + done.stderr + other.stderr)

    def test_fingerprints_lie_in_files_called_so(self):
        a, b = (self.written(name, ("train_epoch_end", 7, {})) for name in "ab")
        for folder in (a, b):
            (folder / "fingerprint_notes.txt").write_text(f"notes on {folder}\n")
        self.assertEqual(self.diff(a, b, code=0), "")
        for folder, every in ((a, 1), (b, 2)):
            (folder / "my_fingerprint.jsonl").write_text("".join(json.dumps({"epoch": 0, "step": at, "attempts": at, "samples": "a"}) + "\n" for at in range(every, 11, every)))
        self.assertEqual(self.diff(a, b, code=0), "")

    def test_no_error_has_the_exit_code_of_a_difference(self):
        a = self.written("a", ("train_epoch_end", 7, {}))
        self.assertIn("File name too long", self.torchbus("diff", "n" * 300, a, code=2))

    def test_two_equal_runs_have_no_difference(self):
        self.assertEqual(self.diff(self.record("a"), self.record("b"), code=0), "")

    def test_another_seed_is_named_with_the_first_difference(self):
        said = self.diff(self.record("a"), self.record("b", seed=4))
        self.assertIn("configured differently:\n    plan.seed: 3 and 4\n", said)
        self.assertRegex(said, r"first difference: forward_end after epoch 0, step 0 \(.*a/events.jsonl:\d+ and .*b/events.jsonl:\d+\)\n    loss: \d\.\d+ and \d\.\d+, \S+ apart, \S+ of the larger")
        self.assertIn("step 1: the samples differ\n", said)

    def test_one_flipped_bit_in_one_gradient_is_named_by_step_and_tensor(self):
        self.assertTrue(FLIP.exists(), f"{FLIP} is not built")
        flipped = [self.record(name, plugins=[str(FLIP)], callbacks=RECORDED["callbacks"] + [{"kind": "flip_bit", "step": step, "parameter": "1.weight"}])
                   for name, step in (("a", -1), ("b", 16), ("c", -1))]
        self.assertEqual(self.diff(flipped[0], flipped[2], code=0), "")
        said = self.diff(flipped[0], flipped[1])
        self.assertIn("step 17: gradients differ: 1.weight\n", said)

    def test_a_tolerance_lets_small_differences_pass(self):
        a = self.record("a")
        messages = self.messages(a)
        at = [i for i, m in enumerate(messages) if m["type"] == "torchbus.train_step_end"][30]
        messages[at]["data"]["loss"] *= 1 + 1e-9
        b = self.write_messages("b", messages)
        self.assertRegex(self.diff(a, b), rf"first difference: train_step_end after epoch 1, step 31 \(.*:{at + 1} and .*:{at + 1}\)\n    loss: ")
        self.assertEqual(self.diff(a, b, "--tolerance", "1e-6", code=0), "")
        self.assertEqual(self.diff(a, b, "--absolute", "1e-6", code=0), "")
        self.assertEqual(self.diff(a, b, "--ignore", "loss", code=0), "")
        self.assertEqual(self.diff(a, b, "--ignore", "train_step_end.loss", code=0), "")
        self.assertEqual(self.diff(a, b, "--ignore", "train_step_*", code=0), "")
        self.diff(a, b, "--ignore", "position")

    def test_decisions_and_ends_are_compared(self):
        a = self.record("a")
        messages = self.messages(a)
        stop = next(i for i, m in enumerate(messages) if m["type"] == "torchbus.train_step_start" and m["data"]["position"]["step"] == 40)
        decision = copy.deepcopy(messages[stop]) | {"type": "torchbus.decision_taken"}
        decision["data"] = {"position": decision["data"]["position"], "decision": "stop_run", "requester": "me", "reason": "it is \x1b[31menough", "rank": 0}
        b = self.write_messages("b", messages[:stop] + [decision])
        said = self.diff(a, b)
        self.assertIn("first differing decision: only the second run took stop_run after epoch 1, step 40, asked for by me: it is [31menough", said)
        c = self.write_messages("c", messages[:stop])
        said = self.diff(a, c)
        self.assertRegex(said, r"the second run ends after \w+ after epoch 1, step 40; the first goes on with train_step_start after epoch 1, step 40")

    def test_what_comes_at_any_time_is_a_set(self):
        a = self.record("a")
        messages = self.messages(a)
        saved = next(i for i, m in enumerate(messages) if m["type"] == "torchbus.checkpoint_saved")
        moved = messages[:saved] + messages[saved + 1:saved + 20] + [messages[saved]] + messages[saved + 20:]
        self.assertEqual(self.diff(a, self.write_messages("b", moved), code=0), "")
        self.assertIn("checkpoint_saved: step_25 in the first run alone\n", self.diff(a, self.write_messages("c", messages[:saved] + messages[saved + 1:])))

    def test_runs_recorded_in_other_ways_are_compared_in_what_both_hold(self):
        def recorded(name, **options):
            callbacks = [c | options if c["kind"] == "event_file" else c for c in RECORDED["callbacks"]]
            return self.record(name, callbacks=callbacks)
        a, b, c = recorded("a"), recorded("b", every="5step"), recorded("c", events=["train_step_end", "decision_taken", "run_closed", "numbers"])
        for other, what in ((b, "every 1step, the other every 5step"), (c, r"with the events \*, the other with train_step_end,")):
            done = self.outcome(PROGRAM, "diff", a, other)
            self.assertEqual((done.returncode, done.stdout), (0, ""), done.stderr)
            self.assertRegex(done.stderr, what)

    def test_usage_and_damage_have_an_exit_code_of_their_own(self):
        a = self.record("a")
        self.refused(2, "none: there is no such file or folder; give the file that event_file wrote, e.g. events.jsonl", "diff", a, "none")
        lines = (a / "events.jsonl").read_text().splitlines(keepends=True)
        (self.folder / "b.jsonl").write_text("".join(lines[:9] + [lines[9][:100] + "\n"] + lines[10:]))
        self.refused(2, "b.jsonl:10: the line is damaged: it is not one JSON object from its beginning to its end (100 bytes); delete the line to read the others", "diff", a, "b.jsonl")


class Damage(Case):
    """What strangers may write into the middle of a recorded run."""
    DAMAGES = [  # a value in the data of a message, and what is said of its line
        (b"[" * 100_000 + b"]" * 100_000, "the line is nested deeper than 64 levels"), (b"[" * 63 + b"]" * 63, "the line is nested deeper than 64 levels"),
        (b"1e999", "the line is damaged: its data is no JSON"), (b"9" * 400, "the line is damaged: its data is no JSON"), (b'"\xff\xfe"', "the line is damaged: it is no JSON, or a key stands twice in one object"),
        (b'{"a": 1, "a": 2}', "the line is damaged: the key 'a' stands twice in one object"), (b'1,"more":2', "the line is damaged: the key 'more' stands twice in one object"),
        (b'"\\ud800"', "the line is damaged: its data is no JSON"), (b'"\x00"', "the line is damaged: it is not one JSON object from its beginning to its end"),
    ]
    READABLE = [b"[" * 61 + b"]" * 61, b"1e308", b"99999999999999999999", '"\U0001f68c"'.encode(), b'"\\u0000"']

    def setUp(self):
        super().setUp()
        self.whole = (self.record("a", callbacks=[{"kind": "metrics"}, {"kind": "event_file"}]) / "events.jsonl").read_bytes()
        self.reading = [("explain", "written.jsonl"), ("watch", "--once", "written.jsonl"), ("plot", "written.jsonl", "-o", "curves.svg"), ("diff", "a", "written.jsonl"),
                        ("replay", "written.jsonl", "--callbacks", '[{"kind": "csv_file"}]')]

    def write_with(self, value, kind=b"training_run_start", member=b'"data":{'):
        """Puts a value into a line, at first into one that all commands read; returns its number and length."""
        lines = self.whole.splitlines(keepends=True)
        at = next(i for i, line in enumerate(lines) if b'"torchbus.%s"' % kind in line)
        lines[at] = lines[at].replace(member, member + b'"more":' + value + b",", 1)
        (self.folder / "written.jsonl").write_bytes(b"".join(lines))
        return at + 1, len(lines[at]) - 1

    def test_a_damaged_line_is_named_by_whatever_reads_it(self):
        for value, why in self.DAMAGES:
            number, size = self.write_with(value)
            for command in self.reading:
                with self.subTest(value=value[:20], command=command[0]):
                    self.refused(2 if command[0] == "diff" else 1, f"written.jsonl:{number}: {why} ({size} bytes); delete the line to read the others", *command)

    def test_numbers_that_cannot_be_read_are_not_left_out_in_silence(self):
        number, size = self.write_with(b"1e999", b"numbers", b'"numbers":{')
        for command in self.reading[1:]:  # explain tells of none
            with self.subTest(command=command[0]):
                why = "its data is no JSON" if command[0] == "diff" else "its numbers cannot be read"
                self.refused(2 if command[0] == "diff" else 1, f"written.jsonl:{number}: the line is damaged: {why} ({size} bytes); delete the line to read the others", *command)

    def test_nesting_and_numbers_up_to_the_limits_are_read(self):
        self.write_with(b"[" + b",".join(self.READABLE) + b"]")
        for command in self.reading:
            with self.subTest(command=command[0]):
                self.torchbus(*command, code=1 if command[0] == "diff" else 0)


class Explain(Case):
    def test_a_finished_run_is_told(self):
        said = self.torchbus("explain", self.record("a"))
        self.assertIn("training of 3 epochs, seed 3, on cpu\n", said)
        self.assertIn("How it ended\n    finished after epoch 3, step 75 (exit code 0)\n", said)
        self.assertIn("Saves: 3\n    after epoch 1, step 25: states/step_25, at the end of an epoch\n", said)
        self.assertIn("no decision taken, no update skipped", said)

    def test_a_process_that_was_killed_is_told_with_its_last_place(self):
        folder, process = self.start_slow("a", until=b"torchbus.checkpoint_saved")  # before that there is no state to go on from
        process.kill()
        process.wait()
        with open(folder / "events.jsonl", "ab") as file:
            file.write(b'{"specversion":"1.0","sour')
        said = self.torchbus("explain", folder)
        self.assertRegex(said, r"the recording just ends, with \w+ after epoch \d+, step \d+, at \S+: the process was killed or died there, or is still at it\n    the last line is torn: 26 bytes of it are there\n")
        told = json.loads(self.torchbus("explain", folder, "--json"))
        self.assertIsNone(told["result"])
        self.assertEqual(told["torn_bytes"], 26)
        self.assertGreaterEqual(told["last"]["position"]["step"], 25)
        # The run goes on from its last state, in the same file, behind the torn line.
        run = json.loads((folder / "run.json").read_text())
        run["train"]["epochs"] = told["last"]["position"]["epoch"] + 1
        (folder / "run.json").write_text(json.dumps(run))
        done = subprocess.run([PROGRAM, "train", "run.json", "--resume", "auto", "--allow", "*"], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE_S)
        self.assertEqual(done.returncode, 0, done.stderr)
        said = self.torchbus("explain", folder)
        self.assertRegex(said, r"went on from a saved state at epoch \d+, step \d+, as run ")
        self.assertIn("How it ended\n    finished after", said)

    def test_stops_skips_and_saves_are_told_with_their_reasons(self):
        folder, process = self.start_slow("a")
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_S)
        said = self.torchbus("explain", folder)
        self.assertRegex(said, r"How it ended\n    signalled after epoch \d+, step \d+.* \(exit code 143\)\n")
        self.assertRegex(said, r"Decisions: \d\n    after epoch \d+, step \d+: stop_run, by ")

    def test_gaps_faults_and_roll_backs_are_told(self):
        a = self.record("a")
        messages = self.messages(a)
        at = next(i for i, m in enumerate(messages) if m["type"] == "torchbus.train_step_end" and m["data"]["position"]["step"] == 30)
        position = messages[at]["data"]["position"]

        def told(name, **data):
            return copy.deepcopy(messages[at]) | {"type": "torchbus." + name, "data": {"position": position} | data}

        skip = told("optimizer_step_skipped", update="", requester="nan_policy", reason="the loss is NaN")
        gap = messages[at] | {"type": "torchbus.gap", "id": f"{at + 10}.gap", "sequence": f"{at + 10:016}", "data": {"first": at + 2, "last": at + 10, "count": 9}}
        more = [skip, skip, told("subscriber_failed", id="tap", event="train_step_end", error="no room", detached=True),
                told("option_changed", subscriber="gradient_clipping", option="max_norm", **{"from": "1.0"}, to="0.5", requester="me", error=""),
                {**told("rolled_back", path="states/step_25", count=1, left_out={"epoch": 1, "first": 3, "count": 2, "requester": "nan_policy", "reason": "the loss is NaN"}), "data": {**told("x")["data"], "from": position, "path": "states/step_25", "count": 1,
                 "left_out": {"epoch": 1, "first": 3, "count": 2, "requester": "nan_policy", "reason": "the loss is NaN"}}}]
        said = self.torchbus("explain", self.write_messages("b", messages[:at + 1] + more + [gap] + messages[at + 10:at + 20] + messages[at + 30:]))
        self.assertIn("Skipped updates, by reason: 1\n    by nan_policy: the loss is NaN; 2 times, first after epoch 1, step 30, last after epoch 1, step 30\n", said)
        self.assertIn("tap at train_step_end: no room; after epoch 1, step 30; it was detached\n", said)
        self.assertIn("gradient_clipping.max_norm from 1.0 to 0.5, by me\n", said)
        self.assertIn("the state states/step_25; 2 batches from 3 on of epoch 1 left out, by nan_policy: the loss is NaN\n", said)
        self.assertRegex(said, rf"messages {at + 2} to {at + 10}; the disk was too slow for them\n")
        self.assertRegex(said, r"messages \d+ to \d+; they are missing in the file\n")


    def test_a_users_events_are_no_start_and_no_end_of_the_run(self):
        told = [start(), message(2, "training_run_start", 0, plan={"epochs": 3, "seed": 1}), message(3, "warmup_run_start", plan={"epochs": 7}), message(4, "training_run_end", 9, result={"outcome": "finished", "exit_code": 0}),
                message(5, "warmup_run_end", result={"outcome": "cold", "exit_code": 9})]
        said = self.torchbus("explain", self.write_messages("a", told))
        self.assertIn("training of 3 epochs, seed 1\n", said)
        self.assertIn("finished after epoch 0, step 9 (exit code 0)\n", said)

    def test_a_position_that_is_none_is_null(self):
        deep = {"position": {"x": {"y": {"z": 1}}}}
        told = json.loads(self.torchbus("explain", self.write_messages("a", [start(), message(2, "mine", **deep), message(3, "subscriber_attached", id="tap", requester="me")]), "--json"))
        self.assertIsNone(told["last"]["position"])
        self.assertIsNone(told["changes"][0]["after"])

    def test_of_many_reasons_the_oldest_are_forgotten(self):
        told = [start()]
        for at in range(1, 1102):
            told.append(message(2 * at, "step_checkpoint", at, requester="me", reason=f"number {at}"))
            if at > 1000:
                told.append(message(2 * at + 1, "checkpoint_saved", at, path=f"step_{at}"))
        saves = json.loads(self.torchbus("explain", self.write_messages("a", told), "--json"))["saves"]
        self.assertEqual([save["why"] for save in saves], [f"asked for by me: number {at}" for at in range(1001, 1102)])

    def test_where_the_file_was_moved_aside_as_the_run_was_resumed_it_goes_on(self):
        folder = self.write_messages("a", [start(), message(2, "train_epoch_end", 7)])
        (folder / "events.jsonl").rename(folder / "events.1.jsonl")
        self.write_messages("a", [start("B", resumed=True), message(2, "run_closed", 9, run="B", result={"outcome": "finished", "exit_code": 0})])
        self.assertEqual(json.loads(self.torchbus("explain", folder, "--json"))["files"], 2)


class Plot(Case):
    def test_what_was_rolled_back_is_in_no_curve_and_no_summary(self):
        loss = lambda sequence, attempts, value: message(sequence, "numbers", attempts, numbers={"loss": value}, older={}, after="train_step_end")
        told = [start(), loss(2, 1, 3.0), loss(3, 2, 2.0), loss(4, 3, 777.0), loss(5, 4, 0.125), message(6, "rolled_back", 2, path="states/step_2"), loss(7, 3, 1.5), loss(8, 4, 1.25)]
        self.torchbus("plot", self.write_messages("a", told), "-o", "report.html")
        row = re.search(r"<tr><td>loss</td><td>a</td>(.*?)</tr>", (self.folder / "report.html").read_text())[1]
        self.assertEqual(re.findall(r">([\d.]+)<", row), ["1.25", "1.25", "4", "3", "1"])

    def test_a_drawing_is_well_formed_and_small(self):
        a, b = self.record("a"), self.record("b<&>", seed=4)
        for flags in ([], ["--x", "epoch", "--smooth", "0.9", "--log"], ["--x", "seconds", "--names", "train.*"]):
            self.torchbus("plot", a, b, *flags, "-o", "curves.svg")
            text = (self.folder / "curves.svg").read_text()
            root = ElementTree.fromstring(text)
            self.assertEqual(root.tag, "{http://www.w3.org/2000/svg}svg")
            self.assertIn("b<&>", "".join(root.itertext()))
            self.assertLess(len(text), 200_000)
        self.assertNotIn("grad_norm", text)

    def test_a_report_needs_nothing_from_outside(self):
        a = self.record("a")
        messages = self.messages(a)
        for message in messages:
            if message["type"] == "torchbus.numbers":
                message["data"]["numbers"]["<img src=x onerror=alert(1)>"] = message["data"]["position"]["step"]
        self.torchbus("plot", a, self.write_messages("b", messages), "-o", "report.html")
        text = (self.folder / "report.html").read_text()
        self.assertNotRegex(text, r"https?:|<script|<img|src=[\"']|href=")
        self.assertIn("&lt;img src=x onerror=alert(1)&gt;", text)
        for words in ("How it ended", "eval.accuracy", "finished after epoch 3, step 75"):
            self.assertIn(words, text)
        for svg in re.findall(r"<svg.*?</svg>", text, re.S):
            ElementTree.fromstring(svg)

    def test_a_long_curve_is_drawn_with_few_points_and_all_extremes(self):
        a = self.record("a")
        messages = self.messages(a)
        numbers = [m for m in messages if m["type"] == "torchbus.numbers"][0]
        head, many = messages[:1], []
        for step in range(1, 50_001):
            message = copy.deepcopy(numbers)
            message["sequence"] = f"{step + 1:016}"
            message["data"]["position"]["step"] = step
            message["data"]["numbers"] = {"noise": 1000.0 if step == 31_415 else (step * 7919 % 100) / 100}
            many.append(message)
        self.torchbus("plot", self.write_messages("b", head + many), "-o", "noise.svg")
        text = (self.folder / "noise.svg").read_text()
        path = max(re.findall(r'<path d="([^"]*)"', text), key=len)
        points = re.findall(r"[ML]([\d.]+) ([\d.]+)", path)
        self.assertLess(len(points), 2500)
        self.assertGreater(len(points), 800)
        self.assertLess(min(float(y) for _, y in points), 15)  # the one high value is drawn at the top

    def test_wrong_names_and_weights_are_refused(self):
        a = self.record("a")
        self.refused(2, "curves.png: the name ends neither in .svg nor in .html; give -o curves.svg or -o report.html", "plot", a, "-o", "curves.png")
        self.refused(2, "--smooth: 1.5 is out of range; give the weight of what was before, from 0 up to below 1, e.g. 0.9", "plot", a, "--smooth", "1.5", "-o", "curves.svg")
        self.assertIn("there are no numbers to draw", self.torchbus("plot", a, "--names", "nothing.*", "-o", "curves.svg", code=2))


class Watch(Case):
    def on_terminal(self, *arguments, columns=80, rows=24, env=()):
        """Starts the program on a terminal; returns the process and the terminal's other end."""
        leader, follower = pty.openpty()
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        process = subprocess.Popen([PROGRAM, "watch", *map(str, arguments)], cwd=self.folder, env=ENVIRONMENT | dict(env), stdin=follower, stdout=follower, stderr=follower, start_new_session=True)
        os.close(follower)
        self.addCleanup(os.close, leader)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process, leader

    def read_until(self, leader, pattern):
        said, deadline = b"", time.monotonic() + PATIENCE_S
        while not re.search(pattern, said, re.S):
            self.assertLess(time.monotonic(), deadline, said[-3000:])
            if select.select([leader], [], [], 0.2)[0]:
                try:
                    said += os.read(leader, 65536)
                except OSError:
                    break
        self.assertRegex(said, re.compile(pattern, re.S))
        return said

    def test_a_finished_run_is_drawn_once_and_left(self):
        a = self.record("a")
        said = self.torchbus("watch", "--once", a)
        self.assertRegex(said, r"^training \S+ +finished\n")
        self.assertIn("epoch 3 of 3  step 75 of 75", said)
        self.assertRegex(said, r"eval.accuracy +0\.\d+ ")
        process, leader = self.on_terminal(a)
        drawn = self.read_until(leader, rb"finished.*\x1b\[\?25h")
        self.assertEqual(process.wait(PATIENCE_S), 0)
        self.assertNotIn("█".encode(), drawn)  # LC_ALL=C

    def test_a_window_of_a_few_rows_is_not_left(self):
        told = [start(), message(2, "training_run_start", 0, plan={})] + [message(3 + i, "decision_taken", 1, decision="save_now", requester="me", reason="") for i in range(4)]
        told += [message(7, "numbers", 1, numbers={"a": 1, "b": 2}, older={}, after="train_step_end"), message(8, "run_closed", 1, result={"outcome": "finished", "exit_code": 0})]
        folder = self.write_messages("a", told)
        for rows in range(1, 9):
            process, leader = self.on_terminal(folder, rows=rows)
            drawn = self.read_until(leader, rb"^\x1b\[\?25l\x1b\[\?7l.*\x1b\[\?7h\x1b\[\?25h").decode()
            self.assertEqual(process.wait(PATIENCE_S), 0)
            self.assertLessEqual(len(re.findall(r"\x1b\[K", drawn)), 2 * max(1, rows - 1))
            self.assertNotIn("184467440737", drawn)

    def test_a_run_that_is_killed_in_the_middle_of_a_line_is_followed_by_the_next(self):
        folder = self.write_messages("a", [start(), message(2, "training_run_start", 0, plan={"epochs": 3})])
        with open(folder / "events.jsonl", "a") as file:
            file.write('{"specversion":"1.0","sour')
        watch = subprocess.Popen([PROGRAM, "watch", folder], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(watch.kill)
        self.assertIn("run A", watch.stdout.readline())
        (folder / "events.jsonl").rename(folder / "events.1.jsonl")
        self.write_messages("a", [start("B"), message(2, "training_run_start", 0, "B", plan={"epochs": 3}), message(3, "run_closed", 1, "B", result={"outcome": "finished", "exit_code": 0})])
        out, err = watch.communicate(timeout=PATIENCE_S)
        self.assertEqual((watch.returncode, err), (0, ""))
        self.assertRegex(out, "training begins, run B\n.*finished")

    def test_blocks_are_drawn_where_the_terminal_has_them_and_lines_fit(self):
        a = self.record("a")
        for columns, rows in ((40, 10), (80, 24), (200, 50)):
            process, leader = self.on_terminal(a, columns=columns, rows=rows, env={"LC_ALL": "C.UTF-8"}.items())
            drawn = self.read_until(leader, rb"\x1b\[\?25h").decode()
            process.wait(PATIENCE_S)
            last = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "\n", drawn)
            self.assertLessEqual(max(len(line.strip("\r")) for line in last.split("\n")), columns)
            self.assertLess(drawn.count("\n"), 3 * rows)
        self.assertRegex(drawn, "[▁▂▃▄▅▆▇█]{10}")

    def test_a_run_under_way_is_followed_resized_and_left_with_the_cursor(self):
        folder, process = self.start_slow("a")
        watch, leader = self.on_terminal(folder)
        self.read_until(leader, rb"\x1b\[\?25l.*running.*\x1b\[\d+A")
        fcntl.ioctl(leader, termios.TIOCSWINSZ, struct.pack("HHHH", 12, 50, 0, 0))
        watch.send_signal(signal.SIGWINCH)
        self.read_until(leader, rb"\x1b\[H\x1b\[2J")
        watch.send_signal(signal.SIGINT)
        self.read_until(leader, rb"\x1b\[\?25h")
        self.assertEqual(watch.wait(PATIENCE_S), 0)

    def test_on_no_terminal_a_line_tells_what_happens_seldom(self):
        folder, process = self.start_slow("a")
        watch = subprocess.Popen([PROGRAM, "watch", folder], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(watch.kill)
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        out, err = watch.communicate(timeout=PATIENCE_S)
        self.assertEqual((watch.returncode, err), (0, ""))
        self.assertRegex(out, r"epoch 0, step 0: training begins, run \S+\n")
        self.assertRegex(out, r"epoch 1, step 25: evaluated  eval.accuracy \S+  eval.loss ")
        self.assertRegex(out, r"epoch \d+, step \d+: stop_run, by .*\n(.*\n)*epoch \d+, step \d+: signalled")
        self.assertNotIn("\x1b", out)

    def test_files_that_are_moved_aside_are_followed(self):
        callbacks = [c | {"max_mib": 0.1, "keep": 500} if c["kind"] == "event_file" else c for c in RECORDED["callbacks"]]
        folder, process = self.start_slow("a", callbacks=callbacks)
        watch = subprocess.Popen([PROGRAM, "watch", folder], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(watch.kill)
        time.sleep(2)
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_S)
        out, err = watch.communicate(timeout=PATIENCE_S)
        self.assertEqual(err, "")
        evaluated = [int(e) for e in re.findall(r"epoch (\d+), step \d+: evaluated", out)]
        self.assertEqual(evaluated, list(range(1, len(evaluated) + 1)))
        told = json.loads(self.torchbus("explain", folder, "--json"))
        self.assertGreater(told["files"], 2)
        self.assertEqual(told["gaps"], [])
        self.assertEqual(len(evaluated), told["last"]["position"]["epoch"])

    def test_a_server_is_watched(self):
        folder, process = self.start_slow("a", callbacks=RECORDED["callbacks"] + [{"kind": "event_server", "unix_socket": "run.sock"}])
        url = re.search(r"http://[\d.]+:\d+", (folder / "stderr").read_text())[0]
        time.sleep(2)
        for address in (url, url.removeprefix("http://"), folder / "run.sock"):
            said = self.torchbus("watch", "--once", address)
            self.assertGreater(float(re.search(r"  ([\d.]+) s\b", said)[1]), 1.5)  # since the run began, not since the watch did
            self.assertRegex(said, r"^training \S+ +(running|evaluating)\n")
            self.assertIn("eval.accuracy", said)
        watch = subprocess.Popen([PROGRAM, "watch", url], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(watch.kill)
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        out, err = watch.communicate(timeout=PATIENCE_S)
        self.assertEqual(watch.returncode, 0, err)
        self.assertRegex(out, r"evaluated.*\n(.*\n)*epoch \d+, step \d+: signalled")
        process.wait(PATIENCE_S)
        self.assertIn("cannot connect", self.torchbus("watch", "--once", url, code=1))
        self.assertIn("speaks no TLS", self.torchbus("watch", "https://127.0.0.1:1", code=2))

    def test_a_server_that_wants_a_token_gets_one(self):
        import served
        self.assertTrue(served.PROGRAM.exists(), f"{served.PROGRAM} is not built")
        server = self.enterContext(served.Served(address="0.0.0.0"))
        address = f"127.0.0.1:{server.port}"
        self.assertIn("token", self.torchbus("watch", "--once", address, code=2))
        (self.folder / "token").write_text(served.TOKEN + "\r\n")
        self.torchbus("watch", "--once", address, "--token-file", "token")
        self.torchbus("watch", "--once", address, environment={"TORCHBUS_TOKEN": served.TOKEN}.items())


if __name__ == "__main__":
    if not PROGRAM.exists():
        print(f"{PROGRAM} is not built")
        sys.exit(77)
    unittest.main(verbosity=2)
