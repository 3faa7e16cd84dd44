"""Whole networks on the Triton kernels, in the interpreter: inference after `fuse`, and training steps."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import liteseg
import liteseg_kernels as lk
from liteseg.models import LiteSeg
from liteseg_kernels import _dispatch
from liteseg_kernels.testing import trained_like
from liteseg_kernels.triton import _tiles
from tests.worlds import find, world

CLASSES = 5


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[tuple[str, str]]]:
    """Inside, ops prefer Triton without being held to it; counts (op, backend that ran it)."""
    here = find("interpreter")
    if not here.available:
        pytest.skip(here.reason)
    counts: Counter[tuple[str, str]] = Counter()

    def counted(op: str, backend: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any) -> Any:
            counts[op, backend] += 1
            return run(*args)

        return wrapper

    registry = {
        op: {name: dataclasses.replace(entry, run=counted(op, name, entry.run)) for name, entry in backends.items()}
        for op, backends in _dispatch._registry.items()
    }
    monkeypatch.setattr(_dispatch, "_registry", registry)
    with world("interpreter"), lk.use_backend("triton"):
        yield counts


def _model(name: str) -> LiteSeg:
    return trained_like(liteseg.create_model(name, num_classes=CLASSES), torch.randn(2, 3, 64, 96))


def _ran_on_triton(runs: Counter[tuple[str, str]]) -> dict[str, int]:
    # depthwise convolutions in training are PyTorch's on a GPU
    ours = {key: count for key, count in runs.items() if not key[0].startswith("depthwise_conv2d")}
    assert {backend for _, backend in ours} == {"triton"}
    return {op: count for (op, _), count in ours.items()}


def _relative(actual: Tensor, expected: Tensor) -> float:
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


def _training_calls(model: nn.Module) -> tuple[dict[str, int], dict[str, int]]:
    """How often a step with batch statistics calls differentiable ops, and others; the convolutions are PyTorch's."""
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    counts = {"upsample_concat": 1, "upsample_cross_entropy": 1, "batch_norm_activation": norms}
    return counts, {"batch_norm_statistics": norms, "batch_norm_activation_backward_reduce": norms}


