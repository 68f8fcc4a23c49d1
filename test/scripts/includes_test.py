#!/usr/bin/env python3
"""Reads the includes of include/torchbus, src and callbacks, and fails on a wrong arrow between two rooms, and on a
test that no build lists.

A file may include its own room and those on lower floors; rooms of one floor stand side by side and do not see each
other. usage: includes_test.py [ROOT]
"""
import os
import re
import sys
from pathlib import Path

# Floors, lowest first; each is a list of rooms: a room's name, and the nouns (headers or folders) that live in it.
FLOORS = [
    {"error": "error version json_text process_memory"},
    {"events": "position interval device batch_range changed_option name_pattern option_reader registry decision run_plan batch label_range model update gradients_view host_read blackboard consensus "
               "events events_json event_fields events_reference"},
    {"bus": "filter event_type delivery subscriber bus"},
    {"state_machine": "state_machine"},
    {"callback": "declaration run_state callback function_callback"},
    {"data": "data", "optim": "optim", "models": "models", "checkpoint": "checkpoint",
     "stream": "stream", "metrics": "metrics"},
    {"distributed": "distributed"},  # sends batches and states
    {"callbacks": "callbacks", "arrangement": "arrangement"},
    {"trainer": "trainer run_config run_history signals"},
    {"composition": "composition composition_schema plugin link"},
    {"cli": "cli"},
    {"torchbus.hpp": "torchbus"},  # the header that includes all others
]
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
ROOM_OF = {noun: room for rooms in FLOORS for room, nouns in rooms.items() for noun in nouns.split()}
ONLY = {"stream": {"error", "events", "bus", "callback", "stream"}}  # observers from outside: no data, no optimizers
SHARED_BY_CALLBACKS = "entries.hpp"  # beside callbacks/parts: what several are made of
SEES_ALL_CALLBACKS = {"registry"}
FORBIDDEN_FOLDERS = {"utils", "common", "helpers", "manager"}
NOT_OURS = {".git", ".cache", "build"}

INCLUDE = re.compile(r'^\s*#\s*include\s*(?:"([^"]+)"|<([^>]+)>)')


def noun_of(path: Path) -> str:
    """`path` is relative to the root: a header's name, or its folder's, says what it is about."""
    parts = path.parts[2:] if path.parts[0] == "include" else path.parts[1:] if path.parts[0] == "src" else path.parts
    return parts[0].split(".")[0]


def is_callback(path: Path) -> bool:
    return path.parts[0] == "callbacks" or path.parts[:3] == ("include", "torchbus", "callbacks")


def included_file(root: Path, path: Path, quoted: str, angled: str):
    """The file of ours that is included, relative to the root; None for another library's."""
    if quoted:
        return Path(os.path.normpath(path.parent / quoted))
    return Path("include") / angled if angled.startswith("torchbus/") else None


def complaint(path: Path, target: Path) -> str:
    """What is wrong with `path` including `target`; empty where nothing is."""
    room, other = ROOM_OF[noun_of(path)], ROOM_OF.get(noun_of(target))
    if other is None:
        return f"'{noun_of(target)}' is in no room; add it to FLOORS in test/scripts/includes_test.py"
    if room in ONLY and other not in ONLY[room]:
        return f"'{room}' may include {', '.join(sorted(ONLY[room]))}"
    if room != other and FLOOR_OF[other] >= FLOOR_OF[room]:
        lower = [name for floor in FLOORS[:FLOOR_OF[room]] for name in floor]
        return f"'{other}' is not below '{room}', which may include {', '.join([*lower, 'itself'])}"
    if is_callback(path) and is_callback(target):
        shared = target.name == SHARED_BY_CALLBACKS or target.parts[:2] == ("callbacks", "parts")
        if path.stem not in SEES_ALL_CALLBACKS and target.stem != path.stem and not shared:
            return f"callbacks do not include each other; '{path.stem}' may include its own header, {SHARED_BY_CALLBACKS} and parts/"
    return ""


def foreign_complaint(path: Path, header: str) -> str:
    if header.startswith("boost/signals2") and path.parts[:2] != ("src", "bus"):
        return "only src/bus may: the signal library is hidden behind <torchbus/bus.hpp>"
    if header == "torch/torch.h" and path.parts[0] == "include":
        return "a public header may not: it costs users 10 s a file; include <ATen/core/Tensor.h> or declare the type"
    return ""


def check_file(root: Path, path: Path) -> list[str]:
    if noun_of(path) not in ROOM_OF:
        return [f"{path}: '{noun_of(path)}' is in no room; add it to FLOORS in test/scripts/includes_test.py"]
    findings = []
    for number, line in enumerate((root / path).read_text().splitlines(), start=1):
        if match := INCLUDE.match(line):
            target = included_file(root, path, *match.groups())
            wrong = complaint(path, target) if target else foreign_complaint(path, match[2])
            if wrong:
                findings.append(f"{path}:{number}: includes {match[1] or match[2]}: {wrong}")
    return findings


def forbidden_folders(root: Path) -> list[str]:
    findings = []
    for folder, names, _ in os.walk(root):
        names[:] = [name for name in names if name not in NOT_OURS]
        findings += [f"{Path(folder, name).relative_to(root)}/: a room is named for what is in it, not '{name}'"
                     for name in names if name in FORBIDDEN_FOLDERS]
    return findings


def unlisted_tests(root: Path) -> list[str]:
    listed = (root / "test/meson.build").read_text()
    return [f"{path.relative_to(root)}: test/meson.build does not name it, so it never runs"
            for path in sorted((root / "test").rglob("*_test.cpp")) if f"'{path.relative_to(root / 'test')}'" not in listed]


def main() -> int:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[2]).resolve()
    sources = sorted(path.relative_to(root) for folder in ("include/torchbus", "src", "callbacks")
                     for path in (root / folder).rglob("*.[ch]pp") if "pch" not in path.parts)
    findings = [finding for path in sources for finding in check_file(root, path)] + forbidden_folders(root) + unlisted_tests(root)
    print("\n".join(findings) or f"{len(sources)} files, every arrow points down")
    return 1 if findings or not sources else 0


sys.exit(main())
