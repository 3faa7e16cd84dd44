"""Help for tests and benchmarks that compare numbers, also in projects that use this library."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .fuse import to_reference

Model = TypeVar("Model", bound=nn.Module)


def trained_like(module: Model, example: Tensor | None = None, *, seed: int = 0) -> Model:
    """Change `module` in place into what training would leave: no bias is zero and no normalisation the identity.

    A network fresh from its constructor hides faults: the bias that a folded normalisation gives is zero, so one that
    is dropped, doubled or taken from another layer changes nothing, and with the initial statistics activations shrink
    from layer to layer until the logits hardly depend on the picture. Biases, and the normalisations' affine parameters
    and running statistics, are drawn anew, the same for the same `seed`; weights stay as they are.

    Args:
        module: any module; a ``bias`` of any of its parts is drawn, and all of its normalisations.
        example: an input of at least two images, [N, C, H, W] for a network. The running statistics are then those of
            its own activations, off by some per cent as a training's are, so that activations keep their scale at any
            depth. Without it they are drawn around 0 and 1, which serves single modules and shallow networks.
        seed: of everything drawn.

    Returns:
        `module`, in eval mode.

    Example:
        >>> import torch, liteseg_kernels as lk
        >>> from liteseg_kernels.testing import trained_like
        >>> block = trained_like(lk.SeparableConv2d(8, 16, 3))
        >>> bool(lk.fuse(block)(torch.zeros(1, 8, 4, 4)).any())
        True
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: Tensor | None, low: float, high: float) -> None:
        if tensor is not None:
            drawn = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) * (high - low) + low
            tensor.copy_(drawn)

    with torch.no_grad():
        for part in module.modules():
            bias = getattr(part, "bias", None)
            if isinstance(bias, Tensor):
                draw(bias, -0.3, 0.3)
            if isinstance(part, (_BatchNorm, nn.GroupNorm, nn.LayerNorm)):
                draw(part.weight, 0.6, 1.4)
            if isinstance(part, _BatchNorm) and part.num_batches_tracked is not None:
                part.num_batches_tracked.fill_(1000)
        statistics = _statistics(module)
        for mean, variance in statistics:
            draw(mean, -0.3, 0.3)
            draw(variance, 0.5, 1.5)
        if example is not None:
            for (mean, variance), (own_mean, own_variance) in zip(statistics, _of(module, example), strict=True):
                # a channel that hardly varies in the example must not be blown up elsewhere
                variance.copy_(own_variance + 0.1 * own_variance.mean())
                shift, stretch = torch.empty_like(mean), torch.empty_like(variance)
                draw(shift, -0.2, 0.2)
                draw(stretch, 0.8, 1.2)
                mean.copy_(own_mean + shift * variance.sqrt())
                variance *= stretch
    return module.eval()


def _statistics(module: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Running mean and variance of each normalisation that has them."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    return [(n.running_mean, n.running_var) for n in norms if n.running_mean is not None and n.running_var is not None]


def _of(module: nn.Module, example: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The statistics of the activations that `example` gives in `module`."""
    # plain modules in float64: the same on any machine and any backend
    plain = to_reference(module).double().train()
    for part in plain.modules():
        if isinstance(part, _BatchNorm):
            part.momentum = 1.0
    # dropout draws from the global generator
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain(example.double())
    return _statistics(plain)