# Per network how often one pass calls each op; the encoders' dense convolutions are PyTorch's, which leaves Darknet19
# nothing of its own. The classifier's op calls the separable convolution's kernel.
BLOCKS = {
    "liteseg_mobilenetv2": {"inverted_residual": 17, "separable_conv2d": 1},
    "liteseg_shufflenet": {"shuffle_unit": 16, "separable_conv2d": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS)
@torch.no_grad()
def test_fused_network_from_picture_to_labels(name: str, runs: Counter[tuple[str, str]]) -> None:
    model = _model(name)
    picture = torch.randint(256, (1, 32, 32, 3), dtype=torch.uint8)

    x = lk.functional.preprocess(picture)
    logits = lk.fuse(model).low_resolution_logits(x)
    labels = lk.UpsampleArgmax()(logits, (32, 32))

    once = {"preprocess": 1, "daspp": 1, "upsample_concat_separable_conv2d": 1, "upsample_argmax": 1}
    once |= {"separable_conv2d_classifier": 1}
    assert _ran_on_triton(runs) == once | BLOCKS[name]
    plain = model.to_reference().double()
    with lk.use_backend("reference"):
        expected = plain.low_resolution_logits(lk.functional.preprocess(picture, dtype=torch.float64))
        upsampled = torch.nn.functional.interpolate(expected, (32, 32), mode="bilinear", align_corners=True)
    assert _relative(logits, expected) < 1e-5
    best, second = upsampled.topk(2, dim=1).values.unbind(1)
    clear = best - second > 1e-4 * expected.abs().max()
    assert clear.float().mean() > 0.95
    assert torch.equal(labels[clear], upsampled.argmax(1).to(torch.uint8)[clear])


def _step(model: nn.Module, logits: Callable[[Tensor], Tensor], x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and all gradients in one vector."""
    loss = lk.UpsampleCrossEntropyLoss()(logits(x), target)
    loss.backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return loss.detach(), torch.cat([g.flatten() for g in gradients])


def _check_step(
    model: nn.Module,
    forward: str,
    size: tuple[int, int],
    counts: dict[str, int],
    more: dict[str, int],
    runs: Counter[tuple[str, str]],
) -> None:
    """One training step gives the reference's loss and gradients, every op and its backward (and `more`) on Triton."""
    x, target = torch.randn(2, 3, *size), torch.randint(CLASSES, (2, *size))
    target[:, :3] = 255
    reference = copy.deepcopy(model)
    loss, gradients = _step(model, getattr(model, forward), x, target)
    assert _ran_on_triton(runs) == counts | {f"{op}_backward": count for op, count in counts.items()} | more
    with lk.use_backend("reference"):
        expected_loss, expected = _step(reference, getattr(reference, forward), x, target)
    assert _relative(loss, expected_loss) < 1e-5
    assert _relative(gradients, expected) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS)
def test_training_step_of_a_network(name: str, runs: Counter[tuple[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    # the interpreter pays by the program; the parity tests run the tiles that a GPU gets
    tiles = {
        key: tile._replace(height=4, width=8, outer=512) if key.table == "batch_norm_activation" else tile
        for key, tile in _tiles.table().items()
    }
    monkeypatch.setattr(_tiles, "table", lambda: tiles)
    model = liteseg.create_model(name, num_classes=CLASSES).train()
    x = torch.randn(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    target = torch.randint(CLASSES, (2, 64, 64))
    target[:, :3] = 255
    plain = copy.deepcopy(model).double()

    loss, gradients = _step(model, model.low_resolution_logits, x, target)

    counts, more = _training_calls(model)
    assert _ran_on_triton(runs) == counts | {f"{op}_backward": count for op, count in counts.items()} | more
    with lk.use_backend("reference"):
        expected_loss, expected = _step(plain, plain.low_resolution_logits, x.double(), target)
    assert _relative(loss, expected_loss) < 1e-5
    # An activation of which a rounding error sees the other side, and the two values that a norm behind the pooled map
    # has, make PyTorch's own float32 err by up to 0.02 here. A gradient that is wrong has another direction.
    assert _relative(gradients, expected) < 0.05
    for (parameter, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        if theirs.grad.norm() > 1e-6 * expected.norm():
            cosine = torch.nn.functional.cosine_similarity(ours.grad.double().flatten(), theirs.grad.flatten(), dim=0)
            assert cosine > 0.99, parameter


class _Small(nn.Module):
    """Every differentiable op of the library in one graph, small enough for the interpreter."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = lk.InvertedResidual(3, 8, 2, 2)
        self.block = lk.InvertedResidual(8, 8, 1, 1)
        self.units = nn.Sequential(
            lk.ShuffleUnit(8, 32, groups=4, first_groups=1, stride=2, combine="concat"),
            lk.ShuffleUnit(32, 32, groups=4),
        )
        self.daspp = lk.DASPP(32, 4, (1, 2))
        self.upsample_concat = lk.UpsampleConcat()
        self.decoder = lk.SeparableConv2d(12, 8, activation="relu")
        self.classifier = nn.Conv2d(8, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        low_level = self.block(self.stem(x))
        encoded = self.daspp(self.units(low_level))
        return self.classifier(self.decoder.forward_concat(encoded, low_level, self.upsample_concat))


def test_training_step_with_frozen_statistics(runs: Counter[tuple[str, str]]) -> None:
    model = trained_like(_Small())
    # folded, the pyramid is one op; its own weights get no gradient then
    model.daspp.fuse_()
    counts = {"inverted_residual": 2, "shuffle_unit": 2, "daspp": 1}
    counts |= {"upsample_concat_separable_conv2d": 1, "upsample_cross_entropy": 1}
    _check_step(model, "__call__", (8, 8), counts, {}, runs)


def test_training_step(runs: Counter[tuple[str, str]]) -> None:
    model = _Small().train()
    _check_step(model, "forward", (32, 40), *_training_calls(model), runs)
