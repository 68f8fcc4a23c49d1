#!/usr/bin/env python3
"""Prints what failed and what was skipped in a folder of test results, then one line that counts them.

usage: summarise_tests.py FOLDER

FOLDER holds, for each run NAME, the exit status in NAME.rc and the output in NAME.log. A unit test run has Catch2's
XML report in NAME.xml and counts by test case; any other run counts as one. Skipped is a script that exits with 77,
its last line being the reason, a test case that prints a line `SKIPPED: reason`, and what the unittest of a script
counts as skipped (with verbosity=2 the lines before it give the reasons).
"""
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

SKIPPED = 77
TIMED_OUT = 124
TAIL_LINES = 30
MARK = "SKIPPED: "
REPORTS = ("ERROR: AddressSanitizer", "ERROR: LeakSanitizer", "WARNING: ThreadSanitizer", ": runtime error: ")


class Counts:
    def __init__(self):
        self.passed = self.failed = self.skipped = 0

    def fail(self, title: str, details: list[str]):
        self.failed += 1
        print("\n".join([f"\nFAILED  {title}", *("    " + line for line in details)]))

    def skip(self, title: str, reason: str):
        self.skipped += 1
        print(f"SKIPPED {title}: {reason}")


def tail(log: str) -> list[str]:
    """The last lines, or the first of a sanitizer's report: what it found stands there."""
    lines = log.splitlines()
    reports = [number for number, line in enumerate(lines) if any(word in line for word in REPORTS)]
    return (lines[reports[0]:][:TAIL_LINES] if reports else lines[-TAIL_LINES:]) or ["(it printed nothing)"]


def how_it_ended(status: int) -> str:
    if status == TIMED_OUT:
        return "did not end in time"
    return f"was ended by signal {status - 128}" if status > 128 else f"exited with {status}"


def reasons(text: str) -> list[str]:
    return [line[len(MARK):] for line in map(str.strip, text.splitlines()) if line.startswith(MARK)]


def place(element: ET.Element) -> str:
    """From the source root, where the compiler was told of it from a build folder below."""
    return f"{(element.get('filename') or '').removeprefix('../').removeprefix('../')}:{element.get('line')}"


def failures(element: ET.Element) -> list[str]:
    """The failed assertions below a test case, each with its place, sections and values."""
    lines = []
    for child in element:
        text = {part.tag: " ".join((part.text or "").split()) for part in child}
        if child.tag == "Section":
            inside = failures(child)
            lines += [f"section: {child.get('name', '').strip()}", *("  " + line for line in inside)] if inside else []
        elif child.tag == "Expression" and child.get("success") == "false":
            lines += [f"{place(child)}: {child.get('type')}( {text.get('Original')} )", f"  with: {text.get('Expanded')}"]
            lines += [f"  {tag}: {text[tag]}" for tag in ("Exception", "FatalErrorCondition") if tag in text]
        elif child.tag in ("Exception", "FatalErrorCondition"):
            lines.append(f"{place(child)}: {child.tag}: {(child.text or '').strip()}")
        elif child.tag in ("Failure", "Info", "Warning"):
            lines.append(f"{child.tag}: {(child.text or '').strip()}")
    return lines


def read_test_cases(report: Path):
    """Complete test cases, the name of one that was begun and not ended, and whether the report is complete."""
    cases, begun = [], None
    try:
        for event, element in ET.iterparse(report, events=("start", "end")):
            if element.tag == "TestCase":
                begun = element.get("name") if event == "start" else None
                if event == "end":
                    cases.append(element)
    except ET.ParseError:
        return cases, begun, False
    return cases, None, True


def count_unit_tests(counts: Counts, name: str, report: Path, status: int, log: str):
    cases, begun, complete = read_test_cases(report)
    failed_before = counts.failed
    said_by_printf = reasons(log)  # Catch2 redirects the C++ streams only; these lines name no test case
    for case in cases:
        result = case.find("OverallResult")
        title = f"{name}: {case.get('name')}"
        said = reasons(result.findtext("StdOut") or "")
        if result.get("success") != "true":
            printed = "".join((result.findtext(stream) or "").strip() for stream in ("StdOut", "StdErr"))
            counts.fail(f"{title} ({place(case)})", failures(case) + printed.splitlines()[-TAIL_LINES:])
        elif said or int(result.get("skips", 0)):
            counts.skip(title, said[0] if said else "see its test")
        else:
            counts.passed += 1
    for reason in said_by_printf:
        counts.passed -= 1
        counts.skip(name, reason)
    if not complete:
        where = f" in: {begun}" if begun else ""
        counts.fail(f"{name}: the test program {how_it_ended(status)}{where}", tail(log))
    elif status != 0 and counts.failed == failed_before:
        counts.fail(f"{name}: the test program {how_it_ended(status)} after its last test case", tail(log))
    elif status >= TIMED_OUT:  # told by the failed test case that was last; those after it did not run
        print("\n".join([f"\n{name}: the test program {how_it_ended(status)}; its last output:", *tail(log)]))


def count_script(counts: Counts, name: str, status: int, log: str):
    if status == 0:
        counts.passed += 1
        count = re.search(r"^OK \(.*\bskipped=(\d+).*\)$", log, re.M)  # what was printed may stand behind it
        skipped = re.findall(r"^ *(\w+).*? \.\.\. skipped (['\"])(.*)\2$", log, re.M)
        skipped += [("a test", "", "it did not say why")] * (int(count[1]) - len(skipped) if count else 0)
        for test, _, reason in skipped:
            counts.skip(f"{name}: {test}", reason)
    elif status == SKIPPED:
        counts.skip(name, tail(log)[-1].removeprefix(MARK))
    else:
        counts.fail(f"{name} {how_it_ended(status)}", tail(log))


def main() -> int:
    counts = Counts()
    for status_file in sorted(Path(sys.argv[1]).glob("*.rc")):
        name, status = status_file.stem, int(status_file.read_text())
        log = status_file.with_suffix(".log").read_text(errors="replace")
        report = status_file.parent / f"{name}.xml"
        if report.exists():
            count_unit_tests(counts, name, report, status, log)
        else:
            count_script(counts, name, status, log)
    skipped = f", {counts.skipped} skipped" if counts.skipped else ""
    print(f"\n{counts.passed} passed, {counts.failed} failed{skipped}")
    return 0 if counts.passed and not counts.failed else 1


sys.exit(main())
