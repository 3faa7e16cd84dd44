"""What a GPU day covers: the device, and the networks, sizes, batches and dtypes, tiny ones in a dry run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from liteseg.bench.registry import DTYPE_NAMES
from liteseg.bench.shapes import NETWORKS

from .rows import ROOT

SIZES = ((360, 640), (512, 1024), (1024, 2048))
RESULTS = ROOT / "benchmarks/results"
LOGS = ROOT / "build/gpu-day"


@dataclass(frozen=True)
class Day:
    """The grid of a day.

    Attributes:
        dry: on the CPU, with stand-ins for everything that needs a GPU.
        sizes: input sizes (height, width), the largest last.
        small: input size of the checks.
        results: folder of the CSV files.
        logs: folder for output that is not kept in the repository.
    """

    dry: bool
    device: str
    networks: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    small: tuple[int, int]
    batches: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]
    results: Path
    logs: Path

    @staticmethod
    def make(dry: bool, results: Path = RESULTS, logs: Path = LOGS) -> Day:
        logs.mkdir(parents=True, exist_ok=True)
        if dry:
            dtypes = (torch.float32, torch.float16)
            return Day(True, "cpu", NETWORKS[:2], ((32, 48),), (32, 48), (1, 2), dtypes, results, logs)
        dtypes = (torch.float16, torch.bfloat16, torch.float32)
        return Day(False, "cuda", NETWORKS, SIZES, (64, 96), (1, 8, 32), dtypes, results, logs)

    @staticmethod
    def dtype_name(dtype: torch.dtype) -> str:
        return DTYPE_NAMES[dtype]
