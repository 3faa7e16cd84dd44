"""python -m tests.aot.specialisations [--parity]: how often Triton compiles, as its own launch code decides it.

Nothing is compiled: what `JITFunction.run` would compile on an sm_90 is counted. Without an option, of a network at one
size, and what other sizes and batches add, as JSON; with --parity, what the parity suite on a GPU compiles.
"""

from __future__ import annotations

import collections
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

# before triton is imported: this process launches, it does not interpret
os.environ.pop("TRITON_INTERPRET", None)
# triton 3.10 changes the default
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import pytest  # noqa: E402
import torch  # noqa: E402
import triton  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from liteseg.bench import shapes  # noqa: E402
from liteseg_kernels import _dispatch  # noqa: E402
from liteseg_kernels.ops import _register  # noqa: E402
from liteseg_kernels.triton import _tiles  # noqa: E402
from tests import worlds  # noqa: E402
from tests.kernels import suite  # noqa: E402

from .compiler import FakeDriver, gpu_target  # noqa: E402

TARGET = "sm_90"
# what a network in use may turn to: (size, batch)
FIRST, OTHERS = ((360, 640), 1), (((512, 1024), 1), ((360, 640), 8), ((1024, 2048), 1))

# of `suite.check_backward`
_LAYOUTS = ("nchw", "channels_last", "expanded", "sliced")

Kernel = tuple[str, Any]


def record() -> set[Kernel]:
    """From now on kernels are not compiled but entered here, by name and Triton's own key."""
    seen: set[Kernel] = set()

    def compile_none(self: JITFunction, key: Any, *args: Any, **options: Any) -> None:
        seen.add((self.__name__, key))

    JITFunction._do_compile = compile_none
    _tiles.target_of = lambda device: TARGET
    triton.runtime.driver.set_active(FakeDriver(gpu_target(TARGET)))
    return seen


def _tensors(value: Any) -> Any:
    if isinstance(value, shapes.Spec):
        tensor = torch.empty(value.shape, dtype=value.dtype or torch.float16, device="meta")
        is_map = tensor.dim() == 4 and tensor.shape[2] > 1
        return tensor.contiguous(memory_format=torch.channels_last) if is_map else tensor
    return [_tensors(item) for item in value] if isinstance(value, tuple) else value


def launch(network: str, size: tuple[int, int], batch: int) -> None:
    """Every op of a network from picture to labels, in float16."""
    for layer in shapes.inference(network, size):
        call = layer.call.batch(batch)
        if "triton" not in _dispatch._registry[call.op] or _dispatch._registry[call.op]["triton"].note:
            continue
        values = [torch.float16 if name == "dtype" else _tensors(value) for name, value in call.arguments]
        with torch.device("meta"):
            _dispatch.run_on("triton", call.op, *values)


def added(network: str) -> Iterator[tuple[str, list[str]]]:
    """(what, the kernels that are compiled again for it), the first time all of them."""
    seen = record()
    known: set[Kernel] = set()
    for size, batch in (FIRST, *OTHERS):
        launch(network, size, batch)
        yield f"{size[0]}x{size[1]} b{batch}", sorted(name for name, _ in seen - known)
        if not known:
            known = set(seen)
        seen.clear()


class _Parity:
    """A pytest plugin: the parity suite for a GPU with Triton, whose launches do nothing and whose results nobody looks
    at."""

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            module: Any = item.module  # type: ignore[attr-defined]
            for name in ("check_forward", "check_backward"):
                if hasattr(module, name):
                    setattr(module, name, globals()[f"_{name}"])
            for name in ("assert_near", "oracle"):
                if hasattr(module, name):
                    setattr(module, name, lambda *args, **options: None)


def _check_forward(op: Any, oracle: Any, world_name: str, case: Any, *, maps: Any, layouts: Any = suite.LAYOUTS,
                   **options: Any) -> None:  # fmt: skip
    tensors = case.make(torch.Generator().manual_seed(0))
    with suite.enter(world_name) as here:
        for dtype, layout in suite.combinations(here, case, here.dtypes, layouts):
            op(**suite.inputs(tensors, here, dtype, layout, maps, grad=False), **case.options)


def _check_backward(op: Any, oracle: Any, world_name: str, case: Any, *, maps: Any, dtypes: Any = None,
                    layouts: Any = _LAYOUTS, **options: Any) -> None:  # fmt: skip
    tensors = case.make(torch.Generator().manual_seed(0))
    with suite.enter(world_name) as here:
        for dtype, layout in suite.combinations(here, case, dtypes or here.dtypes, layouts):
            given = suite.inputs(tensors, here, dtype, layout, maps, grad=True)
            out = op(**given, **case.options)
            sources = [tensor for _, tensor in suite.flatten(given)]
            sent = torch.zeros_like(out)
            laid = suite.as_layout(sent, layout) if layout != "expanded" else sent
            for grad in (laid, sent.new_ones(()).expand(sent.shape)):
                torch.autograd.grad(out, sources, grad, retain_graph=True, allow_unused=True)


def parity() -> collections.Counter[str]:
    """Kernel -> how often the parity suite compiles it, in every dtype and layout."""
    worlds.WORLDS["gpu-triton"] = ("triton", "cpu", worlds.HALF_TOO, lambda: "")
    _register._triton_unavailable = lambda device_type: None
    seen = record()
    pytest.main(["tests/kernels", "-q", "-m", "gpu", "-k", "gpu-triton", "-p", "no:cacheprovider"], [_Parity()])
    return collections.Counter(name for name, _ in seen)


def main() -> int:
    if "--parity" in sys.argv[1:]:
        found = parity()
        for name, count in found.most_common():
            print(f"{count:6} {name}")
        print(f"{found.total():6} in all")
    else:
        print(json.dumps({network: dict(added(network)) for network in shapes.NETWORKS}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
