"""Prints the folder of a `torch` package, how it was found, and its version.

Looks, in this order: the option `libtorch:path`, the environment variable TORCHBUS_LIBTORCH, the project's own
virtual environment, a `torch` that this Python can see (which is not imported: that would need all of CUDA).
"""
import importlib.util
import os
import sys
from pathlib import Path


def looks_right(root: Path) -> bool:
    return (root / "include/ATen/ATen.h").is_file() and (root / "lib/libtorch_cpu.so").is_file()


def version_of(root: Path) -> str:
    for candidate in (root / "version.py", root / "build-version", root.parent / "build-version"):
        if candidate.is_file():
            text = candidate.read_text()
            if candidate.name == "build-version":
                return text.strip()
            for line in text.splitlines():
                if line.startswith("__version__"):
                    return line.split("'")[1]
    return "unknown"


def candidates(option: str, source_root: Path):
    if option:
        yield Path(option), "option libtorch:path"
        return
    if os.environ.get("TORCHBUS_LIBTORCH"):
        yield Path(os.environ["TORCHBUS_LIBTORCH"]), "environment variable TORCHBUS_LIBTORCH"
        return
    for site in sorted((source_root / "build/venv/lib").glob("python3*/site-packages/torch")):
        yield site, "the project's virtual environment"
    try:
        spec = importlib.util.find_spec("torch")
    except (ImportError, ValueError):
        spec = None
    for location in (spec.submodule_search_locations or []) if spec else []:
        yield Path(location), "python3"


def main() -> int:
    option, source_root = sys.argv[1], Path(sys.argv[2])
    tried = []
    for root, how in candidates(option, source_root):
        if looks_right(root):
            print(root.resolve(), how, version_of(root), sep="\n")
            return 0
        tried.append(f"{root} ({how})")
    print("LibTorch was not found. Tried: " + ("; ".join(tried) or "nothing but python3, which sees no torch") + ". "
          "Run tools/quickstart, or give the folder that holds include/ and lib/ with -Dlibtorch:path=DIR "
          "or TORCHBUS_LIBTORCH=DIR.", file=sys.stderr)
    return 1


sys.exit(main())
