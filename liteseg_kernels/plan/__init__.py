"""Runs a whole fused network on the CPU from one program and one tensor of packed weights.

A network describes itself once: its modules call the methods of `Program` in the order of their work (`lower`). `Plan`
turns that into the few layers that the compiled op `liteseg_cpu::run_plan` knows, each of which does the work of
several modules in one pass, and packs the weights. Shapes stay open: one plan serves any input size.

The op takes float32, and bfloat16 where the processor multiplies it (AVX512_BF16, AMX) and every layer has a kernel for
it. Everything else (other dtypes, gradients, another backend asked for, tracing) runs module by module as before: see
`PlannedModule.refusal`.
"""

from __future__ import annotations

from .compiled import Plan
from .module import PlannedModule
from .packing import Unplannable
from .program import Program
from .report import LayerReport, PlanReport

__all__ = ["LayerReport", "Plan", "PlanReport", "PlannedModule", "Program", "Unplannable"]
