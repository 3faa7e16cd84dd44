"""Models as files that run without this package: ONNX, torch.export, AOTInductor, and network files for C."""

from __future__ import annotations

import importlib
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import liteseg_kernels as lk
from liteseg import network_file
from liteseg.atomic import atomic_path
from liteseg.bench.timing import wall
from liteseg.data import MEAN, STD
from liteseg.errors import MissingExtraError, UserError
from liteseg.models.int8 import int8_blocks
from liteseg.predict import MIN_SIZE, evaluating
from liteseg_kernels import _loader, exported
from liteseg_kernels._version import __version__
from liteseg_kernels.c_library import LibraryError

__all__ = ["FORMATS", "OPSETS", "OUTPUTS", "Check", "Exported", "export"]

# format -> suffix; torch's loaders want theirs
FORMATS = {"onnx": ".onnx", "torch_export": ".pt2", "aoti": ".pt2", "plan": ".liteseg"}
OUTPUTS = ("logits", "labels")
# torch writes 18 and up itself; its conversion to 17 fails on these networks
OPSETS = range(18, 24)
DEFAULT_SIZE = (512, 1024)
# torch.export takes a side of 1 for a special case, so that feature maps at a 32nd of the input must be larger
MIN_DYNAMIC = 64

# batch, height, width; odd, not multiples of 32, one wide and one high. the third stands in for a traced one
_CHECKED = ((2, 225, 353), (1, 334, 250), (1, 193, 289))
# of the largest logit: float32 sums in another order stay two digits below
_LIMIT = 1e-4
_EQUAL = 0.9999
# of the pixels that must agree, where a network unpools: rounding may find a maximum at the place beside, which moves
# what is unpooled and changes the logits around it
_UNPOOLED = 0.99


# what a file that calls this library's ops does not hold
_NEEDS = "liteseg_kernels: import it, or from C++ load its _C.abi3.so and call liteseg_register_ops()"


@dataclass(frozen=True)
class Check:
    """An exported file against its model on one input.

    Attributes:
        shape: of the input.
        equal: share of pixels with the same label, 0..1.
        error, limit: largest difference of the logits and what is allowed; None where the file gives labels.
        share: of the pixels and logits that are held to the limits: 1, or 0.99 for networks that unpool maxima.
    """

    shape: tuple[int, ...]
    equal: float
    error: float | None = None
    limit: float | None = None
    share: float = 1.0

    @property
    def passed(self) -> bool:
        # a comparison with NaN is false
        return self.equal >= self.share * _EQUAL and (
            self.error is None or (self.limit is not None and self.error <= self.limit)
        )

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape))
        of = "" if self.share == 1 else f" of {100 * self.share:.0f} %"
        error = "" if self.error is None else f"largest logit error{of} {self.error:.1e} (limit {self.limit:.1e}), "
        limit = 100 * self.share * _EQUAL
        return f"{shape}: {error}{100 * self.equal:.4f} % of the labels equal (limit {limit:.2f} %)"


@dataclass(frozen=True)
class Exported:
    """What :func:`export` wrote.

    Attributes:
        path, format, output: as asked for.
        shape: of the input, a name for a dimension that may vary.
        runner: what ran the file in the check; None where the check was left out.
        checks: one an input.
        ops: of this library that the file calls; none in files that run without it.
        milliseconds: of one image, by the file and by its form without this library's ops, where both were measured.
    """

    path: Path
    format: str
    output: str
    shape: tuple[str | int, ...]
    runner: str | None
    checks: tuple[Check, ...]
    ops: tuple[str, ...] = ()
    milliseconds: tuple[float, float] | None = None

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.format}, image [{', '.join(map(str, self.shape))}] -> {self.output}"]
        if self.ops:
            lines.append(f"needs {_NEEDS}, for {', '.join(self.ops)}")
        if self.milliseconds is not None:
            own, plain = self.milliseconds
            threads = torch.get_num_threads()
            lines.append(f"{own:.1f} ms an image, {plain:.1f} ms without these ops ({threads} threads, median)")
        if self.runner is None:
            return "\n".join([*lines, "not checked"])
        return "\n".join([*lines, *(f"checked with {self.runner}, {check}" for check in self.checks)])


