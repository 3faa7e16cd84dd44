"""What the distributions say of the project and hold, by a wheel without kernels: nothing is compiled."""

from __future__ import annotations

import email
import email.message
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import liteseg
from tests.data.draw_street import FILE, draw_street

from .project import ROOT, copy, python

# one group: the wheel is built once, not once a worker
pytestmark = [pytest.mark.build, pytest.mark.xdist_group("metadata")]
WEIGHTS_LICENCE = "LicenseRef-LiteSeg-Weights-Noncommercial"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = copy(tmp_path_factory.mktemp("metadata") / "project")
    done = python(project, "setup.py", "-q", "bdist_wheel", "-d", "out", LITESEG_BUILD="none")
    assert done.returncode == 0, done.stdout + done.stderr
    return next((project / "out").glob("*.whl"))


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def test_the_licences_of_code_and_weights_are_declared(wheel: Path, metadata: email.message.Message) -> None:
    assert metadata["License-Expression"] == f"Apache-2.0 AND {WEIGHTS_LICENCE}"
    assert set(metadata.get_all("License-File") or []) == {"LICENSE", "NOTICE", "liteseg/weights/LICENSE.txt"}
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("licenses/liteseg/weights/LICENSE.txt"))
        assert archive.read(name).decode().startswith(WEIGHTS_LICENCE)
    assert WEIGHTS_LICENCE in (ROOT / "liteseg/weights/README.md").read_text()


def test_links_and_pythons(metadata: email.message.Message) -> None:
    links = dict(link.split(", ") for link in metadata.get_all("Project-URL") or [])
    assert links.keys() >= {"Paper"} and all(link.startswith("https://") for link in links.values())
    prefix = "Programming Language :: Python :: 3."
    versions = [line.removeprefix(prefix) for line in metadata.get_all("Classifier") or [] if line.startswith(prefix)]
    # those that the wheel is tried on
    tried = re.search(r"^PYTHONS = \((.*)\)$", (ROOT / "tests/install/noxfile.py").read_text(), re.M)
    assert tried and re.findall(r'"3\.(\d+)"', tried[1]) == versions


def test_every_dependency_has_a_lower_bound_that_is_tried(metadata: email.message.Message) -> None:
    needed = [line for line in metadata.get_all("Requires-Dist") or [] if "extra ==" not in line]
    bounds = dict(re.fullmatch(r"(\w+)>=([\d.]+)", line).groups() for line in needed)
    assert bounds.pop("torch") == "2.11"
    assert {"numpy", "pillow", "safetensors"} <= bounds.keys()
    pins = re.findall(r"^(\w+)==([\d.]+)$", (ROOT / ".ci/oldest.txt").read_text(), re.M)
    assert dict(pins) == bounds
    assert "make --no-print-directory oldest" in (ROOT / ".ci/run").read_text()


def test_the_demo_works_from_an_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    code = """
import sys
# an editable install would answer for the checkout
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")]
import liteseg.cli
assert liteseg.cli.__file__.startswith(sys.argv[1]), liteseg.cli.__file__
sys.exit(liteseg.cli.main(["demo", "--rounds", "1", "--out", "out"]))
"""
    done = python(tmp_path, "-c", code, str(installed), PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stderr
    assert "picture: out/drawn_street_overlay.png" in done.stdout and "no compiled kernels" in done.stderr
    labels = np.asarray(Image.open(tmp_path / "out/drawn_street_labels.png"))
    names = ("sky", "building", "road", "tree")
    assert labels.shape == (360, 480)
    # the network finds in it what it knows
    known = liteseg.create_model(weights="camvid").config.class_names
    ids = {name: known.index(name) for name in names}
    assert all((labels == ids[name]).mean() > 0.03 for name in names)
    assert labels[5, 240] == ids["sky"] and labels[300, 240] == ids["road"] and labels[60, 20] == ids["building"]


def test_the_drawn_street_is_what_its_script_draws() -> None:
    drawn, kept = np.asarray(draw_street(), np.int16), np.asarray(Image.open(FILE).convert("RGB"), np.int16)
    # as far as JPEG keeps it
    assert kept.shape == (360, 480, 3) and np.abs(drawn - kept).mean() < 4


def test_the_source_distribution_builds_and_tests_itself(tmp_path: Path) -> None:
    done = python(ROOT, "setup.py", "-q", "egg_info", "-e", str(tmp_path), "sdist", "-d", str(tmp_path))
    assert done.returncode == 0, done.stderr
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        archive.extractall(tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    for folder in ("csrc", "tests", "benchmarks", "docs"):
        files = {path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts}
        missing = {path.relative_to(ROOT).as_posix() for path in files} - names
        assert missing - {"tests/data/street.jpg"} == set()
    assert {"Makefile", "setup.py", "pyproject.toml", "NOTICE", ".ci/constraints.txt"} <= names
    # another's picture, and what one machine built
    assert names.isdisjoint({"tests/data/street.jpg", "liteseg_kernels/_build_info.py"})
    assert not any(name.endswith((".so", ".pyc")) for name in names)
    unpacked = next(path for path in tmp_path.iterdir() if (path / "tests").is_dir())
    some = ["tests/models/test_bundled_weights.py", "-k", "is_bundled or sees_a_street"]
    done = python(unpacked, "-m", "pytest", "-q", "-p", "no:cacheprovider", *some, PYTHONPATH=str(unpacked))
    assert done.returncode == 0, done.stdout
    assert "1 passed, 1 skipped" in done.stdout and "in the repository only" in done.stdout
