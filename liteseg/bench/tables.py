"""The paper's tables: what can be measured here is measured, the published figures stand beside it with what makes the
two differ. Sources: the paper (Emara et al., DICTA 2019) and the table in the authors' README."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from liteseg.bench import networks
from liteseg.bench.record import ENVIRONMENT, Line, append, environment, latest, table
from liteseg.errors import UserError
from liteseg.models import Profile, create_model, profile
from liteseg.models.peers import PEERS

__all__ = ["COLUMNS", "NOTES", "PROVIDERS", "TABLES", "TITLES", "report", "run"]

TABLES = (1, 2, 3, 4, 5)
KEY = ("table", "row", "quantity", "device", "threads")
COLUMNS = ("table", "row", "quantity", "published", "measured", "detail", *ENVIRONMENT)

_BACKBONES = {"darknet19": "Darknet19", "mobilenetv2": "MobileNetV2", "shufflenet": "ShuffleNet"}
_COUNT = "count of the authors' tool, G"
_SIZES = ((360, 640), (1024, 2048))

# val mIoU at 512x1024 and 1024x2048 (None: not given), by row and backbone
_ABLATION: dict[str, tuple[dict[str, Any], dict[str, tuple[float, float | None]]]] = {
    "baseline": (
        {"output_stride": 32, "separable": False, "deeper": False, "short_residual": False},
        {"darknet19": (65.84, None), "mobilenetv2": (64.70, None), "shufflenet": (60.41, None)},
    ),
    "DASPP": (
        {"separable": False},
        {"darknet19": (68.21, None), "mobilenetv2": (64.80, None), "shufflenet": (61.3, None)},
    ),
    "DASPP, FT": (
        {"separable": False},
        {"darknet19": (68.94, 71.5), "mobilenetv2": (66.4, 67.8), "shufflenet": (62.65, 62.2)},
    ),
    "DASPP, FT, MS": (
        {"separable": False},
        {"darknet19": (69.14, 72.3), "mobilenetv2": (66.49, 69.3), "shufflenet": (63.2, 65.4)},
    ),
    "DASPP, FT, MS, DW": (
        {},
        {"darknet19": (69.43, 72.8), "mobilenetv2": (66.48, 70.0), "shufflenet": (62.45, 66.1)},
    ),
}
_COUNTS = {
    "darknet19": {False: 123.26, True: 103.09},
    "mobilenetv2": {False: 18.86, True: 4.9},
    "shufflenet": {False: 9.36, True: 2.75},
}
# parameters in millions, images a second at _SIZES on a GTX 1080 Ti; None: not in the table
_SPEED: dict[str, tuple[float | None, float | None, float | None]] = {
    "liteseg_darknet19": (20.55, 98, 15),
    "liteseg_mobilenetv2": (4.38, 161, 22),
    "liteseg_shufflenet": (3.51, 133, 31),
    "erfnet": (2.07, 105, 15),
    "espnet": (0.364, 144, 25),
    "dsnet": (0.91, 100.5, None),
}
PROVIDERS = {
    "eager": "PyTorch eager",
    "compiled": "PyTorch compiled",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "liteseg": "ours",
}
# GFLOPs, class and category mIoU on Cityscapes test
_ACCURACY: dict[str, tuple[float | None, float, float | None]] = {
    "liteseg_darknet19": (103.09, 70.75, 88.29),
    "liteseg_mobilenetv2": (4.9, 67.81, 86.79),
    "liteseg_shufflenet": (2.75, 65.17, 85.39),
    "erfnet": (53.48, 68.0, 86.5),
    "espnet": (9.67, 60.3, 82.2),
    "enet": (8.52, 58.3, 80.4),
    "segnet": (286.03, 56.1, 79.1),
    "skipnet_shufflenet": (4.63, 58.3, 80.2),
    "skipnet_mobilenet": (13.8, 61.5, 82.0),
    "ccc2": (6.29, 61.9, None),
    "dsnet": (None, 69.3, 86.0),
}
# where the published operations are not those at 512x1024
_COUNTED_AT = {"segnet": (360, 640)}

TITLES = {
    1: "Table I: ablation, Cityscapes val mIoU",
    2: "Table II: cost of separable convolutions at 512x1024",
    3: "Table III: parameters and images a second",
    4: "Table IV: Cityscapes test against other networks",
    5: "Table V: Cityscapes IoU by category",
}
NOTES = {
    1: [
        "What the paper calls 512x1024 is the middle of the full image at full scale, cut out of image and label, not "
        "an image of half the size; measured the same way (`liteseg evaluate --crop center:512x1024`).",
        "FT: coarse pre-training, MS: training at several sizes, DW: separable convolutions. The rows DASPP, FT and MS "
        "are one network trained in three ways. The authors' code has no baseline; ours is the same network with plain "
        "ASPP and output stride 32.",
        "mIoU is measured with the weights given by --weights, if the folder of the data is given by --data; no "
        "Cityscapes weights are bundled.",
    ],
    2: [
        "The paper's \"GFLOPs\" are neither FLOPs nor MACs but the count of the authors' own tool: (2k^2 - 1) an "
        "output of a k x k convolution and input channel, 2 an element of a normalisation, 1 of an activation; "
        "additions, poolings and interpolations count nothing. They are no measure beside other papers' numbers; the "
        "MACs are.",
        "ShuffleNet, separable: the tool gives 2.57; 2.75 in the paper looks like swapped digits.",
        "Darknet19, standard: the tool gives 124.68; no variant of padding or dilation explains 123.26.",
    ],
    3: [
        "The published parameters of MobileNetV2 and ShuffleNet include the classifier for ImageNet (1.281 M and "
        "1.537 M), which never runs and which our networks do not have; both numbers are shown.",
        "Published images/s: GTX 1080 Ti, PyTorch 0.4.1, CUDA 9.0, float32, batch 1. Measured: this machine, the same "
        "protocol (`liteseg benchmark fps`), so the two columns compare machines as much as programs.",
        "DSNet's published figures are quoted from its authors, whose code measures at 360x480. Networks of Table IV "
        "and the baselines, which the paper does not have in this table, are measured too.",
        "Peers have 20 outputs (19 classes and void), as published. SegNet's 29.45 M parameters are VGG16's "
        "convolutions twice, with biases; ENet's paper says 29.46 M.",
    ],
    4: [
        "Published: Cityscapes test server; the peers' are the authors' quotes. Test labels are not public: with "
        "--data and --weights the split val is measured, which is not the same number. "
        "`liteseg evaluate --submission` writes what the server takes.",
        "The LiteSeg rows' published GFLOPs are the count of Table II, the others' about 2 x MACs, of SegNet at "
        "360x640 and of the others at 512x1024; they are not on one scale. All networks are counted both ways here.",
        "SegNet: 0.3 % more than published. That figure comes from ENet's paper, which says neither how many classes "
        "(0.09 % each) nor how 45 rows are halved (22 instead of SegNet's own 23 make 0.4 % less).",
        "SkipNet: its authors state 6.2 and 2.0 GFLOPs at 360x640, where 6.14 and 2.00 are counted here. What made "
        "4.63 of the 2.0 is not said: 2.28 times the pixels make 4.55.",
        "CCC2: 3 % less than published, with the very parameters of its authors' log. Their published counter has "
        "other rules (activations and poolings count, transposed convolutions a quarter) and does not give half of "
        "6.29 either: 3.24 G on their code, which runs the first convolution of each module twice.",
        "ENet's and ERFNet's own repositories state other scores (ENet 59.5 on val, ERFNet 69.8 on test).",
    ],
    5: [
        "Measured on val with --data and --weights. The paper's figures by category are not repeated here but for one: "
        "Darknet19's nature, 98.44, repeats flat; 92.3 is what makes the stated mean of 88.29 come out.",
        "Categories merge their classes before counting, as the Cityscapes scripts do.",
    ],
}
_UNMEASURED = "needs --data DIR (Cityscapes) and --weights {}=FILE"
_CATEGORIES = ("flat", "construction", "object", "nature", "sky", "human", "vehicle")

Row = dict[str, Any]


def _row(
    number: int, row: str, quantity: str, published: float | None, measured: float | None, detail: str = ""
) -> Row:
    return {
        "table": number,
        "row": row,
        "quantity": quantity,
        "published": published,
        "measured": measured,
        "detail": detail,
    }


def _profile(network: str, size: tuple[int, int] = (512, 1024), **switches: Any) -> Profile:
    """What the published figures count: the peers have an output for void as well."""
    with torch.device("meta"):
        model = create_model(network, num_classes=20 if network in PEERS else 19, **switches)
    return profile(model, size)


class Evaluations:
    """Scores of weights files on a Cityscapes folder, each measured once."""

    def __init__(self, data: Path | None, weights: Mapping[str, str], device: str) -> None:
        self.weights = weights
        self.device = device
        self.dataset: Any = None
        self.missing = ""
        if data is not None:
            from liteseg.data import dataset

            try:
                self.dataset = dataset("cityscapes", data, "val")
            except ValueError as error:
                # the tables have more to show than scores
                self.missing = str(error)
        self._known: dict[tuple[str, str | None], Any] = {}

    def score(self, network: str, crop: str | None = None) -> Any:
        """The evaluation's result, or the reason why there is none."""
        if self.dataset is None or network not in self.weights:
            return self.missing or _UNMEASURED.format(network)
        key = network, crop
        if key not in self._known:
            from liteseg.evaluate import evaluate
            from liteseg_kernels import fuse

            name = network.partition(":")[0]
            model = create_model(name, weights=self.weights[network]).eval().to(self.device)
            try:
                self._known[key] = evaluate(fuse(model), self.dataset, crop=crop)
            except ValueError as error:
                # images smaller than the crop, for example
                self._known[key] = str(error)
        return self._known[key]


