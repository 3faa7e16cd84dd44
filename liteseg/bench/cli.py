"""``liteseg benchmark``: what its options mean, and the files each of its commands leaves."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from liteseg.errors import MissingExtraError, UserError

__all__ = ["add_parser"]

_RESULTS = Path("benchmark_results")
_QUICK_RUNS = 10
_QUICK_SECONDS = 240


def _weights(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"expected NETWORK=FILE, got {text!r}")
    return name, path


def add_parser(
    commands: Any,
    common: argparse.ArgumentParser,
    *,
    size: Callable[[str], tuple[int, int]],
    count: Callable[[str], int],
    reading: Callable[..., None],
    dataset: Callable[..., None],
    device: Callable[[str], Any],
    say: Callable[[str], None],
) -> None:
    """Add ``benchmark`` with its own commands to the command line.

    Args:
        commands: the command line's sub-parsers.
        common: parser of the options that all commands have.
        size, count: types of arguments.
        reading, dataset: add the options of reading pictures and labels, and of a data set.
        device: checks the name of a device.
        say: prints a line.
    """
    benchmark = commands.add_parser(
        "benchmark",
        parents=[common],
        help="measure ops and networks, reproduce the paper's tables and figures",
        description="Results are appended to CSV files in --out; a Markdown report and plots (liteseg[bench]) are made "
        "from all that is in them. What cannot run here is a row with the reason.",
    )
    benchmark.set_defaults(run=lambda args: benchmark.print_help() or 0)
    inner = benchmark.add_subparsers(dest="benchmark", metavar="COMMAND", parser_class=type(benchmark))

    def command(name: str, run: Callable[..., int], help: str, description: str) -> argparse.ArgumentParser:
        p = inner.add_parser(name, parents=[common], help=help, description=description)
        p.add_argument("--out", type=Path, default=_RESULTS, metavar="DIR", help=f"default {_RESULTS}")
        p.add_argument("--device", default="cpu", metavar="D", help="cpu (default), cuda, cuda:N or auto")
        p.set_defaults(run=lambda args: run(args, str(device(args.device)), say))
        return p

    p = command(
        "fps",
        _fps,
        "whole networks by the protocol of the paper's Table III",
        "Times of our networks, fused and not, the paper's baselines and the networks it compares with, by our "
        "kernels, PyTorch (eager and compiled), ONNX Runtime and OpenVINO, taking turns.",
    )
    p.add_argument(
        "--quick",
        action="store_true",
        help=f"{_QUICK_RUNS} calls, 360x640, without SegNet and compiled PyTorch; some minutes",
    )
    p.add_argument("--networks", nargs="+", metavar="NAME", help="default: all")
    p.add_argument("--size", nargs="+", type=size, metavar="HxW", help="default 360x640 1024x2048")
    p.add_argument("--batch", nargs="+", type=count, default=[1], metavar="N", help="default 1")
    p.add_argument(
        "--output", nargs="+", metavar="O", help="logits (as the paper), labels (picture to label map); default both"
    )
    p.add_argument("--dtype", nargs="+", default=["float32"], metavar="T", help="default float32")
    p.add_argument("--providers", nargs="+", metavar="P", help="default: all")
    p.add_argument("--threads", type=count, metavar="N", help="default: as torch has it")
    p.add_argument("--runs", type=count, metavar="N", help="calls before and calls within the time (default 200 each)")

    p = command(
        "kernels",
        _kernels,
        "single ops at layers of the networks",
        "Time, share of the roofline and peak memory of every op beside PyTorch, forward, and forward with backward.",
    )
    p.add_argument(
        "--quick",
        action="store_true",
        help=f"one layer of each op at 360x640, no compiled PyTorch, no case after {_QUICK_SECONDS} s",
    )
    p.add_argument("--ops", nargs="+", metavar="OP", help="default: all")
    p.add_argument("--networks", nargs="+", metavar="NAME", help="whose layers; default: our three")
    p.add_argument("--size", nargs="+", type=size, metavar="HxW", help="input of the network; default 512x1024")
    p.add_argument("--batch", nargs="+", type=count, default=[1], metavar="N", help="default 1")
    p.add_argument("--dtype", nargs="+", default=["float32"], metavar="T", help="default float32")
    p.add_argument("--mode", nargs="+", metavar="M", help="forward, full (with backward); default both")
    p.add_argument("--providers", nargs="+", metavar="P", help="default: all that the device has")
    p.add_argument("--threads", type=count, metavar="N", help="default: as torch has it")
    p.add_argument("--runs", type=count, default=20, metavar="N", help="timed calls of each (default 20)")

    p = command(
        "tables",
        _tables,
        "the paper's tables, measured beside published",
        "Counts parameters and operations, times Table III, and with --data and --weights measures mIoU.",
    )
    p.add_argument(
        "--quick", action="store_true", help=f"Table III with {_QUICK_RUNS} calls at 360x640, no compiled PyTorch"
    )
    p.add_argument("--table", nargs="+", type=count, metavar="N", help="1 to 5; default all")
    p.add_argument("--data", type=Path, metavar="DIR", help="Cityscapes folder, for mIoU on its split val")
    p.add_argument(
        "--weights",
        nargs="+",
        type=_weights,
        default=[],
        metavar="NETWORK=FILE",
        help="trained on Cityscapes; for rows of Table I but the last NETWORK is for example "
        "'liteseg_mobilenetv2:DASPP, FT'",
    )
    p.add_argument("--networks", nargs="+", metavar="NAME", help="of Tables III and IV; default: all")
    p.add_argument("--providers", nargs="+", metavar="P", help="of Table III; default: all")
    p.add_argument("--size", nargs="+", type=size, metavar="HxW", help="of Table III; default 360x640 1024x2048")
    p.add_argument("--threads", type=count, metavar="N", help="default: as torch has it")
    p.add_argument("--runs", type=count, metavar="N", help="calls before and calls within the time (default 200 each)")

    p = command(
        "figures",
        _figures,
        "the paper's Fig. 2 and Fig. 3 on pictures of one's own",
        "Fig. 2: feature maps of the first model with and without its short and long residual connection. Fig. 3: "
        "input, truth, labels of each model. Writes figure2.png and figure3.png.",
    )
    p.add_argument("--figure", type=count, nargs="+", default=[2, 3], metavar="N", help="2, 3; default both")
    p.add_argument("--weights", nargs="+", default=["camvid"], metavar="W", help="models (default camvid)")
    p.add_argument("--image", nargs="+", type=Path, default=[], metavar="FILE", help="pictures")
    p.add_argument("--data", type=Path, metavar="DIR", help="folder of a data set, instead of pictures")
    dataset(p)
    p.add_argument("--split", default="val", metavar="SPLIT", help="val (default), test, train, ...")
    p.add_argument("--count", type=count, default=3, metavar="N", help="pictures of the data set (default 3)")
    reading(p, labels=True)


def _chosen(option: str, given: Sequence[Any] | None, allowed: Sequence[Any]) -> list[Any]:
    """What was given, or all; UserError for what does not exist."""
    if given is None:
        return list(allowed)
    for value in given:
        if value not in allowed:
            raise UserError(f"--{option}: expected of {', '.join(map(str, allowed))}, got {value!r}")
    return list(dict.fromkeys(given))


def _publish(
    folder: Path,
    name: str,
    run: Callable[[], int],
    module: ModuleType,
    draw: Callable[[list[Any], Path], list[Path]],
    say: Callable[[str], None],
) -> int:
    """Measures, then makes report and plots of all that is in the results file; of what there is when interrupted."""
    from liteseg.bench.record import read, write_text

    interrupted, ran = None, 0
    try:
        ran = run()
    except KeyboardInterrupt as interruption:
        if not (folder / f"{name}.csv").is_file():
            raise
        interrupted = interruption
    lines = read(folder / f"{name}.csv")
    text, plots = module.report(lines), []
    try:
        plots = [path for path in draw(lines, folder) if path.suffix == ".svg"]
    except MissingExtraError as error:
        say(f"no plots: {error}")
    text += "".join(f"\n![{path.stem}]({path.name})\n" for path in plots)
    write_text(folder / f"{name}.md", text)
    say(f"{folder / name}.csv, {name}.md" + "".join(f", {path.name}" for path in plots))
    if interrupted is not None:
        raise interrupted
    if not ran:
        raise UserError(f"benchmark {name}: expected at least one row that runs here, got none ({folder / name}.md)")
    return 0


def _fps(args: argparse.Namespace, device: str, say: Callable[[str], None]) -> int:
    from liteseg.bench import networks
    from liteseg.bench.plots import draw_networks

    quick = args.quick
    default = [(360, 640)] if quick else [(360, 640), (1024, 2048)]
    given = args.providers or ([p for p in networks.PROVIDERS if p != "compiled"] if quick else None)
    runs = args.runs or (_QUICK_RUNS if quick else 200)
    run = functools.partial(
        networks.run,
        args.out,
        networks=_chosen("networks", args.networks or (networks.QUICK if quick else None), networks.NETWORKS),
        sizes=args.size or default,
        batches=args.batch,
        outputs=_chosen("output", args.output, networks.OUTPUTS),
        dtypes=_chosen("dtype", args.dtype, networks.DTYPES),
        providers=_chosen("providers", given, networks.PROVIDERS),
        device=device,
        burn_in=runs,
        runs=runs,
        threads=args.threads,
        say=say,
    )
    return _publish(args.out, "fps", run, networks, draw_networks, say)


def _kernels(args: argparse.Namespace, device: str, say: Callable[[str], None]) -> int:
    import torch

    from liteseg.bench import kernels, registry, shapes
    from liteseg.bench.plots import draw_kernels

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    dtypes = _chosen("dtype", args.dtype, ("float32", "bfloat16", "float16"))
    chosen = list(
        kernels.cases(
            networks=_chosen("networks", args.networks, shapes.NETWORKS),
            sizes=args.size or ([(360, 640)] if args.quick else [(512, 1024)]),
            batches=args.batch,
            dtypes=[getattr(torch, name) for name in dtypes],
            modes=_chosen("mode", args.mode, kernels.MODES),
            ops=_chosen("ops", args.ops, tuple(registry.TWINS)),
            one_of_each=args.quick,
        )
    )
    providers = None if args.providers is None else _chosen("providers", args.providers, registry.PROVIDERS)
    run = functools.partial(
        kernels.run,
        args.out,
        chosen,
        providers=providers,
        without=(registry.COMPILED,) if args.quick else (),
        seconds=_QUICK_SECONDS if args.quick else None,
        device=device,
        rounds=args.runs,
        say=say,
    )
    return _publish(args.out, "kernels", run, kernels, draw_kernels, say)


def _tables(args: argparse.Namespace, device: str, say: Callable[[str], None]) -> int:
    from liteseg.bench import networks, tables
    from liteseg.bench.plots import draw_tables

    quick = [p for p in tables.PROVIDERS if p != "compiled"] if args.quick else None
    default = [(360, 640)] if args.quick else [(360, 640), (1024, 2048)]
    run = functools.partial(
        tables.run,
        args.out,
        _chosen("table", args.table, tables.TABLES),
        data=args.data,
        weights=dict(args.weights),
        device=device,
        threads=args.threads,
        runs=args.runs or (_QUICK_RUNS if args.quick else 200),
        sizes=_chosen("size", args.size or default, [(360, 640), (1024, 2048)]),
        chosen=_chosen("networks", args.networks, networks.NETWORKS),
        providers=_chosen("providers", args.providers or quick, tuple(tables.PROVIDERS)),
        say=say,
    )
    return _publish(args.out, "tables", run, tables, draw_tables, say)


def _figures(args: argparse.Namespace, device: str, say: Callable[[str], None]) -> int:
    from liteseg.bench import figures
    from liteseg.data import dataset
    from liteseg.models import create_model
    from liteseg.palette import palette_for
    from liteseg.reading import read_image

    numbers = _chosen("figure", args.figure, (2, 3))
    if bool(args.image) == (args.data is not None):
        raise UserError("figures: expected --image FILE ... or --data DIR with --dataset NAME")
    if args.data is not None:
        if args.dataset is None:
            raise UserError("figures: --dataset: expected with --data, got none")
        options = {} if args.classes is None else {"classes": args.classes}
        data = dataset(
            args.dataset, args.data, args.split, value_range=args.value_range, labels_on=args.labels_on, **options
        )
        picked = [data.load(i * len(data) // args.count) for i in range(min(args.count, len(data)))]
        samples = [(sample.image, sample.label) for sample in picked]
    else:
        samples = [(read_image(path, args.value_range), None) for path in args.image]
    models = {Path(w).stem: create_model(weights=w).eval().to(device) for w in args.weights}
    configs = [model.config for model in models.values()]
    if len({config.num_classes for config in configs}) > 1:
        raise UserError("figures: --weights: expected models of the same classes, got different numbers of them")
    if 2 in numbers:
        figures.figure2(next(iter(models.values())), [image for image, _ in samples], args.out / "figure2.png")
    if 3 in numbers:
        palette = palette_for(configs[0].class_names, configs[0].num_classes)
        figures.figure3(dict(models), samples, args.out / "figure3.png", palette)
    say("\n".join(str(args.out / f"figure{number}.png") for number in numbers))
    return 0
