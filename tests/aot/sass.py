"""The machine code of the CUDA kernels, instruction by instruction: where each comes from in the source, which loops
there are, and what one warp alone would need for a stretch of it.

Reads `nvdisasm -gi -hex`: the library is built with -lineinfo, so each instruction names the lines that it was inlined
from, and its encoding carries the stalls and the scoreboard waits that ptxas has scheduled.
"""

from __future__ import annotations

import bisect
import functools
import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
CSRC = ROOT / "csrc/cuda"

# cycles until the result of an instruction that is waited for by scoreboard; assumed, for sm_90
LATENCY = {
    "LDS": 29, "LDSM": 33, "LDG": 270, "LDC": 40, "ULDC": 40, "S2R": 25, "HMMA": 33, "SHFL": 25, "MUFU": 22,
    "I2F": 14, "F2F": 14, "F2I": 14, "POPC": 14, "BAR": 30, "MEMBAR": 700, "LD": 270,
}  # fmt: skip
OTHER_LATENCY = 14

_LINE = re.compile(r'//## File "([^"]+)", line (\d+)')
_CODE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);\s*/\* 0x[0-9a-f]+ \*/")
_HIGH = re.compile(r"^\s+/\* 0x([0-9a-f]{16}) \*/")
_LABEL = re.compile(r"^(\.L_x_\d+):")
_FUNCTION = re.compile(r"__(?:device|global)__[^;{}=]*?\b(\w+)\s*\(")


@dataclass(frozen=True)
class Instruction:
    """One instruction: its name with all suffixes, and the functions of csrc/cuda that it stems from, inmost first."""

    address: int
    predicated: bool
    name: str
    operands: str
    functions: tuple[str, ...]
    control: int

    @property
    def stem(self) -> str:
        return self.name.split(".")[0]

    @property
    def stall(self) -> int:
        return self.control >> 41 & 15

    @property
    def barrier(self) -> int:
        """The scoreboard that its result sets, 7: none."""
        return self.control >> 46 & 7

    @property
    def waits(self) -> int:
        return self.control >> 52 & 63

    @property
    def bytes(self) -> int:
        """Of an access to memory, per thread."""
        if re.search(r"\.128\b", self.name):
            return 16
        if re.search(r"\.64\b", self.name):
            return 8
        if re.search(r"\.[US]?16\b", self.name):
            return 2
        return 1 if re.search(r"\.[US]8\b", self.name) else 4


@dataclass(frozen=True)
class Loop:
    """A stretch of code that ends in a branch back to its first instruction: indices [begin, end)."""

    begin: int
    end: int


@functools.cache
def _functions(path: Path) -> tuple[list[int], list[str]]:
    """First lines and names of the device functions and kernels in a source."""
    text = path.read_text()
    found = [(text.count("\n", 0, m.start()) + 1, m.group(1)) for m in _FUNCTION.finditer(text)]
    names = [(line, name) for line, name in found if name not in ("__launch_bounds__",)]
    # __launch_bounds__(...) stands before the name of a kernel
    names += [
        (text.count("\n", 0, m.start()) + 1, m.group(1))
        for m in re.finditer(r"^\s*(?:__global__.*\s)?(\w+_kernel)\(", text, re.MULTILINE)
    ]
    names.sort()
    return [line for line, _ in names], [name for _, name in names]


@functools.cache
def function_at(name: str, line: int) -> str:
    """The function of csrc/cuda around a line of the file with this name; empty where the file is another's."""
    path = next((p for p in (CSRC / name, CSRC / "liteseg" / name) if p.is_file()), None)
    if path is None:
        return ""
    lines, names = _functions(path)
    place = bisect.bisect_right(lines, line) - 1
    return names[place] if place >= 0 else ""


