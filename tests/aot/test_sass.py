"""What is read out of machine code: lines, loops, stalls and waits, and that a slower kernel is seen."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from . import nvcc, sass

TILE = sass.CSRC / "liteseg/tile.cuh"


def _line_of(text: str) -> int:
    return TILE.read_text()[: TILE.read_text().index(text)].count("\n") + 1


def _code(*lines: str) -> sass.Code:
    """Code of lines like "LDS.64 R0, [R1] | stall 2, sets 0", labels, and "@ name" for the function it comes from."""
    out, address = [], 0
    for line in lines:
        if line.startswith("@"):
            out.append(f'\t//## File "/x/liteseg/tile.cuh", line {_line_of(line[1:].strip()) + 1}')
        elif line.endswith(":"):
            out.append(line)
        else:
            words, _, notes = line.partition("|")
            stall = int((re.search(r"stall (\d+)", notes) or [0, 1])[1])
            sets = int((re.search(r"sets (\d)", notes) or [0, 7])[1])
            waits = sum(1 << int(n) for n in re.findall(r"waits (\d)", notes))
            high = stall << 41 | sets << 46 | 7 << 49 | waits << 52
            out += [f"        /*{address:04x}*/   {words.strip()} ;   /* 0x{0:016x} */", f"    /* 0x{high:016x} */"]
            address += 16
    return sass.Code("\n".join(out))


def test_a_line_belongs_to_the_function_around_it() -> None:
    for text, name in (
        ("T* row = to + lane / 4 * S::kPitch + lane % 4 * 2;", "store_hidden"),
        ("sum[i][c] = fmaf(", "depthwise_sized"),
        ("ready[tap * S::kChunk + c] =", "land_taps"),
        ("cp_async16(to, row < last ? from", "fill_matrix"),
    ):
        assert sass.function_at("tile.cuh", _line_of(text)) == name
    assert sass.function_at("inverted_residual.cu", 10_000) != ""
    assert sass.function_at("vector_types.h", 1) == ""


def test_instructions_loops_and_widths() -> None:
    code = _code(
        "MOV R0, R1",
        ".L_x_1:",
        "@__device__ void store_hidden(",
        "STS.U16 [R2], R0",
        "LDG.E.128 R4, [R6.64]",
        "LDS.64 R4, [R6]",
        "STS [R6], R4",
        "BRA `(.L_x_1)",
        ".L_x_2:",
        "BRA `(.L_x_2)",
    )
    assert [i.bytes for i in code.instructions[1:5]] == [2, 16, 8, 4]
    assert code.loops == [sass.Loop(1, 6)]
    assert code.instructions[1].functions == ("store_hidden",) and code.instructions[0].functions == ()
    assert sass.narrow(code.within(code.loops[0])) == 1


def test_cycles_are_stalls_and_waits() -> None:
    assert sass.cycles(_code("FADD R0 | stall 4", "FADD R1 | stall 5").instructions) == 9
    waiting = _code("LDS R0 | stall 1, sets 2", "FADD R1 | stall 4", "FADD R2 | stall 1, waits 2").instructions
    assert sass.cycles(waiting) == sass.LATENCY["LDS"] + 1
    # a result that is there already costs nothing
    assert sass.cycles([*waiting[:1], *waiting[1:2] * 20, *waiting[2:]]) == 1 + 20 * 4 + 1


def _costs(**changes: int) -> sass.Measures:
    zero = {field.name: 0 for field in dataclasses.fields(sass.Measures)}
    return sass.Measures(**(zero | changes))


def _row(kernel: str, measures: sass.Measures) -> nvcc.Resources:
    numbers = {name: 1 for name in nvcc.OWN} | {"stack": 0, "local_accesses": 0}
    texts = {"kernel": kernel, "instance": "Fp16, 4", "target": "sm_90", "nvcc": ""}
    return nvcc.Resources(**(numbers | texts), measures=measures)  # type: ignore[arg-type]


def test_every_limit_is_one_of_a_figure_and_fails_above_it() -> None:
    assert set(nvcc.LIMITS) <= set(nvcc.EARLY)
    for kernel, limits in nvcc.LIMITS.items():
        assert _row(kernel, _costs(**limits)).faults() == []
        for column, most in limits.items():
            found = _row(kernel, _costs(**{column: most + 1})).faults()
            assert found == [f"{column}: {most + 1}, more than {most}"]


def test_a_load_through_the_read_only_cache_is_refused_in_an_early_launch() -> None:
    (found,) = _row("upsample_argmax_kernel", _costs(constant_loads=3)).faults()
    assert "3 loads through the read-only cache" in found
    assert _row("sum_parts_kernel", _costs(constant_loads=3)).faults() == []


# mistakes in the source that cost time and change no value
SLOWER = (
    (
        "*reinterpret_cast<Pair<T>*>(to) = rounded<T>(first, second);",
        "Pair<T> p = rounded<T>(first, second); unsigned short b[sizeof(T)]; memcpy(b, &p, sizeof(p)); "
        # volatile, or ptxas puts neighbours together
        "for (int i = 0; i < sizeof(T); ++i) { reinterpret_cast<volatile unsigned short*>(to)[i] = b[i]; }",
    ),
    (
        "const float low = there[half] ? activation.low() : 0.0f, high = there[half] ? activation.high() : 0.0f;",
        "const float low = activation.low(), high = activation.high(); "
        "for (int t = 0; t < kTiles; ++t) { if (!there[half]) { acc[t][2 * half] = acc[t][2 * half + 1] = sinf(low); } "
        "}",
    ),
)


@pytest.mark.slow
def test_a_slower_epilogue_is_over_the_limits(tmp_path: Path) -> None:
    compiler = nvcc.tool("nvcc")
    if compiler is None or nvcc.missing() is not None:
        pytest.skip(nvcc.missing() or "no nvcc")
    import torch

    for part in ("cuda", "common"):
        shutil.copytree(sass.ROOT / "csrc" / part, tmp_path / "csrc" / part)
    header = tmp_path / "csrc/cuda/liteseg/tile.cuh"
    text = header.read_text()
    for before, after in SLOWER:
        # within a line, so that the code's lines stay those of the functions in the checkout
        at = text.index(before, text.index("void store_hidden(") if "there" in before else 0)
        text = text[:at] + after + text[at + len(before) :]
    header.write_text(text)
    include = ["-I", str(tmp_path / "csrc"), "-I", str(tmp_path / "csrc/cuda")]
    include += ["-isystem", str(Path(torch.__file__).parent / "include")]
    flags = ["-O3", "-DNDEBUG", "-std=c++17", "-lineinfo", "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
    cubin = tmp_path / "slower.cubin"
    source = tmp_path / "csrc/cuda/inverted_residual.cu"
    subprocess.run([compiler, "-cubin", "-arch=sm_90", *flags, *include, "-o", cubin, source], check=True)
    for measures in sass.measures(str(nvcc.tool("nvdisasm")), cubin, nvcc.MEASURED).values():
        faults = " ".join(_row("inverted_residual_kernel", measures).faults())
        assert all(f"{column}: " in faults for column in ("narrow", "hidden", "strip_instructions")), faults
