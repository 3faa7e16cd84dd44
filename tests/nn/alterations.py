"""What users do to the modules inside a network. Each is done to ours and to its plain torch.nn composition alike."""

from __future__ import annotations

import types
from collections import OrderedDict
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as tf
from torch.nn.utils import parametrize, prune

# what makes the change undone, where it can be
Undo = Callable[[], object] | None
Alteration = Callable[[nn.Module], Undo]

ALTERATIONS: dict[str, Alteration] = {}
NORMS = (nn.BatchNorm2d,)
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU)


def alteration(name: str) -> Callable[[Alteration], Alteration]:
    def add(function: Alteration) -> Alteration:
        ALTERATIONS[name] = function
        return function

    return add


def slots(module: nn.Module, *kinds: type[nn.Module]) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Parent, name and child of every module of these very classes inside, in the order of their paths: compositions
    differ in the order of registration."""
    found = []
    for path, part in module.named_modules():
        if type(part) in kinds and path:
            parent, _, name = path.rpartition(".")
            found.append((path, module.get_submodule(parent), name, part))
    found.sort(key=lambda one: one[0])
    return iter([one[1:] for one in found])


def replace(module: nn.Module, kinds: tuple[type[nn.Module], ...], new: Callable[[nn.Module], nn.Module]) -> Undo:
    changed = list(slots(module, *kinds))
    for parent, name, part in changed:
        setattr(parent, name, new(part).train(part.training))
    return lambda: [setattr(parent, name, part) for parent, name, part in changed]


def some(module: nn.Module, *kinds: type[nn.Module]) -> list[nn.Module]:
    """The first, one in the middle and the last."""
    found = [part for _, _, part in slots(module, *kinds)]
    return list(dict.fromkeys([found[0], found[len(found) // 2], found[-1]])) if found else []


# hooks


def _scaled(module: nn.Module, args: object, out: Tensor) -> Tensor:
    return out * 1.25 - 0.1


@alteration("forward hooks on convolutions")
def _(module: nn.Module) -> Undo:
    handles = [part.register_forward_hook(_scaled) for part in some(module, nn.Conv2d)]
    return lambda: [handle.remove() for handle in handles]


@alteration("forward hook on the last convolution")
def _(module: nn.Module) -> Undo:
    return some(module, nn.Conv2d)[-1].register_forward_hook(_scaled).remove


@alteration("forward pre-hooks on norms")
def _(module: nn.Module) -> Undo:
    handles = [part.register_forward_pre_hook(lambda m, args: (args[0] * 0.8,)) for part in some(module, *NORMS)]
    return lambda: [handle.remove() for handle in handles]


@alteration("hooks on the parts of blocks")
def _(module: nn.Module) -> Undo:
    # what has a convolution and a normalisation as children
    parts = [m for p, m in module.named_modules() if p and "activation" in m._modules]
    handles = [part.register_forward_hook(_scaled) for part in parts]
    return lambda: [handle.remove() for handle in handles]


@alteration("hook put into the dict of activations")
def _(module: nn.Module) -> Undo:
    parts = some(module, *ACTIVATIONS, nn.Identity)
    for part in parts:
        part._forward_hooks[10**9] = _scaled
    return lambda: [part._forward_hooks.pop(10**9) for part in parts]


@alteration("dict of hooks replaced by another")
def _(module: nn.Module) -> Undo:
    parts = some(module, nn.Conv2d)
    for part in parts:
        part._forward_hooks = OrderedDict({0: _scaled})
    return lambda: [setattr(part, "_forward_hooks", OrderedDict()) for part in parts]


@alteration("full backward hooks")
def _(module: nn.Module) -> Undo:
    def hook(part: nn.Module, before: tuple[Tensor, ...], after: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(None if grad is None else grad * 0.5 for grad in before)

    handles = [part.register_full_backward_hook(hook) for part in some(module, nn.Conv2d)]
    return lambda: [handle.remove() for handle in handles]


@alteration("backward pre-hooks")
def _(module: nn.Module) -> Undo:
    handles = [
        part.register_full_backward_pre_hook(lambda m, grads: tuple(grad * 2 for grad in grads))
        for part in some(module, *NORMS, *ACTIVATIONS)
    ]
    return lambda: [handle.remove() for handle in handles]


# activations


def _activations(name: str, new: Callable[[], nn.Module], *kinds: type[nn.Module]) -> None:
    def alter(module: nn.Module) -> Undo:
        dtype = next(module.parameters()).dtype
        return replace(module, kinds or ACTIVATIONS, lambda part: new().to(dtype))

    ALTERATIONS[name] = alter


_activations("activations become SiLU", nn.SiLU)
_activations("activations become Hardswish", nn.Hardswish)
_activations("activations become ReLU", nn.ReLU)
_activations("activations become ReLU6", nn.ReLU6)
_activations("activations become LeakyReLU", lambda: nn.LeakyReLU(0.3))
_activations("activations become PReLU", nn.PReLU)
_activations("linear ends become Tanh", nn.Tanh, nn.Identity)
_activations("linear ends become ReLU", nn.ReLU, nn.Identity)


class TrainingOnly(nn.Module):
    """As dropout, without drawing: branches that are called in another order would draw other masks."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 0.6 if self.training else x


_activations("something of training behind activations", lambda: nn.Sequential(nn.ReLU(), TrainingOnly()))


@alteration("attributes of activations")
def _(module: nn.Module) -> Undo:
    for part in some(module, *ACTIVATIONS):
        part.negative_slope, part.max_val = 0.2, 1.0


# convolutions


