"""What the peer networks share: configuration, input check, and the interface of our own models."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

import liteseg_kernels as lk
from liteseg.models.fields import check_counts, check_use
from liteseg.models.hub import Hub

MIN_SIZE = 32


@dataclasses.dataclass(frozen=True)
class PeerConfig:
    """Everything needed to rebuild a peer network, checked when it is made.

    Attributes:
        name: registry name.
        num_classes: channels of the logits.
        class_names: one a class, or None.
        input_scale: factor by which ``predict`` resizes images before the network sees them.
    """

    name: str
    num_classes: int = 19
    class_names: tuple[str, ...] | None = None
    input_scale: float = 1.0

    def __post_init__(self) -> None:
        check_counts(self, "num_classes")
        check_use(self)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types (tuples as lists)."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}


class PeerBlock(nn.Module):
    """A building block: one line in the table of :func:`liteseg.profile`."""


class Peer(nn.Module, Hub):
    """A network to compare with: float [N, 3, H, W], RGB normalised as for our models -> logits [N, num_classes, H, W].

    Any H and W of at least 32. Where a network halves and doubles, the input is padded with zeros (the mean colour)
    below and on the right to multiples of `multiple`, and the logits are cut back; at such multiples the result is the
    original's. The modules are torch.nn's, and those of liteseg_kernels where they are the same.
    """

    config_class: ClassVar[type[PeerConfig]] = PeerConfig
    # keys of everything whose shape depends on the number of classes
    class_prefixes: ClassVar[tuple[str, ...]] = ()
    # of the height and width that `logits` takes; 1: any
    multiple: ClassVar[int] = 8

    def __init__(self, config: PeerConfig) -> None:
        super().__init__()
        self.config: Any = config

    def _check_input(self, x: torch.Tensor) -> None:
        name = type(self).__name__
        if x.dim() != 4 or x.shape[1] != 3:
            raise ValueError(f"{name}: x: expected a tensor of shape [N, 3, H, W], got {list(x.shape)}")
        if not x.is_floating_point():
            raise TypeError(f"{name}: x: expected a floating point tensor of normalised RGB, got {x.dtype}")
        if x.shape[2] < MIN_SIZE or x.shape[3] < MIN_SIZE:
            raise ValueError(
                f"{name}: x: expected height and width of at least {MIN_SIZE}, got {x.shape[2]}x{x.shape[3]}"
            )

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of input whose height and width are multiples of `multiple`, [N, num_classes, H, W]."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._check_input(x)
        height, width = x.shape[-2:]
        if height % self.multiple or width % self.multiple:
            padding = (0, -width % self.multiple, 0, -height % self.multiple)
            return self.logits(F.pad(x, padding))[..., :height, :width]
        return self.logits(x)

    def low_resolution_logits(self, x: torch.Tensor) -> torch.Tensor:
        """The same as ``forward``: the last layer is a learned upsampling, so these networks have no smaller logits."""
        return self(x)

    def to_reference(self) -> nn.Module:
        """A copy with the same weights that runs as plain torch.nn modules, as the network itself does."""
        return lk.to_reference(self)
