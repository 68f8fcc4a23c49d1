#!/usr/bin/env python3
"""What tools/summarise_tests.py makes of the results of scripts.

usage: summary_test.py [CLASS[.test]...]
"""
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

SUMMARY = Path(__file__).resolve().parents[2] / "tools/summarise_tests.py"


class Scripts(unittest.TestCase):
    def summary(self, status, log):
        """The exit code, and the lines that are not empty."""
        with tempfile.TemporaryDirectory(prefix="torchbus-summary-") as folder:
            (Path(folder) / "some_test.py.rc").write_text(f"{status}\n")
            (Path(folder) / "some_test.py.log").write_text(log)
            done = subprocess.run([sys.executable, SUMMARY, folder], capture_output=True, text=True)
        self.assertEqual(done.stderr, "")
        return done.returncode, [line for line in done.stdout.splitlines() if line]

    def test_what_unittest_skips_is_told_with_its_reason_and_is_no_pass(self):
        script = """
import unittest
class Some(unittest.TestCase):
    def test_one(self): pass
    def test_two(self): self.skipTest("it's not installed")
    @unittest.skip("no disk")
    def test_three(self): pass
unittest.main(verbosity=%d)
"""
        def log(verbosity):
            return subprocess.run([sys.executable, "-c", script % verbosity], capture_output=True, text=True).stderr

        self.assertEqual(self.summary(0, log(2)), (0, ["SKIPPED some_test.py: test_three: no disk", "SKIPPED some_test.py: test_two: it's not installed", "1 passed, 0 failed, 2 skipped"]))
        self.assertEqual(self.summary(0, log(1) + "9 cases\n"), (0, ["SKIPPED some_test.py: a test: it did not say why"] * 2 + ["1 passed, 0 failed, 2 skipped"]))

    def test_a_script_is_passed_skipped_or_failed_as_a_whole(self):
        self.assertEqual(self.summary(0, "...\nRan 3 tests in 0.1s\n\nOK\n"), (0, ["1 passed, 0 failed"]))
        self.assertEqual(self.summary(77, "there is no disk\n"), (1, ["SKIPPED some_test.py: there is no disk", "0 passed, 0 failed, 1 skipped"]))
        self.assertEqual(self.summary(1, "so it is\n"), (1, ["FAILED  some_test.py exited with 1", "    so it is", "0 passed, 1 failed"]))
        self.assertEqual(self.summary(124, "")[1][0], "FAILED  some_test.py did not end in time")


if __name__ == "__main__":
    unittest.main(verbosity=2)
