#!/usr/bin/env python3
"""The same program under torch's own torchrun and under `torchbus launch`: variables, results, and ranks that are killed.

usage: torchrun_test.py; the program is the one in $TORCHBUS_BUILD, default build/release.
  TORCHBUS_TEST_DEVICE=cuda   each rank with a CUDA device
  TORCHBUS_SLOW=1   fifty kills under each launcher, not three
"""
import contextlib
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

from ranks import PREPARED, exit_where_not_possible, free_port, placement, prepare

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / os.environ.get("TORCHBUS_BUILD", "build/release")
PROGRAM = BUILD / "src/cli/torchbus"
SLOW = os.environ.get("TORCHBUS_SLOW") == "1"
PATIENCE_S = 180
PYTHON, WHY_NOT = prepare()
README_COMMAND = "torchrun --no-python --nproc-per-node 2 build/release/src/cli/torchbus train examples/14_data_parallel.json"


class Launchers(unittest.TestCase):
    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory(prefix="torchbus-torchrun-")
        self.folder = Path(self.temporary.name)

    def tearDown(self):
        self.temporary.cleanup()

    def command(self, launcher, restarts, *command):
        if launcher == "torchrun":
            return [PYTHON, "-m", "torch.distributed.run", "--no-python", "--nproc-per-node", "2", "--max-restarts", str(restarts), "--master-addr", "127.0.0.1", "--master-port", str(free_port()), *command]
        return [PROGRAM, "launch", "--nproc-per-node", "2", "--max-restarts", str(restarts), "--", *command]

    def environment(self):
        return dict(os.environ) | {"OMP_NUM_THREADS": "1", "LD_LIBRARY_PATH": str(PREPARED / "stubs")}

    def run_under(self, launcher, *command, restarts=0, **environment):
        done = subprocess.run(self.command(launcher, restarts, *map(str, command)), cwd=self.folder, env=self.environment() | environment, capture_output=True, text=True, timeout=PATIENCE_S)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def write_run(self, epochs):
        (self.folder / "run.json").write_text(json.dumps({
            "seed": 3, "output": "out", "model": {"kind": "mlp", "inputs": 16, "hidden": [24], "classes": 4, "dropout": 0.1}, "data": {"kind": "synthetic", "samples": 250},
            "optimizer": {"kind": "adamw", "learning_rate": 0.01}, "train": {"epochs": epochs, "batch_size": 12},
            "callbacks": [*placement(), {"kind": "data_parallel", "timeout": 60}, {"kind": "metrics", "accuracy": True}, {"kind": "save_training_state", "folder": "states", "every": "5step"}]}))
        return PROGRAM, "train", "run.json", "--resume", "auto"

    def take_results(self):
        results = [(self.folder / "out/model.safetensors").read_bytes(), json.loads((self.folder / "out/history.json").read_text())]
        subprocess.run(["rm", "-r", self.folder / "out", self.folder / "states"], check=True)
        return results

    def test_launch_sets_every_variable_that_torchrun_sets(self):
        variables = {}
        for launcher in ("torchrun", "launch"):
            out = self.run_under(launcher, "sh", "-c", f"env -0 > {launcher}.$RANK")
            del out
            variables[launcher] = [dict(entry.split("=", 1) for entry in (self.folder / f"{launcher}.{rank}").read_text().split("\0") if "=" in entry) for rank in (0, 1)]
        for rank in (0, 1):
            own, theirs = variables["launch"][rank], variables["torchrun"][rank]
            set_by_torchrun = {name for name in theirs if theirs[name] != self.environment().get(name)}
            of_shells = {"_", "SHLVL", "PWD", "OLDPWD"}
            self.assertEqual(set_by_torchrun - own.keys() - of_shells, set(), "launch does not set them")
            self.assertIn("TORCHELASTIC_RESTART_COUNT", set_by_torchrun)
            for name in set_by_torchrun - of_shells - {"MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_ERROR_FILE"}:
                self.assertEqual(own[name], theirs[name], name)

    def test_both_make_the_same_run(self):
        train = self.write_run(epochs=3)
        results = []
        for launcher in ("torchrun", "launch"):
            self.run_under(launcher, *train)
            results.append(self.take_results())
        self.assertEqual(results[0], results[1])

    def test_both_make_the_same_run_of_the_readme_on_mnist(self):
        self.assertIn(f"\n{README_COMMAND} ", (ROOT / "README.md").read_text())
        train, example = README_COMMAND.split()[-2:]
        fetched = subprocess.run([PROGRAM, "data", "fetch", "mnist"], capture_output=True, text=True)
        if fetched.returncode != 0:
            self.skipTest("the MNIST files could not be fetched: " + fetched.stderr.strip().splitlines()[-1])
        results = []
        for launcher in ("torchrun", "launch"):
            self.run_under(launcher, PROGRAM, train, ROOT / example, "--set", "output=out", "--set", "callbacks[5].folder=states", "--set", "train.epochs=1", TORCHBUS_LIMIT_BATCHES="200")
            results.append(self.take_results())
        self.assertEqual(results[0], results[1])
        self.assertGreater(results[0][1][-1]["metrics"]["eval.accuracy"], 0.9)

    def ranks_under(self, launcher_process):
        """Processes of the program below a launcher's, by what /proc says."""
        parents, ranks = {}, []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit():
                    parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                    if b"\0train\0run.json" in (entry / "cmdline").read_bytes() and b"launch" not in (entry / "cmdline").read_bytes() and b"torch.distributed" not in (entry / "cmdline").read_bytes():
                        ranks.append(int(entry.name))
            except (FileNotFoundError, ProcessLookupError):
                pass

        def is_below(process):
            while process > 1 and process != launcher_process:
                process = parents.get(process, 0)
            return process == launcher_process

        return [rank for rank in ranks if is_below(rank)]

    def training_ranks(self, launcher, of_before):
        """Both ranks, once they run and a state was saved; none where the run ends before."""
        while launcher.poll() is None:
            ranks = self.ranks_under(launcher.pid)
            if len(ranks) == 2 and not of_before & set(ranks) and (self.folder / "states").exists():
                return ranks
            time.sleep(0.05)
        return []

    def test_a_run_whose_ranks_are_killed_ends_as_one_whose_are_not(self):
        train = self.write_run(epochs=60)
        self.run_under("launch", *train)
        weights, history = self.take_results()
        draw, kills = random.Random(5), {}
        for launcher in ("launch", "torchrun"):
            kills[launcher] = 0
            while kills[launcher] < (50 if SLOW else 3):
                process = subprocess.Popen(self.command(launcher, 3, *map(str, train)), cwd=self.folder, env=self.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
                killed = set()
                for _ in range(2):
                    ranks = self.training_ranks(process, killed)
                    time.sleep(draw.random())
                    with contextlib.suppress(ProcessLookupError):  # it may have ended
                        if ranks:
                            os.kill(draw.choice(ranks), signal.SIGKILL)
                            kills[launcher] += 1
                            killed |= set(ranks)
                _, said = process.communicate(timeout=PATIENCE_S)
                self.assertEqual(process.returncode, 0, f"{launcher}: {said}")
                self.assertEqual(self.take_results(), [weights, history], launcher)
        print(f"{kills} kills, after each of which the run ended as the one that was not killed", flush=True)


if __name__ == "__main__":
    exit_where_not_possible(PROGRAM, PROGRAM, 2)
    if not PYTHON:
        print(WHY_NOT)
        sys.exit(77)
    sys.exit(0 if unittest.main(exit=False, verbosity=2).result.wasSuccessful() else 1)
