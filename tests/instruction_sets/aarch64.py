"""Builds for aarch64 on another machine, and runs there what was built: a cross compiler and qemu's user emulation."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.build.project import ROOT

PREFIX = "aarch64-linux-gnu"
_TOOLS = (f"{PREFIX}-gcc", f"{PREFIX}-g++", "qemu-aarch64", "cmake")


def missing() -> str | None:
    """Which program is not there."""
    absent = [name for name in _TOOLS if shutil.which(name) is None]
    return f"not installed: {', '.join(absent)} (Debian: g++-aarch64-linux-gnu, qemu-user)" if absent else None


def checked(command: Sequence[str | Path], **options: object) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run([str(word) for word in command], capture_output=True, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, (done.stdout + done.stderr).decode(errors="replace")[-3000:]
    return done


def library(build: Path, jobs: int = 2) -> Path:
    """libliteseg as CMake builds it; with -O1, for nobody waits for its speed under emulation."""
    settings = {
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": "aarch64",
        "CMAKE_C_COMPILER": f"{PREFIX}-gcc",
        "CMAKE_CXX_COMPILER": f"{PREFIX}-g++",
        "CMAKE_CXX_FLAGS_RELEASE": "-O1 -DNDEBUG",
    }
    checked(
        ["cmake", "-S", ROOT / "csrc/engine", "-B", build, *(f"-D{name}={value}" for name, value in settings.items())]
    )
    checked(["cmake", "--build", build, "--parallel", str(jobs), "--target", "liteseg"])
    return build / "libliteseg.so"


def emulated(library: Path, program: Path, *arguments: str | Path) -> list[str]:
    folder = f"LD_LIBRARY_PATH={library.parent}"
    return ["qemu-aarch64", "-L", f"/usr/{PREFIX}", "-E", folder, str(program), *map(str, arguments)]