class _Graph(nn.Module):
    """The network with one input `image` and the output asked for."""

    def __init__(self, network: nn.Module, output: str) -> None:
        super().__init__()
        self.network = network
        self.labels = output == "labels"

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits = self.network(image)
        return logits.argmax(1).to(torch.uint8) if self.labels else logits


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps back what the exporters say about themselves (deprecations, operators of packages that are not here)."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _need(module: str, what: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise MissingExtraError(what, "export", module) from error


def _need_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise UserError(
            "export: format: aoti: expected a C++ compiler (g++ or the one that CXX names), found none; "
            "torch_export needs none"
        ) from None


def _pictures(shape: tuple[int, ...], device: torch.device, seed: int) -> torch.Tensor:
    """Normalised input with areas and noise: a network's labels vary on it."""
    generator = torch.Generator().manual_seed(seed)
    batch, channels, height, width = shape
    areas = torch.randn((batch, channels, -(-height // 32), -(-width // 32)), generator=generator)
    areas = nn.functional.interpolate(areas, size=(height, width), mode="bilinear", align_corners=True)
    return (areas + 0.2 * torch.randn(shape, generator=generator)).to(device)


def _channels(model: nn.Module) -> int:
    """Of the input; 3 for models that do not say."""
    return int(getattr(getattr(model, "config", None), "in_channels", 3))


def _classes(model: nn.Module, size: tuple[int, int], device: torch.device) -> int:
    """Channels of the logits, after one run that shows that the model is one this module exports."""
    x = _pictures((1, _channels(model), *size), device, 0)
    with evaluating(model) as ready:
        logits = ready(x)
    if not isinstance(logits, torch.Tensor) or logits.ndim != 4 or logits.shape[2:] != x.shape[2:]:
        got = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise TypeError(f"export: model: expected logits [1, K, {size[0]}, {size[1]}], got {got}")
    if not logits.isfinite().all():
        raise ValueError("export: model: expected finite logits, got NaN or infinity (damaged weights?)")
    return logits.shape[1]


def _metadata(model: nn.Module, output: str, classes: int, fixed: bool) -> dict[str, str]:
    """What a user of the file must know and the graph does not say."""
    channels = _channels(model)
    if channels == 3:
        given: dict[str, Any] = {"input": "image: float32 [N, 3, H, W], RGB / 255, minus mean, divided by std"}
        given |= {"mean": list(MEAN), "std": list(STD)}
    else:
        given = {"input": f"image: float32 [N, {channels}, H, W], normalised as in training"}
    facts: dict[str, Any] = {
        "liteseg_version": __version__,
        "num_classes": classes,
        **given,
        "output": f"logits: float32 [N, {classes}, H, W]" if output == "logits" else "labels: uint8 [N, H, W]",
    }
    if not fixed:
        facts["minimum_size"] = MIN_DYNAMIC
    config = getattr(model, "config", None)
    if config is not None:
        facts |= {"model": config.name, "input_scale": config.input_scale}
        if config.class_names is not None:
            facts["class_names"] = list(config.class_names)
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}


def _traced(
    graph: _Graph, channels: int, size: tuple[int, int], fixed: bool, device: torch.device
) -> torch.export.ExportedProgram:
    shapes = None
    if not fixed:
        height, width = (torch.export.Dim(name, min=MIN_DYNAMIC) for name in ("height", "width"))
        shapes = {"image": {0: torch.export.Dim("batch", min=1), 2: height, 3: width}}
    # a batch of 1 would become a constant
    example = torch.zeros((1 if fixed else 2, channels, *size), device=device)
    try:
        return torch.export.export(graph, (example,), dynamic_shapes=shapes)
    except Exception as error:
        # which exception depends on the step that gives up
        why = next((line for line in str(error).splitlines() if line), type(error).__name__)
        advice = "" if fixed else " for any size; a fixed size (fixed_size=True, --fixed-size) may work"
        raise ValueError(f"export: model: expected one that torch.export can trace{advice} ({why})") from error


def _write(
    program: torch.export.ExportedProgram, path: Path, format: str, output: str, facts: dict[str, str], opset: int
) -> None:
    if format == "onnx":
        names = {"image": {0: "batch", 2: "height", 3: "width"}}
        written = torch.onnx.export(
            program,
            input_names=["image"],
            output_names=[output],
            # only named here: what varies was settled by the trace
            dynamic_shapes=names if program.range_constraints else None,
            opset_version=opset,
            verbose=False,
        )
        assert written is not None
        written.model.metadata_props.update(facts)
        written.save(path, external_data=False)
    elif format == "aoti":
        settings = {"aot_inductor.metadata": facts}
        torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=settings)
    else:
        # saved too, it would outweigh the network
        program.example_inputs = None
        torch.export.save(program, path, extra_files={"liteseg.json": json.dumps(facts)})


def _open(path: Path, format: str) -> tuple[Callable[[torch.Tensor], torch.Tensor], str]:
    """The file read back: a call, and what runs it."""
    if format == "onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # its errors come as exceptions too
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        runner = f"ONNX Runtime {onnxruntime.__version__}"
        return lambda x: torch.from_numpy(session.run(None, {"image": x.numpy()})[0]), runner
    runner = f"PyTorch {torch.__version__}"
    if format == "aoti":
        return torch._inductor.aoti_load_package(str(path)), runner
    return torch.export.load(path).module(), runner


def _milliseconds(path: Path, format: str, x: torch.Tensor) -> float:
    """Of one call of the file."""
    run, _ = _open(path, format)
    with torch.inference_mode():
        return wall(lambda: run(x), x.device.type, warmup=2, repeat=7).p50


def _compare(got: torch.Tensor, expected: torch.Tensor, x: torch.Tensor, share: float) -> Check:
    """`got` from the file, logits or labels, against the model's logits."""
    got, expected = got.cpu(), expected.cpu()
    shape = tuple(x.shape)
    labels = expected.argmax(1)
    if got.shape == labels.shape and not got.is_floating_point():
        return Check(shape, (got.long() == labels).double().mean().item(), share=share)
    if got.shape != expected.shape:
        raise ValueError(f"expected an output {list(expected.shape)}, got {list(got.shape)}")
    equal = (got.argmax(1) == labels).double().mean().item()
    errors = (got - expected).abs().flatten()
    whole = share == 1 or not errors.isfinite().all()
    error = errors.max() if whole else errors.kthvalue(int(share * errors.numel())).values
    return Check(shape, equal, error.item(), _LIMIT * expected.abs().max().item(), share)


def _check(
    path: Path, format: str, model: nn.Module, shapes: Sequence[tuple[int, ...]], device: torch.device
) -> tuple[str, tuple[Check, ...]]:
    checks = []
    share = _UNPOOLED if any(isinstance(module, nn.MaxUnpool2d) for module in model.modules()) else 1.0
    # TF32 would hide errors below 1e-3, and differs from kernel to kernel
    with evaluating(model) as ready, torch.backends.cudnn.flags(allow_tf32=False):
        try:
            run, runner = _open(path, format)
            for seed, shape in enumerate(shapes):
                x = _pictures(shape, device, seed)
                checks.append(_compare(run(x), ready(x), x, share))
        except Exception as error:
            # each run time has exceptions of its own
            raise RuntimeError(f"export: the {format} file does not run and was removed: {error}") from error
    for check in checks:
        if not check.passed:
            raise RuntimeError(
                f"export: the {format} file differs from the model and was removed: with {runner} at {check}"
            )
    return runner, tuple(checks)


def _export_plan(model: nn.Module, path: Path, classes: int, check: bool) -> Exported:
    """The network file; its checks are on pictures, whose shape is [H, W, 3]."""
    shape = ("height", "width", 3)
    with atomic_path(path) as temporary:
        network_file.write(model, temporary, classes)
        if not check:
            return Exported(path, "plan", "labels or logits", shape, None, ())
        sizes = [(high, wide) for _, high, wide in _CHECKED[:2]]
        checks = []
        try:
            # outside of a plan other roundings in front of a block in int8 become other bytes
            expected = lk.fuse(model) if int8_blocks(model) else model
            found = network_file.compare(temporary, expected, sizes)
            for size, (equal, error, largest) in zip(sizes, found, strict=True):
                checks.append(Check((*size, 3), equal, error, _LIMIT * largest))
        except LibraryError as error:
            raise RuntimeError(f"export: the plan file does not run and was removed: {error}") from error
        for one in checks:
            if not one.passed:
                raise RuntimeError(f"export: the plan file differs from the model and was removed: at {one}")
    return Exported(path, "plan", "labels or logits", shape, f"libliteseg {__version__}", tuple(checks))


def _checked_arguments(
    path: Path, format: str, output: str, size: tuple[int, int] | None, fixed: bool, kernels: bool
) -> None:
    if format not in FORMATS:
        raise ValueError(f"export: format: expected one of {', '.join(FORMATS)}, got {format!r}")
    if output not in OUTPUTS:
        raise ValueError(f"export: output: expected one of {', '.join(OUTPUTS)}, got {output!r}")
    if kernels and format not in ("torch_export", "aoti"):
        raise ValueError(f"export: kernels: expected the format torch_export or aoti, got {format}")
    if format == "plan" and output != "logits":
        raise ValueError("export: output: expected none for plan, whose files give labels and logits, got labels")
    if format == "plan" and (fixed or size is not None):
        raise ValueError("export: size: expected none for plan, whose files take any size, got one")
    if path.suffix != FORMATS[format]:
        raise ValueError(f"export: path: expected a name ending in {FORMATS[format]} for {format}, got {str(path)!r}")
    if not path.parent.is_dir():
        raise ValueError(f"export: path: expected a folder that exists, got {str(path.parent)!r}")
    if path.is_dir():
        raise ValueError(f"export: path: expected a file, got the folder {str(path)!r}")
    if size is None:
        return
    if len(size) != 2 or not all(isinstance(side, int) and side >= MIN_SIZE for side in size):
        raise ValueError(
            f"export: size: expected height and width of at least {MIN_SIZE}, got {'x'.join(map(str, size))}"
        )
    if not fixed and min(size) < MIN_DYNAMIC:
        raise ValueError(
            f"export: size: expected height and width of at least {MIN_DYNAMIC} for a file that takes any size "
            f"(smaller ones need a fixed size), got {size[0]}x{size[1]}"
        )


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    format: str = "onnx",
    *,
    output: str = "logits",
    size: tuple[int, int] | None = None,
    fixed_size: bool = False,
    opset: int = 18,
    check: bool = True,
    kernels: bool = False,
) -> Exported:
    """Writes a model to a file that runs without this package, and checks that file before it is there.

    The file holds the model's reference form, plain torch.nn operations with batch norm in eval mode and the same
    weights, so a fused model may be given too. Input is ``image``, float32 [N, 3, H, W], normalised RGB (or the model's
    ``in_channels``): mean, standard deviation, class names and input scale are in the file's metadata. Batch, height
    and width may vary from call to call, both sides at least 64, unless ``fixed_size``.

    The file is written under another name, read back, run at two sizes that the export did not see (at a fixed size: on
    two pictures) and compared with ``model`` itself; only one that agrees gets its name. Then the largest error of the
    logits is at most 1e-4 of the largest logit, and at least 99.99 % of the labels are equal; of networks that unpool
    maxima, which rounding may move by a pixel, 99 % of the logits and labels must be so.

    Args:
        model: [N, 3, H, W] -> logits [N, K, H, W], all parameters float32 on one device. It is left as it is.
        path: of the file, replaced if it exists: ``.onnx`` for onnx, ``.liteseg`` for plan, ``.pt2`` for the others.
        format:
            * ``"onnx"``: for ONNX Runtime, OpenVINO, TensorRT and others (extra ``export``); metadata as model
              properties.
            * ``"torch_export"``: ``torch.export.load(path)``; metadata as extra file ``liteseg.json``.
            * ``"aoti"``: ``torch._inductor.aoti_load_package(path)``, machine code for processors or GPUs like the one
              the model is on, from C++ too; needs a C++ compiler; metadata by the package's ``get_metadata()``.
            * ``"plan"``: for libliteseg, from C on CPUs without Python and torch: takes uint8 RGB pictures, resizes and
              normalises them itself and gives labels and logits at any size, with this library's kernels. Networks
              that run from a plan only (``lk.runtime.explain``).
        output: ``"logits"`` float32 [N, K, H, W], or ``"labels"`` uint8 [N, H, W] (up to 256 classes).
        size: (H, W) the model is traced at, 512 x 1024 by default; with ``fixed_size`` the only one the file takes.
        fixed_size: batch 1 at ``size`` and nothing else, for run times that want fixed shapes.
        opset: of ONNX, 18 to 23.
        kernels: torch_export and aoti only, on the CPU: a file that calls this library's ops instead of plain ones,
            which is faster and needs the compiled library where it runs (from C++: `liteseg_register_ops` in
            _C.abi3.so). It is timed beside the plain form of the same format, at ``size``.
        check: False leaves the check out, and the times; ONNX files are checked with ONNX Runtime, which must be
            installed for it.

    Raises:
        ValueError, TypeError: an argument is wrong, the folder is missing, the logits are not finite, or torch.export
            cannot trace the model for any size.
        MissingExtraError: a package of the extra ``export`` is not installed.
        RuntimeError: the file does not run or differs from the model; nothing is left on disk.

    Example:
        >>> import liteseg
        >>> model = liteseg.create_model(weights="camvid")
        >>> print(liteseg.export(model, "camvid.pt2", "torch_export"))  # doctest: +SKIP
    """
    path = Path(path)
    _checked_arguments(path, format, output, size, fixed_size, kernels)
    if format == "onnx":
        if opset not in OPSETS:
            raise ValueError(f"export: opset: expected {OPSETS[0]} to {OPSETS[-1]}, got {opset!r}")
        for module in ("onnx", "onnxscript"):
            _need(module, "ONNX export")
        if check:
            _need("onnxruntime", "checking an ONNX file (check=False, --no-check leave it out)")
    elif format == "aoti":
        _need_compiler()
    elif format == "plan":
        network_file.need_library()
    if format != "plan" and int8_blocks(model):
        raise ValueError(
            f"export: model: expected a float network for the format {format}, got one with blocks in int8, which plan "
            "alone has"
        )
    for parameter in model.parameters():
        if parameter.dtype != torch.float32:
            raise TypeError(f"export: model: expected float32 parameters, got {parameter.dtype}")
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    if kernels:
        if device.type != "cpu":
            raise ValueError(f"export: kernels: expected a model on the CPU, got one on {device}")
        if reason := _loader.missing("cpu"):
            raise UserError(f"export: kernels: expected the compiled CPU kernels, got none: {reason}")
    if format == "onnx" and device.type != "cpu":
        device = torch.device("cpu")
        model = lk.to_reference(model).to(device)
    at = DEFAULT_SIZE if size is None else (size[0], size[1])
    classes = _classes(model, at if fixed_size else (MIN_DYNAMIC, MIN_DYNAMIC), device)
    if output == "labels" and classes > 256:
        raise ValueError(f"export: output: expected logits for more than 256 classes, got labels and {classes} classes")

    if format == "plan":
        return _export_plan(model, path, classes, check)
    facts = _metadata(model, output, classes, fixed_size)
    channels = _channels(model)
    others = [(batch, channels, high, wide) for batch, high, wide in _CHECKED if (high, wide) != at]
    checked = [(1, channels, *at)] * 2 if fixed_size else others[:2]

    def write(to: Path, network: nn.Module, facts: dict[str, str]) -> tuple[str, ...]:
        """The file; the ops of this library that it calls."""
        graph = _Graph(network, output).eval().requires_grad_(False)
        with quiet():
            program = _traced(graph, channels, at, fixed_size, device)
            if kernels:
                program = exported.in_parts(program)
            _write(program, to, format, output, facts, opset)
        return tuple(exported.ops_of(program))

    with atomic_path(path) as temporary:
        ops: tuple[str, ...] = ()
        if kernels:
            ops = write(temporary, lk.fuse(model), facts | {"needs": _NEEDS})
            if not ops:
                raise ValueError("export: kernels: expected a model with blocks of this library, got one without")
        else:
            write(temporary, lk.to_reference(model), facts)
        runner, checks = _check(temporary, format, model, checked, device) if check else (None, ())
        milliseconds = None
        if kernels and check:
            with tempfile.TemporaryDirectory() as folder:
                plain = Path(folder) / f"plain{path.suffix}"
                write(plain, lk.to_reference(model), facts)
                x = _pictures((1, channels, *at), device, 0)
                milliseconds = (_milliseconds(temporary, format, x), _milliseconds(plain, format, x))
    shape: tuple[str | int, ...] = (1, channels, *at) if fixed_size else ("batch", channels, "height", "width")
    return Exported(path, format, output, shape, runner, checks, ops, milliseconds)