class Code:
    """The instructions of one kernel, and its loops."""

    def __init__(self, text: str) -> None:
        self.instructions: list[Instruction] = []
        labels: dict[str, int] = {}
        functions: list[str] = []
        fresh = False
        pending: tuple[int, str] | None = None
        for line in text.splitlines():
            if found := _LINE.search(line):
                if fresh:
                    functions, fresh = [], False
                name = function_at(Path(found.group(1)).name, int(found.group(2)))
                if name and (not functions or functions[-1] != name):
                    functions.append(name)
            elif found := _LABEL.match(line):
                labels[found.group(1)] = len(self.instructions)
            elif found := _CODE.match(line):
                pending = int(found.group(1), 16), found.group(2).strip()
                fresh = True
            elif pending is not None and (found := _HIGH.match(line)):
                address, words = pending
                predicated = words.startswith("@")
                if predicated:
                    words = words.split(None, 1)[1]
                name, _, operands = words.partition(" ")
                self.instructions.append(
                    Instruction(address, predicated, name, operands, tuple(functions), int(found.group(1), 16))
                )
                pending = None
        self.loops = []
        for index, instruction in enumerate(self.instructions):
            if instruction.stem != "BRA":
                continue
            target = re.search(r"\.L_x_\d+", instruction.operands)
            if target is not None and labels[target.group()] <= index:
                # the branch to itself that ends the code is no loop
                if labels[target.group()] < index:
                    self.loops.append(Loop(labels[target.group()], index + 1))

    def within(self, loop: Loop) -> list[Instruction]:
        return self.instructions[loop.begin : loop.end]

    def main(self) -> Loop | None:
        """The loop over chunks: the shortest around copies, a product and barriers; without a product, the longest with
        barriers. Code that ptxas has put behind the loop jumps back into it, which looks like a longer loop."""
        barred = [loop for loop in self.loops if count(self.within(loop), "BAR") >= 2]
        chunks = [loop for loop in barred if all(count(self.within(loop), stem) for stem in ("HMMA", "LDGSTS"))]
        lengths = [(loop.end - loop.begin, loop) for loop in (chunks or barred)]
        if not lengths:
            return None
        return min(lengths, key=lambda pair: pair[0] if chunks else -pair[0])[1]


def from_functions(instructions: Iterable[Instruction], *names: str, but: Sequence[str] = ()) -> list[Instruction]:
    """Those that stem from one of the functions, and from none of the others."""
    return [
        i
        for i in instructions
        if any(name in i.functions for name in names) and not any(name in i.functions for name in but)
    ]


def count(instructions: Iterable[Instruction], *stems: str) -> int:
    return sum(i.stem in stems for i in instructions)


def narrow(instructions: Iterable[Instruction]) -> int:
    """Accesses to memory of one or two bytes."""
    return sum(i.stem in ("LDS", "STS", "LDG", "STG") and i.bytes <= 2 for i in instructions)


def cycles(instructions: Sequence[Instruction]) -> int:
    """What a warp that has a scheduler to itself needs for them in this order: the stalls that ptxas has encoded, and
    the waits for results, with the latencies assumed above."""
    now = 0
    ready = [0] * 6
    for instruction in instructions:
        for barrier in range(6):
            if instruction.waits >> barrier & 1:
                now = max(now, ready[barrier])
        if instruction.barrier < 6:
            latency = LATENCY.get(instruction.stem, OTHER_LATENCY)
            ready[instruction.barrier] = max(ready[instruction.barrier], now + latency)
        now += max(instruction.stall, 1)
    return now


# code for shapes and options that the networks do not have: channels that are not adjacent, aligned groups of 16 bytes,
# leaky activations, channels that end inside a chunk
RARE = ("gather", "copy_scalars", "leak", "drop_columns")


@dataclass(frozen=True)
class Measures:
    """What a kernel costs by its code; cycles are a single warp's, see `cycles`. Zero where a kernel has no such part.

    instructions            in all, 16 bytes each
    loop_*                  of the main loop (a chunk of channels) but for the loops inside it and RARE code
    narrow                  accesses of one or two bytes in the main loop
    branches                places in the main loop where threads of a warp may part (BSSY)
    barriers                in the main loop
    strip_*                 of 16 slots of one chunk of the expansion, from one chunk of input channels
    hidden                  instructions a hidden value behind the product, in hundredths
    hidden_branches         jumps in the strip's code behind the product: over code for leaky activations and over the
                            columns that a last chunk lacks, both for all threads alike
    product_*               of 16 rows and 32 columns with one more chunk of input channels
    depthwise_*             of a row of three taps for all pixels of a thread
    copy_*                  of one 16-byte copy to shared memory
    outside_cycles          in front of the main loop
    constant_loads          through the cache that a kernel in front may not have written to yet
    membars                 fences
    """

    instructions: int
    loop_instructions: int
    loop_cycles: int
    narrow: int
    branches: int
    barriers: int
    strip_instructions: int
    strip_cycles: int
    hidden: int
    hidden_branches: int
    product_instructions: int
    product_cycles: int
    depthwise_instructions: int
    depthwise_cycles: int
    copy_instructions: int
    copy_cycles: int
    outside_cycles: int
    constant_loads: int
    membars: int


