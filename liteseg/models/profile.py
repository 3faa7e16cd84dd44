"""Parameters and multiply-accumulates of a model, module by module."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import liteseg_kernels as lk
from liteseg.models.checkpoint import build
from liteseg.models.liteseg import MIN_SIZE, LiteSeg
from liteseg.models.official import DEAD_HEADS
from liteseg.models.peers import Peer, PeerBlock
from liteseg_kernels.nn import ConvNormAct, InvertedResidual, SeparableConv2d, ShuffleUnit

CONVENTIONS = ("macs", "liteseg")
PARTS = ("backbone", "daspp", "decoder")
PEER_PARTS = ("encoder", "decoder")
# a table line each
_BLOCKS = (ConvNormAct, InvertedResidual, SeparableConv2d, ShuffleUnit, PeerBlock)
_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU)


@dataclasses.dataclass(frozen=True)
class ProfileRow:
    """One module that computes something, at the profiled size and batch 1.

    `macs` counts convolutions only, transposed ones included. `paper` is the count of the authors' tool: `2k^2 - 1` an
    output of a k x k convolution and input channel, 1 an output for its bias, 2 an element of a normalisation, 1 an
    element of an activation module, 1 an input element of a max-pool. Their tool has no transposed convolutions, here
    they count 2 a multiply-accumulate and 1 an output for the bias.

    A module with weights that a forward pass leaves out has no output shape and counts nothing but its parameters.
    """

    name: str
    block: str
    kind: str
    output_shape: tuple[int, ...]
    params: int
    macs: int
    paper: int

    @property
    def part(self) -> str:
        """``"backbone"``, ``"daspp"`` or ``"decoder"`` (the reduction of the low-level feature included).

        Of the peers ``"encoder"`` or ``"decoder"``.
        """
        first = self.name.split(".")[0]
        return first if first in (*PARTS, *PEER_PARTS) else "decoder"


@dataclasses.dataclass(frozen=True)
class Profile:
    """What a forward pass costs; prints as a table.

    Attributes:
        name, size, convention: what was profiled, and which count the table shows.
        rows: one a leaf module with weights or costs, in the order they run.
        blocks: output shape of every building block, a line of the table each.
        dead_params: parameters of the ImageNet classifier that the published parameter counts include but that never
            runs and that our models do not have.
        parts: what :meth:`part` takes.
    """

    name: str
    size: tuple[int, int]
    convention: str
    rows: tuple[ProfileRow, ...]
    blocks: dict[str, tuple[int, ...]]
    dead_params: int
    parts: tuple[str, ...] = PARTS

    @property
    def params(self) -> int:
        """Learnable parameters of the model."""
        return sum(row.params for row in self.rows)

    @property
    def params_with_imagenet_head(self) -> int:
        """Learnable parameters as the paper's Table III counts them."""
        return self.params + self.dead_params

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all convolutions."""
        return sum(row.macs for row in self.rows)

    @property
    def paper(self) -> int:
        """The count that the paper's Table II calls FLOPs."""
        return sum(row.paper for row in self.rows)

    @property
    def total(self) -> int:
        """`macs` or `paper`, as the convention says."""
        return self.paper if self.convention == "liteseg" else self.macs

    def part(self, name: str) -> Profile:
        """The rows of one part: ``"backbone"``, ``"daspp"`` or ``"decoder"``, of the peers one of theirs."""
        if name not in self.parts:
            raise ValueError(f"Profile.part: name: expected one of {', '.join(self.parts)}, got {name!r}")
        return dataclasses.replace(self, rows=tuple(row for row in self.rows if row.part == name), dead_params=0)

    def __str__(self) -> str:
        column = "paper M" if self.convention == "liteseg" else "MMACs"
        lines = [("module", "output", "params", column)]
        for block, output_shape in self.blocks.items():
            one = dataclasses.replace(self, rows=tuple(row for row in self.rows if row.block == block))
            shape = "x".join(str(length) for length in output_shape[1:])
            lines.append((block, shape, f"{one.params:,}", f"{one.total / 1e6:,.2f}"))
        for part in self.parts:
            one = self.part(part)
            lines.append((f"= {part}", "", f"{one.params:,}", f"{one.total / 1e6:,.2f}"))
        lines.append(("= total", "", f"{self.params:,}", f"{self.total / 1e6:,.2f}"))
        widths = [max(len(line[i]) for line in lines) for i in range(4)]
        table = [
            f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}".rstrip() for a, b, c, d in lines
        ]
        height, width = self.size
        with_head = (
            f"parameters with the unused ImageNet classifier, as in Table III: "
            f"{self.params_with_imagenet_head / 1e6:.2f} M ({self.params_with_imagenet_head:,})"
        )
        footer = [
            f"parameters: {self.params / 1e6:.2f} M ({self.params:,})",
            # the peers have no such classifier
            *([with_head] if self.parts == PARTS else []),
            f"multiply-accumulates: {self.macs / 1e9:.3f} G",
            f'the paper\'s own count, "GFLOPs" in Table II: {self.paper / 1e9:.2f}',
        ]
        return "\n".join([f"{self.name}, input {height}x{width}, batch 1", *table, *footer])


