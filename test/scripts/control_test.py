#!/usr/bin/env python3
"""A schedule that is changed over HTTP while a run is under way, on one rank and on two: from which step it holds, and who is told to have asked.

usage: control_test.py; the program is the one in $TORCHBUS_BUILD, default build/release.
  TORCHBUS_TEST_DEVICE=cuda   each rank with a CUDA device
"""
import json
import math
import os
import re
import subprocess
import sys
import unittest
import urllib.request

from distributed_test import OF_RANKS, PATIENCE_S, PROGRAM, InFolder
from ranks import exit_where_not_possible, placement

TOKEN = "0123456789abcdef"
SAMPLES, BATCH = 250, 12
RATE, LAST, LENGTH = 0.1, 0.5, 1_000_000  # the schedule falls from RATE to LAST of it within so many steps
RUN = {
    "seed": 3, "output": "out", "model": {"kind": "mlp", "inputs": 16, "hidden": [24], "classes": 4}, "data": {"kind": "synthetic", "samples": SAMPLES},
    "optimizer": {"kind": "sgd", "learning_rate": RATE}, "train": {"epochs": LENGTH, "batch_size": BATCH},
    "callbacks": [*placement(), {"kind": "data_parallel", "join_timeout": 60, "timeout": 60}, {"kind": "learning_rate_schedule", "schedule": {"kind": "linear", "length": f"{LENGTH}step", "final_factor": LAST}},
                  {"kind": "step_evaluation", "every": f"{LENGTH}step"}, {"kind": "event_file", "events": ["numbers", "decision_taken", "option_changed"]}, {"kind": "event_server", "control": True, "token_file": "token", "all_ranks": True}],
}
CHANGES = [  # one after the other: subscriber, option, the value before as it is told, that asked for, and why it is refused
    ("learning_rate_schedule", "factor", "1", 0.3, ""),
    ("learning_rate_schedule", "factor", "", -1, "learning_rate_schedule: factor: -1 is out of range; give a number of at least 0"),
    ("learning_rate_schedule", "schedule", "", {"kind": "constant"}, "learning_rate_schedule: the option 'schedule' cannot be changed while a run is under way (those that can: factor)"),
    ("optimizer", "learning_rate", "", 0.2, "'learning_rate_schedule' sets learning_rate of the optimizer as the run goes on; change an option of 'learning_rate_schedule', or detach it first"),
    ("step_evaluation", "every", f"{LENGTH}step", "7step", ""),
    ("learning_rate_schedule", "factor", "0.3", 1.7, ""),
]
STEPS = 20  # at least, between two of them
OF_ME = "event_server: me at 127.0.0.1"


def as_told(value):
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


class Recorded:
    """What a rank's file says."""

    def __init__(self, path):
        data = {"numbers": [], "decision_taken": [], "option_changed": []}
        for message in map(json.loads, path.read_text().splitlines()):
            if (name := message["type"].removeprefix("torchbus.")) in data:
                data[name].append(message["data"])
        self.changes = [(one["position"]["epoch"], one["position"]["step"], one["subscriber"], one["option"], one["from"], one["to"], one["error"], one["requester"]) for one in data["option_changed"]]
        self.decisions = [(one["position"]["step"], one["decision"], one["requester"], one["reason"]) for one in data["decision_taken"]]
        self.rates = [(one["position"]["step"], one["numbers"]["learning_rate"]) for one in data["numbers"] if one["after"] == "train_step_end"]


