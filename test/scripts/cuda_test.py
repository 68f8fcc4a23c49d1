#!/usr/bin/env python3
"""What is said where CUDA's libraries or a device are missing, and that nothing needs them where no CUDA device is asked for.

usage: cuda_test.py; the program is the one in $TORCHBUS_BUILD, default build/release. With stubs in place of CUDA's mathematical
libraries (see torchrun/prepare.py) what is linked with CUDA and NCCL is loaded for real, and finds no device.
"""
import json
import os
import re
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from ranks import PREPARED, exit_where_not_possible, free_port, prepare

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / os.environ.get("TORCHBUS_BUILD", "build/release")
PROGRAM = BUILD / "src/cli/torchbus"


class Cuda(unittest.TestCase):
    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory(prefix="torchbus-cuda-")
        self.folder = Path(self.temporary.name)

    def tearDown(self):
        self.temporary.cleanup()

    def torchbus(self, *arguments, libraries=None, code=0, **environment):
        own = dict(os.environ) | environment
        if libraries:
            own["LD_LIBRARY_PATH"] = str(libraries)
        done = subprocess.run([PROGRAM, *map(str, arguments)], cwd=self.folder, env=own, capture_output=True, text=True, timeout=120)
        self.assertEqual(done.returncode, code, done.stderr)
        return done.stdout + done.stderr

    def stubs(self):
        python, why_not = prepare()
        if not python:
            self.skipTest(why_not)
        return PREPARED / "stubs"

    def write_run(self, *callbacks):
        (self.folder / "run.json").write_text(json.dumps({
            "seed": 3, "model": {"kind": "mlp", "inputs": 16, "hidden": [8], "classes": 4}, "data": {"kind": "synthetic", "samples": 64}, "optimizer": {"kind": "adamw"},
            "train": {"batch_size": 8}, "callbacks": list(callbacks)}))

    def test_without_the_libraries_they_are_named_and_nothing_else_needs_them(self):
        said = self.torchbus("env")
        self.assertRegex(said, r"(?m)^CUDA devices: 0: CUDA's libraries cannot be loaded: lib\S+: cannot open shared object file: .*; install LibTorch with all of them")
        self.assertRegex(said, r"(?m)^NCCL: cannot be used: ")
        self.assertRegex(said, r"(?m)^rank: none: one process$")
        self.write_run({"kind": "device_placement", "device": "cuda"})
        self.assertRegex(self.torchbus("train", "run.json", code=2), r"run.json: callbacks\[0\]: device_placement: device: 'cuda' was asked for, but CUDA's libraries cannot be loaded: lib\S+: .*; or give cpu"
                                                                     r"|device_placement: device: 'cuda' was asked for, but CUDA's libraries cannot be loaded")
        self.write_run({"kind": "device_placement", "device": "auto"})
        self.torchbus("train", "run.json")

    def test_where_no_device_is_asked_for_no_library_of_cuda_is_opened(self):
        self.write_run({"kind": "device_placement"}, {"kind": "data_parallel"})
        ranks = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "LD_DEBUG": "files", "LD_DEBUG_OUTPUT": str(self.folder / "opened")}
        self.torchbus("train", "run.json", **ranks)
        opened = "".join(path.read_text() for path in self.folder.glob("opened*"))
        self.assertIn("libtorch_cpu.so", opened)
        for library in ("libtorch_cuda", "libc10_cuda", "libtorchbus_nccl", "libnccl", "libcublas"):
            self.assertNotIn(library, opened)

    @unittest.skipUnless(os.access(BUILD / "src/link/libtorchbus_nccl.so", os.R_OK), "this torchbus was built without NCCL")
    def test_with_the_libraries_and_without_a_device_that_is_what_is_said(self):
        folder = self.stubs()
        said = self.torchbus("env", libraries=folder)
        self.assertRegex(said, r"(?m)^CUDA devices: 0: there is no device: the driver is missing or too old for this LibTorch, there is no GPU$")
        self.assertRegex(said, r"(?m)^NCCL: can be used$")
        hidden = self.torchbus("env", libraries=folder, CUDA_VISIBLE_DEVICES="3")
        self.assertIn("there is no GPU, or CUDA_VISIBLE_DEVICES ('3') hides it", hidden)
        self.write_run({"kind": "device_placement", "device": "cuda:1"})
        self.assertIn("device_placement: device: 'cuda:1' was asked for, but there is no device: the driver is missing", self.torchbus("train", "run.json", libraries=folder, code=2))
        self.write_run({"kind": "device_placement", "device": "auto"})
        self.torchbus("train", "run.json", libraries=folder)

    def test_a_program_that_asks_too_late_is_told_so(self):
        folder = self.stubs()
        done = subprocess.run([BUILD / "test/asks_for_cuda_late"], env=dict(os.environ) | {"LD_LIBRARY_PATH": str(folder)}, capture_output=True, text=True, timeout=120)
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn("CUDA's libraries were loaded too late: LibTorch had been asked for CUDA before, as torch::manual_seed does; make the device's callback first", done.stderr)


if __name__ == "__main__":
    exit_where_not_possible(PROGRAM, PROGRAM, 0)
    devices = re.search(r"^CUDA devices: (\d+)", subprocess.run([PROGRAM, "env"], check=True, capture_output=True, text=True).stdout, re.MULTILINE)[1]
    if devices != "0":
        print(f"what is said without a CUDA device: here are {devices}")
        sys.exit(77)
    sys.exit(0 if unittest.main(exit=False, verbosity=2).result.wasSuccessful() else 1)
