"""What a GPU day covers: the device, and the networks, sizes, batches and dtypes, tiny ones in a dry run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from liteseg.bench.registry import DTYPE_NAMES
from liteseg.bench.shapes import NETWORKS

from .rows import ROOT

RESULTS = ROOT / "benchmarks/results"
LOGS = ROOT / "build/gpu-day/logs"
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
        whole = Day(
            plan=plan,
            dry=dry,
            device="cuda",
            networks=NETWORKS,
            sizes=((360, 640), (512, 1024), (1024, 2048)),
            small=(64, 96),
            batches=(1, 8, 32),
            dtypes=(half, brain, single),
            trained=(((352, 480), 8), ((512, 1024), 8), ((768, 768), 16)),
            precisions=(brain, half, single),
            results=results,
            logs=logs,
            deadline=deadline,
        )
        if plan == "short":
            short: dict[str, Any] = {"networks": NETWORKS[:1], "batches": (1,), "dtypes": (half, single)}
            sizes, trained = (whole.sizes[0], whole.sizes[-1]), whole.trained[1:2]
            whole = replace(whole, sizes=sizes, trained=trained, precisions=(brain,), **short)
        if not dry:
            return whole
        small = (32, 48)
        batches = (1,) if plan == "short" else (1, 2)
        tiny: dict[str, Any] = {"device": "cpu", "dtypes": (single, half), "precisions": (brain,)}
        tiny |= {"networks": whole.networks[:2], "batches": batches, "trained": ((small, 2),)}
        return replace(whole, sizes=(small,), small=small, **tiny)

    def takes(self, compiled: bool, *off: int) -> bool:
        """Whether a dry run takes a row: `off` are its positions on the axes of the grid, one of which may be left.
        What compiling costs is paid once."""
        return not self.dry or sum(position > 0 for position in off) <= (0 if compiled else 1)

    @staticmethod
    def dtype_name(dtype: torch.dtype) -> str:
        return DTYPE_NAMES[dtype]
