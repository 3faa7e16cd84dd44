"""Rewrites of a region's operations, so that the layers which do most in one pass are found.

Each rule looks at one operation and returns what takes its place. They run in the order of `RULES` over all operations,
inputs first: what is folded by an early rule is what a later one looks for.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

from ..plan.contract import constant
from . import ir

Users = Counter[ir.Op]


def ordered(results: Sequence[ir.Op]) -> list[ir.Op]:
    """All operations behind the results, inputs before what reads them."""
    found: dict[ir.Op, None] = {}
    stack = [(op, False) for op in reversed(results)]
    while stack:
        op, ready = stack.pop()
        if op in found:
            continue
        if ready:
            found[op] = None
            continue
        stack.append((op, True))
        stack += [(source, False) for source in reversed(op.inputs)]
    return list(found)


def _users(results: Sequence[ir.Op]) -> Users:
    """How often each operation is read, being a result included."""
    users: Users = Counter(results)
    for op in ordered(results):
        users.update(op.inputs)
    return users


def rewrite(results: Sequence[ir.Op]) -> list[ir.Op]:
    """The results after all rules."""
    for rule in RULES:
        users = _users(results)
        replaced: dict[ir.Op, ir.Op] = {}
        for op in ordered(results):
            op.inputs = [replaced.get(source, source) for source in op.inputs]
            taken = rule(op, users)
            if taken is not None and taken is not op:
                replaced[op] = taken
                # whoever reads the old one reads the new one
                users[taken] = users[op]
        results = [replaced.get(op, op) for op in results]
    return list(results)


def _alone(op: ir.Op, users: Users) -> bool:
    return users[op] == 1


def _is_affine(op: ir.Op) -> bool:
    """A scale and a shift a channel, and nothing else."""
    return isinstance(op, ir.Depthwise) and op.weight is None and op.bias is None and not op.branches


def _by(op: ir.Op, scale: float, shift: float) -> bool:
    """Whether an operation is x * scale + shift."""
    return (
        isinstance(op, ir.Depthwise)
        and _is_affine(op)
        and len(op.after) == 1
        and isinstance(op.after[0], ir.Scalar)
        and math.isclose(op.after[0].scale, scale, rel_tol=1e-6)
        and op.after[0].shift == shift
    )


def _hard_sigmoid(op: ir.Op, users: Users) -> ir.Op | None:
    """relu6(x + 3) / 6."""
    if not _by(op, 1 / 6, 0.0) or op.activation:
        return None
    (inner,) = op.inputs
    if not isinstance(inner, ir.Activate) or inner.activation.name != "relu6" or not _alone(inner, users):
        return None
    (shifted,) = inner.inputs
    if not _by(shifted, 1.0, 3.0) or shifted.activation or not _alone(shifted, users):
        return None
    return ir.Activate(op.name, shifted.inputs, op.shape, ir.Activation("hardsigmoid"))


def _gated(op: ir.Op, users: Users) -> ir.Op | None:
    """x * sigmoid(x) and x * hardsigmoid(x)."""
    if not isinstance(op, ir.Combine) or not op.multiplies or op.activation:
        return None
    names = {"sigmoid": "silu", "hardsigmoid": "hardswish"}
    for x, gate in (op.inputs, op.inputs[::-1]):
        if isinstance(gate, ir.Activate) and gate.inputs[0] is x and _alone(gate, users):
            name = names.get(str(gate.activation.name))
            if name is not None:
                return ir.Activate(op.name, [x], op.shape, ir.Activation(name))
    return None


def _fold_affine(op: ir.Op, users: Users) -> ir.Op | None:
    """A scale and shift into the convolution before it."""
    if not _is_affine(op) or op.activation:
        return None
    (source,) = op.inputs
    if not isinstance(source, ir.Weighted) or source.activation or not _alone(source, users):
        return None
    assert isinstance(op, ir.Depthwise)
    source.after = source.after + op.after
    return source


def _covers(wide: ir.Weighted, narrow: ir.Weighted) -> bool:
    """Whether the taps of `narrow` are among those of `wide`, at the same pixels."""
    if not isinstance(wide, type(narrow)) and not isinstance(wide, ir.Convolution):
        return False
    margins = [w - n for w, n in zip(wide.padding, narrow.padding, strict=True)]
    for dim in (0, 1):
        more = wide.kernel[dim] - narrow.kernel[dim]
        if more < 0 or more % 2 or (narrow.kernel[dim] > 1 and wide.dilation[dim] != narrow.dilation[dim]):
            return False
        if margins[2 * dim : 2 * dim + 2] != [more // 2 * wide.dilation[dim]] * 2:
            return False
    return True


def _parallel(op: ir.Op, users: Users) -> ir.Op | None:
    """The sum of two convolutions of the same map, as networks have it that were trained with more branches than they
    need afterwards (RepVGG, MobileOne), is one convolution."""
    if not isinstance(op, ir.Combine) or op.multiplies:
        return None
    for wide, narrow in (op.inputs, op.inputs[::-1]):
        if not isinstance(wide, ir.Weighted) or not isinstance(narrow, ir.Weighted) or wide is narrow:
            continue
        alone = all(_alone(one, users) and not one.activation for one in (wide, narrow))
        same = (wide.inputs[0], wide.shape, wide.stride) == (narrow.inputs[0], narrow.shape, narrow.stride)
        if alone and same and _covers(wide, narrow):
            geometry = {key: getattr(wide, key) for key in ("kernel", "stride", "dilation", "padding")}
            return type(wide)(op.name, wide.inputs, op.shape, op.activation, branches=[wide, narrow], **geometry)
    return None


def _fold_pad(op: ir.Op, users: Users) -> ir.Op | None:
    """Zeros around the input into the padding of a convolution."""
    if not isinstance(op, ir.Weighted) or not isinstance(op.inputs[0], ir.Pad) or not _alone(op.inputs[0], users):
        return None
    pad = op.inputs[0]
    padding = tuple(a + b for a, b in zip(op.padding, pad.padding, strict=True))
    if min(pad.padding) < 0:
        return None
    top, bottom, left, right = padding
    op.padding, op.inputs = (top, bottom, left, right), pad.inputs
    return op


def _fold_activation(op: ir.Op, users: Users) -> ir.Op | None:
    if not isinstance(op, ir.Activate):
        return None
    (source,) = op.inputs
    if isinstance(source, ir.Activate) or not source.activates or source.activation or not _alone(source, users):
        return None
    source.activation = op.activation
    return source


def _block(op: ir.Op, users: Users) -> ir.Op | None:
    """Depthwise and pointwise convolutions, and the pointwise one before them, in one pass."""
    if not isinstance(op, ir.Convolution) or not op.is_point():
        return None
    depthwise = op.inputs[0]
    if not isinstance(depthwise, ir.Depthwise) or depthwise.is_point() or not _alone(depthwise, users):
        return None
    expand: ir.Convolution | None = None
    source = depthwise.inputs[0]
    if (
        isinstance(source, ir.Convolution)
        and source.is_point()
        and _alone(source, users)
        and source.activation == depthwise.activation
    ):
        expand, source = source, source.inputs[0]
    return ir.Block(op.name, [source], op.shape, op.activation, expand=expand, depthwise=depthwise, project=op)


def _residual(op: ir.Op, users: Users) -> ir.Op | None:
    if not isinstance(op, ir.Combine) or op.multiplies:
        return None
    for block, x in (op.inputs, op.inputs[::-1]):
        if not isinstance(block, ir.Block) or block.residual or block.activation or not _alone(block, users):
            continue
        if block.inputs[0] is x and block.shape == x.shape:
            block.residual, block.activation = True, op.activation
            return block
    return None


_STEM_ACTIVATIONS = (None, "relu", "relu6")
_STEM_CHANNELS = 8


def _stem(op: ir.Op, users: Users) -> ir.Op | None:
    """The first convolution and the separable one behind it."""
    if not isinstance(op, ir.Block) or op.expand is not None or op.residual or op.activation:
        return None
    conv, depthwise = op.inputs[0], op.depthwise
    assert depthwise is not None
    if not isinstance(conv, ir.Convolution) or not _alone(conv, users):
        return None
    same = all((part.kernel, part.dilation) == ((3, 3), (1, 1)) for part in (conv, depthwise))
    if not same or max(conv.padding) > 1 or depthwise.padding != (1, 1, 1, 1) or depthwise.stride != (1, 1):
        return None
    plain = all(part.activation.name in _STEM_ACTIVATIONS for part in (conv, depthwise))
    if not plain or conv.inputs[0].channels > _STEM_CHANNELS or conv.stride[0] > constant("most.stem_stride"):
        return None
    return ir.Stem(op.name, conv.inputs, op.shape, conv=conv, depthwise=depthwise, project=op.project)


def _resize_concat(op: ir.Op, users: Users) -> ir.Op | None:
    """A resized map and the one behind it, without storing the first alone."""
    if not isinstance(op, ir.Concat) or len(op.inputs) != 2:
        return None
    resize, behind = op.inputs
    if not isinstance(resize, ir.Resize) or len(resize.inputs) > 1 or not _alone(resize, users):
        return None
    return ir.Resize(
        op.name,
        [*resize.inputs, behind],
        op.shape,
        sizes=resize.sizes,
        align_corners=resize.align_corners,
    )


def _resize_labels(op: ir.Op, users: Users) -> ir.Op | None:
    """The best class without storing the resized logits."""
    if not isinstance(op, ir.Labels) or op.sizes is not None:
        return None
    (resize,) = op.inputs
    if not isinstance(resize, ir.Resize) or len(resize.inputs) > 1 or not _alone(resize, users):
        return None
    return ir.Labels(op.name, resize.inputs, op.shape, sizes=resize.sizes, align_corners=resize.align_corners)


RULES: tuple[Callable[[ir.Op, Users], ir.Op | None], ...] = (
    _hard_sigmoid,
    _gated,
    _fold_affine,
    _parallel,
    _fold_pad,
    _fold_activation,
    _block,
    _residual,
    _stem,
    _resize_concat,
    _resize_labels,
)
