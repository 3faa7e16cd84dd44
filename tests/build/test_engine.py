"""The engine stands alone: no torch in its sources or objects, and one source of what programs are made of."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from liteseg_kernels import _loader, activations
from liteseg_kernels.plan import contract

from .project import ROOT, objects

CSRC = ROOT / "csrc"
INCLUDE = re.compile(r"^\s*#\s*include\s+(\S+)", re.M)


def _included(file: Path) -> set[str]:
    return set(INCLUDE.findall(file.read_text()))


def test_the_engine_includes_nothing_of_torch() -> None:
    files = [file for file in (CSRC / "engine").rglob("*") if file.is_file()]
    assert len(files) > 50
    for file in [*files, CSRC / "common/check.h"]:
        for name in _included(file):
            inside = re.fullmatch(r'"(engine/[\w/]+\.h|common/check\.h)"', name)
            # named by the macro of the instruction set
            macros = {"vec.h": "LITESEG_SIMD_HEADER_OF", "bytes.h": "LITESEG_BYTES_HEADER_OF"}
            computed = name.startswith(macros.get(file.name, " "))
            system = re.fullmatch(
                r"<(\w+|(immintrin|arm_neon|pthread|unistd|fcntl|sched|stddef|stdint)\.h|(sys|linux|sanitizer)/\w+\.h)>",
                name,
            )
            assert inside or computed or system, f"{file.relative_to(ROOT)} includes {name}"
            assert inside is None or (CSRC / inside[1]).is_file(), f"{file.relative_to(ROOT)} includes {name}"


def test_blocks_and_kernels_do_not_include_upwards() -> None:
    order = ("simd", "blocks", "kernels", "plan")
    for room, above in ((order[i], order[i + 1 :]) for i in range(3)):
        for file in (CSRC / "engine" / room).rglob("*.*"):
            upwards = [name for name in _included(file) if name.startswith(tuple(f'"engine/{one}/' for one in above))]
            assert not upwards, f"{file.relative_to(ROOT)} includes {upwards}"


def test_no_object_of_the_engine_needs_a_symbol_of_torch() -> None:
    engine = [file for name, file in objects(ROOT).items() if name.startswith("engine.")]
    if not engine or shutil.which("nm") is None:
        pytest.skip("no nm on PATH" if engine else "no build folder here")
    assert len(engine) > 50
    told = subprocess.run(["nm", "-uC", *map(str, engine)], check=True, capture_output=True, text=True).stdout
    needed = set(re.findall(r"^\s+[Uwv] (.+)$", told, re.M))
    assert any(name.startswith("liteseg::") for name in needed) and "mmap" in needed
    assert sorted(name for name in needed if re.search(r"torch|c10|\bat::", name)) == []


@pytest.mark.skipif(_loader.missing("cpu") is not None, reason="the compiled CPU kernels are not loaded")
def test_python_reads_the_numbers_of_programs_from_the_engine() -> None:
    header = (CSRC / "engine/plan/program.h").read_text()
    lists = {
        kind: text for kind, text in re.findall(r"#define LITESEG_(PLAN|GRAPH)_LAYERS\(X\)((?:.*\\\n)*.*)", header)
    }
    for kind, text in lists.items():
        layers = re.findall(r"X\((\d+), (\w+), (?:true|false)\)", text)
        assert len(layers) >= 9
        for number, name in layers:
            assert contract.constant(f"{kind.lower()}.{name}") == int(number)
            assert (CSRC / f"engine/plan/layers/{name}.cpp").is_file()
    assert len(lists) == 2
    with pytest.raises(KeyError, match="plan\\.nothing"):
        contract.constant("plan.nothing")
    # ops number their activations by the same places
    assert [contract.activation(name) for name in activations.NAMES] == list(range(len(activations.NAMES)))
