#!/usr/bin/env python3
"""How fast a training state is written and read, beside the disk itself, torch.save and safetensors for Python.

Run: build/peers-venv/bin/python test/bench/checkpoints.py [MiB] [rounds]   (the environment of test/bench/peers/run.py; needs
build/release). Writes end with fsync, all of them; reads come from the page cache. Median seconds, and MiB/s.
"""
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import safetensors
import safetensors.torch
import torch

PROGRAM = Path(__file__).resolve().parents[2] / "build/release/test/bench/checkpoint_bench"


def seconds(action):
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def synced(file, write):
    write(file)
    descriptor = os.open(file, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def main():
    mib, rounds = (int(argument) for argument in (sys.argv[1:] + ["512", "5"][len(sys.argv) - 1:])[:2])
    tensors = {f"{i:05}": torch.rand(4 << 18) for i in range(mib // 4)}
    rows = {}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(dir=".") as folder:
            took = json.loads(subprocess.run([PROGRAM, "bandwidth", str(mib), folder], check=True, capture_output=True, text=True).stdout)
            file = Path(folder) / "file"
            took["torch.save"] = seconds(lambda: synced(file, lambda name: torch.save(tensors, name)))
            took["torch.load"] = seconds(lambda: torch.load(file, weights_only=True))
            took["safetensors save_file"] = seconds(lambda: synced(file, lambda name: safetensors.torch.save_file(tensors, name)))
            took["safetensors load_file"] = seconds(lambda: safetensors.torch.load_file(file))
            for name, value in took.items():
                rows.setdefault(name, []).append(value)
    print(f"{mib} MiB, {rounds} rounds in turn; torch {torch.__version__}, safetensors {safetensors.__version__}\n")
    print("| | median s | min – max | MiB/s |\n| --- | ---: | --- | ---: |")
    for name, values in sorted(rows.items(), key=lambda row: ("read" in row[0] or "load" in row[0], row[0])):
        print(f"| {name} | {statistics.median(values):.3f} | {min(values):.3f} – {max(values):.3f} | {mib / statistics.median(values):.0f} |")


if __name__ == "__main__":
    main()
