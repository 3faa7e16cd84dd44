"""Base of the blocks that have a fused op: when it runs, and what is folded for it."""

from __future__ import annotations

from collections.abc import Sequence
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from . import intact

# folded weights by the name of the op's argument; None for an argument left out
Weights = dict[str, Any]


def _fold_again(module: nn.Module, incompatible_keys: object) -> None:
    assert isinstance(module, FusedModule)
    if module.fused:
        if module.alteration() is None:
            module.fuse_()
        else:
            module._outdated, module._watch = True, None


class FusedModule(nn.Module):
    """Base of the modules that `fuse` and `to_reference` know.

    `fuse_` stores what `_fold` returns as non-persistent buffers, so a fused module has the same `state_dict` as
    before; loading one folds again. Going back to training drops the buffers.

    The fused op runs while `alteration` has nothing to say and no normalisation is in training mode; else the modules
    inside run one by one, in eval as in training (see `intact`).
    """

    reference = False
    # whether `fuse` folds this module as one; otherwise it folds the modules inside it
    folds = True

    def __init__(self) -> None:
        super().__init__()
        self._folded_names: tuple[str, ...] = ()
        # the tensors they were folded from, and whether those may have been written since
        self._folded_from: tuple[Tensor | None, ...] = ()
        self._outdated = False
        # how often was folded: networks around see by it that what they took is old
        self.generation = 0
        self._watch: intact.Watch | None = None
        self.register_load_state_dict_post_hook(_fold_again)

    @property
    def fused(self) -> bool:
        return bool(self._folded_names)

    @property
    def plain(self) -> bool:
        """Whether torch.nn's own operations and modules must do."""
        return self.reference or intact.environment() is not None

    def alteration(self) -> str | None:
        """What about the modules inside keeps the fused op from computing what they do."""
        return None

    def one_by_one(self) -> str | None:
        """Why the modules inside run one by one, None where the fused op runs."""
        if self.reference:
            return "expected fused ops, got the reference form"
        return intact.environment() or self.alteration() or intact.training_norm(self)

    def is_intact(self) -> bool:
        """Whether the fused op may run: `one_by_one() is None`, read off a cached answer."""
        if torch.compiler.is_compiling():
            # the modes once more, for compilers to guard them
            return self._traced_answer() and not any(part.training for part in self.modules())
        watch = self._watch
        return (watch is not None and watch.holds(self)) or self._look()

    @intact.constant_about
    def _traced_answer(self) -> bool:
        return self.one_by_one() is None

    def _look(self) -> bool:
        """`is_intact` anew. What was folded from tensors that are still there is folded again where it is outdated."""
        watch = self._watch
        if self.one_by_one() is not None:
            # hooks alone leave no trace in the weights
            if watch is None or not watch.same(self):
                self._watch, self._outdated = None, True
            return False
        changed = watch is not None and not watch.same_structure(self)
        watch = intact.Watch(self, FusedModule)
        if self.fused:
            watch.current = _same(watch.tensors, self._folded_from)
            if watch.current and (changed or self._outdated):
                self.fuse_()
        self._watch = watch
        return True

    @intact.constant_about
    def is_current(self) -> bool:
        """Whether what was folded is what the modules hold: functional_call and assignments put other tensors there."""
        if torch.compiler.is_compiling():
            tensors = intact.Watch(self, FusedModule).tensors
            # exporters put stand-ins there
            return any(type(t) not in (Tensor, nn.Parameter) for t in tensors) or _same(tensors, self._folded_from)
        return self._watch is None or self._watch.current

    def _fold(self) -> Weights:
        """Folded weights by name."""
        raise NotImplementedError

    def folded(self) -> Weights:
        """The folded weights: the stored ones after `fuse_`, else computed now (differentiably)."""
        if not self.fused or not self.is_current():
            return self._fold()
        if torch.compiler.is_compiling():
            return {name: getattr(self, f"_folded_{name}") for name in self._folded_names}
        # getattr of a module looks elsewhere first, and this is asked at every call
        buffers: Weights = self._buffers
        return {name: buffers["_folded_" + name] for name in self._folded_names}

    def fuse_(self) -> None:
        """Fold once, and keep the result."""
        # what is kept serves outside of inference mode too
        with torch.inference_mode(False), torch.no_grad():
            weights = self._fold()
        for name, weight in weights.items():
            self.register_buffer(f"_folded_{name}", None if weight is None else weight.detach(), persistent=False)
        self._folded_names = tuple(weights)
        self._folded_from = intact.Watch(self, FusedModule).tensors
        self._outdated, self._watch = False, None
        self.generation += 1

    def unfuse_(self) -> None:
        """Forget what was folded."""
        for name in self._folded_names:
            delattr(self, f"_folded_{name}")
        self._folded_names, self._folded_from, self._outdated, self._watch = (), (), False, None

    def train(self, mode: bool = True) -> FusedModule:
        if mode:
            self.unfuse_()
        super().train(mode)
        return self

    def _apply(self, *args: Any, **kwargs: Any) -> FusedModule:
        # buffers, and some parameters, are replaced: what was folded is converted along with them
        current = self.fused and _same(intact.Watch(self, FusedModule).tensors, self._folded_from)
        super()._apply(*args, **kwargs)
        if current:
            self._folded_from = intact.Watch(self, FusedModule).tensors
        self._watch = None
        return self

    def __getstate__(self) -> dict[str, Any]:
        # of the modules of this one
        return self.__dict__ | {"_watch": None}

    def extra_repr(self) -> str:
        return ", ".join(flag for flag in ("fused", "reference") if getattr(self, flag))


def _same(tensors: Sequence[Any], others: Sequence[Any]) -> bool:
    return len(tensors) == len(others) and all(map(is_, tensors, others))
