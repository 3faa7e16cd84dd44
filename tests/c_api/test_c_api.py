"""libliteseg: what its functions promise, held against the package's own labels, and what it is linked to."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import liteseg
import liteseg_kernels as lk
from liteseg import network_file
from liteseg.data import MEAN, STD
from liteseg_kernels import _loader, c_library
from liteseg_kernels import functional as F
from liteseg_kernels.plan import file as plan_file
from tests.build.project import ROOT, python
from tests.instruction_sets.order import BF16, HERE, ORDER

from . import files

pytestmark = [
    pytest.mark.skipif(_loader.missing("cpu") is not None, reason="the compiled CPU kernels are not loaded"),
    pytest.mark.xdist_group("c_api"),
]

INVALID, CANNOT_READ, BROKEN, UNSUPPORTED, NO_MEMORY = 1, 2, 3, 4, 5
STREET = ROOT / "tests/data/street.jpg"


@pytest.fixture(scope="module")
def street() -> np.ndarray:
    return np.asarray(Image.open(STREET).convert("RGB"))


@pytest.fixture(scope="module")
def camvid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("camvid") / "camvid.liteseg"
    done = liteseg.export(liteseg.create_model(weights="camvid"), path, "plan")
    assert len(done.checks) == 2 and all(check.passed for check in done.checks), done
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that opens and runs in a millisecond."""
    return files.write(files.fused("tower"), tmp_path_factory.mktemp("small") / "tower.liteseg")


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return network_file.pictures((40, 56), seed=1)


def sealed(data: bytes | bytearray) -> bytes:
    """The file with the size and checksum that its content has."""
    checksum = zlib.crc32(data[24:])
    return bytes(data[:12]) + struct.pack("<IQ", checksum, len(data)) + bytes(data[24:])


def refused(file: str | os.PathLike[str] | bytes, **options: int) -> tuple[int, str]:
    with pytest.raises(c_library.LibraryError) as caught:
        c_library.Network(file, **options)  # type: ignore[arg-type]
    return caught.value.status, str(caught.value)


# -- the same labels


