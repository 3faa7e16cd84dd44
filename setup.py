"""Build of the compiled libraries; everything static is in pyproject.toml.

liteseg_kernels/_C.abi3.so       C++ CPU kernels (csrc/engine, csrc/torch), built wherever torch >= 2.11 and a C++17
                                 compiler are found
liteseg_kernels/libliteseg.so    C library that runs network files without torch and Python (csrc/engine/c_api): the
                                 objects of csrc/engine linked a second time
liteseg_kernels/_C_cuda.abi3.so  CUDA kernels (csrc/cuda), built where nvcc is found too
liteseg_kernels/_watch.abi3.so   what every call of a network asks (csrc/python), built where Python's headers are found
                                 too; without it the same is asked in Python, which takes longer

The first and the third use only torch's stable ABI and no Python API, and the last only Python's limited API, so one
build serves every CPython >= 3.10 and every torch >= 2.11.
torch is found by folder and never imported: isolated builds do not have it on their path, and importing it would start
CUDA. What was built, with what, and why anything was skipped goes to liteseg_kernels/_build_info.py. Objects lie in
build/kernels, in a folder for each compiler and set of flags: every way of building the same takes them from there.

Environment:
LITESEG_BUILD       auto (default): the CPU library, without which the build fails on Linux, and the CUDA library where
                    nvcc is found; cpu: the CPU library alone; cuda: both, or the build fails; none: no compiled library
LITESEG_TORCH_DIR   folder of the torch package to build against, where it is not found by itself
LITESEG_CUDA_ARCHS  "80;90": machine code for each, and PTX of the oldest and the newest
CUDA_HOME, CXX      toolkit folder, host compiler ("ccache g++" and flags behind it may stand there too); with a cross
                    compiler for Linux a wheel becomes one for its machine, with the CPU libraries (LITESEG_BUILD=cpu)
MAX_JOBS            compiler processes at a time (default: cores)
DEBUG               1: -O0 -g
LITESEG_SANITIZE    "address,undefined": the CPU libraries with these sanitizers (implies DEBUG, or with DEBUG=0 -O1);
                    tests/sanitizers builds them into a folder of its own, and LITESEG_LIBRARIES makes an interpreter
                    load them from there
LITESEG_COVERAGE    1: the CPU library counts which of its branches are taken (gcov); tests/coverage builds it likewise
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import itertools
import math
import os
import platform
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
PACKAGE = "liteseg_kernels"
OLDEST_SETUPTOOLS = 77
VERSION = re.findall(r'"(\d[^"]*)"', (ROOT / PACKAGE / "_version.py").read_text())[0]
OLDEST_TORCH = (2, 11)
TORCH_TARGET = "0x020b000000000000"
HEADER = Path("include/torch/csrc/stable/library.h")
INSTRUCTION_SETS = ROOT / "csrc/engine/instruction_sets.txt"
# of the C library alone; the rest of what it is linked from are the engine's objects
C_API = Path("csrc/engine/c_api")
LIBRARIES = ("_C", "_C_cuda", "_watch")
# compiled with what `write_schemas` makes of the signatures, and where it puts that
GENERATED = Path("build/generated")
OPS = Path("csrc/torch/ops.cpp")
SIGNATURES = ROOT / PACKAGE / "_signatures.py"
MODES = ("auto", "cpu", "cuda", "none")
HOST = platform.machine().lower()


@dataclass(frozen=True)
class InstructionSet:
    """One way in which the kernels of a folder are compiled; at run time the engine chooses (csrc/engine/runtime)."""

    name: str
    simd: str
    folder: str  # of csrc/engine
    machines: tuple[str, ...]  # empty: every one
    flags: tuple[str, ...]


def instruction_sets() -> list[InstructionSet]:
    """The table that CMake reads too; it says what its columns are."""
    rows = (line.split() for line in INSTRUCTION_SETS.read_text().splitlines() if not line.startswith("#"))
    return [
        InstructionSet(name, simd, f"csrc/engine/{folder}", *(listed(cell) for cell in cells))
        for name, simd, folder, *cells in rows
    ]


def listed(cell: str) -> tuple[str, ...]:
    return () if cell in ("any", "none") else tuple(cell.split(","))


@dataclass(frozen=True)
class Unit:
    """One compiler call: a source, which may be compiled several times, its object and the command without either."""

    source: Path
    object: str
    call: list[str]


@dataclass
class Library:
    """One shared object: what is compiled for it, and the linker call around the objects, which come in this order."""

    name: str
    units: list[Unit]
    link: list[str]
    linked: list[str]
    # of another library, linked into this one too
    shared: list[Unit] = field(default_factory=list)
    extension: bool = True
    # libraries that are not there for the machine it is made for: linked by their names alone
    absent: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        return f"{self.name}.abi3.so" if self.extension else f"{self.name}.so"

    def objects(self) -> list[str]:
        return [unit.object for unit in (*self.shared, *self.units)]

    def sources(self) -> list[str]:
        return list(dict.fromkeys(unit.source.as_posix() for unit in self.units))


@dataclass
class Plan:
    """What this build makes, and for each library it does not make the reason."""

    mode: str
    torch: str | None = None
    compiler: str | None = None
    machine: str = HOST
    nvcc: str | None = None
    archs: list[str] = field(default_factory=list)
    libraries: list[Library] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


class Missing(Exception):
    """A part needed for a library is not on this machine; the text says which and what to do."""


def truthy(name: str) -> bool:
    return os.environ.get(name, "").lower() not in ("", "0", "false", "off", "no")


def torch_folders() -> Iterator[Path]:
    """Where torch may be, the environment that the build is for first.

    Isolated builds hide what is installed. pip's keeps the interpreter, which still knows its folders; uv's has an
    interpreter of its own, and leaves the active environment on PATH, or is called beside a .venv. Any of them will do:
    what is built runs with every torch that is new enough.
    """
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin:
        yield Path(spec.origin).parent
    for prefix in (sys.prefix, sys.base_prefix):
        for key in ("purelib", "platlib"):
            yield Path(sysconfig.get_path(key, vars={"base": prefix, "platbase": prefix})) / "torch"
    yield Path(site.getusersitepackages()) / "torch"
    around = [Path(entry).parent for entry in os.get_exec_path() if os.path.isabs(entry)]
    for prefix in (*around, ROOT / ".venv"):
        yield from sorted(prefix.glob("lib/python3*/site-packages/torch"))


def version_of(torch: Path) -> str:
    """As torch/version.py has it; empty where it cannot be read."""
    file = torch / "version.py"
    found = re.search(r"^__version__\s*=\s*['\"]([^'\"]+)['\"]", file.read_text() if file.is_file() else "", re.M)
    return found.group(1) if found else ""


def find_torch() -> tuple[Path, str]:
    """Folder and version of the torch to build against."""
    named = os.environ.get("LITESEG_TORCH_DIR")
    folders = dict.fromkeys([Path(named)] if named else torch_folders())
    refused, oldest = [], ".".join(map(str, OLDEST_TORCH))
    for folder in folders:
        if not (folder / HEADER).is_file():
            continue
        version = version_of(folder)
        numbers = re.match(r"(\d+)\.(\d+)", version)
        if numbers and (int(numbers.group(1)), int(numbers.group(2))) >= OLDEST_TORCH:
            return folder.resolve(), version
        refused.append(f"torch {version or 'of unknown version'} in {folder} is too old: expected >= {oldest}")
    found = "; ".join(refused) or f"no torch with stable-ABI headers (looked in {', '.join(map(str, folders))})"
    raise Missing(
        f"{found}; install torch >= {oldest} first; where the build does not see it, `pip install -U setuptools` and "
        "`pip install --no-build-isolation .` (with uv: `uv pip install ...`), or set LITESEG_TORCH_DIR to the folder "
        "of the torch package"
    )


def first_line(command: list[str], pattern: str) -> str:
    """The version a tool prints, or a Missing when it does not run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise Missing(f"{command[0]} does not run: {error}") from error
    found = re.search(pattern, done.stdout)
    if done.returncode != 0 or found is None:
        told = done.stderr.strip()[-300:]
        raise Missing(f"{shlex.join(command)} failed with exit code {done.returncode}{told and f': {told}'}")
    return found.group(1)


