"""Whether a block may take its fused op, or its modules must run one by one: the one place that decides it.

A fused op computes what the modules inside a block would, from their weights and without calling them. That is right
only while they are what the block is made of: the exact types, no hook of any kind, no forward of their own, plain
parameters, a geometry the op has, and normalisation in eval mode with running statistics. The functions here return
None where that holds, else why it does not, as `<module>: expected X, got Y`.

Asking takes long, so blocks and networks keep a `Watch` of what the answer was read off. It is compared at every call,
for much of it (hooks, functional_call, `norm.train()`) changes without a trace in the block. csrc/python compares
first, by addresses alone, in a third of the time.
"""

from __future__ import annotations

import ctypes
import functools
import struct
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from operator import is_, itemgetter
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _torch_module
from torch.nn.modules.batchnorm import _BatchNorm

from . import _loader, activations

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = tuple(getattr(_torch_module, f"_global{name}") for name in HOOKS)
_PLAIN = (Tensor, nn.Parameter)
_Answer = TypeVar("_Answer", bound=Callable[..., Any])
# what the forward of torch's own modules reads of their attributes, in eval mode
_READ = {
    nn.Conv2d: ("stride", "padding", "dilation", "groups", "padding_mode"),
    nn.BatchNorm2d: ("training", "eps"),
}
_ONNX = ("torch.onnx._internal.exporter._flags", "torch.onnx._internal.torchscript_exporter._globals")


def constant_about(function: _Answer) -> _Answer:
    """For a function of a module: compilers call it while they trace, and its answer is part of what they trace."""

    # up to torch 2.12 the arguments of a constant function cannot be modules; an address is a number, and guarded
    @torch._dynamo.assume_constant_result
    def traced(address: int, *args: Any, **options: Any) -> Any:
        return function(ctypes.cast(address, ctypes.py_object).value, *args, **options)

    @functools.wraps(function)
    def ask(module: Any, *args: Any, **options: Any) -> Any:
        if torch.compiler.is_compiling():
            return traced(id(module), *args, **options)
        return function(module, *args, **options)

    return cast(_Answer, ask)


# constant for compilers: the answer is part of what they trace
@torch._dynamo.assume_constant_result
def wants_plain_torch() -> bool:
    """Whether only operations of torch's own will do: in an export to ONNX and inside a torch.func transform."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    if not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
        return False
    # asking torch imports its exporter
    return any(name in sys.modules for name in _ONNX) and torch.onnx.is_in_onnx_export()


@torch._dynamo.assume_constant_result
def environment() -> str | None:
    """What forbids passing any module by."""
    if any(_GLOBAL_HOOKS):
        return "every module: expected no hooks, got a global one"
    return "expected fused ops, got an export to ONNX or a torch.func transform" if wants_plain_torch() else None


def hooked(module: nn.Module) -> bool:
    """Whether calling `module` calls hooks."""
    return any(_GLOBAL_HOOKS) or any(vars(module)[hooks] for hooks in HOOKS)


def replaced(module: nn.Module, method: str) -> bool:
    """Whether the method was put on `module` itself."""
    return method in vars(module)


@constant_about
def altered(module: Any, name: str, *types: type[nn.Module]) -> str | None:
    """Why calling `module` may not be what one of `types` does with its own tensors."""
    if type(module) not in types:
        return f"{name}: expected {' or '.join(kind.__name__ for kind in types)}, got {type(module).__name__}"
    own = vars(module)
    for hooks in HOOKS:
        if own[hooks]:
            return f"{name}: expected no hooks, got one of its {hooks.strip('_').replace('_', ' ')}"
    if "forward" in own:
        return f"{name}: expected the forward of {type(module).__name__}, got one of its own"
    # exporters and compilers put tensors of their own there
    if not torch.compiler.is_compiling():
        for key, tensor in chain(own["_parameters"].items(), own["_buffers"].items()):
            if tensor is not None and type(tensor) not in _PLAIN:
                return f"{name}.{key}: expected a plain tensor, got {type(tensor).__name__}"
    return None


def inside(name: str, reason: str | None) -> str | None:
    """A reason, if there is one, of the module around."""
    return None if reason is None else f"{name}.{reason}"


def _missing(module: nn.Module, name: str, *keys: str) -> str | None:
    """Pruning and the old weight_norm leave a computed attribute where the parameter was."""
    gone = next((key for key in keys if key not in module._parameters and key not in module._buffers), None)
    return None if gone is None else f"{name}.{gone}: expected a parameter or buffer, got a computed attribute"


@constant_about
def convolution(conv: Any, name: str, **geometry: Any) -> str | None:
    """Why `conv` is no plain Conv2d with zero padding and these values of its attributes."""
    reason = altered(conv, name, nn.Conv2d) or _missing(conv, name, "weight", "bias")
    if reason is not None:
        return reason
    if isinstance(conv.padding, str):
        return f"{name}.padding: expected integers, got {conv.padding!r}"
    for key, expected in {"padding_mode": "zeros", **geometry}.items():
        if getattr(conv, key) != expected:
            return f"{name}.{key}: expected {expected}, got {getattr(conv, key)}"
    return None


def pointwise(conv: Any, name: str, **geometry: Any) -> str | None:
    """Why `conv` is no 1x1 convolution."""
    return convolution(conv, name, kernel_size=(1, 1), stride=(1, 1), padding=(0, 0), **geometry)


def depthwise(conv: Any, name: str, **geometry: Any) -> str | None:
    """Why `conv` is no convolution with one filter a channel."""
    reason = convolution(conv, name, **geometry)
    if reason is None and not conv.groups == conv.in_channels == conv.out_channels:
        return f"{name}.groups: expected as many as channels, got {conv.groups}"
    return reason


def same_size(conv: Any, name: str) -> str | None:
    """Why the padding of a plain `conv` is not dilation * (k - 1) / 2, with odd k."""
    for kernel, dilation, padding in zip(conv.kernel_size, conv.dilation, conv.padding, strict=True):
        if kernel % 2 == 0 or padding != dilation * (kernel - 1) // 2:
            return f"{name}.padding: expected {dilation * (kernel - 1) // 2} and an odd kernel, got {padding}"
    return None


def norm(module: Any, name: str) -> str | None:
    """Why `module`, which may be None, is no plain batch normalisation with running statistics."""
    if module is None:
        return None
    reason = altered(module, name, nn.BatchNorm2d, nn.SyncBatchNorm)
    reason = reason or _missing(module, name, "weight", "bias", "running_mean", "running_var")
    if reason is None and (module.running_mean is None or module.running_var is None):
        return f"{name}: expected running statistics, got none"
    return reason


def activation(module: Any, name: str, activation: str | None, negative_slope: float = 0.01) -> str | None:
    """Why `module` is not what `functional`'s argument of the same name does."""
    known = activations.TABLE[activations.index_of(activation)]
    return altered(module, name, known.module) or inside(name, known.reason(module, negative_slope))


