"""Help for tests and benchmarks that compare numbers, also in projects that use this library."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Model = TypeVar("Model", bound=nn.Module)

_NORMS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm)


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

    norms = [part for part in module.modules() if isinstance(part, _NORMS)]
    with torch.no_grad():
        for part in module.modules():
            bias = getattr(part, "bias", None)
            if isinstance(bias, Tensor):
                draw(bias, -0.3, 0.3)
        for norm in norms:
            draw(norm.weight, 0.6, 1.4)
            if isinstance(norm, _BatchNorm) and norm.running_mean is not None:
                draw(norm.running_mean, -0.3, 0.3)
                draw(norm.running_var, 0.5, 1.5)
        if example is not None:
            _measure(module, example, [norm for norm in norms if isinstance(norm, _BatchNorm)])
            for norm in norms:
                if isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None:
                    # a channel that hardly varies in the example must not be blown up elsewhere
                    norm.running_var += 0.1 * norm.running_var.mean()
                    shift, stretch = torch.empty_like(norm.running_mean), torch.empty_like(norm.running_var)
                    draw(shift, -0.2, 0.2)
                    draw(stretch, 0.8, 1.2)
                    norm.running_mean += shift * norm.running_var.sqrt()
                    norm.running_var *= stretch
    return module.eval()


def _measure(module: nn.Module, example: Tensor, norms: list[_BatchNorm]) -> None:
    """Set the running statistics of `norms` to those of the example."""
    momenta = [norm.momentum for norm in norms]
    module.train()
    for norm in norms:
        norm.momentum = 1.0
    try:
        # dropout draws from the global generator
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module(example)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
