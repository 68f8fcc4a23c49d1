#!/usr/bin/env python3
"""Where subprojects/libtorch and subprojects/nccl look, in which order, and what they say that they took; in folders
that only look like a LibTorch and an NCCL. Then a project of meson that has both, found for real where they are here.
"""
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("TORCHBUS_", "PYTHON"))}


class Finder(unittest.TestCase):
    script = marker = None

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="torchbus-finders-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name).resolve()
        self.option, self.variable = self.make("option"), self.make("variable")
        self.venv = self.make(f"source/build/venv/lib/python3.99/site-packages/{self.package}")
        self.site = self.make(f"site/{self.package}")

    def find(self, option="", variable=None, source="source", site=None, code=0):
        """Runs the finder. Returns its lines for 0, else what it says."""
        environment = ENVIRONMENT | ({self.marker: str(variable)} if variable else {}) | ({"PYTHONPATH": str(site)} if site else {})
        # Without the site packages of this Python: a torch of its own must not answer.
        done = subprocess.run([sys.executable, "-S", ROOT / self.script, str(option), str(self.folder / source)], capture_output=True, text=True, env=environment)
        self.assertEqual(done.returncode, code, done.stderr)
        return done.stdout.rstrip("\n").split("\n") if code == 0 else done.stderr

    def took(self, **where):
        lines = self.find(**where)
        return Path(lines[0]), lines[self.how]

    def test_the_option_goes_before_all_else(self):
        self.assertEqual(self.took(option=self.option, variable=self.variable, site=self.folder / "site"), (self.shown(self.option), f"option {self.name}:path"))

    def test_then_the_environment(self):
        self.assertEqual(self.took(variable=self.variable, site=self.folder / "site"), (self.shown(self.variable), f"environment variable {self.marker}"))

    def test_then_the_virtual_environment_of_the_project(self):
        self.assertEqual(self.took(site=self.folder / "site"), (self.shown(self.venv), "the project's virtual environment"))

    def test_then_what_python_sees(self):
        self.assertEqual(self.took(source="elsewhere", site=self.folder / "site"), (self.shown(self.site), "python3"))

    def test_what_was_named_and_is_none_is_an_error_that_says_where(self):
        (self.folder / "empty").mkdir()
        for where in ({"option": self.folder / "empty"}, {"variable": self.folder / "empty"}):
            self.assertIn(str(self.folder / "empty"), self.find(**where, site=self.folder / "site", code=1))


class LibTorch(Finder):
    script, marker, name, package, how = "subprojects/libtorch/find_libtorch.py", "TORCHBUS_LIBTORCH", "libtorch", "torch", 1

    def make(self, at):
        root = self.folder / at
        for file, text in [("include/ATen/ATen.h", ""), ("lib/libtorch_cpu.so", ""), ("version.py", "__version__ = '9.8.7+cpu'\n"), ("__init__.py", "raise SystemExit('imported')\n")]:
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_text(text)
        return root

    def shown(self, root):
        return root

    def test_it_tells_the_version_without_an_import(self):
        self.assertEqual(self.find(source="elsewhere", site=self.folder / "site")[2], "9.8.7+cpu")

    def test_none_at_all_is_an_error_that_says_what_to_do(self):
        said = self.find(source="elsewhere", code=1)
        for part in ("LibTorch was not found", "tools/quickstart", "-Dlibtorch:path=DIR", "TORCHBUS_LIBTORCH=DIR"):
            self.assertIn(part, said)


class Nccl(Finder):
    script, marker, name, package, how = "subprojects/nccl/find_nccl.py", "TORCHBUS_NCCL", "nccl", "nvidia/nccl", 2

    def make(self, at):
        root = self.folder / at
        for file, text in [("include/nccl.h", "#define NCCL_MAJOR 2\n#define NCCL_MINOR 99\n#define NCCL_PATCH 1\n"), ("lib/libnccl.so.2", "")]:
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_text(text)
        return root

    def shown(self, root):
        return root / "include"

    def test_it_tells_library_version_and_the_headers_of_cuda_beside_it(self):
        cuda = self.folder / "site/nvidia/cu13/include"
        cuda.mkdir(parents=True)
        (cuda / "cuda_runtime.h").write_text("")
        lines = self.find(source="elsewhere", site=self.folder / "site")
        self.assertEqual([lines[1], *lines[3:]], [str(self.site / "lib/libnccl.so.2"), "2.99.1", str(cuda)])


class Meson(unittest.TestCase):
    """What a project that uses the subprojects is told."""

    def setup_project(self, *options):
        if not shutil.which("meson"):
            self.skipTest("there is no meson")
        folder = tempfile.TemporaryDirectory(prefix="torchbus-finders-")
        self.addCleanup(folder.cleanup)
        source = Path(folder.name)
        (source / "meson.build").write_text("""project('outside', 'cpp')
torch = subproject('libtorch').get_variable('torch_dep')
nccl = subproject('nccl').get_variable('nccl_dep')
message('torch found: @0@, NCCL found: @1@'.format(torch.found(), nccl.found()))
""")
        (source / "subprojects").mkdir()
        for name in ("libtorch", "nccl"):
            shutil.copytree(ROOT / "subprojects" / name, source / "subprojects" / name)
        done = subprocess.run(["meson", "setup", source / "build", source, *options], capture_output=True, text=True, env=ENVIRONMENT)
        return done.returncode, done.stdout + done.stderr

    def test_a_libtorch_that_was_taken_and_no_nccl(self):
        torch = next((ROOT / "build/venv/lib").glob("python3*/site-packages/torch"), os.environ.get("TORCHBUS_LIBTORCH"))
        if not torch:
            self.skipTest("there is no LibTorch in build/venv")
        with tempfile.TemporaryDirectory() as empty:
            code, said = self.setup_project(f"-Dlibtorch:path={torch}", f"-Dnccl:path={empty}")
        self.assertEqual(code, 0, said)
        self.assertIn("torch found: true, NCCL found: false", said)
        self.assertRegex(said, r"found by *: option libtorch:path")
        self.assertRegex(said, r"found *: no: tried .* \(option nccl:path\)")

    def test_no_libtorch_is_an_error(self):
        with tempfile.TemporaryDirectory() as empty:
            code, said = self.setup_project(f"-Dlibtorch:path={empty}")
        self.assertNotEqual(code, 0)
        self.assertIn("LibTorch was not found. Tried: ", said)


del Finder  # what the others share, no test of its own

if __name__ == "__main__":
    sys.exit(0 if unittest.main(exit=False, verbosity=2).result.wasSuccessful() else 1)
