"""Networks some of whose blocks are in int8: which ones, and how they are made again for a weights file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from liteseg_kernels.int8 import Int8InvertedResidual
from liteseg_kernels.nn import InvertedResidual

# of a weights file's metadata: the names of the blocks
INT8_KEY = "int8"


def int8_blocks(model: nn.Module) -> list[str]:
    """Names of the blocks in int8."""
    return [name for name, part in model.named_modules() if isinstance(part, Int8InvertedResidual)]


def quantisable(block: nn.Module) -> str | None:
    """Why a block has no int8 form, None where it has one."""
    if not isinstance(block, InvertedResidual):
        return f"expected an InvertedResidual, got {type(block).__name__}"
    if block.expand is None:
        return "expected an expansion, got a block without one"
    if block.activation not in ("relu", "relu6"):
        return f"expected the activation relu or relu6, got {block.activation}"
    conv: Any = block.depthwise.conv
    if conv.kernel_size != (3, 3) or len({*conv.stride}) > 1 or len({*conv.dilation}) > 1:
        return "expected a 3x3 depthwise convolution with one stride and one dilation"
    return block.alteration()


def geometry(block: InvertedResidual) -> dict[str, Any]:
    """What an int8 block is made with besides weights."""
    conv: Any = block.depthwise.conv
    return {"stride": conv.stride[0], "dilation": conv.dilation[0], "residual": block.residual}


def replace(model: nn.Module, name: str, block: nn.Module) -> None:
    """Put `block` where `model` has the module `name`."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, block)


def put_int8_blocks(model: nn.Module, names: Any, origin: str) -> None:
    """Empty int8 blocks in the place of the float ones that a weights file names; ValueError where there are none."""
    if not isinstance(names, Sequence) or isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{origin}: int8: expected names of blocks, got {names!r}")
    for name in names:
        try:
            block = model.get_submodule(name)
        except AttributeError:
            raise ValueError(f"{origin}: int8: expected a block of the model, got {name!r}") from None
        reason = quantisable(block)
        if reason is not None or not isinstance(block, InvertedResidual) or block.expand is None:
            raise ValueError(f"{origin}: int8: {name}: {reason}")
        hidden = block.depthwise.conv.out_channels
        out_channels = block.project.conv.out_channels
        replace(
            model, name, Int8InvertedResidual(block.expand.conv.in_channels, hidden, out_channels, **geometry(block))
        )
