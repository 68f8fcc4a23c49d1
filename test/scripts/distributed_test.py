#!/usr/bin/env python3
"""Several processes of one program, over the loopback interface: the same run file on one, two, three and four.

usage: distributed_test.py; the program is the one in $TORCHBUS_BUILD, default build/release.
  TORCHBUS_TEST_DEVICE=cuda   each rank with a CUDA device
"""
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.request
from pathlib import Path

from ranks import exit_where_not_possible, free_port, placement

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / os.environ.get("TORCHBUS_BUILD", "build/release") / "src/cli/torchbus"
PATIENCE_S = 120
OF_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def run_file(**parallel):
    return {
        "seed": 3, "output": "out", "model": {"kind": "mlp", "inputs": 16, "hidden": [24], "classes": 4}, "data": {"kind": "synthetic", "samples": 250},
        "optimizer": {"kind": "adamw", "learning_rate": 0.01}, "train": {"epochs": 3, "batch_size": 24},
        "callbacks": [*placement(), {"kind": "data_parallel", "join_timeout": 60, "timeout": 60, **parallel}, {"kind": "gradient_accumulation", "micro_batches": 2},
                      {"kind": "gradient_clipping", "max_norm": 0.5}, {"kind": "metrics", "accuracy": True}, {"kind": "progress_lines"},
                      {"kind": "fingerprint", "every": "1step", "path": "prints.jsonl"}],
    }


class InFolder(unittest.TestCase):
    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory(prefix="torchbus-distributed-")
        self.folder = Path(self.temporary.name)
        self.running = []

    def tearDown(self):
        for process in self.running:
            if process.poll() is None:
                process.kill()
            process.wait()
            process.stderr.close()
        self.temporary.cleanup()

    def wait_until(self, condition, otherwise):
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            self.assertLess(time.monotonic(), deadline, otherwise)
            time.sleep(0.02)

    def wait_for_prints(self, lines):
        prints = self.folder / "prints.jsonl"
        self.wait_until(lambda: prints.exists() and len(prints.read_text().splitlines()) >= lines, "no steps are made")


