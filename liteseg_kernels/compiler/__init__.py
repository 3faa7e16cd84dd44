"""Any network by this library's kernels: `torch.compile(net, backend="liteseg")`, or `optimize(net)`.

Dynamo captures the network, AOTAutograd makes a functional aten graph of it (`backend`). The parts that the compiled
layers cover (`lower`) are rewritten so that batch normalisation, activations and padding disappear into convolutions,
and those into whole blocks (`patterns`); each part becomes one call of `liteseg_cpu::run_graph` with packed weights
(`emit`, `region`). What is not covered stays as it is, and `report` says why.
"""

from __future__ import annotations

from .backend import REPORTS, Optimized, dynamo_backend, optimize
from .report import GraphReport

__all__ = ["REPORTS", "GraphReport", "Optimized", "dynamo_backend", "optimize"]