def training_norm(block: nn.Module) -> str | None:
    """Which normalisation inside is in training mode: it takes the statistics of the batch, and changes its own."""
    for name, module in block.named_modules():
        if module.training and isinstance(module, _BatchNorm):
            return f"{name}: expected eval mode, got training mode"
    return None


def _definer(kind: type, name: str) -> int | None:
    """How far up a method is defined."""
    return next((i for i, base in enumerate(kind.__mro__) if name in vars(base)), None)


def overrides(kind: type, name: str, other: str) -> bool:
    """Whether `kind` inherits its method `other` from a class above the one that its method `name` is from."""
    first, second = _definer(kind, name), _definer(kind, other)
    return first is not None and second is not None and first < second


def outdated_description(kind: type) -> str | None:
    """Why `lower`, where there is one, may not describe what a module of this class computes."""
    for name in ("forward", "forward_modules", "low_resolution_logits"):
        if overrides(kind, name, "lower"):
            return f"expected {kind.__name__} to have a lower() that describes its {name}(), got one it inherits"
    return None


class _End:
    """Unequal to every other value, so that a longer or shorter list never passes for an equal one."""


def _flat(dicts: Iterable[dict[str, Any]]) -> Iterator[Any]:
    return chain(chain.from_iterable(map(dict.values, dicts)), (_End,))