def _ablation(scores: Evaluations) -> Iterator[Row]:
    for name, (switches, published) in _ABLATION.items():
        for backbone, (crop, full) in published.items():
            title = f"{_BACKBONES[backbone]}, {name}"
            key = f"liteseg_{backbone}:{name}"
            one = _profile(f"liteseg_{backbone}", **switches)
            yield _row(1, title, "parameters, M", None, one.params / 1e6)
            yield _row(1, title, "GMACs at 512x1024", None, one.macs / 1e9)
            for quantity, value, cut in (
                ("val mIoU, 512x1024", crop, "center:512x1024"),
                ("val mIoU, 1024x2048", full, None),
            ):
                # the last row is the network that list_models names
                known = scores.score(f"liteseg_{backbone}" if not switches else key, cut)
                measured = None if isinstance(known, str) else 100 * known.mean_iou
                yield _row(1, title, quantity, value, measured, known if isinstance(known, str) else "")


def _separable() -> Iterator[Row]:
    for backbone, published in _COUNTS.items():
        for separable, value in published.items():
            title = f"{_BACKBONES[backbone]}, {'separable' if separable else 'standard'}"
            one = _profile(f"liteseg_{backbone}", separable=separable)
            yield _row(2, title, _COUNT, value, one.paper / 1e9)
            yield _row(2, title, "GMACs", None, one.macs / 1e9)
            yield _row(2, title, "parameters, M", None, one.params / 1e6)


