#!/usr/bin/env python3
"""Kills runs that write an event file, and reads what is left: every line but the last is whole, and the next run goes on behind it.

usage: event_file_test.py [CLASS[.test]...]; the program is the one in $TORCHBUS_BUILD, default build/release. TORCHBUS_SLOW=1 kills
200 times.
"""
import json
import os
import random
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / os.environ.get("TORCHBUS_BUILD", "build/release") / "src/cli/torchbus"
SLOW = os.environ.get("TORCHBUS_SLOW") == "1"
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("TORCHBUS_")} | {"OMP_NUM_THREADS": "1"}
PATIENCE_S = 120
KILLS_OF_A_RUN = 4  # a recording grows by megabytes a second
RUN = {
    "seed": 3, "model": {"kind": "mlp", "inputs": 16, "hidden": [8], "classes": 4}, "data": {"kind": "synthetic", "samples": 400},
    "optimizer": {"kind": "adam", "learning_rate": 0.01}, "train": {"epochs": 100_000, "batch_size": 16},
    "callbacks": [{"kind": "metrics", "accuracy": True}, {"kind": "event_file", "every": "1step", "max_mib": 1000}, {"kind": "save_training_state", "folder": "states", "every": "50step", "keep": 2}],
}


class Killed(unittest.TestCase):
    def test_every_line_but_the_last_is_whole_and_the_next_run_goes_on_behind_it(self):
        generator = random.Random(11)
        torn = lines = 0
        for _ in range(50 if SLOW else 1):
            with tempfile.TemporaryDirectory(prefix="torchbus-event-file-") as name:
                self.folder = Path(name)
                (self.folder / "run.json").write_text(json.dumps(RUN))
                whole = b""
                for kill in range(KILLS_OF_A_RUN):
                    self.kill_a_run(generator, "--resume", "auto") if kill else self.kill_a_run(generator)
                    content = (self.folder / "events.jsonl").read_bytes()
                    self.assertTrue(content.startswith(whole), "lines that were whole are gone")
                    self.assertGreater(len(content), len(whole))
                    end = content.rfind(b"\n") + 1
                    lines += self.check_lines(content[:end], kill + 1)
                    torn += end < len(content)
                    self.explain(len(content) - end)
                    whole = content[:end]
        print(f"{lines} lines were read after kills; {torn} files had a torn last line", flush=True)

    def kill_a_run(self, generator, *arguments):
        """Once it has saved a state of its own."""
        earlier = set((self.folder / "states").glob("step_*"))
        process = subprocess.Popen([PROGRAM, "train", "run.json", *arguments], cwd=self.folder, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            deadline = time.monotonic() + PATIENCE_S
            while not set((self.folder / "states").glob("step_*")) - earlier:
                self.assertIsNone(process.poll(), "it ended before it was killed")
                self.assertLess(time.monotonic(), deadline, "it does not get on")
                time.sleep(0.01)
            time.sleep(generator.uniform(0, 0.3))
        finally:
            process.kill()
            process.communicate()

    def check_lines(self, content, parts):
        """They are messages, none is missing, and so many processes have written them."""
        expected = starts = 0
        lines = content.splitlines()
        for line in lines:
            message = json.loads(line)
            if message["type"] == "torchbus.stream_start":
                expected, starts = 0, starts + 1
                self.assertEqual(message["data"]["resumed"], starts > 1)
            expected += 1
            self.assertEqual(message["id"], str(expected))
        self.assertEqual(starts, parts)
        return len(lines)

    def explain(self, torn_bytes):
        done = subprocess.run([PROGRAM, "explain", "events.jsonl"], cwd=self.folder, env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_S)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("the recording just ends, with ", done.stdout)
        self.assertEqual("the last line is torn" in done.stdout, torn_bytes > 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
