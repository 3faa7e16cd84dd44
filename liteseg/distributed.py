"""Several processes started by torchrun: who is who, counts summed over them, errors that all of them learn of."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from liteseg.errors import ElsewhereError, UserError
from liteseg.metrics import ConfusionMatrix

__all__ = [
    "gather",
    "local_rank",
    "mean_over_processes",
    "process_group",
    "rank",
    "shared_errors",
    "sum_counts",
    "world_size",
]


def _active() -> bool:
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """Number of processes that work together; 1 without torchrun."""
    return dist.get_world_size() if _active() else 1


def rank() -> int:
    """Number of this process, from 0; before the processes have met, the one that torchrun gave it."""
    return dist.get_rank() if _active() else int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Number of this process on its machine: the GPU it uses."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def process_group() -> Iterator[None]:
    """Lets the processes of one torchrun meet (gloo: what they exchange is small and on the CPU); else does nothing."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or not dist.is_torchelastic_launched():
        yield
        return
    dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def gather(value: Any) -> list[Any]:
    """`value` of every process, in the order of their ranks, on every process."""
    values: list[Any] = [None] * world_size()
    if not _active():
        return [value]
    dist.all_gather_object(values, value)
    return values


@contextmanager
def shared_errors() -> Iterator[None]:
    """Bad input met by one process inside the block ends it on all of them; every process has to pass through here.

    Rank 0 raises the first reason as a :class:`UserError`, the others :class:`ElsewhereError`. Without torchrun errors
    pass unchanged.
    """
    if world_size() == 1:
        yield
        return
    reason: str | None = None
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
    reasons = [one for one in gather(reason) if one is not None]
    if reasons:
        raise (UserError if rank() == 0 else ElsewhereError)(reasons[0])


def sum_counts(matrix: ConfusionMatrix) -> None:
    """Replaces the counts by their sum over all processes: int64, so the result is exact."""
    if world_size() == 1:
        return
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    for counts in (matrix.matrix, matrix.missed):
        summed = torch.from_numpy(counts).to(device)
        dist.all_reduce(summed)
        counts[...] = summed.cpu().numpy()


def mean_over_processes(value: torch.Tensor) -> torch.Tensor:
    """Mean of a tensor over all processes, without gradient."""
    if world_size() == 1:
        return value
    summed = value.detach().clone()
    dist.all_reduce(summed)
    return summed / world_size()
