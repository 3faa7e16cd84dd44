"""The schemas of all ops, registered.

`liteseg::*` are the public ops; their kernels choose a backend at run time (`_dispatch`). `liteseg_cpu::*` and
`liteseg_cuda::*` are the compiled kernels behind them: the shared libraries only add implementations to the schemas
defined here, so every op exists, and can be asked for its kernels, whether or not a library was built.
"""

from __future__ import annotations

from torch import Tag
from torch.library import Library

from ._signatures import SCHEMAS

public = Library("liteseg", "DEF")
_compiled = [Library(namespace, "DEF") for namespace in ("liteseg_cpu", "liteseg_cuda")]
# CUDA kernels whose float32 products may be tf32: torch's switch is Python's to read
TF32_OPS = (
    "separable_conv2d",
    "separable_conv2d_backward",
    "separable_conv2d_classifier",
    "inverted_residual",
    "shuffle_unit",
    "daspp",
    "upsample_concat_separable_conv2d",
)
for _name, _signature in SCHEMAS.items():
    # the kernels take any strides, and the fake kernels promise strides from those of the traced inputs
    public.define(_name + _signature, tags=(Tag.pt2_compliant_tag, Tag.needs_exact_strides))
    _signature = _signature.replace("SymInt", "int")
    _compiled[0].define(_name + _signature)
    if _name in TF32_OPS:
        _signature = _signature.replace(") -> ", ", bool allow_tf32) -> ", 1)
    _compiled[1].define(_name + _signature)
_compiled[0].define("isa() -> str")
# a whole network (`plan`): labels at `size`, or logits where it is empty; seconds of each layer; columns of a panel
_compiled[0].define("run_plan(Tensor x, Tensor packed, Tensor program, int[] size) -> Tensor")
_compiled[0].define("time_plan(Tensor x, Tensor packed, Tensor program, int[] size) -> Tensor")
# a part of any network (`compiler`): the maps that leave it, seconds of each layer
_compiled[0].define("run_graph(Tensor[] inputs, Tensor packed, Tensor program, int[] sizes) -> Tensor[]")
_compiled[0].define("time_graph(Tensor[] inputs, Tensor packed, Tensor program, int[] sizes) -> Tensor")
_compiled[0].define("fingerprint(Tensor[] weights) -> int")
_compiled[0].define("panel() -> int")
# one weight of a program as the kernels in use read it, see plan/packing.py
_compiled[0].define("pack_weight(Tensor plain, int kind, int[] dims, bool bf16) -> Tensor")
# the numbers that programs are written with, see plan/contract.py
_compiled[0].define("program_constants() -> str")
