#!/usr/bin/env python3
"""Makes a Python environment in which torch's own torchrun runs on a machine without CUDA: `import torch` wants all of
CUDA's libraries, 3 GB of them, and calls none of them as long as nothing is computed on a device.

usage: prepare.py SITE_PACKAGES FOLDER; prints the environment's python. SITE_PACKAGES has torch; FOLDER gets the environment, and
libraries that have the names, symbols and versions that torch's are linked with, and of which every function returns 1.
"""
import collections
import os
import re
import subprocess
import sys
from pathlib import Path

PACKAGES = ("typing_extensions", "sympy", "networkx", "jinja2", "fsspec", "filelock", "setuptools")
# Symbols without a version are told apart by how they begin.
PREFIXES = {"libnccl.so.2": ("nccl", "pnccl"), "libcufile.so.0": ("cuFile",), "libcusparseLt.so.0": ("cusparseLt",), "libnvshmem_host.so.3": ("nvshmem",), "libcusolver.so.12": ("cusolver",),
            "libcudnn.so.9": ("cudnn",), "libnvrtc.so.13": ("nvrtc",), "libcufft.so.12": ("cufft",), "libcusparse.so.12": ("cusparse",), "libcublas.so.13": ("cublas",), "libcublasLt.so.13": ("cublasLt",)}


def output_of(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def wanted_symbols(libraries):
    """By library: by version ("" for none), the functions that others refer to."""
    wanted = collections.defaultdict(lambda: collections.defaultdict(set))
    defined, unversioned = set(), set()
    for library in libraries:
        owner, library_of = None, {}  # of versions
        for line in output_of("objdump", "-p", library).splitlines():
            if found := re.match(r"\s+required from (\S+):", line):
                owner = found[1]
            elif owner and (found := re.match(r"\s+0x\w+ 0x\w+ \d+ (\S+)", line)):
                library_of[found[1]] = owner
        for line in output_of("nm", "-D", library).splitlines():
            *_, kind, symbol = line.split()
            name, _, version = symbol.replace("@@", "@").partition("@")
            if kind not in "Uw":
                defined.add(name)
            elif version:
                wanted[library_of.get(version, "")][version].add(name)
            else:
                unversioned.add(name)
    for library, prefixes in PREFIXES.items():
        wanted[library][""] |= {name for name in unversioned - defined if name.startswith(prefixes)}
    return wanted


def make_stub(path, symbols):
    assembly = ".text\n" + "".join(f".globl {name}\n.type {name},@function\n{name}: mov $1,%eax\nret\n" for name in sorted(set().union(*symbols.values())))
    script = "".join(f"{version} {{ global: {' '.join(name + ';' for name in sorted(names))} }};\n" for version, names in symbols.items() if version)
    source, versions = path.with_suffix(".s"), path.with_suffix(".map")
    source.write_text(assembly)
    versions.write_text(script)
    subprocess.run(["cc", "-shared", "-nostdlib", "-o", path, f"-Wl,-soname,{path.name}", source, *([f"-Wl,--version-script={versions}"] if script else [])], check=True)
    source.unlink()
    versions.unlink()


def main(site_packages, folder):
    python, done = folder / "venv/bin/python", folder / "done"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES], check=True, stdout=sys.stderr)
        own = Path(output_of(python, "-c", "import site; print(site.getsitepackages()[0])").strip())
        (own / "torch_of_the_build.pth").write_text(f"{site_packages}\n")
        libraries = sorted((site_packages / "torch/lib").glob("*.so*"))
        needed = {found for library in libraries for found in re.findall(r"NEEDED\s+(\S+)", output_of("objdump", "-p", library))}
        (folder / "stubs").mkdir(exist_ok=True)
        for name, symbols in wanted_symbols(libraries).items():
            if name in needed and name in PREFIXES:
                make_stub(folder / "stubs" / name, symbols)
        environment = dict(os.environ) | {"LD_LIBRARY_PATH": str(folder / "stubs")}
        subprocess.run([python, "-c", "import torch.distributed.run"], check=True, env=environment, stdout=sys.stderr)
        done.touch()
    print(python)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