class Processes(InFolder):
    def start(self, size, run, *arguments, ranks=None, **environment):
        """One process a rank. Returns them."""
        (self.folder / "run.json").write_text(json.dumps(run))
        port = free_port()
        started = []
        for rank in range(size) if ranks is None else ranks:
            own = {name: value for name, value in os.environ.items() if name not in OF_RANKS} | {"OMP_NUM_THREADS": "1"}
            own |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} | environment
            own = {name: value for name, value in own.items() if value is not None}
            started.append(subprocess.Popen([PROGRAM, "train", "run.json", *arguments], cwd=self.folder, env=own, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
        self.running += started
        return started

    def end(self, processes):
        """Exit codes, and what each said."""
        said = [process.communicate(timeout=PATIENCE_S)[1] for process in processes]
        return [process.returncode for process in processes], said

    def prints(self, rank):
        path = self.folder / ("prints.jsonl" if rank == 0 else f"prints.jsonl.rank{rank}")
        return [json.loads(line) for line in path.read_text().splitlines()]

    def weights(self):
        """The numbers of each tensor in the run's model.safetensors."""
        content = (self.folder / "out/model.safetensors").read_bytes()
        (length,) = struct.unpack_from("<Q", content)
        tensors = {}
        for name, about in json.loads(content[8:8 + length]).items():
            if name != "__metadata__":
                self.assertEqual(about["dtype"], "F32")
                begin, end = about["data_offsets"]
                tensors[name] = struct.unpack(f"<{(end - begin) // 4}f", content[8 + length + begin:8 + length + end])
        return tensors

    def assert_near(self, weights, alone, tolerance, message):
        """Relative to the largest weight of each tensor."""
        self.assertEqual(weights.keys(), alone.keys())
        for name, numbers in weights.items():
            difference = max(abs(a - b) for a, b in zip(numbers, alone[name], strict=True))
            self.assertLessEqual(difference / max(map(abs, alone[name])), tolerance, f"{name}, {message}")

    def test_as_many_processes_as_one_likes_make_the_same_run(self):
        histories, weights = {}, {}
        for size in (1, 2, 3, 4):
            for old in self.folder.glob("prints*"):
                old.unlink()
            codes, said = self.end(self.start(size, run_file(), "--set", f"train.batch_size={24 // size}"))
            self.assertEqual(codes, [0] * size, said)
            histories[size] = json.loads((self.folder / "out/history.json").read_text())
            weights[size] = self.weights()
            first = [line["parameters"] for line in self.prints(0)]
            self.assertGreater(len(first), 10)
            for rank in range(1, size):
                self.assertEqual([line["parameters"] for line in self.prints(rank)], first, "the ranks' weights differ")
                self.assertEqual(said[rank], "", "rank 0 speaks for all")
        for size, history in histories.items():
            for own, alone in zip(history, histories[1], strict=True):
                self.assertEqual(own["metrics"]["eval.accuracy"], alone["metrics"]["eval.accuracy"], f"{size} processes")
                for name in ("train.loss", "eval.loss"):
                    self.assertAlmostEqual(own["metrics"][name] / alone["metrics"][name], 1, delta=1e-6, msg=f"{name} of {size} processes")
            self.assert_near(weights[size], weights[1], 1e-6, f"{size} processes")

    def test_ranks_in_bf16_are_near_one_process_in_bf16(self):
        losses, weights = {}, {}
        for size in (1, 2, 4):
            run = run_file()
            run["callbacks"].append({"kind": "mixed_precision", "precision": "bf16"})
            codes, said = self.end(self.start(size, run, "--set", f"train.batch_size={24 // size}"))
            self.assertEqual(codes, [0] * size, said)
            losses[size] = json.loads((self.folder / "out/history.json").read_text())[-1]["metrics"]
            weights[size] = self.weights()
        for size in (2, 4):
            for name in ("train.loss", "eval.loss"):
                self.assertAlmostEqual(losses[size][name] / losses[1][name], 1, delta=2e-2, msg=f"{name} of {size} processes")
            self.assert_near(weights[size], weights[1], 2e-2, f"{size} processes")

    def test_a_signal_to_one_rank_stops_all_at_one_step(self):
        for rank in (0, 1):
            with self.subTest(rank=rank):
                for old in self.folder.glob("prints*"):
                    old.unlink()
                processes = self.start(2, run_file(), "--set", "train.epochs=100000")
                self.wait_for_prints(5)
                processes[rank].send_signal(signal.SIGTERM)
                codes, said = self.end(processes)
                self.assertEqual(codes, [143, 143], said)
                self.assertRegex(said[0], r"stopped after \d+ steps by SIGTERM: SIGTERM was received")
                self.assertEqual(self.prints(0)[-1]["step"], self.prints(1)[-1]["step"])

    def test_a_rank_that_dies_ends_the_other(self):
        processes = self.start(2, run_file(), "--set", "train.epochs=100000")
        self.wait_for_prints(5)
        processes[1].kill()
        codes, said = self.end(processes)
        self.assertEqual(codes, [1, -signal.SIGKILL], said)
        self.assertIn("rank 0 of 2: ", said[0])
        self.assertIn("did not come to its end", said[0])

    def test_who_is_missing_is_named(self):
        codes, said = self.end(self.start(3, run_file(join_timeout=1), ranks=[0, 2]))
        self.assertEqual(codes, [1, 1], said)
        for text in said:
            self.assertEqual(text.splitlines(), [f"torchbus: rank {2 if text is said[1] else 0} of 3: after 1 s rank 1 is not there"])
        codes, said = self.end(self.start(2, run_file(join_timeout=1), ranks=[1]))
        self.assertEqual(codes, [1], said)
        self.assertRegex(said[0], r"^torchbus: rank 1 of 2: nobody answers at the meeting point 127\.0\.0\.1:\d+ .*after \d.*s: ")

    def test_an_address_that_does_not_exist_is_named(self):
        began = time.monotonic()
        for rank in (0, 1):
            codes, said = self.end(self.start(2, run_file(join_timeout=1), ranks=[rank], MASTER_ADDR="no.such.host.invalid"))
            self.assertEqual(codes, [1], said)
            self.assertRegex(said[0], rf"torchbus: rank {rank} of 2: the meeting point no\.such\.host\.invalid:\d+ was not found in \d.* s: 'no\.such\.host\.invalid' has no address here \(.+\); give that of rank 0 to MASTER_ADDR")
        self.assertLess(time.monotonic() - began, 90)

    def test_what_does_not_go_together_is_refused(self):
        codes, said = self.end(self.start(3, run_file(join_timeout=20), ranks=[0, 1, 1]))
        self.assertEqual(codes, [1, 1, 1], said)
        for text in said:
            self.assertIn("rank 1 came twice: as process", text)
        codes, said = self.end(self.start(1, run_file(), MASTER_PORT=None))
        self.assertEqual(codes, [2], said)
        self.assertIn("MASTER_PORT is not set", said[0])
        codes, said = self.end(self.start(2, run_file(), ranks=[5]))
        self.assertEqual(codes, [2], said)
        self.assertIn("RANK is 5, and WORLD_SIZE is 2; ranks count from 0", said[0])


class Launched(InFolder):
    """The same by `torchbus launch`."""
    SHOW = ("sh", "-c", 'echo "$RANK $WORLD_SIZE $LOCAL_RANK $LOCAL_WORLD_SIZE $GROUP_RANK $GROUP_WORLD_SIZE $ROLE_RANK $ROLE_WORLD_SIZE $ROLE_NAME '
                        '$MASTER_ADDR $TORCHELASTIC_RESTART_COUNT $TORCHELASTIC_MAX_RESTARTS $TORCHELASTIC_RUN_ID $TORCHELASTIC_USE_AGENT_STORE"; echo oops >&2')

    def launch(self, *arguments, before=(), **environment):
        own = {name: value for name, value in os.environ.items() if name not in OF_RANKS} | environment
        process = subprocess.Popen([*before, PROGRAM, "launch", *map(str, arguments)], cwd=self.folder, env=own, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.running.append(process)
        return process

    def launched(self, *arguments, **environment):
        process = self.launch(*arguments, **environment)
        out, err = process.communicate(timeout=PATIENCE_S)
        process.stdout.close()
        return process.returncode, out, err

    def test_every_rank_has_its_variables_prefix_and_logs(self):
        code, out, err = self.launched("--nproc-per-node", 3, "--log-dir", "logs", "--max-restarts", 2, "--run-id", "night", "--", *self.SHOW)
        self.assertEqual(code, 0, err)
        self.assertEqual(sorted(out.splitlines()), [f"[rank {rank}/3] {rank} 3 {rank} 3 0 1 {rank} 3 default 127.0.0.1 0 2 night True" for rank in range(3)])
        self.assertEqual(sorted(err.splitlines()), [f"[rank {rank}/3] oops" for rank in range(3)])
        self.assertEqual((self.folder / "logs/0/rank_2.err").read_text(), "oops\n")
        self.assertTrue((self.folder / "logs/0/rank_2.out").read_text().startswith("2 3 2 3"))

    def test_a_launched_run_is_that_of_one_process(self):
        (self.folder / "run.json").write_text(json.dumps(run_file()))
        code, _, err = self.launched("--nproc-per-node", 1, "--", PROGRAM, "train", "run.json")
        self.assertEqual(code, 0, err)
        alone = json.loads((self.folder / "out/history.json").read_text())
        code, _, err = self.launched("--nproc-per-node", 2, "--", PROGRAM, "train", "run.json", "--set", "train.batch_size=12")
        self.assertEqual(code, 0, err)
        both = json.loads((self.folder / "out/history.json").read_text())
        self.assertAlmostEqual(both[-1]["metrics"]["eval.loss"] / alone[-1]["metrics"]["eval.loss"], 1, delta=1e-6)

    def test_the_first_failure_stops_all_and_is_told_last(self):
        began = time.monotonic()
        code, out, err = self.launched("--nproc-per-node", 3, "--", "sh", "-c", 'if [ $RANK = 1 ]; then echo "all is lost" >&2; exit 7; fi; sleep 60')
        self.assertEqual(code, 7, err)
        self.assertLess(time.monotonic() - began, 20)
        self.assertRegex(err.splitlines()[-2], r"^torchbus launch: rank 1 of 3 \(process \d+\) ended with exit code 7, and the others were stopped$")
        self.assertEqual(err.splitlines()[-1], "[rank 1/3] all is lost")

    def test_what_does_not_stop_is_killed_after_the_grace_and_nothing_is_left(self):
        code, _, err = self.launched("--nproc-per-node", 2, "--grace", 0.5, "--", "sh", "-c", 'trap "" TERM; echo $$ > pid$RANK; sleep 300 & echo $! > child$RANK; [ $RANK = 1 ] && exit 3; wait; sleep 300')
        self.assertEqual(code, 3, err)
        for name in ("pid0", "pid1", "child0", "child1"):
            self.assertFalse(self.is_running(int((self.folder / name).read_text())), name)

    def is_running(self, process):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return False
        return state not in "ZX"

    def numbers_in_files(self):
        """What two ranks have written to pid0 and pid1."""
        files = [self.folder / f"pid{rank}" for rank in (0, 1)]
        deadline = time.monotonic() + PATIENCE_S
        while not all(file.exists() and file.read_text().strip() for file in files):
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.02)
        return [int(file.read_text()) for file in files]

    def wait_until(self, holds, otherwise):
        deadline = time.monotonic() + 20
        while not holds():
            self.assertLess(time.monotonic(), deadline, otherwise)
            time.sleep(0.02)

    def processes_named(self, text):
        def command_of(number):
            try:
                return Path("/proc", number, "cmdline").read_text(errors="replace")
            except OSError:
                return ""
        return [number for number in os.listdir("/proc") if number.isdigit() and text in command_of(number)]

    def test_nothing_outlives_a_launcher_that_is_killed(self):
        for name, command in (("ranks", "echo $$ > pid$RANK; exec sleep 300"), ("what ranks have started", "sh -c 'echo $$ > pid$RANK; sleep 300; true'; true")):
            with self.subTest(name):
                for old in self.folder.glob("pid*"):
                    old.unlink()
                process = self.launch("--nproc-per-node", 2, "--run-id", self.folder.name, "--", "sh", "-c", command)
                numbers = self.numbers_in_files()
                process.kill()
                process.communicate()
                for number in numbers:
                    self.wait_until(lambda: not self.is_running(number), f"{name} outlive the launcher")
                self.wait_until(lambda: not self.processes_named(self.folder.name), "what guards the ranks outlives them")

    def test_all_start_again_and_know_how_often(self):
        code, out, err = self.launched("--nproc-per-node", 2, "--max-restarts", 2, "--", "sh", "-c", 'echo "start $TORCHELASTIC_RESTART_COUNT"; if [ $TORCHELASTIC_RESTART_COUNT -lt 2 ] && [ $RANK = 0 ]; then exit 1; fi; [ $TORCHELASTIC_RESTART_COUNT = 2 ] || sleep 60')
        self.assertEqual(code, 0, err)
        self.assertIn("all ranks are started again, restart 1 of 2", err)
        self.assertEqual(out.splitlines().count("[rank 1/2] start 2"), 1)

    def test_a_rank_that_is_killed_costs_no_step(self):
        run = run_file()
        run["model"]["dropout"] = 0.2  # each rank draws its own
        run["callbacks"] = [callback for callback in run["callbacks"] if callback["kind"] != "fingerprint"] + [
            {"kind": "zero_redundancy"}, {"kind": "classification_metrics"}, {"kind": "save_training_state", "folder": "states", "every": "2step"}]
        (self.folder / "run.json").write_text(json.dumps(run))
        train = (PROGRAM, "train", "run.json", "--set", "train.batch_size=12", "--set", "train.epochs=40", "--resume", "auto")
        code, _, err = self.launched("--nproc-per-node", 2, "--", *train)
        self.assertEqual(code, 0, err)
        whole = json.loads((self.folder / "out/history.json").read_text())
        weights = (self.folder / "out/model.safetensors").read_bytes()
        subprocess.run(["rm", "-r", self.folder / "states", self.folder / "out"], check=True)
        dies = 'if [ $RANK = 1 ] && [ $TORCHELASTIC_RESTART_COUNT = 0 ]; then "$@" & victim=$!; while [ ! -e states/latest ]; do sleep 0.01; done; sleep 0.1; kill -9 $victim; wait $victim; exit 1; fi; exec "$@"'
        code, _, err = self.launched("--nproc-per-node", 2, "--max-restarts", 1, "--", "sh", "-c", dies, "sh", *train)
        self.assertEqual(code, 0, err)
        self.assertIn("restart 1 of 1", err)
        self.assertEqual(json.loads((self.folder / "out/history.json").read_text()), whole)
        self.assertEqual((self.folder / "out/model.safetensors").read_bytes(), weights)

    def test_a_run_goes_on_with_another_number_of_ranks(self):
        run = run_file()
        run["callbacks"] = [callback for callback in run["callbacks"] if callback["kind"] not in ("fingerprint", "data_parallel")] + [
            {"kind": "data_parallel"}, {"kind": "zero_redundancy"}, {"kind": "classification_metrics"}, {"kind": "save_training_state", "folder": "states", "every": "1step", "keep": 0}]
        (self.folder / "run.json").write_text(json.dumps(run))
        histories = {}
        for size, resume in ((2, ()), (1, ("--resume", "states/step_4")), (3, ("--resume", "states/step_4")), (2, ("--resume", "states/step_4"))):
            train = (PROGRAM, "train", "run.json", "--set", f"train.batch_size={24 // size}", "--set", "train.epochs=2", *resume)
            if resume and size != 2:
                code, _, err = self.launched("--nproc-per-node", size, "--", *train)
                self.assertEqual(code, 1, err)
                self.assertIn(f"world_size was 2, is {size}", err)
                train += ("--allow", "world_size", "--allow", "batch_size")
            code, _, err = self.launched("--nproc-per-node", size, "--", *train)
            self.assertEqual(code, 0, err)
            histories[size, bool(resume)] = json.loads((self.folder / "out/history.json").read_text())
        whole = histories.pop((2, False))
        self.assertEqual(histories[2, True], whole)
        for (size, _), history in histories.items():
            for own, of_whole in zip(history, whole, strict=True):
                for name, value in of_whole["metrics"].items():  # those of the epoch under way count what was seen before
                    self.assertAlmostEqual(own["metrics"][name] / value, 1, delta=1e-6, msg=f"{name} of {size} ranks")

    def launch_training(self, *before):
        """Two ranks that would train for ever, once they make steps."""
        for old in self.folder.glob("prints*"):
            old.unlink()
        (self.folder / "run.json").write_text(json.dumps(run_file()))
        process = self.launch("--nproc-per-node", 2, "--", PROGRAM, "train", "run.json", "--set", "train.batch_size=12", "--set", "train.epochs=100000", before=before)
        self.wait_for_prints(5)
        return process

    def test_signals_are_passed_on(self):
        self.addCleanup(signal.signal, signal.SIGHUP, signal.signal(signal.SIGHUP, lambda *_: None))  # were it ignored here, it would be there
        for number, times, of_ranks in ((signal.SIGTERM, 1, "SIGTERM"), (signal.SIGINT, 1, "SIGINT"), (signal.SIGHUP, 2, "SIGTERM"), (signal.SIGQUIT, 1, "SIGTERM")):
            with self.subTest(number):
                process = self.launch_training()
                for _ in range(times):
                    process.send_signal(number)
                    time.sleep(0.02)
                _, err = process.communicate(timeout=PATIENCE_S)
                self.assertEqual(process.returncode, 128 + number, err)
                self.assertRegex(err, rf"stopped after \d+ steps by {of_ranks}: {of_ranks} was received")

    def test_nohup_keeps_a_launch_from_hanging_up(self):
        process = self.launch_training("nohup")
        process.send_signal(signal.SIGHUP)
        steps = len((self.folder / "prints.jsonl").read_text().splitlines())
        self.wait_for_prints(steps + 20)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=PATIENCE_S)
        self.assertEqual(process.returncode, 128 + signal.SIGTERM, err)

    def test_commands_to_any_rank_take_effect_on_all_at_one_step(self):
        token = "0123456789abcdef"
        (self.folder / "token").write_text(token + "\n")
        run = run_file()
        run["callbacks"] = [callback for callback in run["callbacks"] if callback["kind"] not in ("fingerprint", "progress_lines")] + [
            {"kind": "save_training_state", "folder": "states", "every": 0, "every_epochs": 0, "at_end": False}, {"kind": "event_file"}, {"kind": "event_server", "control": True, "token_file": "token", "all_ranks": True}]
        (self.folder / "run.json").write_text(json.dumps(run))
        process = self.launch("--nproc-per-node", 2, "--", PROGRAM, "train", "run.json", "--set", "train.batch_size=12", "--set", "train.epochs=1000000")
        files, servers = [self.folder / "events.jsonl", self.folder / "events.rank1.jsonl"], {}
        while len(servers) < 2:
            line = process.stderr.readline()
            self.assertTrue(line, f"{servers} serve, and no more")
            if found := re.match(r"\[rank (\d)/2\] torchbus: events at (http://[\d.:]+)/events", line):
                servers[int(found[1])] = found[2]

        def command(rank, name, **more):
            request = urllib.request.Request(servers[rank] + "/control", json.dumps({"command": name, "by": "me"} | more).encode(), {"Authorization": f"Bearer {token}"})
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
                self.assertEqual(json.load(answer)["data"], {"accepted": True})

        def told(path):
            """What was decided and changed, and at which step and whose request."""
            lines = path.read_text().splitlines(keepends=True)
            data = [json.loads(line)["data"] for line in lines if line.endswith("\n") and re.search(r'"type":"torchbus\.(decision_taken|option_changed)"', line)]
            return [(one["position"]["step"], one["position"]["attempts"], one.get("decision") or [one["subscriber"], one["option"], one["from"], one["to"], one["error"]], one["requester"]) for one in data]

        self.wait_until(lambda: all(path.exists() and path.read_text().count('"type":"torchbus.train_step_end"') > 3 for path in files), "no steps are made")
        command(0, "change_option", subscriber="gradient_clipping", option="max_norm", value=0.25)
        for count, (rank, name) in enumerate([(0, "pause"), (1, "resume"), (1, "save"), (0, "evaluate"), (1, "pause"), (0, "resume")], 2):  # the change is told twice: as decided, and as made
            self.wait_until(lambda: [len(told(path)) for path in files] == [count, count], f"both ranks tell of {count} things before the next {name}")
            command(rank, name)
        self.wait_until(lambda: [len(told(path)) for path in files] == [8, 8], "they do not go on")
        command(1, "stop")
        _, err = process.communicate(timeout=PATIENCE_S)
        self.assertEqual(process.returncode, 0, err)
        first = told(files[0])
        self.assertEqual(told(files[1]), first)
        self.assertEqual([what for _, _, what, _ in first if isinstance(what, str)], ["change_option", "pause", "resume", "save_now", "evaluate_now", "pause", "resume", "stop_run"])
        events = files[0].read_text()
        saved = [json.loads(line)["data"]["position"]["step"] for line in events.splitlines() if '"type":"torchbus.checkpoint_saved"' in line]
        self.assertEqual(saved, [step for step, _, what, _ in first if what == "save_now"])
        asked = next(attempts for _, attempts, what, _ in first if what == "evaluate_now")
        evaluated = [json.loads(line)["data"]["position"]["attempts"] for line in events.splitlines() if '"type":"torchbus.eval_epoch_start"' in line]
        self.assertIn(asked, evaluated)
        self.assertEqual([what for _, _, what, _ in first if not isinstance(what, str)], [["gradient_clipping", "max_norm", "0.5", "0.25", ""]])
        self.assertEqual({requester for *_, requester in first}, {"event_server: me at 127.0.0.1"})

    def test_two_nodes_find_each_other_fail_and_restart_together(self):
        port = free_port()
        command = ("--", "sh", "-c", 'echo "$RANK of $WORLD_SIZE, start $TORCHELASTIC_RESTART_COUNT"; if [ $TORCHELASTIC_RESTART_COUNT = 0 ]; then [ $RANK = 3 ] && exit 5; sleep 60; fi')
        nodes = [self.launch("--nproc-per-node", 2, "--nnodes", 2, "--node-rank", node, "--master-port", port, "--max-restarts", 1, *command) for node in (0, 1)]
        said = [process.communicate(timeout=PATIENCE_S) for process in nodes]
        self.assertEqual([process.returncode for process in nodes], [0, 0], said)
        for node, (out, _) in enumerate(said):
            for rank in (2 * node, 2 * node + 1):
                self.assertIn(f"[rank {rank}/4] {rank} of 4, start 1", out)

    def launch_two_nodes(self, *command):
        port = free_port()
        return [self.launch("--nproc-per-node", 1, "--nnodes", 2, "--node-rank", node, "--master-port", port, "--grace", 1, "--", *command) for node in (0, 1)]

    def test_a_node_that_is_lost_ends_the_other_which_names_it(self):
        for lost, told in ((0, r"the meeting point 127\.0\.0\.1:\d+ is gone, and with it the launcher of node 0: "),
                           (1, r"torchbus: rank 0 of 2 \(process \d+\) ended with exit code 1, and 11 s after that node 1 did not say that the ranks there had ended: the launcher has died")):
            with self.subTest(lost=lost):
                for old in self.folder.glob("prints*"):
                    old.unlink()
                (self.folder / "run.json").write_text(json.dumps(run_file()))
                nodes = self.launch_two_nodes(PROGRAM, "train", "run.json", "--set", "train.batch_size=12", "--set", "train.epochs=100000")
                self.wait_for_prints(5)
                nodes[lost].kill()
                began = time.monotonic()
                _, err = nodes[1 - lost].communicate(timeout=PATIENCE_S)
                self.assertLess(time.monotonic() - began, 45)
                self.assertEqual(nodes[1 - lost].returncode, 1, err)
                self.assertRegex(err, told)
                nodes[lost].communicate()

    def said_up_to(self, words, process):
        """On standard error, to the end of the line with these words."""
        late = threading.Timer(PATIENCE_S, process.kill)
        late.start()
        said = ""
        while words not in said and (line := process.stderr.readline()):
            said += line
        late.cancel()
        return said

    def test_a_node_is_not_kept_by_one_that_is_stopped(self):
        silent = r"node 0 \(the meeting point 127\.0\.0\.1:\d+, which its launcher hosts, does not answer\)"
        for ends_with, sent, code, told in ((5, None, 1, rf"torchbus: rank 1 of 2 \(process \d+\) ended with exit code 5, and 11 s after that {silent} did not say that the ranks there had ended"),
                                            (0, signal.SIGTERM, 128 + signal.SIGTERM, rf"torchbus launch: the ranks of node 1 have ended; waiting for {silent}\n")):
            with self.subTest(ends_with=ends_with):
                begun = [self.folder / f"begun_{ends_with}_{node}" for node in (0, 1)]
                go_on = self.folder / f"go_on_{ends_with}"
                nodes = self.launch_two_nodes("sh", "-c", f"touch {self.folder}/begun_{ends_with}_$RANK; [ $RANK = 0 ] && sleep 60; until [ -e {go_on} ]; do sleep 0.05; done; exit {ends_with}")
                self.wait_until(lambda: all(path.exists() for path in begun), "the ranks do not begin")
                nodes[0].send_signal(signal.SIGSTOP)
                go_on.touch()
                said = ""
                if sent:
                    said = self.said_up_to("does not answer", nodes[1])
                    self.assertIsNone(nodes[1].poll(), said)
                    nodes[1].send_signal(sent)
                _, rest = nodes[1].communicate(timeout=PATIENCE_S)
                err = said + (rest or "")
                self.assertEqual(nodes[1].returncode, code, err)
                self.assertRegex(err, told)
                nodes[0].send_signal(signal.SIGCONT)
                nodes[0].send_signal(signal.SIGTERM)
                nodes[0].communicate(timeout=PATIENCE_S)

    def test_a_node_says_for_whom_it_waits(self):
        nodes = self.launch_two_nodes("sh", "-c", "sleep $((RANK * 4))")
        said = [process.communicate(timeout=PATIENCE_S)[1] for process in nodes]
        self.assertEqual([process.returncode for process in nodes], [0, 0], said)
        self.assertIn("torchbus launch: the ranks of node 0 have ended; waiting for node 1\n", said[0])
        self.assertNotIn("waiting for", said[1])

    def test_config_asks_and_launch_starts_what_was_answered(self):
        asked = subprocess.run([PROGRAM, "config", "--to", "two.yaml"], cwd=self.folder, input="cpu\n1\n2\nbf16\n2\nyes\n", capture_output=True, text=True)
        self.assertEqual(asked.returncode, 0, asked.stderr)
        self.assertIn("How many processes on each machine? [1]: ", asked.stderr)
        run = run_file()
        run["callbacks"] = [{"kind": "metrics"}]
        (self.folder / "run.json").write_text(json.dumps(run | {"accelerate": "two.yaml"}))
        code, _, err = self.launched("--config", "two.yaml", "--", PROGRAM, "train", "run.json", "--set", "train.batch_size=12")
        self.assertEqual(code, 0, err)
        code, _, err = self.launched("--config", "two.yaml", "--nproc-per-node", 3, "--", PROGRAM, "train", "run.json")
        self.assertEqual(code, 2, err)
        self.assertIn("two.yaml: num_processes is 2, and this run has 3 ranks", err)
        alone = {command: subprocess.run([PROGRAM, command, "run.json"], cwd=self.folder, capture_output=True, text=True) for command in ("check", "evaluate", "train")}
        self.assertEqual({command: done.returncode for command, done in alone.items()}, {"check": 0, "evaluate": 0, "train": 2}, alone)
        self.assertIn("start it by torchbus launch --config two.yaml, check it with --world-size 2, or change the number", alone["train"].stderr)
        tried = {size: subprocess.run([PROGRAM, "check", "run.json", "--world-size", str(size)], cwd=self.folder, capture_output=True, text=True) for size in (2, 128)}
        self.assertEqual({size: done.returncode for size, done in tried.items()}, {2: 0, 128: 2}, tried)
        self.assertIn("two.yaml: num_processes is 2, and this run has 128 ranks; start it by torchbus launch --config two.yaml, check it with --world-size 2", tried[128].stderr)
        cut_off = subprocess.run([PROGRAM, "config", "--to", "three.yaml"], cwd=self.folder, input="cpu\n", capture_output=True, text=True)
        self.assertEqual(cut_off.returncode, 2)
        self.assertFalse((self.folder / "three.yaml").exists())

    def test_a_large_world_is_tried_in_one_process(self):
        run = run_file()
        run["callbacks"] += [{"kind": "zero_redundancy"}, {"kind": "save_training_state", "folder": "states"}]
        (self.folder / "run.json").write_text(json.dumps(run))
        checked = subprocess.run([PROGRAM, "check", "run.json", "--world-size", "128"], cwd=self.folder, capture_output=True, text=True)
        self.assertEqual(checked.returncode, 0, checked.stderr)
        self.assertIn("ranks      128, each with 24 samples of a batch of 3072", checked.stdout)
        self.assertRegex(checked.stdout, r"update     made over c10d's fake backend: 0\.\d+ MiB summed in \d+ messages; the optimizer keeps 0\.003 MiB on this rank")
        self.assertEqual([path.name for path in self.folder.iterdir()], ["run.json"], "it leaves no trace")
        run["callbacks"] = run["callbacks"][1:2]
        (self.folder / "run.json").write_text(json.dumps(run))
        checked = subprocess.run([PROGRAM, "check", "run.json", "--world-size", "128"], cwd=self.folder, capture_output=True, text=True)
        self.assertEqual(checked.returncode, 2)
        self.assertIn("run.json: --world-size: no callback trains on several ranks; add data_parallel", checked.stderr)

    def test_who_cannot_meet_is_told_why_and_soon(self):
        with socket.socket() as held:
            held.bind(("", 0))
            held.listen()
            taken, no_host = held.getsockname()[1], "no.such.host.invalid"
            for arguments, told in ((("--master-port", taken), rf"cannot open the meeting point 127\.0\.0\.1:{taken}: .+; is the port taken\? give another --master-port"),
                                    (("--nnodes", 2, "--node-rank", 1, "--master-port", free_port()), r"nobody answers at the meeting point 127\.0\.0\.1:\d+ after \d.* s: .+; is the launcher of node 0 running there\?"),
                                    (("--master-addr", no_host), r"the meeting point no\.such\.host\.invalid:0 was not found in \d.* s: 'no\.such\.host\.invalid' has no address here \(.+\); give that of node 0 to --master-addr"),
                                    (("--nnodes", 2, "--node-rank", 1, "--master-addr", no_host, "--master-port", 29500), r"the meeting point no\.such\.host\.invalid:29500 was not found in \d.* s: ")):
                with self.subTest(arguments):
                    began = time.monotonic()
                    code, _, err = self.launched(*arguments, "--join-timeout", 1, "--", "true")
                    self.assertLess(time.monotonic() - began, 45)
                    self.assertEqual(code, 1, err)
                    self.assertRegex(err, "torchbus: " + told)

    def test_bad_numbers_and_commands_are_refused(self):
        for arguments, told in ((("--",), "there is no command"), (("--nproc-per-node", 0, "--", "true"), "--nproc-per-node: 0 is too few"),
                                (("--nnodes", 2, "--node-rank", 2, "--", "true"), "--node-rank: 2 is none of 2 nodes"), (("--nnodes", 2, "--", "true"), "several nodes need one"),
                                (("--", "/no/such/program"), "cannot run '/no/such/program': No such file or directory"), (("--max-restarts", -1, "--", "true"), "--max-restarts: -1 is too few"),
                                (("--join-timeout", 0.5, "--", "true"), "launch: --join-timeout: 0.5 is no time to wait; give seconds, at least 1 and at most 1000000000"),
                                (("--grace", "nan", "--", "true"), "launch: --grace: nan is no time to wait; give seconds, at least 0")):
            with self.subTest(arguments):
                code, _, err = self.launched(*arguments)
                self.assertEqual(code, 2, err)
                self.assertIn(told, err)


if __name__ == "__main__":
    exit_where_not_possible(PROGRAM, PROGRAM, 4)
    sys.exit(0 if unittest.main(exit=False, verbosity=2).result.wasSuccessful() else 1)