@pytest.mark.parametrize("isa", ORDER)
def test_the_street_has_predicts_labels_bit_for_bit_on_every_instruction_set(isa: str, camvid: Path) -> None:
    code = """
import sys, numpy, torch, liteseg, liteseg_kernels
from PIL import Image
from liteseg_kernels import c_library
street = numpy.asarray(Image.open(sys.argv[2]).convert("RGB"))
model = liteseg.fuse(liteseg.create_model(weights="camvid"))
with c_library.Network(sys.argv[1], threads=2) as network:
    labels = network.labels(street)
assert c_library.library().liteseg_instruction_set().decode() == torch.ops.liteseg_cpu.isa()
print(torch.ops.liteseg_cpu.isa(), (labels == liteseg.predict(model, street)).mean(), len(set(labels.flat)))
"""
    environment = os.environ | {"LITESEG_CPU_ISA": isa}
    command = [sys.executable, "-c", code, str(camvid), str(STREET)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if "expected an instruction set of this processor" in done.stderr:
        pytest.skip(f"no {isa} here")
    used, equal, classes = done.stdout.split()
    assert used == isa and float(equal) == 1.0 and int(classes) > 3, done.stdout + done.stderr


def test_it_is_the_file_that_it_says(camvid: Path) -> None:
    model = liteseg.create_model(weights="camvid")
    with c_library.Network(camvid, threads=3) as network:
        assert network.class_names == list(model.config.class_names) and network.classes == 11
        assert network.input_scale == model.config.input_scale != 1
        assert network.threads == 3 and network.smallest_side == 32
        assert network.description["config"] == model.config.to_dict()
    assert c_library.library().liteseg_version().decode() == liteseg.__version__


def test_labels_and_logits_at_other_sizes(camvid: Path, street: np.ndarray) -> None:
    model = liteseg.fuse(liteseg.create_model(weights="camvid"))
    part = np.ascontiguousarray(street[:150, 7:240])
    with c_library.Network(camvid, threads=1) as network, torch.inference_mode():
        expected = liteseg.predict(model, part, output="logits")
        logits = network.logits(part)
        assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()
        scale = model.config.input_scale
        size = (round(part.shape[0] * scale), round(part.shape[1] * scale))
        x = F.preprocess(torch.from_numpy(part), size, mean=MEAN, std=STD)
        for to in ((1, 1), (37, 300), (512, 16)):
            assert (network.labels(part, to) == lk.runtime.labels(model, x, to)[0].numpy()).all()
            # labels are the arg max but where two logits round to the same
            assert (network.logits(part, to).argmax(0) == network.labels(part, to)).mean() > 0.999


@pytest.mark.parametrize("name", files.NETWORKS)
def test_every_layer_gives_the_plans_logits_bit_for_bit(name: str, tmp_path: Path) -> None:
    model = files.fused(name)
    path = files.write(model, tmp_path / "net.liteseg")
    for seed, size in enumerate([(8, 8), (31, 45), (64, 33)]):
        picture = network_file.pictures(size, seed)
        with torch.inference_mode():
            x = F.preprocess(torch.from_numpy(picture), mean=MEAN, std=STD)
            low = lk.runtime.logits(model, x)
            labels = lk.runtime.labels(model, x, size)[0].numpy()
        with c_library.Network(path, threads=1 + seed) as network:
            at_its_size = (low.shape[2], low.shape[3])
            assert torch.equal(torch.from_numpy(network.logits(picture, at_its_size)), low[0])
            assert (network.labels(picture) == labels).all()


def test_bfloat16_where_the_processor_has_it(camvid: Path, small: Path, street: np.ndarray, tmp_path: Path) -> None:
    dense = files.write(files.fused("dense"), tmp_path / "dense.liteseg")
    if HERE not in BF16:
        assert refused(small, bfloat16=True)[0] == UNSUPPORTED
        return
    model = liteseg.fuse(liteseg.create_model(weights="camvid"))
    with c_library.Network(camvid, bfloat16=True) as network:
        # float32 weights, as autocast has them
        with torch.autocast("cpu", torch.bfloat16):
            assert (network.labels(street) == liteseg.predict(model, street)).all()
        assert (network.logits(street).argmax(0) == network.labels(street)).mean() > 0.999
    assert "a layer with a bfloat16 kernel" in refused(dense, bfloat16=True)[1]


@pytest.mark.parametrize("order", ["rgb", "bgr", "rgba", "bgra"])
def test_pictures_in_any_order_and_with_gaps(order: str, small: Path, picture: np.ndarray) -> None:
    lib = c_library.library()
    height, width = picture.shape[:2]
    channels = len(order)
    with c_library.Network(small, threads=1) as network:
        expected = network.labels(picture)
        for flip in (False, True):
            memory = np.full((height, width * channels + 13), 77, np.uint8)
            pixels = memory[:, : width * channels].reshape(height, width, channels)
            pixels[..., :3] = picture if order.startswith("rgb") else picture[..., ::-1]
            rows = memory
            if flip:
                memory[:] = memory[::-1].copy()
                rows = memory[::-1]
            image = c_library._Image(
                rows.ctypes.data, height, width, rows.strides[0], ["rgb", "bgr", "rgba", "bgra"].index(order)
            )
            labels = np.zeros((height, width), np.uint8)
            assert lib.liteseg_labels(network._network, ctypes.byref(image), labels.ctypes.data, 0, 0) == 0
            assert (labels == expected).all()


# -- threads


def test_many_threads_many_networks(small: Path, tmp_path: Path, picture: np.ndarray) -> None:
    paths = [small, files.write(files.fused("units"), tmp_path / "units.liteseg")]
    networks = [c_library.Network(path, threads=threads) for path in paths for threads in (1, 3)]
    pictures = [network_file.pictures((16 + 5 * i, 50 - 3 * i), i) for i in range(6)]
    expected = [[network.labels(one) for one in pictures] for network in networks]
    wrong: list[object] = []

    def work(first: int) -> None:
        try:
            for turn in range(60):
                which, index = (first + turn) % len(networks), (first * 7 + turn) % len(pictures)
                if not (networks[which].labels(pictures[index]) == expected[which][index]).all():
                    wrong.append((first, turn))
                # what this thread has done wrong is not told to the others
                if turn % 20 == first:
                    with pytest.raises(c_library.LibraryError, match=f"got {first + 1}$"):
                        networks[which].labels(np.zeros((first + 1, 40, 3), np.uint8))
        except BaseException as error:
            wrong.append(error)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(5)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []
    for network in networks:
        network.close()


def test_a_forked_child_can_run_and_close_what_its_parent_opened(small: Path) -> None:
    code = """
import os, sys, numpy
from liteseg_kernels import c_library
picture = numpy.arange(40 * 40 * 3, dtype=numpy.uint8).reshape(40, 40, 3)
network = c_library.Network(sys.argv[1], threads=3)
expected = network.labels(picture)
child = os.fork()
if child == 0:
    same = (network.labels(picture) == expected).all()
    network.close()
    os._exit(0 if same else 1)
assert os.waitpid(child, 0)[1] == 0
assert (network.labels(picture) == expected).all()
network.close()
print("right")
"""
    command = [sys.executable, "-c", code, str(small)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout == "right\n", done.stderr


# -- what is refused


def test_a_file_that_is_cut_or_changed_anywhere_is_refused(small: Path) -> None:
    data = small.read_bytes()
    places = [*range(40), *range(40, len(data), 977), len(data) - 1]
    for at in places:
        assert refused(data[:at])[0] == (BROKEN if at else BROKEN)
        changed = bytearray(data)
        changed[at] ^= 0x10
        status, told = refused(bytes(changed))
        assert status == (UNSUPPORTED if 8 <= at < 12 else BROKEN) and told.startswith("liteseg_open: file: "), told
    assert refused(data + b"\0")[0] == BROKEN


def test_a_file_that_contradicts_itself_is_refused(small: Path) -> None:
    data = small.read_bytes()
    words, values = files.parts(data)
    (count,) = struct.unpack_from("<Q", data, words)
    first = words + 8 + 8 * count + 8

    def with_word(at: int, value: int) -> bytes:
        changed = bytearray(data)
        struct.pack_into("<q", changed, at, value)
        return sealed(changed)

    cases = {
        "a program of version": with_word(words + 8, 9),
        "a number of layers in 1..1000": with_word(words + 8 + 16, 0),
        "a known layer": with_word(words + 8 + 24, 99),
        "a whole file": with_word(words, 1 << 61),
        "weights in the order of their words": with_word(first, count),
        "a known kind": with_word(first + 8, 70),
        "dims of 0 to": with_word(first + 16, -3),
        "values for all weights": with_word(first + 24, 1 << 20),
        "values of weights": sealed(data + bytes(8)),
        "finite means and positive standard deviations": sealed(
            data[: words - 48] + struct.pack("<d", float("nan")) + data[words - 40 :]
        ),
        # none of its words, and no weights
        "a program of version 1, got 0": sealed(data[:words] + bytes(16)),
    }
    for text, file in cases.items():
        status, told = refused(file)
        assert status == BROKEN and text in told, told
    assert refused(sealed(data[: words - 48] + struct.pack("<d", 1e7) + data[words - 40 :]))[0] == BROKEN
    classes = files.parts(data)[0] and struct.unpack_from("<I", data, 24)[0] + 28
    changed = bytearray(data)
    struct.pack_into("<I", changed, classes, 4)
    assert refused(sealed(changed)) == (BROKEN, "liteseg_open: file: expected a program of 4 classes, got 3")


def test_weights_of_bytes_that_are_none_count_as_zeros(tmp_path: Path, picture: np.ndarray) -> None:
    data = files.write(files.fused("int8"), tmp_path / "int8.liteseg").read_bytes()
    _, values = files.parts(data)
    logits = []
    for wrong in (float("nan"), 1e30, -float("inf"), 0.0):
        changed = np.frombuffer(data[values:], np.float32).copy()
        # above 1 there are weights and biases of bytes, no scales and no weights of the convolution in float
        changed[np.flatnonzero(np.abs(changed) > 1)[::7]] = wrong
        with c_library.Network(sealed(data[:values] + changed.tobytes()), threads=1) as network:
            logits.append(network.logits(picture))
    assert all(np.array_equal(one, logits[-1]) for one in logits) and len(np.unique(logits[-1])) > 2


def test_a_file_of_grey_pictures_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "grey.liteseg"
    plan_file.write(path, files.fused("tower").program(), plan_file.Description(3, MEAN[:1], STD[:1]))
    told = "liteseg_open: file: expected a network of RGB pictures, got one of 1 channels"
    assert refused(path) == (UNSUPPORTED, told)


def test_wrong_arguments(small: Path, tmp_path: Path, picture: np.ndarray) -> None:
    assert refused(tmp_path / "none.liteseg") == (
        CANNOT_READ,
        f"liteseg_open: path: expected a file to read, got '{tmp_path / 'none.liteseg'}': No such file or directory",
    )
    assert refused(tmp_path)[0] == refused(Path(os.devnull))[0] == CANNOT_READ
    (tmp_path / "empty").touch()
    assert refused(tmp_path / "empty")[0] == BROKEN
    assert refused(STREET)[1].endswith("expected a network file (liteseg export --format plan), got another file")
    assert refused(small, threads=-1)[0] == INVALID
    assert refused(small, threads=5000)[0] == INVALID
    assert refused(small, memory_limit=-1)[0] == INVALID
    assert refused(small, memory_limit=1000)[0] == NO_MEMORY
    lib = c_library.library()
    assert lib.liteseg_open(None, None, None) == INVALID
    null = ctypes.c_void_p(17)
    assert lib.liteseg_open(None, None, ctypes.byref(null)) == INVALID and null.value is None
    assert lib.liteseg_open_memory(None, 5, None, ctypes.byref(null)) == INVALID
    options = c_library._Options(1000, 0, 0, 0)
    assert lib.liteseg_open(str(small).encode(), ctypes.byref(options), ctypes.byref(null)) == INVALID
    lib.liteseg_close(None)
    assert lib.liteseg_classes(None) == 0 and lib.liteseg_class_name(None, 0) is None
    assert lib.liteseg_input_scale(None) == lib.liteseg_smallest_side(None) == lib.liteseg_threads(None) == 0
    assert lib.liteseg_description(None) is None
    # no options are the usual ones
    assert lib.liteseg_open(str(small).encode(), None, ctypes.byref(null)) == 0 and lib.liteseg_threads(null) >= 1
    lib.liteseg_close(null)
    out = np.zeros(picture.shape[:2], np.uint8)
    with c_library.Network(small, threads=1, memory_limit=1 << 20) as network:
        for name in (-1, 3, 1 << 30):
            assert lib.liteseg_class_name(network._network, name) is None

        def labels(*image: int, to: tuple[int, int] = (0, 0)) -> tuple[int, str]:
            given = c_library._Image(*image)
            status = lib.liteseg_labels(network._network, ctypes.byref(given), out.ctypes.data, *to)
            return status, lib.liteseg_last_error().decode()

        data = picture.ctypes.data
        assert labels(data, 40, 56, 0, 0)[0] == 0
        for wrong in (
            labels(0, 40, 56, 0, 0),
            labels(data, 0, 56, 0, 0),
            labels(data, 40, -1, 0, 0),
            labels(data, 40, 56, 100, 0),
            labels(data, 40, 56, -100, 0),
            labels(data, 40, 56, 0, 4),
            labels(data, 40, 56, 0, -1),
            labels(data, 7, 56, 0, 0),
            labels(data, 40, 56, 0, 0, to=(0, 3)),
            labels(data, 40, 56, 0, 0, to=(-2, -2)),
        ):
            assert wrong[0] == INVALID and re.match("liteseg_labels: .*: expected .*, got ", wrong[1]), wrong
        assert lib.liteseg_labels(network._network, None, out.ctypes.data, 0, 0) == INVALID
        large = network_file.pictures((600, 600), 0)
        with pytest.raises(c_library.LibraryError, match="liteseg_labels: memory: expected at most 1048576 bytes"):
            network.labels(large)


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.liteseg"
    with pytest.raises(ValueError, match="a network that runs from a plan, got one that does not: it is no network"):
        liteseg.export(liteseg.create_model("erfnet", 5), path, "plan")
    with pytest.raises(ValueError, match="expected one of RGB pictures for the format plan, got 4 channels"):
        liteseg.export(liteseg.create_model("liteseg_mobilenetv2", 5, in_channels=4), path, "plan")
    model = liteseg.create_model("liteseg_mobilenetv2", 5)
    with pytest.raises(ValueError, match="output: expected none for plan"):
        liteseg.export(model, path, "plan", output="labels")
    with pytest.raises(ValueError, match="size: expected none for plan"):
        liteseg.export(model, path, "plan", size=(64, 64))
    with pytest.raises(ValueError, match="ending in .liteseg for plan"):
        liteseg.export(model, tmp_path / "net.onnx", "plan")
    about = plan_file.Description(3, MEAN, STD, class_names=("one", "two"))
    with pytest.raises(ValueError, match="expected 3 class names, got 2"):
        plan_file.write(path, files.fused("tower").program(), about)
    path.unlink()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_differs_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.liteseg"
    write = network_file.write

    def other(model: torch.nn.Module, to: Path, classes: int) -> None:
        with torch.no_grad():
            model.classifier.bias[1] += 1  # type: ignore[union-attr]
            write(model, to, classes)
            model.classifier.bias[1] -= 1  # type: ignore[union-attr]

    model = liteseg.create_model("liteseg_mobilenetv2", 5)
    monkeypatch.setattr(network_file, "write", other)
    with pytest.raises(RuntimeError, match="the plan file differs from the model and was removed"):
        liteseg.export(model, path, "plan")
    monkeypatch.setattr(network_file, "write", lambda model, to, classes: to.write_bytes(b"nothing"))
    with pytest.raises(RuntimeError, match="does not run and was removed: liteseg_open: file"):
        liteseg.export(model, path, "plan")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on PATH")
def test_changed_files_crash_nothing(tmp_path: Path) -> None:
    """Without sanitizers, which `make fuzz-plan` and tests/sanitizers add."""
    from . import fuzz

    made = fuzz.program(tmp_path, c_library.path().parent)
    command = [str(made), "0", "4000", *fuzz.seeds(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"4000 draws from 0: (\d+) opened, (\d+) ran, no crash", done.stdout)
    # draws must get behind the checks, and must be refused too
    assert found is not None and 200 < int(found[2]) <= int(found[1]) < 3600, done.stdout


# -- what it is linked to


def _nm(*options: str) -> list[str]:
    if shutil.which("nm") is None:
        pytest.skip("no nm on PATH")
    command = ["nm", *options, str(c_library.path())]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def test_it_shows_the_functions_of_its_header_alone() -> None:
    header = (ROOT / "csrc/engine/c_api/liteseg.h").read_text()
    declared = set(re.findall(r"^LITESEG_API .*?\b(liteseg_\w+)\(", header, re.M))
    assert len(declared) == 14
    assert {line.split()[-1] for line in _nm("-D", "--defined-only")} == declared


def test_it_needs_the_c_library_alone() -> None:
    needed = [line.split()[-1] for line in _nm("-DC", "--undefined-only")]
    assert needed and [name for name in needed if re.search(r"torch|c10|aten|::|GLIBCXX|CXXABI", name)] == []
    if shutil.which("readelf") is None:
        pytest.skip("no readelf on PATH")
    told = subprocess.run(["readelf", "-d", str(c_library.path())], check=True, capture_output=True, text=True).stdout
    libraries = set(re.findall(r"\(NEEDED\).*\[(.+?)\]", told))
    assert "libc.so.6" in libraries
    assert all(re.match(r"lib(c|m|pthread)\.so|ld-linux", name) for name in libraries), libraries


def test_it_is_small() -> None:
    assert c_library.path().stat().st_size < 2_000_000


def test_it_runs_in_a_program_without_torch(small: Path) -> None:
    code = """
import ctypes, sys
lib = ctypes.CDLL(sys.argv[1])
lib.liteseg_open.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p]
network = ctypes.c_void_p()
status = lib.liteseg_open(sys.argv[2].encode(), None, ctypes.byref(network))
mapped = open("/proc/self/maps").read()
print(status, bool(network), "torch" in mapped, "libstdc++" in mapped)
"""
    command = [sys.executable, "-c", code, str(c_library.path()), str(small)]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True)
    assert done.stdout == "0 True False False\n", done.stderr


# -- the page


@pytest.fixture(scope="module")
def robot(tmp_path_factory: pytest.TempPathFactory, camvid: Path) -> Path:
    """A folder with what the page of docs/deployment.md begins with."""
    if shutil.which("cc") is None or shutil.which("cmake") is None:
        pytest.skip("no C compiler or no cmake on PATH")
    folder = tmp_path_factory.mktemp("robot")
    for name in ("csrc", "liteseg_kernels", "tests"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copy(camvid, folder / "camvid.liteseg")
    return folder


@pytest.fixture(scope="module")
def shell(robot: Path) -> Callable[[str], str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}

    def run(script: str) -> str:
        command = ["bash", "-euo", "pipefail", "-c", script]
        done = subprocess.run(command, cwd=robot, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def _blocks(language: str) -> list[str]:
    page = (ROOT / "docs/deployment.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.M | re.S)


def test_the_pages_example_segments_the_street(robot: Path, shell: Callable[[str], str], street: np.ndarray) -> None:
    example, *_ = _blocks("sh")
    assert "cc -O2 " in example
    # as strict as a C compiler gets
    told = shell(example.replace("cc -O2 ", "cc -std=c99 -pedantic -Wall -Wextra -Werror -O2 "))
    labels = np.asarray(Image.open(robot / "labels.pgm"))
    expected = liteseg.predict(liteseg.fuse(liteseg.create_model(weights="camvid")), street)
    assert (labels == expected).all()
    shares = dict(re.findall(r"([\d.]+) %  (\S.*)", told)[::-1])
    road = liteseg.create_model(weights="camvid").config.class_names.index("road")
    assert {name: share for share, name in shares.items()}["road"] == f"{100 * (expected == road).mean():.1f}"


def test_the_pages_cmake_package_is_found(robot: Path, shell: Callable[[str], str]) -> None:
    _, package, _ = _blocks("sh")
    build = "cmake --build build/libliteseg --parallel\n"
    assert build in package
    # compiled of the same sources with the same flags by setup.py, in minutes: not again here
    made = c_library.path()
    shell(package.replace(build, f"cp {made} build/libliteseg/libliteseg.so\n"))
    (listed,) = _blocks("cmake")
    project = robot / "project"
    project.mkdir()
    (project / "CMakeLists.txt").write_text(listed)
    shutil.copy(ROOT / "csrc/examples/segment.c", project / "main.c")
    shell("cmake -S project -B project/build -DCMAKE_PREFIX_PATH=$PWD/robot && cmake --build project/build")
    shell("python -c \"from PIL import Image; Image.new('RGB', (64, 48)).save('black.ppm')\"")
    assert "%" in shell("./project/build/robot camvid.liteseg black.ppm black.pgm")
    assert Image.open(robot / "black.pgm").size == (64, 48)


def test_cmake_compiles_what_setup_py_compiles(robot: Path, shell: Callable[[str], str]) -> None:
    """Sources, instruction sets and their flags."""
    plan = """
import json, runpy, setuptools
setuptools.setup = lambda **options: None
plan = runpy.run_path("setup.py")["PLAN"]
print(json.dumps([(str(unit.source), " ".join(unit.call)) for library in plan.libraries for unit in library.units]))
"""

    def compiled(text: str) -> dict[tuple[str, str], set[str]]:
        found = {}
        for source, command in re.findall(r"^(\S+\.cpp) (.*)$", text, re.M):
            inside = source.split("csrc/engine/")
            if len(inside) == 2:
                words = command.split()
                sets = [word for word in words if word.startswith("-DLITESEG_ISA=")]
                kept = {word for word in words if word.startswith(("-m", "-f", "-DLITESEG", "-O", "-std", "-D"))}
                # torch is in the extension's commands, and what only it reads
                dropped = ("-DTORCH", "-DPy_", "-DLITESEG_VERSION", "-std", "-Dliteseg_EXPORTS", "-DNDEBUG")
                found[inside[1], "".join(sets)] = {word for word in kept if not word.startswith(dropped)}
        return found

    shell("cmake -S csrc/engine -B commands -DCMAKE_EXPORT_COMPILE_COMMANDS=ON")
    commands = json.loads((robot / "commands/compile_commands.json").read_text())
    cmakes = compiled("\n".join(f"{one['file']} {one['command']}" for one in commands))
    told = python(ROOT, "-c", plan, LITESEG_BUILD="cpu")
    assert told.returncode == 0, told.stderr
    setups = compiled("\n".join(map(" ".join, json.loads(told.stdout))))
    assert len(setups) > 80 and cmakes == setups


def test_the_pages_code_compiles(tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler on PATH")
    (code,) = _blocks("c")
    include = f"-I{ROOT / 'csrc/engine/c_api'}"
    (tmp_path / "page.c").write_text(code)
    strict = ["cc", "-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", include]
    subprocess.run([*strict, str(tmp_path / "page.c")], check=True)
    # from C++ too
    (tmp_path / "page.cpp").write_text(code)
    subprocess.run(["c++", "-std=c++17", *strict[2:], str(tmp_path / "page.cpp")], check=True)