def find_compiler() -> tuple[list[str], str]:
    """Command and version of the C++ compiler: CXX, else the first of g++, c++, clang++."""
    named = shlex.split(os.environ.get("CXX", ""))
    candidates = [named] if named else [["g++"], ["c++"], ["clang++"]]
    command = next((c for c in candidates if shutil.which(c[0])), None)
    if command is None:
        wanted = " or ".join(c[0] for c in candidates)
        raise Missing(f"no C++ compiler: {wanted} is not on PATH; install one (g++ >= 9) or set CXX")
    try:
        return command, first_line([*command, "--version"], r"\A([^\n]+)")
    except Missing as reason:
        raise Missing(f"{reason}; install a C++ compiler that works (g++ >= 9) or set CXX to one") from None


def machine_of(compiler: list[str]) -> str:
    """What the compiler compiles for: x86_64, aarch64 ..."""
    return first_line([*compiler, "-dumpmachine"], r"\A([^-\s]+)").lower()


def find_nvcc() -> tuple[str, str]:
    """Path and version of nvcc: CUDA_HOME, else PATH, else /usr/local/cuda."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        candidates = [str(Path(home) / "bin" / "nvcc")]
    else:
        candidates = [found for found in (shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc") if found]
    nvcc = next((c for c in candidates if os.access(c, os.X_OK)), None)
    if nvcc is None:
        raise Missing(f"no nvcc (looked at {', '.join(candidates)} and PATH); install a CUDA toolkit or set CUDA_HOME")
    return nvcc, first_line([nvcc, "--version"], r"release [\d.]+, V([\d.]+)")


def cuda_archs() -> list[str]:
    """Compute capabilities to build for, in rising order: "80;90" or "8.0,9.0" in LITESEG_CUDA_ARCHS."""
    text = os.environ.get("LITESEG_CUDA_ARCHS") or "80;90"
    archs = [part.strip().replace(".", "") for part in re.split(r"[;, ]+", text) if part.strip()]
    if not archs or not all(re.fullmatch(r"\d{2,3}[af]?", arch) for arch in archs):
        sys.exit(f"LITESEG_CUDA_ARCHS: expected a list like 80;90, got {text!r}")
    return sorted(dict.fromkeys(archs), key=lambda arch: (int(arch.rstrip("af")), arch))


def unit(library: str, source: Path, call: list[str], versions: str, instructions: str = "") -> Unit:
    """Its object is kept apart from those of other flags, and of other `versions` of the compiler and torch."""
    name = ".".join([*source.relative_to("csrc").parts, *([instructions] if instructions else []), "o"])
    key = hashlib.sha256("\0".join([versions, *call]).encode()).hexdigest()[:12]
    return Unit(source, f"{library}/{key}/{name}", call)


def cpu_sources(machine: str) -> tuple[list[Path], list[tuple[InstructionSet, Path]]]:
    """Sources that are compiled once, and those of kernels with each instruction set that they are compiled for."""
    found = [path.relative_to(ROOT) for part in ("engine", "torch") for path in (ROOT / "csrc" / part).rglob("*.cpp")]
    sets = instruction_sets()
    folders = {one.folder for one in sets} | {C_API.as_posix()}
    plain = sorted(source for source in found if source.parent.as_posix() not in folders)
    sets = [one for one in sets if not one.machines or machine in one.machines]
    kernels = [(one, source) for one in sets for source in sorted(found) if source.parent.as_posix() == one.folder]
    return plain, kernels


def cpu_libraries(torch: Path, compiler: list[str], machine: str, versions: str) -> list[Library]:
    """The extension, and the C library where there are sources of its own."""
    plain, kernels = cpu_sources(machine)
    if not plain:
        raise Missing("csrc/engine and csrc/torch hold no sources")
    named = os.environ.get("LITESEG_SANITIZE")
    checks = [f"-fsanitize={named}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"] if named else []
    optimise = ["-O3", "-DNDEBUG"]
    if truthy("DEBUG") or checks:
        optimise = ["-O1" if os.environ.get("DEBUG") == "0" else "-O0", "-g"]
    if truthy("LITESEG_COVERAGE"):
        # a function that is inlined before gcov counts would have its branches once for each caller
        checks += ["--coverage", "-fprofile-update=atomic", "-fno-early-inlining", "-DLITESEG_COVERAGE"]
        # what the compiler folds away is no branch
        optimise = ["-O1", "-g", "-DNDEBUG"]
    flags = [*optimise, *checks, "-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
    # the C library leaves out what it does not call
    flags += ["-ffunction-sections", "-fdata-sections"]
    defines = [f"-DTORCH_TARGET_VERSION={TORCH_TARGET}", "-DPy_LIMITED_API=0x030A0000"]
    include = ["-Icsrc", "-isystem", str(torch / "include")]
    command = [*compiler, "-c", *flags, *defines, *include]
    # the linker keeps the first copy of an inline function that several files contain: the plain files come first, so
    # that no shared function is the copy compiled for an instruction set the machine may lack
    own_include = {OPS: [f"-I{GENERATED.as_posix()}"]}
    units = [unit("_C", source, [*command, *own_include.get(source, [])], versions) for source in plain]
    for one, source in kernels:
        names = [f"-DLITESEG_ISA={one.name}", f"-DLITESEG_SIMD={one.simd}"]
        units.append(unit("_C", source, [*command, *names, *one.flags], versions, one.name))
    # for another machine torch has the same headers, and the names of its libraries are all that a linker must know
    absent = ("torch", "torch_cpu") if machine != HOST else ()
    found = [] if absent else [f"-L{torch / 'lib'}"]
    linked = [*found, "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu"]
    libraries = [Library("_C", units, [*compiler, "-shared", *checks], linked, absent=absent)]
    own = sorted(path.relative_to(ROOT) for path in (ROOT / C_API).glob("*.cpp"))
    if own:
        version = f'-DLITESEG_VERSION="{VERSION}"'
        engine = [one for one in units if one.source.is_relative_to("csrc/engine")]
        # with the C++ library inside; the sanitizers' own needs the one outside
        alone = [] if checks else ["-static-libstdc++", "-static-libgcc", "-Wl,-s"]
        seen = f"-Wl,--version-script={ROOT / C_API / 'exports.map'}"
        link = [*compiler, "-shared", *checks, *alone, seen, "-Wl,--gc-sections", "-Wl,--no-undefined", "-pthread"]
        own_units = [unit("libliteseg", source, [*command, version], versions) for source in own]
        libraries.append(Library("libliteseg", own_units, link, [], engine, extension=False))
    return libraries


def watch_library(compiler: list[str], machine: str, versions: str) -> list[Library]:
    """The extension of Python, where there is a source of it."""
    sources = sorted(path.relative_to(ROOT) for path in (ROOT / "csrc/python").glob("*.cpp"))
    headers = sysconfig.get_path("include")
    if machine != HOST:
        raise Missing(f"needs Python's headers for {machine}")
    if not Path(headers, "Python.h").is_file():
        raise Missing(f"no Python.h in {headers}: install the interpreter's headers (python3-dev)")
    flags = ["-O2", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
    command = [*compiler, "-c", *flags, "-isystem", headers]
    units = [unit("_watch", source, command, versions) for source in sources]
    return [Library("_watch", units, [*compiler, "-shared"], [])] if sources else []


def nvcc_host() -> list[str]:
    """CXX as nvcc takes it: the compiler alone, without a launcher in front of it, and its flags one by one."""
    words = shlex.split(os.environ.get("CXX", ""))
    programs = list(itertools.takewhile(lambda word: not word.startswith("-"), words))
    if not programs:
        return []
    flags = [part for flag in words[len(programs) :] for part in ("-Xcompiler", flag)]
    return ["-ccbin", programs[-1], *flags]


def cuda_library(torch: Path, nvcc: str, archs: list[str], versions: str) -> Library:
    sources = [path.relative_to(ROOT) for path in sorted((ROOT / "csrc/cuda").rglob("*.cu"))]
    if not sources:
        raise Missing("csrc/cuda holds no sources")
    optimise = ["-O0", "-g"] if truthy("DEBUG") else ["-O3", "-DNDEBUG"]
    flags = [*optimise, "-std=c++17", "-lineinfo", "-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall"]
    defines = ["-DUSE_CUDA", f"-DTORCH_TARGET_VERSION={TORCH_TARGET}"]
    include = ["-Icsrc", "-Icsrc/cuda", "-isystem", str(torch / "include")]
    host = nvcc_host()
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    # PTX of the newest for GPUs to come; of the oldest for those between that its machine code does not run on (Jetson)
    targets += [f"-gencode=arch=compute_{arch},code=compute_{arch}" for arch in dict.fromkeys((archs[0], archs[-1]))]
    command = [nvcc, *host, "-c", *flags, *defines, *include, *targets]
    # libtorch.so must stay in DT_NEEDED: torch opens its libraries locally, and only through libtorch.so does a CUDA
    # build of torch offer us the functions of libtorch_cuda. cudart is linked in, so its version ties us to no toolkit.
    linked = [f"-L{torch / 'lib'}", "-Xlinker", "--no-as-needed", "-ltorch", "-ltorch_cpu"]
    units = [unit("_C_cuda", source, command, versions) for source in sources]
    return Library("_C_cuda", units, [nvcc, *host, "-shared", "-cudart", "static"], linked)


def make_plan() -> Plan:
    mode = os.environ.get("LITESEG_BUILD") or "auto"
    if mode not in MODES:
        sys.exit(f"LITESEG_BUILD: expected one of {', '.join(MODES)}, got {mode!r}")
    plan = Plan(mode)
    if mode == "none":
        plan.skipped = dict.fromkeys(LIBRARIES, "LITESEG_BUILD=none")
        return plan
    try:
        if sys.platform != "linux":
            raise Missing(f"compiled kernels are built on Linux only, this is {sys.platform}")
        torch, plan.torch = find_torch()
        compiler, plan.compiler = find_compiler()
        plan.machine = machine_of(compiler)
        plan.libraries += cpu_libraries(torch, compiler, plan.machine, f"{plan.compiler} {plan.torch}")
    except Missing as reason:
        plan.skipped = dict.fromkeys(LIBRARIES, str(reason))
        return plan
    try:
        plan.libraries += watch_library(compiler, plan.machine, plan.compiler)
    except Missing as reason:
        plan.skipped["_watch"] = str(reason)
    if mode == "cpu":
        plan.skipped["_C_cuda"] = "LITESEG_BUILD=cpu"
        return plan
    try:
        if plan.machine != HOST:
            raise Missing(f"CUDA kernels are built for {HOST} only, and {plan.compiler} compiles for {plan.machine}")
        nvcc, plan.nvcc = find_nvcc()
        archs = cuda_archs()
        versions = f"{plan.nvcc} {plan.compiler} {plan.torch}"
        plan.libraries.append(cuda_library(torch, nvcc, archs, versions))
        plan.archs = archs
    except Missing as reason:
        plan.skipped["_C_cuda"] = str(reason)
    return plan


def report(plan: Plan) -> None:
    """Ends the build where a part is missing that it must have, and says loudly what else is left out."""
    # elsewhere there is nothing that could be installed to mend it
    cpu = ["_C"] if sys.platform == "linux" else []
    wanted = {"auto": cpu, "none": [], "cpu": ["_C"], "cuda": ["_C", "_C_cuda"]}[plan.mode]
    missed = [name for name in wanted if name in plan.skipped]
    if missed:
        reasons = "; ".join(dict.fromkeys(plan.skipped[name] for name in missed))
        less = "LITESEG_BUILD=cpu builds without CUDA, " if missed == ["_C_cuda"] else ""
        sys.exit(
            f"error: LITESEG_BUILD={plan.mode}: cannot build {' and '.join(missed)}: {reasons}\n"
            f"error: {less}LITESEG_BUILD=none installs without compiled kernels, on PyTorch's own, slower operations"
        )
    if plan.mode != "auto" or not plan.skipped:
        return
    rule = "*" * 100
    lines = [f"{PACKAGE}: built WITHOUT {name}: {reason}" for name, reason in plan.skipped.items()]
    lines += [
        "Everything still works, on Triton, plain PyTorch or Python instead of what is missing.",
        "LITESEG_BUILD=cuda makes missing kernels an error; python -m liteseg_kernels.info shows it again.",
    ]
    print("\n".join([rule, *lines, rule]), file=sys.stderr, flush=True)


def jobs() -> int:
    text = os.environ.get("MAX_JOBS")
    if text is None:
        return len(os.sched_getaffinity(0))
    if not text.isdigit() or int(text) < 1:
        sys.exit(f"MAX_JOBS: expected a positive number, got {text!r}")
    return int(text)


@functools.cache
def modified(file: str) -> float:
    """When a file was written; never, if it is gone."""
    path = ROOT / file
    return path.stat().st_mtime_ns if path.is_file() else math.inf


def is_fresh(target: Path) -> bool:
    """Whether an object is newer than all that it was compiled from, by the list that the compiler left beside it."""
    depends = Path(f"{target}.d")
    if not target.is_file() or not depends.is_file():
        return False
    names = shlex.split(depends.read_text().replace("\\\n", " ").partition(":")[2])
    return max(map(modified, names)) <= target.stat().st_mtime_ns


def run(what: str, command: list[str]) -> None:
    """Shows the command and what it says in one piece, for others run beside it; CalledProcessError where it fails."""
    # sources by relative paths: the same from wherever they lie, also to a compiler's cache
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print(f"[{what}] {shlex.join(command)}\n{done.stdout}", end="", flush=True)
    done.check_returncode()


def compile_unit(one: Unit, target: Path, what: str) -> None:
    """An object and, only once that is complete, the list of its sources beside it."""
    listed, partial = Path(f"{target}.d"), Path(f"{target}.d.partial")
    target.parent.mkdir(parents=True, exist_ok=True)
    listed.unlink(missing_ok=True)
    began = time.time_ns()
    run(what, [*one.call, "-MD", "-MF", str(partial), "-o", str(target), str(one.source)])
    # what is written while the compiler runs may have come too late for it
    os.utime(target, ns=(began, began))
    os.replace(partial, listed)


def compile_and_link(plan: Plan, folder: Path) -> None:
    """What is not fresh, MAX_JOBS at a time, then the libraries, in `folder`."""
    units = [(one, folder / one.object) for library in plan.libraries for one in library.units]
    stale = [(one, target) for one, target in units if not is_fresh(target)]
    print(f"{PACKAGE}: {len(stale)} of {len(units)} objects to compile", flush=True)
    with ThreadPoolExecutor(jobs()) as pool:
        made = [
            pool.submit(compile_unit, one, target, f"{place}/{len(stale)}")
            for place, (one, target) in enumerate(stale, start=1)
        ]
        try:
            for each in as_completed(made):
                each.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    for library in plan.libraries:
        objects = [str(folder / name) for name in library.objects()]
        linked = [*stand_ins(library, folder / plan.machine), *library.linked]
        run(library.file, [*library.link, *objects, *linked, "-o", str(folder / library.file)])


def stand_ins(library: Library, folder: Path) -> list[str]:
    """Makes empty libraries with the names of those that are absent, and tells the linker where they are."""
    for name in library.absent:
        folder.mkdir(exist_ok=True)
        file = f"lib{name}.so"
        empty = ["-nostdlib", f"-Wl,-soname,{file}", "-x", "c++", os.devnull, "-o", str(folder / file)]
        run(file, [*library.link, *empty])
    return [f"-L{folder}"] if library.absent else []


def write_schemas() -> None:
    """The signatures of all ops as a list for the preprocessor; written where it has changed."""
    values: dict[str, dict[str, str]] = {}
    exec(SIGNATURES.read_text(), values)
    rows = [f'  X({name}, "{signature}")' for name, signature in values["SCHEMAS"].items()]
    text = "// Written by setup.py from liteseg_kernels/_signatures.py: X(op, signature).\n"
    text += " \\\n".join(["#define LITESEG_SCHEMAS(X)", *rows]) + "\n"
    file = ROOT / GENERATED / "schemas.h"
    if not file.is_file() or file.read_text() != text:
        replace(file, text.encode())


def build(plan: Plan, folder: Path, target: Path) -> None:
    """Compiles and links in `folder`, then puts the libraries into `target`; one build at a time in a folder."""
    import fcntl  # not on Windows, where nothing is compiled

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        write_schemas()
        try:
            compile_and_link(plan, folder)
        except subprocess.CalledProcessError:
            less = "LITESEG_BUILD=cpu builds without CUDA, " if "_C_cuda" in {x.name for x in plan.libraries} else ""
            sys.exit(
                f"error: the kernels did not compile (see above). {less}"
                "LITESEG_BUILD=none installs without compiled kernels."
            )
        for library in plan.libraries:
            replace(target / library.file, (folder / library.file).read_bytes())


def replace(target: Path, data: bytes) -> None:
    """A running process may have the old file mapped, so it is exchanged, never written over."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    partial.write_bytes(data)
    os.chmod(partial, 0o755 if target.suffix == ".so" else 0o644)
    os.replace(partial, target)


