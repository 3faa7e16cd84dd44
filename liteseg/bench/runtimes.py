"""Other run times of a network on the CPU at their best settings, ONNX Runtime and OpenVINO, from one exported file."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from liteseg.atomic import atomic_path

__all__ = ["RUNTIMES", "as_array", "int8_file", "nncf_file", "onnx_file", "onnxruntime", "openvino"]

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


def int8_file(path: str, arrays: Sequence[np.ndarray]) -> str:
    """An ONNX file beside `path` with its convolutions in int8 (weights of one scale a channel, uint8 maps), quantised
    by ONNX Runtime's own tool for its ranges on `arrays`; OpenVINO reads the same form. Made once for all."""
    quantised = f"{os.path.splitext(path)[0]}.int8.onnx"
    if not os.path.exists(quantised):
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Reader(quantization.CalibrationDataReader):
            def __init__(self) -> None:
                self.left = iter(arrays)

            def get_next(self) -> dict[str, np.ndarray] | None:
                array = next(self.left, None)
                return None if array is None else {"x": array}

        with atomic_path(quantised) as partial:
            prepared = f"{partial}.prepared.onnx"
            try:
                quant_pre_process(path, prepared, skip_symbolic_shape=True)
                quantization.quantize_static(prepared, str(partial), Reader(), per_channel=True)
            finally:
                if os.path.exists(prepared):
                    os.remove(prepared)
    return quantised


def nncf_file(path: str, arrays: Sequence[np.ndarray]) -> str:
    """The same as a file of OpenVINO's, quantised by OpenVINO's own tool, NNCF."""
    quantised = f"{os.path.splitext(path)[0]}.int8.xml"
    if not os.path.exists(quantised):
        import nncf
        import openvino as ov

        # not atomic: it is two files, in a folder of this run
        data, count = nncf.Dataset(arrays), len(arrays)
        model = nncf.quantize(ov.Core().read_model(path), data, preset=nncf.QuantizationPreset.MIXED, subset_size=count)
        ov.save_model(model, quantised, compress_to_fp16=False)
    return quantised


def onnxruntime(path: str, threads: int, dtype: str = "float32") -> Engine:
    """A session; float32, or an `int8_file`, for it has no other convolutions on the CPU."""
    import onnxruntime as ort

    if dtype not in ("float32", "int8"):
        raise ValueError(f"it has no {dtype} convolutions on the CPU")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda array: session.run(None, {name: array})[0]


def openvino(path: str, threads: int, dtype: str = "float32") -> Engine:
    """A compiled model, tuned for latency; `dtype` is what it computes in (of an `int8_file`: where it is not int8)."""
    import openvino as ov

    core = ov.Core()
    # of a mixed file the float parts in what is faster: bfloat16 where the processor has it
    mixed = "bf16" if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16", "int8": mixed}[dtype],
    }
    compiled = core.compile_model(path, "CPU", settings)
    return lambda array: compiled(array, share_inputs=True, share_outputs=True)[0]


RUNTIMES: dict[str, Callable[..., Engine]] = {"onnxruntime": onnxruntime, "openvino": openvino}


def as_array(result: Any) -> np.ndarray:
    """A result as an array that shares nothing with it: floats as float32, labels as they are."""
    if isinstance(result, torch.Tensor):
        result = result.detach().cpu()
        result = (result.float() if result.is_floating_point() else result).numpy()
    return np.array(result)
