"""The command line: ``liteseg`` and ``python -m liteseg``.

Exit codes: 0 success; 1 some of several inputs failed, the others were written; 2 wrong usage or bad input, one line on
stderr says why; 70 an error inside liteseg; 130 interrupted. ``--debug`` shows the traceback.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from liteseg.errors import ElsewhereError, MissingExtraError, UserError

if TYPE_CHECKING:
    from liteseg.models import Network

__all__ = ["main"]

EXIT_OK = 0
EXIT_SOME_FAILED = 1
EXIT_BAD_INPUT = 2
# sysexits.h: internal software error
EXIT_INTERNAL = 70
EXIT_INTERRUPTED = 130

_TRAIN_MODULES = ("pytorch_lightning", "lightning_utilities", "torchmetrics", "jsonargparse", "tensorboard")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH such as 512x1024, got {text!r}")
    return int(match[1]), int(match[2])


def _share(text: str) -> float:
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return value


def _positive(text: str) -> float:
    value = _number(text)
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}") from None


def _value_range(text: str) -> float | tuple[float, float]:
    low, colon, high = text.partition(":")
    if not colon:
        return _positive(text)
    values = _number(low), _number(high)
    if not values[0] < values[1]:
        raise argparse.ArgumentTypeError(f"expected WHITE or BLACK:WHITE such as 4095 or 7000:9000, got {text!r}")
    return values


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def _weights_options(parser: argparse.ArgumentParser, *, weights: str | None = None) -> argparse._ArgumentGroup:
    """Options that say which network. weights: the default of --weights, "" for a network with none."""
    group = parser.add_argument_group("model")
    group.add_argument("--model", metavar="NAME", help="model name; the weights' own by default")
    group.add_argument(
        "--weights",
        metavar="W",
        default=weights or None,
        required=weights is None,
        help="bundled name (such as camvid) or path of a .safetensors, .pth or .pt file"
        + (f"; default {weights}" if weights else ""),
    )
    group.add_argument("--num-classes", type=_count, metavar="K", help="number of classes; the weights' own by default")
    group.add_argument(
        "--output-stride",
        type=_count,
        metavar="S",
        help="of the backbone; the weights' own by default",
    )
    return group


def _model_options(parser: argparse.ArgumentParser, *, weights: str | None = None, scale: bool = True) -> None:
    group = _weights_options(parser, weights=weights)
    if scale:
        group.add_argument("--scale", type=_positive, metavar="S", help="input scale; the weights' own by default")
    group.add_argument("--device", default="auto", metavar="D", help="cpu, cuda, cuda:N or auto (default)")
    group.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"), help="default float32")
    group.add_argument("--backend", default=None, metavar="B", help="reference, cpu, triton, cuda or auto (default)")


def _reading_options(parser: argparse.ArgumentParser, *, labels: bool = False) -> None:
    parser.add_argument(
        "--value-range",
        type=_value_range,
        metavar="[BLACK:]WHITE",
        help="of pictures with more than 8 bits a sample, such as 4095; by default the least number of bits that holds "
        "all samples of a picture",
    )
    if labels:
        parser.add_argument(
            "--labels-on",
            choices=("upright", "stored"),
            default="upright",
            help="what labels are drawn on: pictures as viewers show them, turned by their EXIF orientation (default), "
            "or as their files hold them",
        )


def _dataset_options(parser: argparse.ArgumentParser, **name: Any) -> None:
    parser.add_argument(
        "--dataset",
        metavar="NAME",
        help="camvid, cityscapes, folder (your own, described by its dataset.yaml) or a class such as mine.Lawn",
        **name,
    )
    parser.add_argument(
        "--classes", nargs="+", metavar="NAME", help="names of the classes 0, 1, ... of a folder without dataset.yaml"
    )


def _fuse_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-fuse", action="store_true", help="run the model as it was trained, batch norm unfolded")


def _parser() -> argparse.ArgumentParser:
    from liteseg.bench import cli as benchmarks

    common = _Parser(add_help=False)
    common.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
    )
    parser = _Parser(
        prog="liteseg",
        description="Real-time semantic segmentation with LiteSeg.",
        parents=[common],
        epilog="Exit codes: 0 success, 1 some of several inputs failed, 2 wrong usage or bad input, "
        "70 an error inside liteseg, 130 interrupted.",
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)

    p = commands.add_parser(
        "predict",
        parents=[common],
        help="segment pictures and videos",
        description="Writes NAME_labels.png (8-bit train ids, 255 is never written; its palette is the classes' "
        "colours) and NAME_overlay.png for every picture, NAME_overlay.mp4 for every video. A file that cannot be read "
        "is reported at the end and does not stop the others.",
    )
    p.add_argument("inputs", nargs="+", metavar="INPUT", help="file, folder, glob or video")
    p.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="output folder (default: out)")
    p.add_argument("--alpha", type=_share, default=0.5, metavar="A", help="share of the class colour (default 0.5)")
    p.add_argument(
        "--labels-only", action="store_true", help="write no overlays; of a video the folder NAME_labels of its frames"
    )
    p.add_argument("--legend", action="store_true", help="add the class names to the overlays of pictures")
    p.add_argument(
        "--confidence", action="store_true", help="paint fainter where the network is less sure (needs more memory)"
    )
    p.add_argument("--recursive", action="store_true", help="search sub-folders too; let ** in globs match them")
    p.add_argument("--quiet", action="store_true", help="no progress bar")
    _reading_options(p)
    _model_options(p)
    _fuse_option(p)
    p.set_defaults(run=_predict)

    p = commands.add_parser("train", add_help=False, help="train a model (needs liteseg[train])")
    p.set_defaults(run=None)

    p = commands.add_parser(
        "evaluate",
        parents=[common],
        help="measure a model on a labelled data set",
        description="Class and category IoU and pixel accuracy over a whole split, void ignored, by the Cityscapes "
        "rules. With --submission the zip file for the Cityscapes test server is written instead.",
    )
    p.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of the data set")
    _dataset_options(p, required=True)
    p.add_argument("--split", default="val", metavar="SPLIT", help="val (default), test, train, ...")
    p.add_argument(
        "--crop",
        metavar="center:HxW",
        help="look at the middle of every image only; center:512x1024 is what the paper calls 512x1024",
    )
    p.add_argument("--flip", action="store_true", help="average with the mirrored image")
    p.add_argument("--json", type=Path, metavar="FILE", help="also write scores, counts and settings as JSON")
    p.add_argument("--csv", type=Path, metavar="FILE", help="also write the scores as CSV")
    p.add_argument("--submission", type=Path, metavar="FILE.zip", help="write the test server's zip file instead")
    p.add_argument("--quiet", action="store_true", help="no progress bar")
    _reading_options(p, labels=True)
    _model_options(p)
    _fuse_option(p)
    p.set_defaults(run=_evaluate)

    p = commands.add_parser(
        "dataset",
        parents=[common],
        help="look at a data set before training on it",
        description="check: reads all label files of a data set and the headers of its images, and prints the share of "
        "each class, classes that never occur, and every file that is unreadable, does not fit, or has no counterpart. "
        "Exit code 1 where there is such a file.",
    )
    p.add_argument("action", choices=("check",), metavar="ACTION", help="check")
    p.add_argument("data", type=Path, metavar="DIR", help="folder of the data set")
    _dataset_options(p, default="folder")
    p.add_argument("--split", nargs="+", metavar="SPLIT", help="default: all of your own, train and val of the others")
    p.add_argument("--quiet", action="store_true", help="no progress bar")
    _reading_options(p, labels=True)
    p.set_defaults(run=_dataset)

    p = commands.add_parser(
        "profile",
        parents=[common],
        help="parameters and multiply-accumulates of a model",
        description="Prints parameters and MACs of every part of a model, or with --all one line for each model: "
        "parameters with and without the ImageNet head that the paper counts, true MACs, and the paper's own counter.",
    )
    p.add_argument("model", nargs="?", metavar="MODEL", help="model name")
    p.add_argument("--all", action="store_true", help="one line for each model")
    p.add_argument("--size", type=_size, default=(512, 1024), metavar="HxW", help="input size (default 512x1024)")
    p.add_argument("--num-classes", type=_count, default=19, metavar="K", help="number of classes (default 19)")
    p.add_argument(
        "--convention",
        choices=("macs", "liteseg"),
        default="macs",
        help="macs: multiply-accumulates of convolutions (default); liteseg: the counter behind the paper's Table II",
    )
    p.add_argument("--output-stride", type=_count, metavar="S", help="of the backbone; the model's usual by default")
    p.add_argument("--dense", action="store_true", help="standard instead of separable convolutions (separable=False)")
    p.set_defaults(run=_profile)

    p = commands.add_parser(
        "quantize",
        parents=[common],
        help="write weights in int8 for the CPU, from trained ones and pictures",
        description="Writes weights whose inverted residuals are in int8, for the CPU: what ranges they reach is read "
        "off pictures like those that the network will see, without labels. All commands take the file as --weights. "
        "Prints what time that gains on this machine and, where --data names labelled pictures, what mIoU it loses.",
    )
    p.add_argument("--out", type=Path, required=True, metavar="FILE", help=".safetensors file to write")
    p.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of pictures to calibrate on")
    p.add_argument(
        "--count", type=_count, default=64, metavar="N", help="pictures taken, at even distances (default 64)"
    )
    p.add_argument("--ranges", default="mse", metavar="R", help="mse (default), percentile or minmax")
    p.add_argument("--keep", nargs="+", default=(), metavar="BLOCK", help="names of blocks that stay in float")
    p.add_argument("--data", type=Path, metavar="DIR", help="labelled data set to measure the lost mIoU on")
    _dataset_options(p, default="folder")
    p.add_argument("--split", default="val", metavar="SPLIT", help="of --data: val (default), test, train, ...")
    p.add_argument("--quiet", action="store_true", help="no progress bar")
    _reading_options(p, labels=True)
    _weights_options(p)
    p.set_defaults(run=_quantize, device="cpu")

    p = commands.add_parser(
        "export",
        parents=[common],
        help="write a model as ONNX, torch.export or AOTInductor file",
        description="Writes a model as a file that runs without liteseg, for any batch, height and width, reads it "
        "back and compares it with the model; a file that differs is removed. Input: image, float32 [N, 3, H, W], "
        "normalised RGB (mean and standard deviation are in the file's metadata); of a plan, which C programs run on "
        "the CPU without Python and torch, pictures as they are.",
    )
    p.add_argument(
        "--format",
        required=True,
        metavar="F",
        help="onnx (needs liteseg[export]), torch_export, aoti (compiled; needs a C++ compiler), plan (for C programs)",
    )
    p.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help=".onnx for onnx, .liteseg for plan, .pt2 for the others"
    )
    p.add_argument(
        "--output", default="logits", metavar="O", help="logits (default), or labels: uint8 class of every pixel"
    )
    p.add_argument("--size", type=_size, metavar="HxW", help="input size traced (default 512x1024)")
    p.add_argument("--fixed-size", action="store_true", help="batch 1 and --size only")
    p.add_argument("--opset", type=_count, default=18, metavar="V", help="ONNX opset, 18 (default) to 23")
    p.add_argument(
        "--kernels",
        action="store_true",
        help="for torch_export and aoti: call liteseg's ops, faster, where its library is; both forms are timed",
    )
    p.add_argument("--no-check", action="store_true", help="do not compare the file with the model")
    _weights_options(p).add_argument(
        "--device", default="cpu", metavar="D", help="cpu (default), cuda or cuda:N: what the .pt2 file runs on"
    )
    p.set_defaults(run=_export)

    benchmarks.add_parser(
        commands,
        common,
        size=_size,
        count=_count,
        reading=_reading_options,
        dataset=_dataset_options,
        device=_device,
        say=_say,
    )

    p = commands.add_parser(
        "info", parents=[common], help="versions, kernels and devices found", description="What runs on this machine."
    )
    p.set_defaults(run=_info)

    p = commands.add_parser(
        "explain",
        parents=[common],
        help="by which kernels a network runs here, and why not by others",
        description="Says whether the network runs from one plan, which of its blocks run as one op, and otherwise "
        "each op with the backend that runs it and the reasons against the others.",
    )
    p.add_argument("--size", type=_size, default=(360, 640), metavar="HxW", help="of the picture (default 360x640)")
    _model_options(p, weights="", scale=False)
    _fuse_option(p)
    p.set_defaults(run=_explain)

    p = commands.add_parser(
        "demo",
        parents=[common],
        help="segment a street picture, compare fused with plain PyTorch",
        description="Writes labels and overlay of one picture and prints where they are, and one line that compares "
        "the fused model with plain PyTorch on it: share of equal labels and ratio of the times.",
    )
    p.add_argument("--image", type=Path, metavar="FILE", help="picture; default: a drawn street in the package")
    p.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="output folder (default: out)")
    p.add_argument("--rounds", type=_count, default=10, metavar="N", help="timed rounds (default 10)")
    _reading_options(p)
    _model_options(p, weights="camvid")
    p.set_defaults(run=_demo)
    return parser


def _device(text: str) -> Any:
    import torch

    from liteseg.distributed import local_rank, world_size

    if text == "auto":
        text = "cuda" if torch.cuda.is_available() else "cpu"
    if text == "cuda" and world_size() > 1:
        text = f"cuda:{local_rank()}"
    try:
        device = torch.device(text)
    except RuntimeError:
        raise UserError(f"--device: expected cpu, cuda, cuda:N or auto, got {text!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device: expected cpu, cuda, cuda:N or auto, got {text!r}")
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UserError(f"--device: expected a device of this machine (it has {count} usable GPUs), got {text!r}")
    return device


def _check_backend(name: str, device: str) -> None:
    """UserError for a backend none of whose kernels can run; what a usable one does not take goes to the reference."""
    import torch

    from liteseg_kernels import info

    usable = info.collect()["backends"]
    on = _device(device).type
    # the library of CUDA kernels loads on any machine
    if usable["cuda"] is None and on != "cuda":
        seen = "the device is cpu" if torch.cuda.is_available() else "torch sees no CUDA device"
        usable["cuda"] = seen
    if on != "cpu":
        usable["cpu"] = usable["cpu"] or f"the device is {on}"
    reason = usable.get(name)
    if reason is not None:
        known = ", ".join(backend for backend, why in usable.items() if why is None)
        raise UserError(f"--backend: expected one that can run here ({known} or auto), got {name!r}: {reason}")


# options of other names than the arguments that errors name
_RENAMED = {
    "create_model: name": "--model",
    "dataset: name": "--dataset",
    "export: path": "--out",
    "use_backend: name": "--backend",
    # what is wrong is the file in front of it
    "predict: image": "",
}


def _said(text: str, args: argparse.Namespace) -> str:
    """The text of an error in the words of the command that was given."""
    from liteseg.wording import in_options

    given = vars(args)
    renamed = {**_RENAMED, "create_model: name": "MODEL"} if args.command == "profile" else _RENAMED
    return in_options(text, lambda name: f"--{name.replace('_', '-')}" if name in given else None, renamed)


@contextmanager
def _in_options(args: argparse.Namespace) -> Iterator[None]:
    """Errors of the block name options, not functions of the library and their arguments."""
    try:
        yield
    except ElsewhereError:
        raise
    except (ValueError, TypeError) as error:
        said = _said(str(error), args)
        if said == str(error):
            raise
        raise UserError(said) from error


def _load(args: argparse.Namespace) -> Network:
    """The model of the command line: eval mode, on its device, in float32."""
    from liteseg.models import create_model

    model = create_model(
        args.model, num_classes=args.num_classes, weights=args.weights, output_stride=args.output_stride
    )
    return model.eval().to(_device(args.device))


def _finished(model: Network, args: argparse.Namespace) -> Any:
    """Fused unless --no-fuse, then in the dtype asked for: batch norm is folded in float32."""
    import torch

    import liteseg_kernels as lk

    ready = model if args.no_fuse else lk.fuse(model)
    return ready.to(getattr(torch, args.dtype))


def _predict(args: argparse.Namespace) -> int:
    from liteseg.distributed import rank, shared_errors
    from liteseg.files import predict_files
    from liteseg.palette import palette_for
    from liteseg.reading import IMAGE_SUFFIXES
    from liteseg.video import VIDEO_SUFFIXES
    from liteseg.wording import counted

    if args.out.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES or args.out.is_file():
        raise UserError(f"--out: expected a folder, results in it are named after their inputs; got {str(args.out)!r}")
    with shared_errors():
        model = _load(args)
        ready = _finished(model, args)
    config = model.config
    outcome = predict_files(
        ready,
        args.inputs,
        args.out,
        palette=palette_for(config.class_names, config.num_classes),
        class_names=config.class_names,
        alpha=args.alpha,
        labels_only=args.labels_only,
        legend=args.legend,
        confidence=args.confidence,
        recursive=args.recursive,
        scale=args.scale,
        value_range=args.value_range,
        progress=not args.quiet,
    )
    if rank():
        # the first process tells what became of all files
        return EXIT_BAD_INPUT if not outcome.done else EXIT_SOME_FAILED if outcome.failures else EXIT_OK
    for note in outcome.renamed:
        print(f"liteseg: note: {note}", file=sys.stderr)
    if not outcome.done:
        more = len(outcome.failures) - 1
        raise UserError(outcome.failures[0] + (f" (and {counted(more, 'more input')} failed)" if more else ""))
    if outcome.done == 1:
        print("\n".join(map(str, outcome.written)))
    else:
        print(f"{outcome.done} files segmented, {len(outcome.written)} results in {args.out}")
    if outcome.failures:
        print(f"liteseg: error: {counted(len(outcome.failures), 'input')} failed:", file=sys.stderr)
        for reason in outcome.failures:
            print(f"  {_said(reason, args)}", file=sys.stderr)
        return EXIT_SOME_FAILED
    return EXIT_OK


def _evaluate(args: argparse.Namespace) -> int:
    from liteseg.distributed import rank, shared_errors, world_size
    from liteseg.evaluate import evaluate
    from liteseg.submission import write_submission

    for name, path, suffix in (
        ("json", args.json, ".json"),
        ("csv", args.csv, ".csv"),
        ("submission", args.submission, ".zip"),
    ):
        if path is not None and path.suffix.lower() != suffix:
            raise UserError(f"--{name}: expected a file name ending in {suffix}, got {str(path)!r}")
    if args.submission is not None:
        for name in ("crop", "flip", "json", "csv"):
            if getattr(args, name):
                raise UserError(f"--submission: expected without --{name} (nothing is measured)")
        if world_size() > 1:
            raise UserError(f"--submission: expected one process, got {world_size()}")
    with shared_errors():
        data = _data(args, args.split)
        model = _finished(_load(args), args)
    if args.submission is not None:
        count = write_submission(model, data, args.submission, scale=args.scale, progress=not args.quiet)
        print(f"{count} label maps in {args.submission}")
        return EXIT_OK
    result = evaluate(model, data, crop=args.crop, scale=args.scale, flip=args.flip, progress=not args.quiet)
    result.settings.update(
        dataset=args.dataset, split=args.split, weights=args.weights, model=model.config.name, dtype=args.dtype
    )
    if rank():
        return EXIT_OK
    print(result.table())
    for path in (args.json, args.csv):
        if path is not None:
            result.write(path)
    return EXIT_OK


def _data(args: argparse.Namespace, split: str, **options: Any) -> Any:
    """The data set of the command line."""
    from liteseg.data import dataset

    if args.classes is not None:
        options["classes"] = args.classes
    return dataset(args.dataset, args.data, split, value_range=args.value_range, labels_on=args.labels_on, **options)


def _dataset(args: argparse.Namespace) -> int:
    from liteseg.data import Folder, check

    own = args.dataset == "folder"
    splits = args.split or (Folder.splits(args.data, args.classes) if own else ("train", "val"))
    if not splits:
        raise UserError(f"{args.data}: expected a split (train, val or test), got none")
    reports = []
    for split in splits:
        reports.append(check(_data(args, split, **({"strict": False} if own else {})), progress=not args.quiet))
        print(reports[-1])
    return EXIT_SOME_FAILED if any(report.problems for report in reports) else EXIT_OK


def _profile(args: argparse.Namespace) -> int:
    from liteseg.models import create_model, list_models, profile

    if args.all == (args.model is not None):
        raise UserError("profile: expected a model name or --all, got " + ("both" if args.all else "neither"))
    if not args.all:
        model = create_model(
            args.model,
            num_classes=args.num_classes,
            output_stride=args.output_stride,
            separable=False if args.dense else None,
        )
        print(profile(model, args.size, convention=args.convention))
        return EXIT_OK
    if args.dense or args.output_stride is not None:
        raise UserError("profile: --all: expected without --dense and --output-stride, which it sets itself")
    profiles = {}
    for name in list_models():
        profiles[name] = profile(create_model(name, num_classes=args.num_classes), args.size)
        if name.startswith("liteseg_"):
            dense = create_model(name, num_classes=args.num_classes, separable=False)
            profiles[f"{name} --dense"] = profile(dense, args.size)
    parts = ("backbone", "daspp", "decoder")
    parameters: list[tuple[str, ...]] = [("parameters", *parts, "total", "with ImageNet head")]
    counts: list[tuple[str, ...]] = [("MMACs", *parts, "total", "paper's count, G")]
    for name, one in profiles.items():
        parameters.append(
            (
                name,
                *(f"{one.part(p).params:,}" if p in one.parts else "-" for p in parts),
                f"{one.params:,}",
                f"{one.params_with_imagenet_head:,}",
            )
        )
        counts.append(
            (
                name,
                *(f"{one.part(p).macs / 1e6:,.1f}" if p in one.parts else "-" for p in parts),
                f"{one.macs / 1e6:,.1f}",
                f"{one.paper / 1e9:.2f}",
            )
        )
    print(f"input {args.size[0]}x{args.size[1]}, {args.num_classes} classes, batch 1\n")
    print(_columns(parameters) + "\n\n" + _columns(counts))
    return EXIT_OK


def _columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as a table, the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        f"{first:<{widths[0]}}" + "".join(f"  {cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True))
        for first, *rest in rows
    )


def _export(args: argparse.Namespace) -> int:
    from liteseg.export import export

    done = export(
        _load(args),
        args.out,
        args.format,
        output=args.output,
        size=args.size,
        fixed_size=args.fixed_size,
        opset=args.opset,
        check=not args.no_check,
        kernels=args.kernels,
    )
    print(done)
    return EXIT_OK


def _quantize(args: argparse.Namespace) -> int:
    from liteseg.evaluate import evaluate
    from liteseg.models import save_weights
    from liteseg.models.files import check_folder
    from liteseg.models.int8 import int8_blocks
    from liteseg.quantize import compare, evenly, quantize
    from liteseg.reading import files_in, read_image
    from liteseg_kernels import fuse

    if args.out.suffix != ".safetensors":
        raise UserError(f"--out: expected a name ending in .safetensors, got {str(args.out)!r}")
    check_folder(args.out)
    if not args.images.is_dir():
        raise UserError(f"--images: expected a folder, got {str(args.images)!r}")
    files = evenly(files_in(args.images), args.count)
    if not files:
        raise UserError(f"--images: expected a folder with pictures, got none in {str(args.images)!r}")
    data = None if args.data is None else _data(args, args.split)
    model = _load(args)
    pictures = (read_image(file, args.value_range) for file in files)
    done = quantize(model, pictures, ranges=args.ranges, keep=args.keep, progress=not args.quiet)
    save_weights(done, args.out)
    print(f"{args.out}: {len(int8_blocks(done))} blocks in int8, {len(files)} pictures seen")
    print(compare(model, done, read_image(files[0], args.value_range)))
    if data is not None:
        scores = [evaluate(network, data, progress=not args.quiet).mean_iou for network in (fuse(model), done)]
        before, after = (100 * score for score in scores)
        print(f"mean IoU {before:.2f} in float, {after:.2f} in int8, {after - before:+.2f}, {len(data)} images")
    return EXIT_OK


def _say(line: str) -> None:
    # a benchmark takes minutes, and what it says may go through a pipe
    print(line, flush=True)


def _info(args: argparse.Namespace) -> int:
    from liteseg_kernels import info

    info.main()
    return EXIT_OK


def _explain(args: argparse.Namespace) -> int:
    from liteseg.explain import explain

    if args.weights is None and args.model is None:
        args.model = "liteseg_mobilenetv2"
    model = _finished(_load(args), args)
    height, width = args.size
    fused = "not fused" if args.no_fuse else "fused"
    print(f"{model.config.name}, {fused}, {args.dtype}, a picture of {height}x{width} on {_device(args.device)}")
    print(explain(model, args.size))
    return EXIT_OK


def _demo(args: argparse.Namespace) -> int:
    from liteseg.demo import demo

    demo(
        _load(args),
        image=args.image,
        out=args.out,
        dtype=args.dtype,
        scale=args.scale,
        value_range=args.value_range,
        rounds=args.rounds,
    )
    return EXIT_OK


def _train(argv: Sequence[str]) -> int:
    if not argv or {"-h", "--help"}.intersection(argv):
        from liteseg.train.options import HELP

        print(HELP, end="")
        return EXIT_OK
    try:
        from liteseg.train.cli import main as train
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in _TRAIN_MODULES:
            raise MissingExtraError("training", "train", missing) from error
        raise
    return train(list(argv))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _os_error(error: OSError) -> str:
    """Our own texts as they are; the system's without the number, file first."""
    if error.errno is None or error.filename is None:
        return _one_line(error)
    return f"{os.fspath(error.filename)}: {error.strerror}"