def write_build_info(plan: Plan, folder: Path) -> None:
    sources = {library.name: tuple(library.sources()) for library in plan.libraries}
    values = [
        ("MODE: str", plan.mode),
        ("TORCH: str | None", plan.torch),
        ("TORCH_TARGET: str", ".".join(map(str, OLDEST_TORCH))),
        ("COMPILER: str | None", plan.compiler),
        ("NVCC: str | None", plan.nvcc),
        ("CUDA_ARCHS: tuple[str, ...]", tuple(plan.archs)),
        ("SOURCES: dict[str, tuple[str, ...]]", sources),
        ("SKIPPED: dict[str, str]", plan.skipped),
    ]
    text = '"""Written by setup.py: what the compiled libraries were built from, and why any is missing."""\n\n'
    text += "".join(f"{name} = {value!r}\n" for name, value in values)
    replace(folder / PACKAGE / "_build_info.py", text.encode())


# an older one does not understand pyproject.toml, and says so at length; 0 is one that does not know its version
if 0 < int(setuptools.__version__.partition(".")[0]) < OLDEST_SETUPTOOLS:
    sys.exit(
        f"error: setuptools {setuptools.__version__} is too old: expected >= {OLDEST_SETUPTOOLS}; "
        "`pip install -U setuptools`, or leave --no-build-isolation out"
    )
