"""Training through the fused modules against the plain torch.nn form: the same curve, the same weights."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as tf

import liteseg
import liteseg_kernels as lk

STEPS = 20
CLASSES = 5


def _train(model: nn.Module, loss_of: Callable[[nn.Module, Tensor, Tensor], Tensor], dtype: torch.dtype) -> list[float]:
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    losses = []
    for _ in range(STEPS):
        x = torch.randn((4, 3, 32, 64), generator=generator).contiguous(memory_format=torch.channels_last)
        target = torch.randint(CLASSES, (4, 32, 64), generator=generator)
        target[:, :5] = 255
        optimizer.zero_grad()
        loss = loss_of(model, x.to(dtype), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def _fused_loss(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    return lk.UpsampleCrossEntropyLoss()(model.low_resolution_logits(x), target)


def _plain_loss(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    up = tf.interpolate(model.low_resolution_logits(x), target.shape[1:], mode="bilinear", align_corners=True)
    return tf.cross_entropy(up, target, ignore_index=255)


def _distance(model: nn.Module, exact: nn.Module) -> float:
    """Relative distance of all weights and running statistics."""
    ours, theirs = (
        torch.cat([v.double().flatten() for v in m.state_dict().values() if v.is_floating_point()])
        for m in (model, exact)
    )
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("name", ["liteseg_mobilenetv2", "liteseg_shufflenet"])
def test_twenty_steps_agree(name: str) -> None:
    torch.manual_seed(0)
    fused = liteseg.create_model(name, num_classes=CLASSES).train()
    plain = lk.to_reference(copy.deepcopy(fused)).train()
    exact = lk.to_reference(copy.deepcopy(fused)).double().train()
    ours = _train(fused.to(memory_format=torch.channels_last), _fused_loss, torch.float32)
    theirs = _train(plain.to(memory_format=torch.channels_last), _plain_loss, torch.float32)
    true = _train(exact, _plain_loss, torch.float64)
    # rounding grows from step to step, so PyTorch's own distance from the float64 run is the measure
    off = [max(abs(a - b) for a, b in zip(losses, true, strict=True)) for losses in (ours, theirs)]
    assert true[-1] < true[0]
    assert off[0] <= 3 * off[1] + 1e-5, f"loss: off by {off[0]:.3g}, PyTorch's by {off[1]:.3g}"
    distances = _distance(fused, exact), _distance(plain, exact)
    assert distances[0] <= 3 * distances[1] + 1e-6, f"weights: off by {distances[0]:.3g}, PyTorch's {distances[1]:.3g}"