class _Parts:
    """The loops of a kernel that are measured, without RARE code."""

    def __init__(self, code: Code) -> None:
        self.code = code
        self.main = code.main()
        self.nested = [loop for loop in code.loops if self._inside(loop, self.main)]
        products = [loop for loop in self.nested if self.all_of(loop, "HMMA") and not self.all_of(loop, "BAR")]
        strips = [loop for loop in products if from_functions(code.within(loop), "store_hidden")]
        self.strip = min(strips, key=_length, default=None)
        self.product = next((loop for loop in products if self._inside(loop, self.strip)), None)
        rows = [
            loop
            for loop in self.nested
            if count(from_functions(code.within(loop), "depthwise_sized"), "FFMA") >= 24 and self._inmost(loop)
        ]
        # of three taps and eight channels a pixel; the loops of other kernel sizes are unrolled otherwise
        self.depthwise = min(rows, key=lambda loop: (self.all_of(loop, "FFMA") % 24 != 0, _length(loop)), default=None)
        self.copies = [loop for loop in self.nested if self.all_of(loop, "LDGSTS") and self._inmost(loop)]

    @staticmethod
    def _inside(loop: Loop, outer: Loop | None) -> bool:
        return outer is not None and loop != outer and outer.begin <= loop.begin and loop.end <= outer.end

    def _inmost(self, loop: Loop) -> bool:
        return not any(self._inside(other, loop) for other in self.nested)

    def all_of(self, loop: Loop, stem: str) -> int:
        return count(self.code.within(loop), stem)

    def of(self, loop: Loop | None, *but: Loop | None) -> list[Instruction]:
        """The instructions of a loop without those of others."""
        if loop is None:
            return []
        left_out = [other for other in but if other is not None]
        return _usual(
            self.code.instructions[at]
            for at in range(loop.begin, loop.end)
            if not any(other.begin <= at < other.end for other in left_out)
        )


def _length(loop: Loop) -> int:
    return loop.end - loop.begin


def _usual(instructions: Iterable[Instruction]) -> list[Instruction]:
    return [i for i in instructions if not any(name in i.functions for name in RARE)]


def measure(code: Code) -> Measures:
    """The costs of one kernel."""
    parts = _Parts(code)
    whole, own = parts.of(parts.main), parts.of(parts.main, *parts.nested)
    strip, product, depthwise = parts.of(parts.strip, parts.product), parts.of(parts.product), parts.of(parts.depthwise)
    behind = [i for i in strip if "multiply" not in i.functions]
    copies = [parts.of(loop) for loop in parts.copies]
    copied = max(1, sum(count(copy, "LDGSTS") for copy in copies))
    # 16 x 32 values are eight products of the tensor cores
    steps = max(1, count(product, "HMMA") // 8)
    return Measures(
        instructions=len(code.instructions),
        loop_instructions=len(own),
        loop_cycles=cycles(own),
        narrow=narrow(whole),
        branches=count(whole, "BSSY"),
        barriers=count(whole, "BAR"),
        strip_instructions=len(strip),
        strip_cycles=cycles(strip),
        hidden=round(100 * len(behind) / 16),
        # but for the jump back
        hidden_branches=max(0, count(behind, "BSSY", "BRA") - 1),
        product_instructions=len(product) // steps,
        product_cycles=cycles(product) // steps,
        depthwise_instructions=len(depthwise),
        depthwise_cycles=cycles(depthwise),
        copy_instructions=sum(map(len, copies)) // copied,
        copy_cycles=sum(map(cycles, copies)) // copied,
        outside_cycles=cycles(_usual(code.instructions[: parts.main.begin if parts.main else 0])),
        constant_loads=sum("CONSTANT" in i.name for i in code.instructions),
        membars=count(code.instructions, "MEMBAR"),
    )


def kernels(nvdisasm: str, cubin: Path, wanted: re.Pattern[str]) -> Iterator[tuple[str, Code]]:
    """(mangled name, code) of the kernels in a cubin whose name has what is wanted."""
    command = [nvdisasm, "-c", "-gi", "-hex", str(cubin)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    parts = re.split(r"^\.text\.(\w+):$", text, flags=re.MULTILINE)
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        if wanted.search(name):
            yield name, Code(body)


def measures(nvdisasm: str, cubin: Path, wanted: re.Pattern[str]) -> dict[str, Measures]:
    return {name: measure(code) for name, code in kernels(nvdisasm, cubin, wanted)}