PLAN = make_plan()


class BuildKernels(build_ext):
    def initialize_options(self) -> None:
        super().initialize_options()
        # setuptools' own has the name of the interpreter in it, and is thrown away after an editable install
        self.build_temp = str(ROOT / "build/kernels")

    def run(self) -> None:
        report(PLAN)
        if self.inplace and PLAN.machine != HOST:
            sys.exit(f"error: {PLAN.compiler} compiles for {PLAN.machine}: expected a wheel, got a build in place")
        target = ROOT if self.inplace else Path(self.build_lib).resolve()
        if PLAN.libraries:
            build(PLAN, Path(self.build_temp).resolve(), target / PACKAGE)
        # a library of an earlier build that this one leaves out would contradict _build_info.py
        made = {library.file for library in PLAN.libraries}
        for name in {"libliteseg.so", *(f"{name}.abi3.so" for name in LIBRARIES)} - made:
            (target / PACKAGE / name).unlink(missing_ok=True)
        write_build_info(PLAN, target)


class BuildPython(build_py):
    def run(self) -> None:
        # a build without extensions never runs build_ext
        if not PLAN.libraries:
            report(PLAN)
        super().run()
        if not PLAN.libraries:
            write_build_info(PLAN, ROOT if self.editable_mode else Path(self.build_lib).resolve())


WHEEL = {"py_limited_api": "cp310"} if PLAN.libraries else {}
if PLAN.machine != HOST:
    WHEEL["plat_name"] = f"linux_{PLAN.machine}"

setup(
    ext_modules=[
        Extension(f"{PACKAGE}.{library.name}", library.sources(), py_limited_api=True)
        for library in PLAN.libraries
        if library.extension
    ],
    cmdclass={"build_ext": BuildKernels, "build_py": BuildPython},
    options={"bdist_wheel": WHEEL},
)
