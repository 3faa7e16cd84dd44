"""The documentation builds without a warning, and every code block in it and in the README runs.

Python blocks of a page run one after another in one namespace; every `liteseg` command runs on small stand-ins for the
files it names, with options after its own that make it short.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import liteseg
from liteseg.cli import main
from liteseg.models.encoders import ENCODERS
from liteseg_kernels import ModuleExplanation, _loader
from tests.data import folders, street_file

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TINY = ["--size", "64x96", "--runs", "2"]
# options that make a command short, by the words it starts with
SHORT = {
    "train": [
        *("--data.batch_size", "2", "--data.augment.crop", "[32,64]", "--data.num_workers", "0"),
        *("--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false", "--trainer.logger", "false"),
        *("--trainer.precision", "32-true"),
    ],
    "export": ["--size", "64x96"],
    "benchmark fps": [*TINY, "--networks", "enet", "--output", "logits", "--providers", "eager", "liteseg"],
    "benchmark kernels": [*TINY, "--ops", "preprocess", "--providers", "eager"],
}
# what is run elsewhere (make, CI itself) or needs what is not here
ELSEWHERE = ("make", "pip install", "torchrun", "python -m benchmarks")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the page's line its text begins at."""

    language: str
    text: str
    line: int


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        yield Block(found[1], found[2], text[: found.start(2)].count("\n") + 1)


def commands() -> Iterator[tuple[str, str]]:
    """(page:line, command) of every line of the blocks without a language."""
    for page in PAGES:
        for block in blocks(page):
            if not block.language:
                for offset, line in enumerate(block.text.replace("\\\n", " ").splitlines()):
                    if line.strip():
                        yield f"{page.relative_to(ROOT)}:{block.line + offset}", line.strip()


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the pages name."""
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    shutil.copy(street_file(), tmp_path)
    (tmp_path / "folder").mkdir()
    shutil.copy(street_file(), tmp_path / "folder")
    folders.own(tmp_path / "MINE", size=(64, 80))
    (described,) = (block.text for block in blocks(ROOT / "docs" / "own-data.md") if block.language == "yaml")
    (tmp_path / "MINE" / "dataset.yaml").write_text(described)
    folders.camvid(tmp_path / "DIR", {"train": 4, "val": 2, "test": 1}, size=(64, 80))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_clip(path: Path) -> None:
    av = pytest.importorskip("av")
    import numpy as np

    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for shade in (40, 200):
            frame = av.VideoFrame.from_ndarray(np.full((64, 96, 3), shade, np.uint8), format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


@pytest.mark.parametrize(
    "page", [p for p in PAGES if any(b.language == "python" for b in blocks(p))], ids=lambda p: p.stem
)
def test_python_blocks_run(page: Path, workplace: Path) -> None:
    if page.stem == "deployment":
        for module in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(module)
    namespace: dict[str, object] = {"__name__": page.stem}
    # a page may add encoders
    known = dict(ENCODERS)
    try:
        for block in blocks(page):
            if block.language == "python":
                # a traceback that shows the page's own lines
                code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
                exec(code, namespace)
        if page.stem == "extending" and _loader.missing("cpu") is None:
            explained = namespace["explained"]
            assert isinstance(explained, ModuleExplanation) and explained.plan == ("",), explained
    finally:
        ENCODERS.clear()
        ENCODERS.update(known)


@pytest.mark.parametrize(("place", "line"), list(commands()), ids=[place for place, _ in commands()])
def test_commands_run(place: str, line: str, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(line, comments=True)
    if line.startswith(ELSEWHERE):
        return
    assert words[0] == "liteseg", f"{place}: expected a liteseg command or one of {ELSEWHERE}, got {line}"
    arguments = words[1:]
    if "clip.mp4" in arguments:
        write_clip(workplace / "clip.mp4")
    if "runs/mine/weights.safetensors" in arguments:
        (workplace / "runs" / "mine").mkdir(parents=True)
        names = ("grass", "path", "flower bed")
        model = liteseg.create_model("liteseg_mobilenetv2", 3, class_names=names)
        liteseg.save_weights(model, "runs/mine/weights.safetensors")
    if "camvid_int8.safetensors" in arguments and arguments[0] != "quantize":
        liteseg.save_weights(
            liteseg.quantize(liteseg.create_model(weights="camvid"), ["street.jpg"]), "camvid_int8.safetensors"
        )
    if arguments[0] == "train":
        pytest.importorskip("pytorch_lightning")
    if "onnx" in arguments:
        pytest.importorskip("onnxscript")
    for start, more in SHORT.items():
        # a plan is of any size
        if " ".join(arguments).startswith(start) and "plan" not in arguments:
            arguments += more
    try:
        code = main(arguments)
    except SystemExit as end:
        # what --print_config and --help end with
        code = int(end.code or 0)
    assert code == 0, f"{place}: {capsys.readouterr().err}"


def test_the_documentation_builds_without_a_warning(tmp_path: Path) -> None:
    for module in ("mkdocs", "mkdocstrings", "material"):
        pytest.importorskip(module)
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "benchmarks" / "index.html").read_text()
    assert "<!-- results:" not in page and "liteseg_mobilenetv2" in page
    # in front, where the page shows it without scrolling
    assert len(re.findall(r"<th>(?:network|op)</th>\s*<th[^>]*>ratio</th>", page)) == 3
    assert (tmp_path / "site" / "first_hour.ipynb").is_file()
    assert "SeparableConv2d" in (tmp_path / "site" / "api" / "kernels" / "index.html").read_text()
