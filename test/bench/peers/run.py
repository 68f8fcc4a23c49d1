#!/usr/bin/env python3
"""An epoch of MNIST in torchbus and in Python's training libraries: seconds, and their ratio to torchbus.

All train a 784-128-10 MLP with SGD (0.05, momentum 0.9) in batches of 32 on data in memory, and compute loss and
accuracy; each library is used as its own quick start shows. Programs run one at a time, in interleaved rounds, and
only the epoch is timed. The first run makes build/peers-venv, which takes 6 GB.

    ninja -C build/release test/bench/one_epoch
    test/bench/peers/run.py --rounds 5 --threads 2 --markdown

Exits with 0, with 1 if one of the programs failed, with 2 if something that it needs is missing.
"""
import argparse
import datetime
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
VENV = ROOT / "build/peers-venv"
PYTHON = VENV / "bin/python"
REQUIREMENTS = HERE / "requirements.txt"
INSTALLED = VENV / "installed-requirements.txt"  # written last, so an interrupted installation is taken up again
OURS = "torchbus"
OUR_PROGRAM = "build/release/test/bench/one_epoch"
PEERS = {  # name in the table: file here, package in requirements.txt
    "plain PyTorch loop": ("plain_python.py", "torch"),
    "accelerate": ("accelerate_peer.py", "accelerate"),
    "pytorch-ignite": ("ignite_peer.py", "pytorch-ignite"),
    "pytorch-accelerated": ("pytorch_accelerated_peer.py", "pytorch-accelerated"),
    "Lightning": ("lightning_peer.py", "lightning"),
}
VENV_BYTES, DOWNLOAD_BYTES = 6e9, 3.2e9
TIMEOUT_S = 900


def stop(message: str):
    print(f"run.py: {message}", file=sys.stderr)
    sys.exit(2)


# --- the environment -------------------------------------------------------------------------------------------------

def check_space() -> None:
    def needs(folder: Path, what: str, needed: float):
        free = shutil.disk_usage(folder).free
        if free < needed:
            stop(f"{what}: {free / 1e9:.1f} GB free, expected {needed / 1e9:.1f} GB; make room, "
                 "or set TMPDIR to a folder that has it for pip's downloads")

    temporary = Path(tempfile.gettempdir())
    same_disk = temporary.stat().st_dev == VENV.parent.stat().st_dev
    needs(VENV.parent, "build/", VENV_BYTES + (DOWNLOAD_BYTES if same_disk else 0))
    needs(temporary, "the temporary folder", DOWNLOAD_BYTES)


