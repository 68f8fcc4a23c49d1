"""What the tests of several processes share: ports, devices, and an environment with torchrun.

TORCHBUS_TEST_DEVICE=cuda   each rank with a CUDA device of its own, over NCCL; the default is the CPU, over Gloo
"""
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

DEVICE = os.environ.get("TORCHBUS_TEST_DEVICE", "cpu")


def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


ROOT = Path(__file__).resolve().parents[2]
PREPARED = ROOT / "build/torchrun"  # an environment of Python with torch's torchrun, and stubs of CUDA's mathematical libraries


def prepare():
    """The Python of that environment, or None and why there is none."""
    torch = list((ROOT / "build/venv").glob("lib/python3*/site-packages"))
    if not torch:
        return None, "build/venv has no LibTorch wheel, which brings torchrun"
    made = subprocess.run([sys.executable, ROOT / "test/scripts/torchrun/prepare.py", torch[0], PREPARED], capture_output=True, text=True)
    return (made.stdout.strip(), "") if made.returncode == 0 else (None, "an environment for torchrun could not be made: " + made.stderr.strip().splitlines()[-1])


def placement():
    """The callbacks that put a run where it is to be tested."""
    return [] if DEVICE == "cpu" else [{"kind": "device_placement", "device": DEVICE}]


def exit_where_not_possible(program, needed, ranks):
    """Exits with 77, the last line saying why, where a program is not built or there are not as many devices as ranks."""
    if not os.access(needed, os.X_OK):
        print(f"{needed} is not built")
        sys.exit(77)
    if DEVICE == "cpu":
        return
    said = subprocess.run([program, "env"], check=True, capture_output=True, text=True).stdout
    devices = int(re.search(r"^CUDA devices: (\d+)", said, re.MULTILINE)[1])
    if devices < ranks:
        print(f"over NCCL {ranks} ranks want as many CUDA devices; here: " + re.search(r"^CUDA devices: (.*)$", said, re.MULTILINE)[1])
        sys.exit(77)
    if "\nNCCL: can be used\n" not in said:
        print(re.search(r"^NCCL: (.*)$", said, re.MULTILINE)[0])
        sys.exit(77)
