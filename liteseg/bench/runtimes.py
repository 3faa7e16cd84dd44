"""Other run times of a network on the CPU at their best settings, ONNX Runtime and OpenVINO, from one exported file."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from liteseg.atomic import atomic_path

__all__ = ["RUNTIMES", "as_array", "onnx_file", "onnxruntime", "openvino"]

Engine = Callable[[np.ndarray], np.ndarray]


def onnx_file(make: Callable[[], nn.Module], x: torch.Tensor, path: str) -> str:
    """`path`, where the module lies as an ONNX file of x's shape, which suits the run times best; made once for all."""
    if not os.path.exists(path):
        from liteseg.export import quiet

        for module in ("onnx", "onnxscript"):
            importlib.import_module(module)
        with atomic_path(path) as partial, quiet():
            torch.onnx.export(make(), (x,), partial, dynamo=True, external_data=False, verbose=False)
    return path


def onnxruntime(path: str, threads: int, dtype: str = "float32") -> Engine:
    """A session; float32 alone, for it has no other convolutions on the CPU."""
    import onnxruntime as ort

    if dtype != "float32":
        raise ValueError(f"it has no {dtype} convolutions on the CPU")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda array: session.run(None, {name: array})[0]


def openvino(path: str, threads: int, dtype: str = "float32") -> Engine:
    """A compiled model, tuned for latency; `dtype` is what it computes in."""
    import openvino as ov

    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[dtype],
    }
    compiled = ov.Core().compile_model(path, "CPU", settings)
    return lambda array: compiled(array, share_inputs=True, share_outputs=True)[0]


RUNTIMES: dict[str, Callable[..., Engine]] = {"onnxruntime": onnxruntime, "openvino": openvino}


def as_array(result: Any) -> np.ndarray:
    """A result as an array that shares nothing with it: floats as float32, labels as they are."""
    if isinstance(result, torch.Tensor):
        result = result.detach().cpu()
        result = (result.float() if result.is_floating_point() else result).numpy()
    return np.array(result)