def prepare_environment() -> None:
    if INSTALLED.is_file() and INSTALLED.read_text() == REQUIREMENTS.read_text():
        return
    VENV.parent.mkdir(exist_ok=True)
    check_space()
    print("== making build/peers-venv (about 3 GB to fetch)", file=sys.stderr)
    pip = [PYTHON, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", "-r", REQUIREMENTS]
    try:
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
        subprocess.run(pip, check=True)
    except subprocess.CalledProcessError as error:
        stop(f"build/peers-venv could not be made (exit status {error.returncode}); see the messages above")
    shutil.copyfile(REQUIREMENTS, INSTALLED)


def versions() -> dict[str, str]:
    pinned = dict(line.split("==") for line in REQUIREMENTS.read_text().split() if "==" in line)
    named = {name: pinned[package] for name, (_, package) in PEERS.items()}
    return named | {OURS: re.search(r"version: '([^']+)'", (ROOT / "meson.build").read_text())[1]}


# --- running ---------------------------------------------------------------------------------------------------------

class PeerFailed(Exception):
    pass


def train(command: list) -> dict:
    """Runs one program for an epoch; returns the {"seconds", "loss", "accuracy"} of its last line."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}  # all of them on the CPU
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise PeerFailed(f"no result within {TIMEOUT_S} s") from None
    except OSError as error:
        raise PeerFailed(error.strerror) from None
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()] or lines or ["nothing was printed"]
        reason = said[-1].strip().replace(f"{ROOT}/", "").replace(str(Path.home()), "~")
        raise PeerFailed(f"exit status {done.returncode}: {reason}")
    try:
        result = json.loads(lines[-1])
        return {key: float(result[key]) for key in ("seconds", "loss", "accuracy")}
    except (IndexError, KeyError, TypeError, ValueError):
        raise PeerFailed("its last line is not the expected JSON") from None


def commands(options) -> dict[str, list]:
    if not (ROOT / OUR_PROGRAM).is_file():
        stop(f"{OUR_PROGRAM} is missing; build it: ninja -C build/release test/bench/one_epoch "
             "(tools/test makes build/release)")
    flags = ["--threads", str(options.threads)]
    if options.limit:
        flags += ["--limit", str(options.limit)]
    ours = [ROOT / OUR_PROGRAM, "--batch", "32", "--optimizer", "sgd", *flags]
    return {OURS: ours} | {name: [PYTHON, HERE / file, *flags] for name, (file, _) in PEERS.items()}


def run_rounds(programs: dict[str, list], rounds: int) -> tuple[dict[str, list], dict[str, str]]:
    """The results of each program, one a round, and what went wrong with those that failed."""
    results, errors = {name: [] for name in programs}, {}
    for number in range(1, rounds + 1):
        print(f"round {number}/{rounds}", file=sys.stderr)
        for name in (name for name in programs if name not in errors):
            try:
                results[name].append(train(programs[name]))
            except PeerFailed as error:
                errors[name] = str(error)
                print(f"{name}: {error}", file=sys.stderr)
    return results, errors


# --- the table -------------------------------------------------------------------------------------------------------

def row(name: str, results: dict[str, list], errors: dict[str, str]) -> list[str]:
    if name in errors:
        return [f"failed: {errors[name]}", "", "", "", ""]
    middle = {key: median(result[key] for result in results[name]) for key in results[name][0]}
    cells = [f"{middle['seconds']:.3f}", "", "", f"{middle['loss']:.4f}", f"{middle['accuracy']:.4f}"]
    if OURS in results and OURS not in errors:
        ratios = [result["seconds"] / ours["seconds"] for result, ours in zip(results[name], results[OURS])]
        cells[1:3] = [f"{median(ratios):.2f}", f"{min(ratios):.2f}–{max(ratios):.2f}"]
    return cells


def table(results: dict[str, list], errors: dict[str, str], markdown: bool) -> str:
    known = versions()
    rows = [["", "version", "seconds", "ratio", "min–max", "loss", "accuracy"]]
    rows += [[name, known[name], *row(name, results, errors)] for name in results]
    if markdown:
        rows.insert(1, ["---", "---", "---:", "---:", "---:", "---:", "---:"])
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in rows)
    widths = [max(len(cells[column]) for cells in rows if not cells[2].startswith("failed")) for column in range(7)]
    widths[:2] = (max(len(cells[column]) for cells in rows) for column in (0, 1))
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(cells, widths)).rstrip() for cells in rows)


def machine() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text() if cpuinfo.is_file() else "", re.MULTILINE)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model[1].strip() if model else platform.machine()}, {cores} cores"


def caption(options) -> str:
    python = subprocess.run([PYTHON, "-V"], capture_output=True, text=True).stdout.strip()
    samples = f"the first {options.limit} samples" if options.limit else "60,000 samples"
    return (f"One epoch of MNIST ({samples}), 784-128-10 MLP, SGD 0.05 with momentum 0.9, batch 32, threads: "
            f"{options.threads}. Medians of {options.rounds} interleaved rounds, ratios to torchbus in the same round; "
            f"loss and accuracy are those of training. {machine()}; {datetime.date.today()}; {python}, "
            f"torch {versions()['plain PyTorch loop']}.")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--markdown", action="store_true", help="print a table for a README")
    parser.add_argument("--limit", type=int, help="train on the first LIMIT samples only, for a try")
    options = parser.parse_args()
    if min(options.rounds, options.threads, options.limit or 1) < 1:
        parser.error("--rounds, --threads and --limit take numbers from 1 on")
    programs = commands(options)
    prepare_environment()
    if os.getloadavg()[0] > 0.5:
        print(f"the load average is {os.getloadavg()[0]:.1f}: other programs disturb these times", file=sys.stderr)
    results, errors = run_rounds(programs, options.rounds)
    print(table(results, errors, options.markdown), caption(options), sep="\n\n")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
