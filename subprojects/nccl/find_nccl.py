"""Prints NCCL's include folder, its library, how it was found, its version, and CUDA's include folder ('' if unknown).

Looks, in this order: the option `nccl:path`, the environment variable TORCHBUS_NCCL, the project's own virtual
environment, an `nvidia.nccl` that this Python can see, the system's folders.
"""
import importlib.util
import os
import re
import sys
from pathlib import Path

SYSTEM = ("/usr", "/usr/local", "/usr/local/cuda")


def candidates(option: str, source_root: Path):
    if option:
        yield Path(option), "option nccl:path"
        return
    if os.environ.get("TORCHBUS_NCCL"):
        yield Path(os.environ["TORCHBUS_NCCL"]), "environment variable TORCHBUS_NCCL"
        return
    for package in sorted((source_root / "build/venv/lib").glob("python3*/site-packages/nvidia/nccl")):
        yield package, "the project's virtual environment"
    try:
        spec = importlib.util.find_spec("nvidia.nccl")
    except (ImportError, ValueError):
        spec = None
    for location in (spec.submodule_search_locations or []) if spec else []:
        yield Path(location), "python3"
    for root in SYSTEM:
        yield Path(root), "the system"


def library_of(root: Path):
    for pattern in ("lib/libnccl.so*", "lib64/libnccl.so*", "lib/*-linux-gnu/libnccl.so*"):
        for library in sorted(root.glob(pattern)):
            return library
    return None


def version_of(header: Path) -> str:
    text = header.read_text(errors="replace")
    parts = [re.search(rf"^#define NCCL_{part}\s+(\d+)", text, re.M) for part in ("MAJOR", "MINOR", "PATCH")]
    return ".".join(part.group(1) for part in parts) if all(parts) else "unknown"


def cuda_include_beside(root: Path) -> str:
    """nccl.h includes cuda_runtime.h, which the wheels keep in a package beside NCCL's."""
    wheels = [*sorted(root.parent.glob("cu[0-9]*/include")), root.parent / "cuda_runtime/include"]
    for include in [*wheels, Path("/usr/local/cuda/include")]:
        if (include / "cuda_runtime.h").is_file():
            return str(include.resolve())
    return ""


def main() -> int:
    option, source_root = sys.argv[1], Path(sys.argv[2])
    tried = []
    for root, how in candidates(option, source_root):
        header, library = root / "include/nccl.h", library_of(root)
        if header.is_file() and library:
            print(header.parent.resolve(), library.absolute(), how, version_of(header), sep="\n")
            print(cuda_include_beside(root))
            return 0
        tried.append(f"{root} ({how})")
    print("tried " + ", ".join(tried), file=sys.stderr)
    return 1


sys.exit(main())