def _conv_counts(module: nn.Conv2d, outputs: int) -> tuple[int, int]:
    taps = module.kernel_size[0] * module.kernel_size[1]
    connections = module.in_channels // module.groups * outputs
    return taps * connections, (2 * taps - 1) * connections + (outputs if module.bias is not None else 0)


def _counts(module: nn.Module, inputs: int, outputs: int) -> tuple[int, int] | None:
    """(MACs, paper's count) of a leaf module; None for one that counts as nothing."""
    if isinstance(module, nn.Conv2d):
        return _conv_counts(module, outputs)
    if isinstance(module, nn.ConvTranspose2d):
        macs = module.weight[0].numel() * inputs
        return macs, 2 * macs + (outputs if module.bias is not None else 0)
    if isinstance(module, nn.BatchNorm2d):
        return 0, 2 * outputs
    if isinstance(module, _ACTIVATIONS):
        return 0, outputs
    if isinstance(module, nn.MaxPool2d):
        return 0, inputs
    return None


def _block_of(model: nn.Module, name: str) -> str:
    """Name of the outermost building block around a module, its own name if there is none."""
    parts = name.split(".")
    for length in range(1, len(parts)):
        ancestor = ".".join(parts[:length])
        if isinstance(model.get_submodule(ancestor), _BLOCKS):
            return ancestor
    return name


def profile(model: LiteSeg | Peer, size: tuple[int, int], convention: str = "macs") -> Profile:
    """Count parameters and multiply-accumulates of `model` at an input of `size` = (height, width), batch 1.

    Nothing is computed: the model's plain torch.nn form runs on meta tensors.

    Args:
        convention: ``"macs"``: multiply-accumulates of the convolutions; ``"liteseg"``: the count of the authors' tool,
            which the paper's Table II calls GFLOPs (see :class:`ProfileRow`). The result has both, this only chooses
            what `total` and the table show.

    Raises:
        ValueError: unknown convention, or a size below 32.
    """
    if not isinstance(model, (LiteSeg, Peer)):
        raise TypeError(f"profile: model: expected a LiteSeg or a peer network, got {type(model).__name__}")
    if convention not in CONVENTIONS:
        raise ValueError(f"profile: convention: expected one of {', '.join(CONVENTIONS)}, got {convention!r}")
    if (
        not isinstance(size, (tuple, list))
        or len(size) != 2
        or not all(isinstance(length, int) and length >= MIN_SIZE for length in size)
    ):
        raise ValueError(f"profile: size: expected (height, width) of at least {MIN_SIZE} each, got {size!r}")
    height, width = size
    # made anew from the configuration, so that a fused model is counted like the one it came from
    with torch.device("meta"):
        plain = build(model.config).eval()
    reference = lk.to_reference(plain)
    rows: list[ProfileRow] = []
    blocks: dict[str, tuple[int, ...]] = {}

    def count(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            # a pooling that gives indices too
            output = output[0] if isinstance(output, tuple) else output
            counted = _counts(module, args[0].numel(), output.numel())
            if counted is not None:
                params = sum(p.numel() for p in module.parameters())
                block, shape = _block_of(plain, name), tuple(output.shape)
                rows.append(ProfileRow(name, block, type(module).__name__, shape, params, *counted))
                # the block's own hook, which runs last, corrects this
                blocks[block] = shape

        return hook

    def shape_of(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            blocks[name] = tuple((output[0] if isinstance(output, tuple) else output).shape)

        return hook

    for name, module in reference.named_modules():
        if not any(module.children()):
            module.register_forward_hook(count(name))
        elif isinstance(module, _BLOCKS) and _block_of(plain, name) == name:
            module.register_forward_hook(shape_of(name))
    with torch.no_grad():
        reference(torch.empty(1, getattr(model.config, "in_channels", 3), height, width, device="meta"))
    ran = {row.name for row in rows}
    for name, module in plain.named_modules():
        params = sum(p.numel() for p in module.parameters(recurse=False))
        if params and name not in ran:
            block = _block_of(plain, name)
            rows.append(ProfileRow(name, block, type(module).__name__, (), params, 0, 0))
            blocks[block] = ()
    heads = DEAD_HEADS.get(model.config.backbone, {}) if isinstance(model, LiteSeg) else {}
    dead = sum(torch.Size(shape).numel() for shape in heads.values())
    parts = PARTS if isinstance(model, LiteSeg) else PEER_PARTS
    return Profile(model.config.name, (height, width), convention, tuple(rows), blocks, dead, parts)
