"""Makes ready what travels to a lent GPU machine: `make gpu-pack`, `python -m benchmarks.gpu_pack [--plan train]`.

    build/gpu-day/pack-short.tar.xz   both compiled libraries, the record of their build, Triton kernels compiled ahead
    build/gpu-day/pack-train.tar.xz   CamVid's train and val images, weights to start from, packages the machine lacks

Only what changed is built again. `bash benchmarks/gpu_call_1.sh` unpacks there what its plan needs.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from liteseg.bench.record import commit

from . import rows
from .gpu_call import CACHE, COMMIT, FOLDER, PACKAGES, TRAINING, pack_of
from .machine import BUILT, LIBRARIES
from .rows import ROOT

# bytes; the whole tree may be 64 MiB, with everything that is not ignored
LIMIT = 40 * 10**6
# of Triton's cache: what is loaded, not what a reader would want
LOADED = (".cubin", ".json", ".so")
# not part of the machine's image, all of them Python alone
_MISSING = ("jsonargparse", "docstring-parser", "typeshed-client")
_SPLITS = ("train", "val")
BACKBONE = "mobilenet_v2_imagenet_int8dq.safetensors"
Entry = tuple[str, Path]


class TooLarge(SystemExit):
    """An archive that cannot travel."""


def build() -> None:
    """Both libraries, unless they are there for these sources; setup.py compiles what changed alone."""
    present = all((ROOT / f"liteseg_kernels/{name}.abi3.so").is_file() for name in LIBRARIES)
    if present and BUILT.is_file() and BUILT.read_text() == rows.sources():
        return
    print("gpu-pack: building the libraries", flush=True)
    variables = {**os.environ, "LITESEG_BUILD": "cuda"}
    subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=ROOT, env=variables, check=True)
    BUILT.parent.mkdir(parents=True, exist_ok=True)
    BUILT.write_text(rows.sources())


def warm(python: str, plan: str, seconds: float) -> None:
    """Compile Triton kernels ahead with `python`, whose Triton and Python have to be the GPU machine's."""
    record = FOLDER / "warm.txt"
    sources = rows.digest(path for path in (ROOT / "liteseg_kernels/triton").iterdir() if path.is_file())
    before = record.read_text().split() if record.is_file() else []
    if before == [sources, plan, f"{seconds:g}"]:
        return
    if before[:1] != [sources]:
        # kernels of other sources would only take up room
        shutil.rmtree(CACHE, ignore_errors=True)
    record.write_text(f"{sources} {plan} begun")
    print(f"gpu-pack: compiling Triton kernels for at most {seconds:.0f} s", flush=True)
    variables = {**os.environ, "TRITON_CACHE_DIR": str(CACHE), "PYTHONPATH": str(ROOT)}
    command = [python, "-W", "ignore", "-m", "benchmarks.warm", plan, str(seconds)]
    with (FOLDER / "warm-log.txt").open("w") as log:
        done = subprocess.run(command, cwd=ROOT, env=variables, stdout=log, stderr=log, check=False)
    if done.returncode != 0:
        raise SystemExit(f"gpu-pack: compiling ahead failed with exit code {done.returncode}, see {log.name}")
    record.write_text(f"{sources} {plan} {seconds:g}")


def short(share: float = 1.0) -> Iterator[Entry]:
    """Name in the archive and file of everything that the plan `short` wants to find, with a share of the kernels that
    were compiled ahead."""
    for path in (
        *(ROOT / f"liteseg_kernels/{name}.abi3.so" for name in LIBRARIES),
        ROOT / "liteseg_kernels/_build_info.py",
    ):
        yield str(path.relative_to(ROOT)), path
    yield str(BUILT.relative_to(ROOT)), BUILT
    yield str(COMMIT.relative_to(ROOT)), COMMIT
    # the networks' kernels were compiled first
    folders = sorted((path for path in CACHE.glob("*") if path.is_dir()), key=lambda path: path.stat().st_mtime)
    for folder in folders[: round(share * len(folders))]:
        for path in sorted(folder.iterdir()):
            if path.name.endswith(LOADED):
                yield str(path.relative_to(ROOT)), path