class Control(InFolder):
    def serve(self, command, files):
        """Starts a run of as many ranks as files; returns its process, and where each rank serves."""
        (self.folder / "token").write_text(TOKEN + "\n")
        (self.folder / "run.json").write_text(json.dumps(RUN))
        own = {name: value for name, value in os.environ.items() if name not in OF_RANKS} | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen([*command, PROGRAM, "train", "run.json"], cwd=self.folder, env=own, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self.running.append(process)
        servers = {}
        while len(servers) < len(files):
            line = process.stderr.readline()
            self.assertTrue(line, f"{servers} serve, and no more")
            if found := re.match(r"(?:\[rank (\d)/2\] )?torchbus: events at (http://[\d.:]+)/events", line):
                servers[int(found[1] or 0)] = found[2]
        return process, servers

    def command(self, server, name, **more):
        request = urllib.request.Request(server + "/control", json.dumps({"command": name, "by": "me"} | more).encode(), {"Authorization": f"Bearer {TOKEN}"})
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            self.assertEqual(json.load(answer)["data"], {"accepted": True})

    def wait_for_steps(self, files, changes):
        """Until every rank has told of so many changes, and made some steps since."""
        def is_told(path):
            pieces = path.read_text().split('"type":"torchbus.option_changed"') if path.exists() else [""]
            return len(pieces) == changes + 1 and pieces[-1].count('"after":"train_step_end"') >= STEPS
        self.wait_until(lambda: all(is_told(self.folder / file) for file in files), f"not every rank goes on after {changes} changes")

    def train(self, *command, files):
        """A run with all changes; what each rank has recorded."""
        process, servers = self.serve(command, files)
        self.wait_for_steps(files, 0)
        for count, (subscriber, option, _, value, _) in enumerate(CHANGES, 1):
            self.command(servers[count % len(servers)], "change_option", subscriber=subscriber, option=option, value=value, reason=f"change {count}")
            self.wait_for_steps(files, count)
        self.command(servers[0], "stop")
        _, err = process.communicate(timeout=PATIENCE_S)
        self.assertEqual(process.returncode, 0, err)
        return [Recorded(self.folder / file) for file in files]

    def assert_told(self, rank):
        self.assertEqual([change[2:] for change in rank.changes], [(subscriber, option, before, as_told(value), error, OF_ME) for subscriber, option, before, value, error in CHANGES])
        commanded = [one for one in rank.decisions if one[1] == "change_option"]
        self.assertEqual(commanded, [(change[1], "change_option", OF_ME, f"change {count}") for count, change in enumerate(rank.changes, 1)])

    def assert_rates(self, rank):
        """Each is what the schedule gives for the steps before it, by the factor of then."""
        factors = [(step, float(to)) for _, step, _, option, _, to, error, _ in reversed(rank.changes) if option == "factor" and not error]
        self.assertEqual([factor for _, factor in factors], [1.7, 0.3])
        self.assertEqual([step for step, _ in rank.rates], list(range(1, len(rank.rates) + 1)))
        for step, rate in rank.rates:
            before = step - 1
            factor = next((factor for begun, factor in factors if begun <= before), 1.0)
            self.assertEqual(rate, RATE * (1 + (LAST - 1) * (before / LENGTH)) * factor, f"step {step}")

    def assert_evaluations(self, rank, of_epoch, later):
        """They are asked for every 7 steps from the change on, but at the end of an epoch, and made at most `later` steps after that."""
        begun = next(step for _, step, subscriber, *_ in rank.changes if subscriber == "step_evaluation")
        due = [step for step in range(begun + 1, len(rank.rates) - later) if step % 7 == 0 and step % of_epoch > 0]
        made = [step for step, decision, requester, _ in rank.decisions if (decision, requester) == ("evaluate_now", "step_evaluation")]
        self.assertTrue(due and len(made) >= len(due) and all(0 <= step - asked <= later for asked, step in zip(due, made)), f"{made}, due at {due}")

    def assert_explained(self, rank, file):
        said = subprocess.run([PROGRAM, "explain", self.folder / file], capture_output=True, text=True, timeout=PATIENCE_S, check=True).stdout
        self.assertIn(f"\nChanged options: {len(CHANGES)}\n", said)
        for count, (epoch, step, subscriber, option, before, to, error, _) in enumerate(rank.changes, 1):
            where = f"\n    after epoch {epoch}, step {step}: "
            self.assertIn(f"{where}{subscriber}.{option} {f'not to {to}' if error else f'from {before} to {to}'}, by {OF_ME}{error and f'; refused: {error}'}\n", said)
            self.assertIn(f"{where}change_option, by {OF_ME}: change {count}\n", said)

    def test_a_changed_schedule_holds_from_its_step_on(self):
        rank, = self.train(files=["events.jsonl"])
        self.assert_told(rank)
        self.assert_rates(rank)
        self.assert_evaluations(rank, of_epoch=math.ceil(SAMPLES / BATCH), later=0)
        self.assert_explained(rank, "events.jsonl")

    def test_a_changed_schedule_holds_from_one_step_on_on_all_ranks(self):
        files = ["events.jsonl", "events.rank1.jsonl"]
        first, second = self.train(PROGRAM, "launch", "--nproc-per-node", "2", "--", files=files)
        self.assertEqual((second.changes, second.decisions), (first.changes, first.decisions))
        self.assert_told(first)
        self.assert_evaluations(first, of_epoch=math.ceil(SAMPLES / (2 * BATCH)), later=1)  # they may agree a step after one has asked
        for rank, file in zip((first, second), files):
            self.assert_rates(rank)
            self.assert_explained(rank, file)


if __name__ == "__main__":
    exit_where_not_possible(PROGRAM, PROGRAM, 2)
    sys.exit(0 if unittest.main(exit=False, verbosity=2).result.wasSuccessful() else 1)
