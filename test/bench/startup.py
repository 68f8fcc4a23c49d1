#!/usr/bin/env python3
"""Time from the start of a process to its first step, and peak memory, ours against the hand-written loop.

Run: python3 test/bench/startup.py [rounds]    (needs build/release and the MNIST files)
"""
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "build/release/test/bench/one_epoch"


def run(loop: str, limit: int) -> tuple[float, float]:
    """Seconds of the whole process, and its peak memory in MiB."""
    begin = time.perf_counter()
    process = subprocess.Popen([PROGRAM, "--loop", loop, "--limit", str(limit)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    if status != 0:
        sys.exit(f"{PROGRAM} --loop {loop} failed")
    return seconds, usage.ru_maxrss / 1024


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    loops = ("torchbus", "hand_written")
    print("start to the end of the first step (one batch of 32 after reading all of MNIST; the end of the process counted in)")
    first = {loop: [] for loop in loops}
    whole = {loop: [] for loop in loops}
    for _ in range(rounds):
        for loop in loops:
            first[loop].append(run(loop, 32)[0])
    for loop in loops:
        print(f"  {loop:13} median {statistics.median(first[loop]):.3f} s   {min(first[loop]):.3f} .. {max(first[loop]):.3f}")
    print("peak memory of an epoch")
    for _ in range(3):
        for loop in loops:
            whole[loop].append(run(loop, 0)[1])
    for loop in loops:
        print(f"  {loop:13} median {statistics.median(whole[loop]):.0f} MiB")
    print(f"  ratio {statistics.median(whole['torchbus']) / statistics.median(whole['hand_written']):.3f}")


main()
