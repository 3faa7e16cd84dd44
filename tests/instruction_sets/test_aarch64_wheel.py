"""The wheel for aarch64 that a cross compiler makes: what is in it, what it needs, and that its C library runs.

Torch's extension in it can only be looked at: there is no torch for aarch64 here to load it into.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import liteseg
from liteseg_kernels import _loader
from tests.build.project import ROOT, copy, python

from . import aarch64
from .test_aarch64 import compare, program, run

# one group: the wheel is built once
pytestmark = [
    pytest.mark.skipif(aarch64.missing() is not None, reason=str(aarch64.missing())),
    pytest.mark.skipif(_loader.missing("cpu") is not None, reason="the compiled CPU kernels are not loaded"),
    pytest.mark.slow,
    pytest.mark.build,
    pytest.mark.xdist_group("aarch64 wheel"),
]

EXTENSION, LIBRARY = "liteseg_kernels/_C.abi3.so", "liteseg_kernels/libliteseg.so"
# e_machine of ELF
_AARCH64 = 183


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = copy(tmp_path_factory.mktemp("aarch64") / "project")
    # what is compiled already is the same there
    if (ROOT / "build/kernels").is_dir():
        shutil.copytree(ROOT / "build/kernels", project / "build/kernels")
    command = ["-m", "pip", "-q", "wheel", ".", "--no-deps", "--no-build-isolation", "-w", "out"]
    done = python(project, *command, CXX=f"{aarch64.PREFIX}-g++", LITESEG_BUILD="cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    return next((project / "out").glob("*.whl"))


@pytest.fixture(scope="module")
def unpacked(wheel: Path) -> Path:
    target = wheel.parent / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def test_its_name_and_libraries(wheel: Path, unpacked: Path) -> None:
    assert re.fullmatch(r"liteseg-[\d.]+-cp310-abi3-linux_aarch64\.whl", wheel.name)
    libraries = {path.relative_to(unpacked).as_posix(): path.read_bytes()[:20] for path in unpacked.rglob("*.so*")}
    assert set(libraries) == {EXTENSION, LIBRARY}
    for name, header in libraries.items():
        assert header[:5] == b"\x7fELF\x02" and struct.unpack_from("<H", header, 18) == (_AARCH64,), name
    values: dict[str, object] = {}
    exec((unpacked / "liteseg_kernels/_build_info.py").read_text(), values)
    assert set(values["SKIPPED"]) == {"_C_cuda", "_watch"} and aarch64.PREFIX in str(values["COMPILER"])
    assert (unpacked / "liteseg/weights/camvid_mobilenetv2.safetensors").is_file()


def symbols(tool: str, file: Path, kind: str) -> set[str]:
    listed = subprocess.run([tool, "-D", kind, file], capture_output=True, text=True, check=True).stdout
    return {line.split()[-1] for line in listed.splitlines()}


def test_what_the_extension_needs(unpacked: Path) -> None:
    """Of the system no more than old systems have, and of torch nothing that it does not export here."""
    file = unpacked / EXTENSION
    listed = aarch64.checked([f"{aarch64.PREFIX}-readelf", "-dW", file]).stdout.decode()
    needed = re.findall(r"\(NEEDED\).*\[(.+?)\.so", listed)
    assert {"libtorch", "libtorch_cpu"} <= set(needed)
    assert set(needed) <= {"libtorch", "libtorch_cpu", "libstdc++", "libm", "libgcc_s", "libc", "ld-linux-aarch64"}
    undefined = symbols(f"{aarch64.PREFIX}-nm", file, "--undefined-only")
    systems = {name for name in undefined if "@" in name}
    glibc = {tuple(map(int, found.split("."))) for found in re.findall(r"@GLIBC_([\d.]+)", "\n".join(systems))}
    assert glibc and max(glibc) <= (2, 34)
    # weak ones may be absent
    own = {name for name in undefined - systems if not name.startswith(("_ITM_", "__gmon_start__", "__cxa_finalize"))}
    torchs = symbols("nm", Path(torch.__file__).parent / "lib/libtorch_cpu.so", "--defined-only")
    assert own and own - torchs == set()
    assert "liteseg_register_ops" in symbols(f"{aarch64.PREFIX}-nm", file, "--defined-only")


def test_its_library_labels_the_street(unpacked: Path, tmp_path: Path) -> None:
    library = unpacked / LIBRARY
    assert library.stat().st_size < 2 * 2**20
    file = tmp_path / "net.liteseg"
    liteseg.export(liteseg.create_model(weights="camvid"), file, "plan")
    street = np.asarray(Image.open(ROOT / "tests/data/street.jpg").convert("RGB").resize((241, 180)))
    labels, logits = run((library, program(library, tmp_path / "run")), file, street, 2, "neon")
    compare(file, street, (labels, logits))
    assert len(set(labels.flat)) > 3
