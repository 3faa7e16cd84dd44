"""The engine on aarch64, cross-built and emulated: the same labels as here from the same network files."""

from __future__ import annotations

import copy
import fcntl
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import liteseg
from liteseg import network_file
from liteseg.bench.networks import calibrated
from liteseg_kernels import _loader, c_library
from tests.build.project import ROOT
from tests.c_api import files

from . import aarch64

pytestmark = [
    pytest.mark.skipif(aarch64.missing() is not None, reason=str(aarch64.missing())),
    pytest.mark.skipif(_loader.missing("cpu") is not None, reason="the compiled CPU kernels are not loaded"),
    pytest.mark.slow,
    pytest.mark.build,
]


def program(library: Path, made: Path) -> Path:
    """run.c, linked to the library."""
    source, header = Path(__file__).with_name("run.c"), ROOT / "csrc/engine/c_api"
    options = ["-O1", "-Wall", "-Werror", f"-I{header}"]
    aarch64.checked([f"{aarch64.PREFIX}-gcc", *options, source, library, "-o", made])
    return made


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(the library, a program that runs a network file), built once for all workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "aarch64"
    folder.mkdir(exist_ok=True)
    library, made = folder / "build/libliteseg.so", folder / "run"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            assert aarch64.library(folder / "build") == library
            program(library, made)
    return library, made


def run(
    built: tuple[Path, Path], file: Path, picture: np.ndarray, threads: int, isa: str
) -> tuple[np.ndarray, np.ndarray]:
    library, program = built
    height, width = picture.shape[:2]
    command = aarch64.emulated(library, program, file, str(threads), str(height), str(width))
    done = subprocess.run(
        command, input=picture.tobytes(), env=os.environ | {"LITESEG_CPU_ISA": isa}, capture_output=True
    )
    assert done.returncode == 0 and done.stderr.decode().strip() == isa, done.stderr.decode()
    labels = np.frombuffer(done.stdout, np.uint8, height * width).reshape(height, width)
    return labels, np.frombuffer(done.stdout, np.float32, offset=height * width).reshape(-1, height, width)


def compare(file: Path, picture: np.ndarray, got: tuple[np.ndarray, np.ndarray]) -> None:
    with c_library.Network(file, threads=1) as network:
        labels, logits = network.labels(picture), network.logits(picture)
    assert np.abs(got[1] - logits).max() <= 1e-5 * np.abs(logits).max()
    assert (got[0] == labels).mean() >= 0.9999


@pytest.mark.parametrize("isa", ["scalar", "neon"])
@pytest.mark.parametrize("name", files.NETWORKS)
def test_every_layer_gives_the_same_logits(name: str, isa: str, built: tuple[Path, Path], tmp_path: Path) -> None:
    file = files.write(files.fused(name), tmp_path / "net.liteseg")
    for threads, size in ((1, (31, 45)), (2, (8, 8)), (3, (64, 33))):
        picture = network_file.pictures(size, seed=threads)
        compare(file, picture, run(built, file, picture, threads, isa))


@pytest.mark.parametrize("network", ["camvid", "liteseg_shufflenet", "liteseg_darknet19"])
def test_whole_networks_give_the_same_labels(network: str, built: tuple[Path, Path], tmp_path: Path) -> None:
    model = liteseg.create_model(weights="camvid") if network == "camvid" else copy.deepcopy(calibrated(network))
    file = tmp_path / "net.liteseg"
    liteseg.export(model, file, "plan")
    size = (241, 180) if network == "camvid" else (97, 64)
    street = np.asarray(Image.open(ROOT / "tests/data/street.jpg").convert("RGB").resize(size))
    labels, logits = run(built, file, street, 2, "neon")
    compare(file, street, (labels, logits))
    assert len(set(labels.flat)) > 3


def test_the_library_needs_nothing_but_the_systems(built: tuple[Path, Path]) -> None:
    listed = aarch64.checked([f"{aarch64.PREFIX}-readelf", "-dW", built[0]]).stdout.decode()
    needed = set(re.findall(r"\(NEEDED\).*\[(.+?)\.so", listed))
    assert needed <= {"libc", "libm", "libpthread", "ld-linux-aarch64"} and built[0].stat().st_size < 2 * 2**20
