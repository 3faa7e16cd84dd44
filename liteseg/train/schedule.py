"""Learning-rate schedule: linear warm-up, then polynomial decay."""

from __future__ import annotations


def learning_rate_factor(
    step: int,
    *,
    total_steps: int,
    steps_per_epoch: int,
    warmup_steps: int = 0,
    power: float = 0.9,
    hold_epochs: int = 0,
) -> float:
    """Factor on the initial learning rate for optimizer step `step` (0-based).

    With hold_epochs = 0: (step + 1) / warmup_steps during warm-up, then (1 - step / total_steps) ** power.
    With hold_epochs = n > 0 the decay moves only when (epoch + 1) % n == 0 and is (1 - epoch / epochs) ** power for
    that epoch: the LiteSeg authors' rule with n = 5 (10 on coarse data).
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if hold_epochs > 0:
        epoch = step // steps_per_epoch
        reached = (epoch + 1) // hold_epochs * hold_epochs - 1
        progress = max(reached, 0) * steps_per_epoch / total_steps
    else:
        progress = step / total_steps
    return max(1.0 - progress, 0.0) ** power