def _run(argv: list[str]) -> int:
    # everything beside "train" belongs to the trainer's own parser
    first = next((i for i, word in enumerate(argv) if not word.startswith("-")), None)
    if first is not None and argv[first] == "train":
        return _train(argv[:first] + argv[first + 1 :])
    parser = _parser()
    args = parser.parse_args([word for word in argv if word != "--debug"])
    if args.version:
        from liteseg import __version__

        print(f"liteseg {__version__}")
        return EXIT_OK
    if args.command is None:
        parser.print_help()
        return EXIT_OK
    backend = getattr(args, "backend", None)
    with ExitStack() as stack:
        stack.enter_context(_in_options(args))
        if backend is not None:
            import liteseg_kernels as lk

            stack.enter_context(lk.use_backend(backend))
            if args.command != "explain":
                _check_backend(backend, args.device)
        if args.command in ("predict", "evaluate") and os.environ.get("WORLD_SIZE", "1") != "1":
            from liteseg.distributed import process_group

            stack.enter_context(process_group())
        return args.run(args)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code (see the module's text); prints errors, raises none."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        code = _run(arguments)
        # here, where a closed pipe can still be caught
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("liteseg: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # the reader of our output (head, less) went away; keep the interpreter from flushing into it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except ElsewhereError:
        return EXIT_BAD_INPUT
    except (ValueError, TypeError, OSError) as error:
        if debug:
            traceback.print_exc()
        text = _os_error(error) if isinstance(error, OSError) else _one_line(error)
        print(f"liteseg: error: {text}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except Exception as error:
        if debug:
            traceback.print_exc()
        hint = "" if debug else " (run again with --debug for the traceback)"
        print(f"liteseg: internal error: {type(error).__name__}: {_one_line(error)}{hint}", file=sys.stderr)
        return EXIT_INTERNAL
