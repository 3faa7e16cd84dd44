"""The Dockerfiles, as far as can be seen without building them: what they name is there, and as the project has it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "docs/docker").glob("*.Dockerfile"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_a_dockerfile_names_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    stages = re.findall(r"^FROM (\S+)(?: AS (\w+))?$", text, flags=re.MULTILINE)
    assert len(stages) == 2
    for image, _ in stages:
        # a tag that says which, not whatever is newest
        assert ":" in image and not image.endswith(":latest"), image
    assert re.findall(r"COPY --from=(\w+)", text) == [stages[0][1]]
    assert f"LITESEG_BUILD={path.stem.split('.')[0]} " in text
    assert "--no-build-isolation" in text and 'ENTRYPOINT ["liteseg"]' in text
    # the same torch as everywhere else, in both stages
    (pinned,) = re.findall(r"^TORCH \?= (\S+)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert re.findall(r"^ARG TORCH=torch==(\S+)$", text, flags=re.MULTILINE) == [pinned] * 2


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is of Python 3.11")
def test_extras_of_the_images_exist() -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for path in FILES:
        (named,) = re.findall(r"\.whl\)\[([\w,]+)\]", path.read_text(encoding="utf-8"))
        assert set(named.split(",")) <= extras.keys()
    assert len(FILES) == 2
