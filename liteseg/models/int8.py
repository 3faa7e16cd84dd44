"""Networks some of whose blocks are in int8: which ones, and how they are made again for a weights file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from liteseg_kernels import intact
from liteseg_kernels.int8 import Int8DASPP, Int8InvertedResidual, Int8Module, Int8Pointwise, Int8SeparableConv2d
from liteseg_kernels.nn import DASPP, ConvNormAct, InvertedResidual, SeparableConv2d

# of a weights file's metadata: the names of the blocks
INT8_KEY = "int8"
_ACTIVATIONS = (nn.ReLU, nn.ReLU6)
# what may have an int8 form
BLOCKS = (InvertedResidual, ConvNormAct, DASPP)


def int8_blocks(model: nn.Module) -> list[str]:
    """Names of the blocks in int8."""
    return [name for name, part in model.named_modules() if isinstance(part, Int8Module)]


def float_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The outermost blocks of the kinds that may have an int8 form, by name."""
    found: dict[str, nn.Module] = {}
    for name, part in model.named_modules():
        if any(name.startswith(f"{outer}.") for outer in found):
            continue
        if isinstance(part, BLOCKS):
            found[name] = part
        if type(part) is nn.Sequential and len(part) == 2 and all(isinstance(conv, SeparableConv2d) for conv in part):
            # a decoder: what the second one reads is nowhere below zero
            found[f"{name}.1"] = part[1]
    return found


def quantisable(block: nn.Module) -> str | None:
    """Why a block has no int8 form, None where it has one."""
    if isinstance(block, DASPP):
        if not len(block.deep):
            return "expected the deeper pyramid"
        return block.alteration()
    if isinstance(block, SeparableConv2d):
        if type(block.activation) not in _ACTIVATIONS:
            return "expected the activation relu or relu6"
        same = {"kernel_size": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
        return intact.depthwise(block.depthwise, "depthwise", **same) or block.alteration()
    if isinstance(block, ConvNormAct):
        if type(block.activation) not in _ACTIVATIONS:
            return "expected the activation relu or relu6"
        return intact.pointwise(block.conv, "conv", groups=1) or block.alteration()
    if not isinstance(block, InvertedResidual):
        return f"expected an inverted residual, a 1x1 convolution or a pyramid, got {type(block).__name__}"
    if block.expand is None:
        return "expected an expansion, got a block without one"
    if block.activation not in ("relu", "relu6"):
        return f"expected the activation relu or relu6, got {block.activation}"
    conv: Any = block.depthwise.conv
    if conv.kernel_size != (3, 3) or len({*conv.stride}) > 1 or len({*conv.dilation}) > 1:
        return "expected a 3x3 depthwise convolution with one stride and one dilation"
    return block.alteration()


def geometry(block: InvertedResidual) -> dict[str, Any]:
    """What an int8 inverted residual is made with besides weights."""
    conv: Any = block.depthwise.conv
    return {"stride": conv.stride[0], "dilation": conv.dilation[0], "residual": block.residual}


def _empty(block: nn.Module) -> Int8Module:
    """The int8 form of a block that has one, with weights to be loaded."""
    if isinstance(block, InvertedResidual):
        assert block.expand is not None
        channels, hidden = block.expand.conv.in_channels, block.depthwise.conv.out_channels
        return Int8InvertedResidual(channels, hidden, block.project.conv.out_channels, **geometry(block))
    if isinstance(block, ConvNormAct):
        return Int8Pointwise(block.conv.in_channels, block.conv.out_channels)
    if isinstance(block, SeparableConv2d):
        return Int8SeparableConv2d(block.depthwise.in_channels, block.pointwise.out_channels)
    assert isinstance(block, DASPP)
    return Int8DASPP(block.pool.conv.in_channels, block.pool.conv.out_channels, block.rates)


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
        if reason is not None:
            raise ValueError(f"{origin}: int8: {name}: {reason}")
        replace(model, name, _empty(block))