def train(shared: Path) -> Iterator[Entry]:
    """The same for the plan `train`."""
    yield str(COMMIT.relative_to(ROOT)), COMMIT
    data = shared / "data/camvid"
    folders = [folder for split in _SPLITS for folder in (split, f"{split}annot")]
    files = [data / f"{split}.txt" for split in _SPLITS] + [p for f in folders for p in sorted((data / f).iterdir())]
    for path in files:
        yield str((TRAINING / "camvid" / path.relative_to(data)).relative_to(ROOT)), path
    yield str((TRAINING / "backbone.safetensors").relative_to(ROOT)), shared / "weights" / BACKBONE
    for name in _MISSING:
        for held in importlib.metadata.distribution(name).files or ():
            path = Path(str(held.locate()))
            if path.is_file() and "__pycache__" not in path.parts and ".." not in held.parts:
                yield str((PACKAGES / str(held)).relative_to(ROOT)), path


def write(entries: Sequence[Entry], target: Path) -> bool:
    """Write the archive, unless it is there with the same contents; whether it was written."""
    state = hashlib.sha256()
    for name, path in entries:
        state.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    record = target.with_suffix(".json")
    if target.is_file() and record.is_file() and json.loads(record.read_text())["contents"] == state.hexdigest():
        return False
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:xz", preset=6) as archive:
        for name, path in entries:
            archive.add(path, name, recursive=False)
    if len(held.getvalue()) > LIMIT:
        raise TooLarge(f"gpu-pack: {target.name}: expected at most {LIMIT:,} bytes, got {len(held.getvalue()):,}")
    partial = target.with_suffix(f".{os.getpid()}")
    partial.write_bytes(held.getvalue())
    os.replace(partial, target)
    record.write_text(json.dumps({"contents": state.hexdigest(), "files": len(entries)}) + "\n")
    return True


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("gpu-pack", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--plan", choices=("short", "train"), default="short")
    parser.add_argument(
        "--gpu-python",
        default=os.environ.get("GPU_STAND_IN"),
        metavar="PYTHON",
        help=(
            "a Python like the GPU machine's, whose Triton compiles kernels ahead (default: $GPU_STAND_IN; without "
            "one they are compiled there)"
        ),
    )
    parser.add_argument("--warm-seconds", type=float, default=900, help="for compiling ahead (default 900)")
    shared = os.environ.get("LITESEG_SHARED") or ROOT.parent / "shared"
    parser.add_argument("--shared", type=Path, default=Path(shared), help="folder with data/camvid and weights")
    arguments = parser.parse_args(given)
    started = time.time()
    FOLDER.mkdir(parents=True, exist_ok=True)
    COMMIT.write_text(commit())
    if arguments.plan == "short":
        build()
        if arguments.gpu_python:
            warm(arguments.gpu_python, arguments.plan, arguments.warm_seconds)
        else:
            print("gpu-pack: no --gpu-python: no Triton kernel is compiled ahead")
    target = pack_of(arguments.plan)
    for share in (1.0, 0.75, 0.5, 0.25, 0.0):
        entries = list(short(share) if arguments.plan == "short" else train(arguments.shared))
        try:
            written = write(entries, target)
            break
        except TooLarge:
            if arguments.plan != "short" or share == 0.0:
                raise
            print(f"gpu-pack: with {share:.0%} of the kernels it is too large", flush=True)
    kernels = sum(name.endswith(".cubin") for name, _ in entries)
    size = target.stat().st_size
    print(
        f"gpu-pack: {target.relative_to(ROOT)} {'written' if written else 'is up to date'}: {len(entries)} files, "
        f"{kernels} Triton kernels, {sum(p.stat().st_size for _, p in entries):,} bytes as {size:,}, "
        f"{time.time() - started:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