def _speed(
    device: str,
    threads: int | None,
    runs: int,
    sizes: Sequence[tuple[int, int]],
    chosen: Sequence[str],
    providers: Sequence[str],
) -> Iterator[Row]:
    for network in chosen:
        params, *published = _SPEED.get(network, (None, None, None))
        one = _profile(network)
        yield _row(3, network, "parameters, M", params, one.params_with_imagenet_head / 1e6)
        yield _row(3, network, "parameters without the unused classifier, M", None, one.params / 1e6)
        for size, rate in zip(_SIZES, published, strict=True):
            quantity = f"images/s at {size[0]}x{size[1]}"
            if size not in sizes:
                yield _row(3, network, quantity, rate, None, "left out (--size)")
                continue
            case = networks.Case(network, size, 1, "logits", "float32", device)
            for line in networks.measure(case, providers, burn_in=runs, runs=runs, threads=threads):
                name = f"{quantity}, {PROVIDERS[line['provider']]}"
                yield _row(3, network, name, rate, line.get("images/s"), line.get("detail", ""))


def _accuracy(scores: Evaluations, chosen: Sequence[str]) -> Iterator[Row]:
    from liteseg.metrics import mean_of_present

    for network in chosen:
        flops, classes, categories = _ACCURACY.get(network, (None, None, None))
        size = _COUNTED_AT.get(network, (512, 1024))
        ours = network in networks.OURS
        for height, width in dict.fromkeys((size, (512, 1024))):
            one = _profile(network, (height, width))
            # each network's published figure beside the count that it is
            at, published = f"at {height}x{width}", flops if (height, width) == size else None
            macs, tool = (None, published) if ours else (published, None)
            yield _row(4, network, f"GFLOPs, 2 x GMACs {at}", macs, 2 * one.macs / 1e9)
            yield _row(4, network, f"GFLOPs, {_COUNT.removesuffix(', G')} {at}", tool, one.paper / 1e9)
        known = scores.score(network)
        missing = isinstance(known, str)
        detail = known if missing else "measured on val, see the next row"
        yield _row(4, network, "class mIoU, test", classes, None, detail)
        if not missing:
            yield _row(4, network, "class mIoU, val", None, 100 * known.mean_iou)
        yield _row(4, network, "category mIoU, test", categories, None, detail)
        if not missing:
            mean = mean_of_present(list(known.category_iou.values()))
            yield _row(4, network, "category mIoU, val", None, 100 * mean)


