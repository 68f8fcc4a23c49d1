#!/usr/bin/env python3
"""Data parallel training over Gloo: torchbus and Python's DistributedDataParallel in turn, with the same model, batch and threads.

usage: data_parallel.py [ROUNDS]   prints tables in Markdown, for test/bench/README.md
  needs build/release and the environment of test/scripts/torchrun/prepare.py, which it makes where it is not there
"""
import os
import socket
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "build/release/test/bench/data_parallel_bench"
PREPARED = ROOT / "build/torchrun"
MIB = 1024 * 1024

PEER = r"""
import os, time, torch
from torch import nn
torch.set_num_threads(1)
torch.manual_seed(1)
warmup, steps, rank = 100, int(os.environ["STEPS"]), int(os.environ["RANK"])
torch.distributed.init_process_group("gloo")
model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10)), gradient_as_bucket_view=True)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)
inputs, targets = torch.randn(8192, 784), torch.randint(10, (8192,))
loss_fn = nn.CrossEntropyLoss()
order, at = torch.randperm(8192), 0
for step in range(warmup + steps):
    if step == warmup:
        begun = time.perf_counter()
    if at + 32 > 8192:
        order, at = torch.randperm(8192), 0
    picked = order[at:at + 32]
    at += 32
    optimizer.zero_grad()
    loss_fn(model(inputs[picked]), targets[picked]).backward()
    optimizer.step()
if rank == 0:
    print((time.perf_counter() - begun) * 1e6 / steps)
torch.distributed.destroy_process_group()
"""


def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def sent_over_loopback():
    """Bytes so far, of all that runs here; none where the system does not tell."""
    try:
        lines = Path("/proc/net/dev").read_text().splitlines()
    except OSError:
        return float("nan")
    return next((int(line.split()[9]) for line in lines if line.split()[0] == "lo:"), float("nan"))


def all_ranks(size, command, **variables):
    """Starts one process a rank and returns what each prints."""
    environment = dict(os.environ) | {"OMP_NUM_THREADS": "1", "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())} | variables
    started = [subprocess.Popen(command, env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) for rank in range(size)]
    printed = [process.communicate(timeout=600)[0] for process in started]
    assert all(process.returncode == 0 for process in started), command
    return [[float(number) for number in text.split()] for text in printed]


def ranks(size, command, **variables):
    return all_ranks(size, command, **variables)[0]


def main(rounds):
    torch = next((ROOT / "build/venv").glob("lib/python3*/site-packages"))
    python = subprocess.run([sys.executable, ROOT / "test/scripts/torchrun/prepare.py", torch, PREPARED], check=True, capture_output=True, text=True).stdout.strip()
    print("| ranks | torchbus µs a step | DistributedDataParallel | ratio (smallest – largest) | KiB summed a step | messages | KiB on the wire a step, all ranks | of DistributedDataParallel |")
    print("| ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: |")
    for size in (1, 2, 4):
        own, theirs, ratios, wire = [], [], [], {"own": [], "theirs": []}
        steps = "1500" if size < 4 else "600"
        for number in range(rounds):
            measured = {}
            for which in ("own", "theirs") if number % 2 == 0 else ("theirs", "own"):
                before = sent_over_loopback()
                measured[which] = ranks(size, [BENCH, "--steps", steps]) if which == "own" else ranks(size, [python, "-c", PEER], STEPS=steps, LD_LIBRARY_PATH=str(PREPARED / "stubs"))
                wire[which].append((sent_over_loopback() - before) / 1024 / (int(steps) + 100))  # 100 warm up
            own.append(measured["own"][0])
            theirs.append(measured["theirs"][0])
            ratios.append(own[-1] / theirs[-1])
        print(f"| {size} | {statistics.median(own):.0f} | {statistics.median(theirs):.0f} | {statistics.median(ratios):.2f} ({min(ratios):.2f} – {max(ratios):.2f}) | {measured['own'][1] / 1024:.1f} | {measured['own'][3]:.1f} | {statistics.median(wire['own']):.0f} | {statistics.median(wire['theirs']):.0f} |", flush=True)
    print()
    print("Overlap on 2 ranks: four hidden layers of 1,024, buckets of 1 MiB that travel while backward goes on, against one bucket at its end:")
    gains, pieces = [], ("--hidden", "1024", "--layers", "4", "--steps", "40", "--warmup", "10")
    for _ in range(rounds):
        buckets, one = (ranks(2, [BENCH, *pieces, "--bucket-mib", size])[0] for size in ("1", "1000"))
        gains.append(buckets / one)
    print(f"ratio {statistics.median(gains):.2f} ({min(gains):.2f} – {max(gains):.2f})")
    print()
    print("| ranks | optimizer MiB a rank, data parallel | with ZeRO, smallest to largest rank | formula: 8 bytes × parameters / ranks | resident MiB a rank, data parallel | with ZeRO |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    parameters = 784 * 1024 + 1024 + 7 * (1024 * 1024 + 1024) + 1024 * 10 + 10
    for size in (1, 2, 4):
        command = [BENCH, "--adamw", "--hidden", "1024", "--layers", "8", "--steps", "2", "--warmup", "1"]
        whole, parts = all_ranks(size, command), all_ranks(size, [*command, "--zero"])
        span = [f"{min(rank[place] for rank in found) / MIB:.1f} – {max(rank[place] for rank in found) / MIB:.1f}" for found, place in ((parts, 2), (whole, 4), (parts, 4))]
        print(f"| {size} | {whole[0][2] / MIB:.1f} | {span[0]} | {8 * parameters / size / MIB:.1f} | {span[1]} | {span[2]} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 9)