class Watch:
    """What an answer about a module and all modules in it was read off, in a form that is compared fast.

    It knows the modules inside by their types, modes, public attributes, hooks, children and tensors; of the outermost
    one hooks do not count, for whoever calls it calls them. Holds no reference to the outermost module.

    Attributes:
        current: whether the tensors are those that were folded, where something was.
    """

    __slots__ = (
        *("_children", "_groups", "_hooks", "_kept", "_lengths", "_modules", "_own", "_root", "_tensors", "_types"),
        "_addresses",
        "current",
    )

    def __init__(self, root: nn.Module, folds: type[nn.Module], current: bool = True) -> None:
        """Of modules of the class `folds`, buffers are what was folded, and no source of anything."""
        self._root = weakref.ref(root)
        modules = tuple(root.modules())[1:]
        self.current = current
        self._modules = modules
        self._types = list(map(type, modules))
        states = [vars(module) for module in modules]
        self._hooks = (*_GLOBAL_HOOKS, *(state[hooks] for state in states for hooks in HOOKS))
        self._lengths = (states, list(map(len, states)))
        grouped: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for state in states:
            grouped.setdefault((*HOOKS, *_public(state)), []).append(state)
        self._groups = [(itemgetter(*keys), group) for keys, group in grouped.items()]
        self._kept = [list(map(get, group)) for get, group in self._groups]
        own = vars(root)
        get = itemgetter("_modules", *_public(own))
        self._own = (get, get(own), len(own))
        children = [own["_modules"], *(state["_modules"] for state in states)]
        self._children = (children, list(_flat(children)))
        leaves = [vars(module) for module in (root, *modules) if not isinstance(module, folds)]
        inner = [state[key] for state in leaves for key in ("_parameters", "_buffers")]
        self._tensors = (inner, list(_flat(inner)))
        self._addresses: _Addresses | None = None

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """All parameters and buffers, less what was folded."""
        return tuple(self._tensors[1][:-1])

    def holds(self, root: nn.Module) -> bool:
        """Whether nothing has changed, and nothing else forbids passing modules by."""
        if wants_plain_torch():
            return False
        addresses = self._addresses
        if addresses is not None and self._root() is root and not any(_GLOBAL_HOOKS) and addresses.unchanged(root):
            return True
        # a dict has an address of its own, so hooks come into those seen here or change the attribute
        if any(self._hooks):
            return False
        # once: where values change to equal ones again and again, addresses are of no use; and before the comparison,
        # lest another thread changes something behind it
        if addresses is None:
            unchanged = _loader.unchanged()
            if unchanged is not None:
                addresses = _Addresses(root, self._modules, (*self._children[0], *self._tensors[0]), unchanged)
        if not self.same(root):
            return False
        self._addresses = addresses
        return True

    def same(self, root: nn.Module) -> bool:
        """The same without a look at hooks."""
        return self.same_structure(root) and all(map(is_, _flat(self._tensors[0]), self._tensors[1]))

    def same_structure(self, root: nn.Module) -> bool:
        """The same without a look at hooks and tensors."""
        get, kept, length = self._own
        states, lengths = self._lengths
        try:
            return (
                self._root() is root
                and len(vars(root)) == length
                and get(vars(root)) == kept
                and vars(root)["_modules"] is kept[0]
                and list(map(type, self._modules)) == self._types
                and list(map(len, states)) == lengths
                and all(list(map(of, group)) == k for (of, group), k in zip(self._groups, self._kept, strict=True))
                and all(map(is_, _flat(self._children[0]), self._children[1]))
            )
        except Exception:
            # an attribute is gone, or its values cannot be compared
            return False


class _Addresses:
    """Where everything that a `Watch` knows lies in memory. What lies where it lay is the same, and compared fast."""

    __slots__ = ("_alive", "_dicts", "_expected", "_modules", "_unchanged")

    def __init__(
        self,
        root: nn.Module,
        modules: tuple[nn.Module, ...],
        contents: Iterable[dict[str, Any]],
        unchanged: Callable[..., bool],
    ) -> None:
        """Of `modules` and all that is in the dicts `contents`; `unchanged` is csrc/python's."""
        states = list(map(vars, modules))
        hooks = [state[key] for state in states for key in HOOKS]
        contents = (*hooks, *contents)
        self._unchanged, self._modules, self._dicts = unchanged, modules, (*states, *contents)
        self._alive: list[Any] = list(map(type, modules))
        # in the order of csrc/python/watch.cpp: types, then of each dict its size, and how many of its items follow
        numbers = list(map(id, self._alive))
        own = (vars(root), ["_modules", *_public(vars(root))])
        read = (_READ.get(type(module)) or _public(vars(module)) for module in modules)
        inside = ((state, [*HOOKS, *keys]) for state, keys in zip(states, read, strict=True))
        for items, keys in (own, *inside, *((content, list(content)) for content in contents)):
            pairs = [part for key in keys for part in (key, items[key])]
            numbers += [len(items), len(keys), *map(id, pairs)]
            # an address says something as long as nothing else can get it
            self._alive += pairs
        self._expected = struct.pack(f"{len(numbers)}N", *numbers)

    def unchanged(self, root: nn.Module) -> bool:
        """Whether everything lies where it lay; where it does not, it may still be equal."""
        return self._unchanged(vars(root), self._dicts, self._modules, self._expected)


def _public(state: dict[str, Any]) -> list[str]:
    return sorted(key for key in state if key[0] != "_")
