"""Averaged weights."""

from __future__ import annotations

from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor


class EMA(WeightAveraging):
    """Exponential moving average of weights and batch-norm statistics, used for validation and export.

    The factor is min(decay, (1 + n) / (10 + n)) at the n-th step: with a fixed decay the random head of the first steps
    would still hold a quarter of the average after 700 steps (decay 0.998).

    Args:
        decay: of the average, in 0..1.
    """

    def __init__(self, decay: float = 0.998) -> None:
        if not 0.0 < decay < 1.0:
            raise ValueError(f"ema_decay: expected a number between 0 and 1, or 0 for none, got {decay}")

        def average(averaged: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
            # counters of batch norm are integers: the newest value is the right one
            if not averaged.is_floating_point():
                return current.clone()
            n = int(count)
            return averaged.lerp(current, 1.0 - min(decay, (1 + n) / (10 + n)))

        super().__init__(avg_fn=average)
