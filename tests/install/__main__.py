"""The install matrix: `python -m tests.install` installs the project in every way that people do, and prints a table.

Each case has an environment of its own, with links to the packages of --with (torch is gigabytes) and nothing fetched
but what a build environment asks for: `--no-deps` throughout. An installed library must load its kernels and segment
the picture that it carries; a build that can have no kernels must fail, and say what to do. All is built from an
unpacked source distribution, with the CPU kernels, which takes minutes the first time; --folder keeps them.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NO_ISOLATION = "--no-build-isolation"
# of the project itself, and what would put another checkout on the path
OWN = re.compile(r"liteseg|__editable__|.*\.pth$|__pycache__")
SITE = "import sysconfig; print(sysconfig.get_path('purelib'))"
VERSIONS = """
import importlib.metadata, platform
print(platform.python_version(), *(importlib.metadata.version(name) for name in ("torch", "numpy")))
"""
STATUS = """
import liteseg, sys
from liteseg_kernels import _loader
assert liteseg.__file__.startswith(sys.argv[1]), liteseg.__file__
print(_loader.STATUS["_C"])
"""


@dataclass(frozen=True)
class Case:
    """One way to install.

    Attributes:
        name: row of the table.
        command: behind `python -m` or `uv`, with {source}, {archive} and {wheel} for what is installed.
        expected: "kernels", "no kernels, said once" or "refused".
        says: what the output of a refusal must contain.
        settings: environment; PATH "" has no compiler, PATH "active" begins with the environment's own.
        without: packages that are not linked.
        python: interpreter with the packages, --with's where None.
    """

    name: str
    command: tuple[str, ...]
    expected: str = "kernels"
    says: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    without: str = ""
    python: str | None = None


TORCH_REMEDY = "`pip install --no-build-isolation .` (with uv: `uv pip install ...`)"
PIP = ("pip", "install", "--no-deps")
UV = ("uv", "pip", "install", "--no-deps")
CASES = (
    Case("pip", (*PIP, "{source}")),
    Case("pip, editable", (*PIP, NO_ISOLATION, "-e", "{source}")),
    Case("pip without isolation", (*PIP, NO_ISOLATION, "{source}")),
    Case("uv, environment active", (*UV, "{source}"), settings={"PATH": "active"}),
    Case("uv, environment elsewhere", (*UV, "{source}"), "refused", TORCH_REMEDY),
    Case("uv without isolation", (*UV, NO_ISOLATION, "{source}")),
    Case("pip, no compiler", (*PIP, "{source}"), "refused", "install one (g++ >= 9) or set CXX", {"PATH": ""}),
    Case("pip, compiler that fails", (*PIP, "{source}"), "refused", "a C++ compiler that works", {"CXX": "false"}),
    Case("pip, no torch", (*PIP, "{source}"), "refused", "install torch >= 2.11 first", without="torch"),
    Case("uv, no torch", (*UV, "{source}"), "refused", "install torch >= 2.11 first", without="torch"),
    Case("pip, no kernels wanted", (*PIP, "{source}"), "no kernels, said once", settings={"LITESEG_BUILD": "none"}),
    Case("pip from the sdist", (*PIP, "{archive}")),
    Case("wheel", (*PIP, "{wheel}")),
)


class Matrix:
    """Environments, the things to install, and what becomes of each case."""

    def __init__(self, folder: Path, python: str, uv: str | None) -> None:
        self.folder, self.python, self.uv = folder, python, uv
        self.count = 0
        self.settings = {k: v for k, v in os.environ.items() if not k.startswith(("LITESEG_", "PYTHON", "VIRTUAL_ENV"))}
        self.settings.pop("CXX", None)
        self.settings["LITESEG_BUILD"] = "cpu"
        # where an environment with torch is active, a build would find that one
        entries = self.settings["PATH"].split(os.pathsep)
        self.settings["PATH"] = os.pathsep.join(
            entry for entry in entries if not list(Path(entry).parent.glob("lib/python3*/site-packages/torch"))
        )
        self.archive = self._archive()
        self.source = self._source()
        self._wheel: Path | None = None

    def _call(
        self, command: Sequence[str | Path], *, cwd: Path | None = None, **settings: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            list(map(str, command)),
            cwd=cwd or self.folder,
            env={**self.settings, **settings},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def told(self, command: Sequence[str | Path], *, cwd: Path | None = None) -> str:
        done = self._call(command, cwd=cwd)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{done.stdout[-4000:]}")
        return done.stdout

    def _archive(self) -> Path:
        target = self.folder / "sdist"
        shutil.rmtree(target, ignore_errors=True)
        command = [self.python, "setup.py", "-q", "egg_info", "-e", self.folder, "sdist", "-d", target]
        self.told(command, cwd=ROOT)
        return next(target.glob("*.tar.gz"))

    def _source(self) -> Path:
        """The archive unpacked; what an earlier run compiled of the same sources stays."""
        target = self.folder / "source"
        fresh = self.folder / "fresh"
        shutil.rmtree(fresh, ignore_errors=True)
        with tarfile.open(self.archive) as archive:
            archive.extractall(fresh, filter="data") if hasattr(tarfile, "data_filter") else archive.extractall(fresh)
        (unpacked,) = fresh.iterdir()
        if (target / "build/kernels").is_dir():
            (unpacked / "build").mkdir()
            shutil.move(target / "build/kernels", unpacked / "build/kernels")
        shutil.rmtree(target, ignore_errors=True)
        shutil.move(unpacked, target)
        return target

    def wheel(self) -> Path:
        if self._wheel is None:
            target = self.folder / "wheel"
            shutil.rmtree(target, ignore_errors=True)
            self.told([self.python, "-m", "pip", "wheel", NO_ISOLATION, "--no-deps", "-w", target, self.source])
            self._wheel = next(target.glob("*.whl"))
        return self._wheel

    def environment(self, python: str, without: str) -> Path:
        """A new environment of `python`, with links to the packages that it has."""
        self.count += 1
        target = self.folder / f"environment{self.count}"
        shutil.rmtree(target, ignore_errors=True)
        self.told([python, "-m", "venv", "--without-pip", target])
        have = Path(self.told([python, "-c", SITE]).strip())
        place = Path(self.told([target / "bin/python", "-c", SITE]).strip())
        for package in have.iterdir():
            left_out = without and re.match(rf"{without}(gen|-|$)", package.name)
            if not OWN.match(package.name) and not left_out:
                (place / package.name).symlink_to(package)
        return target

    def run(self, case: Case) -> str:
        """What came of it, in the words of `Case.expected` where it is as expected."""
        python = case.python or self.python
        if case.command[0] == "uv" and self.uv is None:
            return "not run: no uv"
        target = self.environment(python, case.without)
        own = target / "bin/python"
        named = {"source": self.source, "archive": self.archive}
        if "{wheel}" in case.command:
            named["wheel"] = self.wheel()
        words = [word.format(**named) for word in case.command]
        settings = dict(case.settings)
        if settings.get("PATH") == "":
            settings["PATH"] = str(target / "bin")
        elif settings.get("PATH") == "active":
            settings["PATH"] = f"{target / 'bin'}{os.pathsep}{self.settings['PATH']}"
            settings["VIRTUAL_ENV"] = str(target)
        first = [self.uv or "", *words[1:3], "--python", own, *words[3:]] if words[0] == "uv" else [own, "-m", *words]
        done = self._call(first, **settings)
        (target / "install.log").write_text(done.stdout)
        if done.returncode != 0:
            return "refused" if case.says and case.says in _unwrapped(done.stdout) else f"failed: {_last(done.stdout)}"
        return self._used(own, editable="-e" in words)

    def _used(self, python: Path, editable: bool) -> str:
        """What an installed library does: its kernels, and a picture of its own from its folder to a label map."""
        environment = python.parents[1]
        told = self._call([python, "-c", STATUS, self.source if editable else environment])
        demo = [python, "-m", "liteseg", "demo", "--rounds", "1", "--out", environment / "out"]
        shown = self._call(demo)
        if told.returncode != 0 or shown.returncode != 0:
            return f"failed: {_last(told.stdout if told.returncode else shown.stdout)}"
        if not (environment / "out/drawn_street_labels.png").is_file():
            return "failed: the demo wrote no labels"
        if told.stdout.strip() == "None":
            return "kernels"
        warnings = shown.stdout.count("no compiled kernels for the CPU")
        return "no kernels, said once" if warnings == 1 else f"no kernels, said {warnings} times"


def _unwrapped(text: str) -> str:
    return " ".join(text.split())


def _last(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "no output")[-160:]


def table(rows: Sequence[tuple[Case, str, str]]) -> str:
    """Markdown: case, command, Python and torch, outcome."""
    lines = ["| case | command | Python, torch, NumPy | outcome |", "|---|---|---|---|"]
    for case, versions, outcome in rows:
        settings = "".join(f"{k}={v} " for k, v in case.settings.items() if k != "PATH")
        words = (word.format(source=".", archive="liteseg-*.tar.gz", wheel="liteseg-*.whl") for word in case.command)
        right = outcome if outcome == case.expected else f"**{outcome}** (expected: {case.expected})"
        lines.append(f"| {case.name} | `{settings}{' '.join(words)}` | {versions} | {right} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.install", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument(
        "--with", dest="python", default=sys.executable, help="interpreter that has torch, pip and the rest"
    )
    parser.add_argument("--other", action="append", default=[], help="another one, for the wheel; may be repeated")
    parser.add_argument("--uv", default=shutil.which("uv"), help="the uv to use; default: on PATH")
    parser.add_argument("--only", help="the cases whose name contains this; several with commas")
    parser.add_argument("--folder", type=Path, help="where to work, kept; default: a temporary folder")
    options = parser.parse_args(arguments)
    cases = [*CASES, *(Case("wheel elsewhere", (*PIP, "{wheel}"), python=other) for other in options.other)]
    if options.only:
        cases = [case for case in cases if any(part in case.name for part in options.only.split(","))]
    with ExitStack() as stack:
        temporary = (
            None if options.folder else stack.enter_context(tempfile.TemporaryDirectory(prefix="liteseg-install-"))
        )
        folder = Path(options.folder or temporary).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        matrix = Matrix(folder, options.python, options.uv)
        tools = [f"pip {matrix.told([options.python, '-m', 'pip', '--version']).split()[1]}"]
        if options.uv:
            tools.append(" ".join(matrix.told([options.uv, "--version"]).split()[:2]))
        rows = []
        for case in cases:
            versions = ", ".join(matrix.told([case.python or options.python, "-c", VERSIONS]).split())
            rows.append((case, versions, matrix.run(case)))
            print(f"{case.name}: {rows[-1][2]}", file=sys.stderr, flush=True)
    print(f"{datetime.date.today()}, {platform.system()} {platform.machine()}, {', '.join(tools)}\n")
    print(table(rows))
    return int(any(outcome != case.expected and not outcome.startswith("not run") for case, _, outcome in rows))


if __name__ == "__main__":
    sys.exit(main())
