"""Pictures of results files, by matplotlib (extra ``bench``): rooflines, ratios, images a second. PNG and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from liteseg.bench import kernels, networks
from liteseg.bench.record import Line
from liteseg.errors import MissingExtraError
from liteseg.image_io import atomic_path

__all__ = ["draw_kernels", "draw_networks", "draw_tables"]

# told apart in grey and by most who see colours differently
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999999")

# what the bars of a network are called
_CASE = "{network}, {size}, batch {batch}, {output}, {dtype}, {device}, {threads} threads"


def need_matplotlib() -> Any:
    """matplotlib, drawing to files only; MissingExtraError where it is not installed."""
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise MissingExtraError("drawing", "bench", "matplotlib") from error
    from matplotlib.figure import Figure

    # the same picture from the same numbers
    matplotlib.rcParams["svg.hashsalt"] = "liteseg"
    return Figure


def _save(figure: Any, path: Path) -> list[Path]:
    written = []
    for suffix in (".png", ".svg"):
        with atomic_path(path.with_suffix(suffix)) as temporary:
            metadata = {"Date": None} if suffix == ".svg" else {}
            figure.savefig(temporary, dpi=120, bbox_inches="tight", metadata=metadata)
        written.append(path.with_suffix(suffix))
    return written


def _told_apart(names: Sequence[str]) -> tuple[list[str], str]:
    """Names of parts with commas between, without the parts that all of them have; and those."""
    parts = [name.split(", ") for name in names]
    common = [part for part in parts[0] if len(parts) > 1 and all(part in other for other in parts)]
    return [", ".join(part for part in name if part not in common) for name in parts], ", ".join(common)


def _ratio_bars(path: Path, names: Sequence[str], ratios: Sequence[float], title: str) -> list[Path]:
    """One bar a case, how many times faster ours is, on a logarithmic axis from 1; losses in another colour, left."""
    names, common = _told_apart(names)
    title = ", ".join(filter(None, (title, common)))
    figure = need_matplotlib()(figsize=(9, 1.2 + 0.28 * len(names)))
    from matplotlib.ticker import LogLocator, NullLocator

    axes = figure.add_subplot()
    colours = [_COLOURS[0] if ratio >= 1 else _COLOURS[5] for ratio in ratios]
    # 2 times as fast and half as fast are equally far from 1
    axes.set_xscale("log")
    axes.barh(range(len(names)), [ratio - 1 for ratio in ratios], left=1, color=colours)
    for place, ratio in enumerate(ratios):
        axes.text(ratio, place, f" {ratio:.2f} ", va="center", ha="left" if ratio >= 1 else "right", fontsize=8)
    # room for the numbers
    left, right = min(1, *ratios) / 1.25, 1.25 * max(1, *ratios)
    axes.set_xlim(left, right)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if right / left > 4 else (1, 1.2, 1.5, 2, 3, 5, 6, 7, 8)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("time of the fastest other / time of ours")
    axes.set_title(title, fontsize=10)
    axes.margins(y=0.01)
    return _save(figure, path)


def _roofline(path: Path, lines: Sequence[Line], title: str) -> list[Path]:
    figure = need_matplotlib()(figsize=(8, 5))
    axes = figure.add_subplot()
    copy, fma = float(lines[-1]["copy GB/s"]), float(lines[-1]["FMA GFLOP/s"])
    points = [(2 * float(x["MACs"]) / float(x["bytes"]), float(x["GFLOP/s"]), x["provider"]) for x in lines]
    low, high = 0.5 * min(p[0] for p in points), 2 * max(fma / copy, *(p[0] for p in points))
    ridge = min(max(fma / copy, low), high)
    axes.plot([low, ridge, high], [min(fma, copy * low), min(fma, copy * ridge), fma], color="black", linewidth=1)
    for index, provider in enumerate(dict.fromkeys(point[2] for point in points)):
        x, y = zip(*(point[:2] for point in points if point[2] == provider), strict=True)
        axes.scatter(x, y, s=18, color=_COLOURS[index % len(_COLOURS)], label=provider)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("FLOP a byte (2 MACs; every argument read once, every result written once)")
    axes.set_ylabel("GFLOP/s")
    axes.set_title(f"{title}\nmeasured here: copy {copy:.1f} GB/s, product {fma:.0f} GFLOP/s", fontsize=10)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    return _save(figure, path)


def _layer(line: Line) -> str:
    """`op, network/layer, size`, without the op where the layer has its name."""
    place, _, size = line["layer"].rpartition(" ")
    op = "" if place.endswith(f"/{line['op']}") else f"{line['op']}, "
    return f"{op}{place}, {size}"


def draw_kernels(lines: Sequence[Line], folder: Path) -> list[Path]:
    """A roofline for each device and dtype, forward passes of the ops with products; and the ratios of all cases."""
    written: list[Path] = []
    devices = list(dict.fromkeys((x["device"], x["threads"], x["dtype"]) for x in lines))
    for number, (device, threads, dtype) in enumerate(devices, start=1):
        mine = [x for x in lines if (x["device"], x["threads"], x["dtype"]) == (device, threads, dtype)]
        what = f"{device}, {threads} threads, {dtype}"
        ending = f"-{number}" if len(devices) > 1 else ""
        points = [x for x in mine if x["status"] == "ok" and x["mode"] == "forward" and int(x["MACs"])]
        if points:
            written += _roofline(folder / f"kernels-roofline{ending}", points, what)
        found = kernels.pairs(mine)
        if found:
            names = [f"{_layer(x)}, {x['mode']}, batch {x['batch']}" for x, _, _ in found]
            ratios = [ratio for _, _, ratio in found]
            written += _ratio_bars(folder / f"kernels-ratios{ending}", names, ratios, what)
    return written


def draw_networks(lines: Sequence[Line], folder: Path) -> list[Path]:
    """Images a second of every provider, one group of bars a case; and the ratios."""
    groups = [group for group in networks.groups(lines).values() if any(x["status"] == "ok" for x in group)]
    if not groups:
        return []
    names = [_CASE.format(**group[0]) for group in groups]
    shown, common = _told_apart(names)
    figure = need_matplotlib()(figsize=(9, 1.5 + 0.16 * sum(map(len, groups))))
    axes = figure.add_subplot()
    place, ticks = 0.0, []
    for group in groups:
        first = place
        for line in group:
            if line["status"] == "ok":
                # ours in the colour that it has in the other plots
                colour = _COLOURS[::-1][networks.PROVIDERS.index(line["provider"])]
                axes.barh(place, float(line["images/s"]), color=colour, label=line["provider"])
                place += 1
        ticks.append((first + place - 1) / 2)
        place += 1
    axes.set_yticks(ticks, shown, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("images/s")
    axes.set_title(common, fontsize=10)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    axes.legend(handles.values(), handles.keys(), fontsize=8)
    axes.margins(y=0.01)
    written = _save(figure, folder / "fps-images")
    found = networks.pairs(lines)
    if found:
        compared = [_CASE.format(**mine) for mine, _, _ in found]
        written += _ratio_bars(folder / "fps-ratios", compared, [ratio for _, _, ratio in found], "whole networks")
    return written


def draw_tables(lines: Sequence[Line], folder: Path) -> list[Path]:
    """Measured beside published, where a table has both: one panel a quantity."""
    both = [x for x in lines if x["measured"] and x["published"]]
    if not both:
        return []
    panels = list(dict.fromkeys((x["table"], x["quantity"]) for x in both))
    figure = need_matplotlib()(figsize=(9, 2.6 * len(panels)))
    for number, (title, quantity) in enumerate(panels, start=1):
        axes = figure.add_subplot(len(panels), 1, number)
        chosen = [x for x in both if (x["table"], x["quantity"]) == (title, quantity)]
        for offset, column in ((-0.2, "published"), (0.2, "measured")):
            places = [index + offset for index in range(len(chosen))]
            colour = _COLOURS[6] if column == "published" else _COLOURS[0]
            axes.barh(places, [float(x[column]) for x in chosen], 0.4, color=colour, label=column)
        axes.set_yticks(range(len(chosen)), [x["row"] for x in chosen], fontsize=8)
        axes.invert_yaxis()
        axes.set_xlabel(quantity, fontsize=8)
        axes.set_title(f"Table {title}", fontsize=10)
        axes.legend(fontsize=8)
    figure.tight_layout()
    return _save(figure, folder / "tables")