class Standardised(nn.Conv2d):
    """A subclass with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


class Adapter(nn.Module):
    """A wrapper beside which something is learned."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.base = conv
        self.scale = nn.Parameter(torch.full((conv.out_channels, 1, 1), 0.5, dtype=conv.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) * (1 + self.scale)


class Rounded(nn.Module):
    """What fake quantisation does to weights."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight + ((weight * 8).round() / 8 - weight).detach()


def _like(conv: nn.Conv2d, **changes: object) -> nn.Conv2d:
    names = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    options = {name: getattr(conv, name) for name in names} | {"bias": conv.bias is not None} | changes
    return nn.Conv2d(conv.in_channels, conv.out_channels, **options).to(conv.weight.dtype)


@alteration("convolutions become a subclass by their class")
def _(module: nn.Module) -> Undo:
    for part in some(module, nn.Conv2d):
        part.__class__ = Standardised


@alteration("convolutions wrapped")
def _(module: nn.Module) -> Undo:
    return replace(module, (nn.Conv2d,), Adapter)


@alteration("children replaced in their dict")
def _(module: nn.Module) -> Undo:
    for parent, name, part in list(slots(module, nn.Conv2d)):
        parent._modules[name] = Adapter(part)


@alteration("forward of convolutions patched")
def _(module: nn.Module) -> Undo:
    for part in some(module, nn.Conv2d):
        part.forward = types.MethodType(lambda self, x: self._conv_forward(x, self.weight * 2, self.bias), part)


@alteration("weight_norm")
def _(module: nn.Module) -> Undo:
    for part in some(module, nn.Conv2d):
        nn.utils.parametrizations.weight_norm(part)
        with torch.no_grad():
            part.parametrizations.weight.original0.mul_(1.5)


@alteration("the old weight_norm")
def _(module: nn.Module) -> Undo:
    for part in some(module, nn.Conv2d):
        nn.utils.weight_norm(part)
        with torch.no_grad():
            part.weight_g.mul_(1.5)


@alteration("fake quantisation by a parametrisation")
def _(module: nn.Module) -> Undo:
    for part in some(module, nn.Conv2d):
        parametrize.register_parametrization(part, "weight", Rounded())


@alteration("parametrised norms")
def _(module: nn.Module) -> Undo:
    for part in some(module, *NORMS):
        parametrize.register_parametrization(part, "weight", Rounded())


@alteration("pruning")
def _(module: nn.Module) -> Undo:
    for part in some(module, nn.Conv2d):
        mask = torch.zeros(part.weight.numel())
        mask[:: 2 if part.weight.numel() > 1 else 1] = 1
        prune.custom_from_mask(part, "weight", mask.view_as(part.weight))


@alteration("convolutions with a bias")
def _(module: nn.Module) -> Undo:
    return replace(module, (nn.Conv2d,), lambda conv: _like(conv, bias=True))


@alteration("convolutions with padding by name")
def _(module: nn.Module) -> Undo:
    def new(conv: nn.Module) -> nn.Module:
        return _like(conv, padding="same" if conv.stride == (1, 1) and conv.kernel_size != (1, 1) else conv.padding)

    return replace(module, (nn.Conv2d,), new)


@alteration("convolutions that pad by reflection")
def _(module: nn.Module) -> Undo:
    return replace(module, (nn.Conv2d,), lambda conv: _like(conv, padding_mode="replicate"))


@alteration("dilation by attributes")
def _(module: nn.Module) -> Undo:
    for _, _, conv in slots(module, nn.Conv2d):
        if conv.kernel_size == (3, 3) and conv.stride == (1, 1):
            grown = conv.padding[0] + 1
            conv.dilation = (conv.dilation[0] + 1,) * 2
            conv.padding = (grown, grown)
            conv._reversed_padding_repeated_twice = [grown] * 4


@alteration("weights assigned")
def _(module: nn.Module) -> Undo:
    for part in some(module, nn.Conv2d):
        part.weight = nn.Parameter(part.weight.detach() * 1.5)


# normalisation


def _norms(name: str, new: Callable[[nn.BatchNorm2d], nn.Module]) -> None:
    ALTERATIONS[name] = lambda module: replace(module, NORMS, lambda norm: new(norm).to(norm.weight.dtype))


class Frozen(nn.BatchNorm2d):
    """Never trains."""

    def forward(self, x: Tensor) -> Tensor:
        return tf.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


def _frozen(norm: nn.BatchNorm2d) -> nn.Module:
    frozen = Frozen(norm.num_features)
    frozen.load_state_dict(norm.state_dict())
    return frozen


_norms("norms become GroupNorm", lambda norm: nn.GroupNorm(1, norm.num_features))
_norms("norms become Identity", lambda norm: nn.Identity())
_norms("norms without running statistics", lambda norm: nn.BatchNorm2d(norm.num_features, track_running_stats=False))
_norms("norms without affine parameters", lambda norm: nn.BatchNorm2d(norm.num_features, affine=False))
_norms("norms of a subclass", _frozen)


@alteration("epsilon of norms")
def _(module: nn.Module) -> Undo:
    for part in some(module, *NORMS):
        part.eps = 0.5


@alteration("norms in training mode")
def _(module: nn.Module) -> Undo:
    # the pooled branch has one value a channel, of which the compositions make different things
    parts = [part for path, part in module.named_modules() if type(part) in NORMS and "pool" not in path]
    for part in parts:
        part.train()
    return lambda: [part.eval() for part in parts]


@alteration("parts in training mode")
def _(module: nn.Module) -> Undo:
    parts = [m for p, m in module.named_modules() if "norm" in m._modules and p and "pool" not in p]
    for part in parts:
        part.train()
    return lambda: [part.eval() for part in parts]
