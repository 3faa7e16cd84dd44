"""`make fuzz-plan`: changed network files under the address and undefined-behaviour sanitizers, a million of them, or
FUZZ_PLAN_ARGS="--count N --first N".

A draw is named by its number, which a report of a sanitizer tells: `--first N --count 1` repeats it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from tests.sanitizers import build

from . import files

HERE = Path(__file__).resolve().parent
# optimised a little: a draw takes milliseconds
HOW = {**build.SANITIZE, "DEBUG": "0"}
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def program(folder: Path, libraries: Path, *flags: str) -> Path:
    """The compiled program, linked to the C library in `libraries`."""
    made = folder / "fuzz"
    include = f"-I{build.ROOT / 'csrc/engine/c_api'}"
    linked = [f"-L{libraries}", "-lliteseg", f"-Wl,-rpath,{libraries}"]
    command = ["g++", "-std=c++17", "-O1", "-g", *flags, include, str(HERE / "fuzz.cpp"), *linked, "-o", str(made)]
    subprocess.run(command, check=True)
    return made


def seeds(folder: Path) -> list[str]:
    """A file of each small network, as the program takes them."""
    found = []
    with torch.inference_mode():
        for name in files.NETWORKS:
            path = files.write(files.fused(name), folder / f"{name}.liteseg")
            words, values = files.parts(path.read_bytes())
            found.append(f"{path}:{words}:{values}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.c_api.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=1_000_000)
    options = parser.parse_args()
    if reason := build.missing():
        sys.exit(f"error: {reason}")
    libraries = build.build(folder=build.ROOT / "build/fuzz", how=HOW)
    with tempfile.TemporaryDirectory() as folder:
        made = program(Path(folder), libraries, *SANITIZERS)
        command = [str(made), str(options.first), str(options.count), *seeds(Path(folder))]
        return subprocess.run(command).returncode


if __name__ == "__main__":
    sys.exit(main())
