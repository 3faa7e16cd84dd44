"""The wheel of dist/ (`make wheel`) on each Python and torch that can be had: `make versions`.

    nox -f tests/install/noxfile.py -l           what there is
    nox -f tests/install/noxfile.py -t ends      the oldest and the newest
    nox -f tests/install/noxfile.py -s "wheel(3.12-2.13)"

Pythons that are not on the machine are skipped. torch comes from where pip is set up to take it: set PIP_INDEX_URL, or
TORCH_INDEX for torch alone, to get its builds without CUDA, which are a tenth of the size. One environment at a time is
kept (gigabytes): nox makes it anew.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nox

ROOT = Path(__file__).resolve().parents[2]
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
# the newest of each series; "" is the newest of all
TORCHES = ("2.11", "2.12", "2.13", "")
ENDS = {(PYTHONS[0], TORCHES[0]), (PYTHONS[-1], TORCHES[-1])}
# quick ones that need kernels, pictures and weights, and nothing of the repository but themselves
TESTS = (
    "tests/kernels/test_upsample_argmax.py",
    "tests/kernels/test_inverted_residual.py",
    "tests/kernels/test_separable_conv2d.py",
    "tests/plan/test_plan.py",
    "tests/cli/test_predict.py",
    "tests/cli/test_image_io.py",
    "tests/models/test_checkpoint.py",
)

nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = False
nox.options.envdir = str(ROOT / "build/nox")


@nox.session
@nox.parametrize(
    "python,torch",
    [
        nox.param(python, torch, id=f"{python}-{torch or 'newest'}", tags=["ends"] if (python, torch) in ENDS else [])
        for python in PYTHONS
        for torch in TORCHES
    ],
)
def wheel(session: nox.Session, torch: str) -> None:
    """A demo and some tests by an installed wheel, outside of the checkout."""
    wheels = sorted((ROOT / "dist").glob("liteseg-*.whl"), key=lambda path: path.stat().st_mtime)
    if not wheels:
        session.error("no wheel in dist/: make wheel")
    index = ["--index-url", os.environ["TORCH_INDEX"]] if os.environ.get("TORCH_INDEX") else []
    session.install(*index, f"torch=={torch}.*" if torch else "torch>=2.11")
    # the lowest versions of all else where torch is the oldest; they have no builds for later Pythons
    oldest = torch == TORCHES[0] and session.python in ("3.10", "3.11", "3.12")
    bounds = ["-c", str(ROOT / ".ci/oldest.txt")] if oldest else []
    session.install(*bounds, f"{wheels[-1]}", "pytest")
    place = Path(session.create_tmp()) / "tests-only"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(ROOT / "tests", place / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", place)
    session.chdir(place)
    session.run("liteseg", "info")
    session.run("liteseg", "demo", "--rounds", "1", "--out", "out")
    # emulated kernels are compiled from sources, which are not here
    session.run("python", "-m", "pytest", "-q", "--quick", "-k", "not emulator", *(session.posargs or TESTS))
    session.chdir(ROOT)
    shutil.rmtree(session.virtualenv.location)