def _by_category(scores: Evaluations) -> Iterator[Row]:
    for network in networks.OURS:
        known = scores.score(network)
        for category in _CATEGORIES:
            measured = None if isinstance(known, str) else 100 * known.category_iou[category]
            detail = known if isinstance(known, str) else ""
            yield _row(5, network, f"{category}, val IoU", None, measured, detail)


def run(
    folder: Path,
    numbers: Sequence[int] = TABLES,
    *,
    data: Path | None = None,
    weights: Mapping[str, str] | None = None,
    device: str = "cpu",
    threads: int | None = None,
    runs: int = 200,
    sizes: Sequence[tuple[int, int]] = _SIZES,
    chosen: Sequence[str] = networks.NETWORKS,
    providers: Sequence[str] = tuple(PROVIDERS),
    say: Callable[[str], None] = lambda text: None,
) -> int:
    """Measure the tables and append each figure to ``folder/tables.csv`` as it is there.

    Args:
        data: a Cityscapes folder; mIoU is measured on its split val.
        weights: network (of ``list_models()``, or for Table I ``liteseg_BACKBONE:ROW``) -> file.
        runs: calls that burn in and calls that are timed in Table III.
        sizes: those of Table III to measure.
        chosen: networks of Tables III and IV.
        providers: of Table III, of ``PROVIDERS``.

    Returns:
        How many figures were measured.
    """
    for network in weights or {}:
        known = (*networks.NETWORKS, *(f"liteseg_{b}:{row}" for b in _BACKBONES for row in list(_ABLATION)[:-1]))
        if network not in known:
            raise UserError(f"tables: --weights: expected one of {'; '.join(known)}, got {network!r}")
    scores = Evaluations(data, weights or {}, device)
    measure: dict[int, Callable[[], Iterator[Row]]] = {
        1: lambda: _ablation(scores),
        2: _separable,
        3: lambda: _speed(device, threads, runs, sizes, chosen, providers),
        4: lambda: _accuracy(scores, chosen),
        5: lambda: _by_category(scores),
    }
    where = environment(device, torch.get_num_threads() if threads is None else threads)
    path, ran = folder / "tables.csv", 0
    for number in numbers:
        say(TITLES[number])
        for row in measure[number]():
            append(path, COLUMNS, [{**row, **where}])
            ran += row["measured"] is not None
            published, measured = (f"{row[k]:.4g}" if row[k] is not None else "-" for k in ("published", "measured"))
            say(f"  {row['row']:<32} {row['quantity']:<46} {published:>8} {measured:>8}  {row['detail']}".rstrip())
    return ran


def report(lines: Sequence[Line]) -> str:
    """The page of ``tables.csv``."""
    text = ["# The paper's tables", "", "Emara et al., LiteSeg, DICTA 2019; published figures as in the paper and in "]
    text[-1] += "the authors' README. Empty: not published, or not measured for the reason given."
    for number in TABLES:
        mine = [line for line in latest(lines, KEY) if line["table"] == str(number)]
        if not mine:
            continue
        names = ("row", "quantity", "published", "measured", "detail")
        text += ["", f"## {TITLES[number]}", "", *(f"* {note}" for note in NOTES[number]), ""]
        text += [table(names, ([line[name] for name in names] for line in mine)), ""]
        last = mine[-1]
        text += [
            f"{last['device']}, {last['threads']} threads, torch {last['torch']}, "
            f"commit {last['commit'] or 'unknown'}, {last['date']}"
        ]
    return "\n".join(text) + "\n"
