#!/usr/bin/env python3
"""What a rank does that it should not ends the others within their timeout, and they name it, its step and why.

usage: faults_test.py; the program is the one in $TORCHBUS_BUILD, default build/release.
  TORCHBUS_TEST_DEVICE=cuda   each rank with a CUDA device
  TORCHBUS_SLOW=1   each fault twenty times, exceptions fifty, stops a hundred
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

from ranks import DEVICE, exit_where_not_possible, free_port

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / os.environ.get("TORCHBUS_BUILD", "build/release")
PROGRAM = BUILD / "test/faulty_run"
SLOW = os.environ.get("TORCHBUS_SLOW") == "1"
TIMEOUT_S = 3
RANKS = 3


class Faults(unittest.TestCase):
    def setUp(self):
        self.draw = random.Random(7)
        self.running = []

    def tearDown(self):
        for process in self.running:
            if process.poll() is None:
                process.kill()
            process.communicate()

    def start(self, *arguments, size=RANKS):
        port = free_port()
        started = []
        for rank in range(size):
            own = dict(os.environ) | {"OMP_NUM_THREADS": "1", "RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            started.append(subprocess.Popen([PROGRAM, "--device", DEVICE, "--timeout", str(TIMEOUT_S), *map(str, arguments)], env=own, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        self.running += started
        return started

    def ended(self, processes, within):
        """Exit codes and output of each, once all have ended."""
        deadline = time.monotonic() + within
        said = [process.communicate(timeout=max(0.1, deadline - time.monotonic())) for process in processes]
        for process in processes:
            self.running.remove(process)
        return [process.returncode for process in processes], said

    def others_say(self, fault, times, pattern, of_host="", within=TIMEOUT_S + 12, event="train_step_end"):
        """`pattern` has {rank}, {step} and {event}; `of_host` is what may be said as well of rank 0, which hosts the meeting point. Of the ranks that are not at fault, those that did not die of it say so."""
        for attempt in range(times):
            rank, step = attempt % RANKS, self.draw.randrange(3, 40)
            if event == "eval_step_end":
                step = 8 * self.draw.randrange(1, 5)  # at the end of an epoch
            with self.subTest(fault=fault, rank=rank, step=step, event=event):
                began = time.monotonic()
                processes = self.start("--fault", fault, "--rank", rank, "--step", step, "--event", event)
                if fault in ("stop", "hang"):  # it ends when it is let go
                    others = [process for number, process in enumerate(processes) if number != rank]
                    codes, said = self.ended(others, within)
                    processes[rank].kill()
                    self.ended([processes[rank]], 5)
                else:
                    codes, said = self.ended(processes, within)
                    codes = [code for number, code in enumerate(codes) if number != rank]
                    said = [one for number, one in enumerate(said) if number != rank]
                self.assertLess(time.monotonic() - began, within)
                expected = (pattern + (f"|{of_host}" if rank == 0 and of_host else "")).format(rank=rank, step=step, event=event)
                telling = [err for code, (_, err) in zip(codes, said) if code != -signal.SIGABRT]  # Gloo ends who gets less than it sends
                self.assertTrue(telling, said)
                self.assertTrue(all(code in (1, -signal.SIGABRT) for code in codes), (codes, said))
                for err in telling:
                    self.assertRegex(err, expected)

    THROWN = r"rank {rank} failed at epoch \d+, step {step}, event {event}: subscriber 'faulty' failed at .*: the cat sat on the keyboard"
    DIED = r"rank {rank} does not answer: it has died, .*last seen at epoch \d+, step {step}, event {event}"
    HOST_DIED = "the meeting point is gone, and with it rank 0, which hosted it"
    STOPPED = r"rank {rank} does not answer: it has died, is stopped or cannot be reached; it was last seen at epoch \d+, step {step}, event {event}"
    HOST_STOPPED = r"the meeting point 127\.0\.0\.1:\d+ does not answer: rank 0, which hosts it, is stopped"
    HANGS = r"rank {rank} has not come to it: it is at epoch \d+, step {step}, event {event}, since [2-9]"

    def test_an_exception_ends_the_others_with_its_words(self):
        self.others_say("throw", 50 if SLOW else 2, self.THROWN, within=10)

    def test_a_death_ends_the_others(self):
        self.others_say("die", 20 if SLOW else 2, self.DIED, of_host=self.HOST_DIED)

    def test_a_rank_that_is_stopped_is_named(self):
        self.others_say("stop", 20 if SLOW else 2, self.STOPPED, of_host=self.HOST_STOPPED)

    def test_a_rank_that_hangs_is_named_with_where_it_is(self):
        self.others_say("hang", 20 if SLOW else 2, self.HANGS)

    def test_a_fault_within_a_step_or_an_evaluation_is_named_as_well(self):
        for event in ("forward_start", "backward_end", "eval_step_end"):
            for fault, pattern, of_host in (("throw", self.THROWN, ""), ("die", self.DIED, self.HOST_DIED), ("stop", self.STOPPED, self.HOST_STOPPED), ("hang", self.HANGS, "")):
                if SLOW or (event, fault) in (("forward_start", "hang"), ("backward_end", "throw"), ("eval_step_end", "stop")):
                    self.others_say(fault, 6 if SLOW else 2, pattern, of_host, event=event)

    def test_a_collective_that_one_rank_leaves_out_is_named(self):
        self.others_say("skip", 20 if SLOW else 2, r"rank {rank} \(epoch \d+, step {step}, event \w+\) began .* of step {step} where a sum of 7 numbers was due")

    def test_a_collective_too_many_is_named(self):
        self.others_say("extra", 20 if SLOW else 2, r"rank {rank} \(epoch \d+, step {step}, event \w+\) began a sum of 7 numbers of step {step} where .* was due")

    def all_stop_at_one_step(self, fault, words, code=0):
        for attempt in range(100 if SLOW else 3):
            rank, step = attempt % RANKS, self.draw.randrange(2, 60)
            with self.subTest(fault=fault, rank=rank, step=step):
                codes, said = self.ended(self.start("--fault", fault, "--rank", rank, "--step", step, "--pace", 20), 30)
                self.assertEqual(codes, [code] * RANKS, said)
                self.assertEqual(len({out for out, _ in said}), 1, said)
                self.assertRegex(said[0][0], rf"^{words} after step \d+\n$")

    def test_a_request_of_one_rank_stops_all_at_one_step(self):
        self.all_stop_at_one_step("ask", "enough")

    def test_a_signal_to_one_rank_stops_all_at_one_step(self):
        self.all_stop_at_one_step("signal", "SIGTERM was received", 143)

    def test_early_stopping_by_the_number_of_one_rank_stops_all_at_one_step(self):
        self.all_stop_at_one_step("early_stopping", "faulty.score .*")

    def test_a_loss_of_one_rank_that_is_not_finite_stops_all_at_one_step(self):
        self.all_stop_at_one_step("nan", ".* not finite.*")

    def test_the_time_limit_of_rank_0_stops_all_at_one_step(self):
        self.all_stop_at_one_step("time_limit", "the run has taken .*")

    def test_a_healthy_run_raises_no_alarm(self):
        codes, said = self.ended(self.start("--timeout", 1, "--pace", 0, "--epochs", 3000 if SLOW else 150), 900)
        self.assertEqual(codes, [0] * RANKS, said)
        self.assertEqual([err for _, err in said], [""] * RANKS)

    def test_each_rank_leaves_a_record(self):
        with tempfile.TemporaryDirectory(prefix="torchbus-records-") as folder:
            self.ended(self.start("--fault", "throw", "--rank", 1, "--step", 5, "--records", folder), 20)
            records = [json.loads((Path(folder) / f"rank_{rank}.json").read_text()) for rank in range(RANKS)]
        self.assertIn("the cat sat on the keyboard", records[1]["error"])
        self.assertEqual((records[1]["step"], records[1]["event"]), (5, "train_step_end"))
        for record in records:
            self.assertIn("a sum of 7 numbers", [name for _, name, _, _ in record["collectives"]])
            self.assertIn("gloo:all_reduce", {entry["profiling_name"] for entry in record["flight_record"]["entries"]})


if __name__ == "__main__":
    exit_where_not_possible(BUILD / "src/cli/torchbus", PROGRAM, 3)
    sys.exit(0 if unittest.main(exit=False, verbosity=2).result.wasSuccessful() else 1)
