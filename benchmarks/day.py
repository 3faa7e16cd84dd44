"""What a GPU day covers: the device, and the networks, sizes, batches and dtypes, tiny ones in a dry run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from liteseg.bench.registry import DTYPE_NAMES
from liteseg.bench.shapes import NETWORKS

from .rows import ROOT

RESULTS = ROOT / "benchmarks/results"
LOGS = ROOT / "build/gpu-day"
Setting = tuple[tuple[int, int], int]


@dataclass(frozen=True)
class Day:
    """The grid of a day.

    Attributes:
        plan: name of the plan in `plans`.
        dry: on the CPU, with stand-ins for everything that needs a GPU.
        networks: the first one is the one that a short day is about.
        sizes: input sizes (height, width), the largest last.
        small: input size of the checks.
        trained: input size and batch of training steps.
        precisions: of training steps.
        results: folder of the CSV files.
        logs: folder for output that is not kept in the repository.
        deadline: of this process, in seconds since the epoch.
    """

    plan: str
    dry: bool
    device: str
    networks: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    small: tuple[int, int]
    batches: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]
    trained: tuple[Setting, ...]
    precisions: tuple[torch.dtype, ...]
    results: Path
    logs: Path
    deadline: float = float("inf")

    @staticmethod
    def make(plan: str, dry: bool, results: Path = RESULTS, logs: Path = LOGS, deadline: float = float("inf")) -> Day:
        logs.mkdir(parents=True, exist_ok=True)
        half, single, brain = torch.float16, torch.float32, torch.bfloat16
        place = results, logs, deadline
        short = plan == "short"
        if dry:
            networks = NETWORKS[: 1 if short else 2]
            sizes, batches = ((32, 48),), (1,) if short else (1, 2)
            return Day(
                plan,
                True,
                "cpu",
                networks,
                sizes,
                (32, 48),
                batches,
                (single, half),
                (((32, 48), 2),),
                (brain,),
                *place,
            )
        small = 64, 96
        if short:
            sizes, trained = ((360, 640), (1024, 2048)), (((512, 1024), 8),)
            return Day(plan, False, "cuda", NETWORKS[:1], sizes, small, (1,), (half, single), trained, (brain,), *place)
        sizes = (360, 640), (512, 1024), (1024, 2048)
        trained = ((352, 480), 8), ((512, 1024), 8), ((768, 768), 16)
        dtypes = half, brain, single
        return Day(
            plan, False, "cuda", NETWORKS, sizes, small, (1, 8, 32), dtypes, trained, (brain, half, single), *place
        )

    @staticmethod
    def dtype_name(dtype: torch.dtype) -> str:
        return DTYPE_NAMES[dtype]
